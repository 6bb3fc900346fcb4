_base_ = './irregular-patch-vit-m_8xb128_in1k.py'

# Ablation: the mean of the tokens instead of the adaptive fusion.
model = dict(backbone=dict(fusion='mean'))
