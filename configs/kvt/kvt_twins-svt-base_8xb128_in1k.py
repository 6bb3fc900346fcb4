_base_ = 'mmpretrain::twins/twins-svt-base_8xb128_in1k.py'

# Half of the 49 keys of its windows and of its subsampled maps. The paper does not say how many it takes here.
custom_hooks = [dict(type='mmextra.KNNAttentionHook', topk=0.5)]
