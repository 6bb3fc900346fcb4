_base_ = './irregular-patch-vit-m_8xb128_in1k.py'

# Ablation: patches of one size.
model = dict(backbone=dict(branch_strides=(2,)))
