_base_ = 'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py'

# About half of the 49 keys of a window. Start from a Swin trained with k-NN attention, or from the host's.
custom_hooks = [dict(type='mmextra.KNNAttentionHook', topk=25)]
