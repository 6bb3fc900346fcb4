_base_ = 'mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py'

# About half of the 49 keys of a window, the share that 100 of 197 are. The paper does not say how many it takes here.
custom_hooks = [dict(type='mmextra.KNNAttentionHook', topk=25)]
