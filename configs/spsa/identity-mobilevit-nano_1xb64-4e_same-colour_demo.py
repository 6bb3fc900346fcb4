_base_ = './mobilevit-nano_1xb64-4e_same-colour_demo.py'

# The identity in the place of every attention: what the convolutions can do without either.
model = dict(backbone=dict(type='mmextra.SPSAMobileViT', spsa=None))
