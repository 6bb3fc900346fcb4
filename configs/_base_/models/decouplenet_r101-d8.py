# DecoupleNet, phase 1, with the published weights of its terms.
_base_ = './aspp-sum_r101-d8.py'

model = dict(
    type='mmextra.DecoupleNet',
    split_after='layer1',
    decode_head=dict(aux_classifier=True),
    feat_discriminator=dict(type='mmextra.FCDiscriminator', in_channels=256, base_channels=32),
    out_discriminator=dict(type='mmextra.FCDiscriminator', in_channels=19, base_channels=64),
    adapt_cfg=dict(temperature=1.8, adv_src=0.1, adv_tgt=0.01, st=0.1, keep=0.8, bank=100000),
)
