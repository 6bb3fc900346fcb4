_base_ = 'mmpretrain::t2t_vit/t2t-vit-t-19_8xb64_in1k.py'

# 100 of the 197 tokens of the encoder. The attention that merges thousands of pixels into tokens stays dense; whether
# it does in the paper is not said. The EMA is the host's, with the decay of the paper.
custom_hooks = [
    dict(type='mmextra.KNNAttentionHook', topk=100, exclude='tokens_to_token'),
    dict(type='EMAHook', momentum=4e-5, priority='ABOVE_NORMAL'),
]
