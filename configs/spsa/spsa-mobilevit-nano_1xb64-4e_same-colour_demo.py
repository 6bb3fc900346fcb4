_base_ = './mobilevit-nano_1xb64-4e_same-colour_demo.py'

model = dict(
    backbone=dict(type='mmextra.SPSAMobileViT', spsa=dict(num_heads=4, tau=1.0)),
)
