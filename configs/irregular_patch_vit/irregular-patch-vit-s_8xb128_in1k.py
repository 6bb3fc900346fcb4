_base_ = './irregular-patch-vit-m_8xb128_in1k.py'

# "150M"
model = dict(backbone=dict(arch='s'), head=dict(in_channels=192))
