_base_ = './irregular-patch-vit-m_8xb128_in1k.py'

# "600M"
model = dict(backbone=dict(arch='l'), head=dict(in_channels=384))
