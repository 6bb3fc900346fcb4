# The ablation: all of the 65 tokens are kept, which is dense attention.
_base_ = './kvt_vit-nano_1xb64-12e_distractors_demo.py'

custom_hooks = [
    dict(type='mmextra.KNNAttentionHook', topk=65),
    dict(type='mmextra.DistractorAttentionHook'),
]
