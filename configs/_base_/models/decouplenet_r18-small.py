# DecoupleNet, phase 1, of the small network.
_base_ = './aspp-sum_r18-small.py'

model = dict(
    type='mmextra.DecoupleNet',
    split_after='layer1',
    decode_head=dict(aux_classifier=True),
    feat_discriminator=dict(type='mmextra.FCDiscriminator', in_channels=16, base_channels=8),
    out_discriminator=dict(type='mmextra.FCDiscriminator', in_channels=5, base_channels=16),
    adapt_cfg=dict(bank=20000),
)
