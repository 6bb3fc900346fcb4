_base_ = 'mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py'

# About half of the 49 keys of a window.
custom_hooks = [dict(type='mmextra.KNNAttentionHook', topk=25)]
