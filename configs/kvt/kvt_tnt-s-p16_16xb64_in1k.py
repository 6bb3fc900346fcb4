_base_ = 'mmpretrain::tnt/tnt-s-p16_16xb64_in1k.py'

# 100 of the 197 patches. The 16 pixels of a patch attend to all of each other.
custom_hooks = [dict(type='mmextra.KNNAttentionHook', topk=100)]
