# The same head without a word from the trusty token, which is what TagCLIP is held against.
_base_ = './tagclip_class-vectors_1xb16-300it_demo.py'

model = dict(
    decode_head=dict(
        eval_disc_weight=False, loss_decode=dict(type='mmextra.TagCLIPLoss', disc_weight=0.0)
    )
)
