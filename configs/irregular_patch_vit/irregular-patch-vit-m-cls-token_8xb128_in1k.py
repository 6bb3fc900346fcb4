_base_ = './irregular-patch-vit-m_8xb128_in1k.py'

# Ablation: a class token instead of the adaptive fusion.
model = dict(backbone=dict(fusion='cls_token'))
