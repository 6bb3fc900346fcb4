_base_ = 'mmdet::pvt/retinanet_pvt-t_fpn_1x_coco.py'

# Half of the keys, however many an image has.
custom_hooks = [dict(type='mmextra.KNNAttentionHook', topk=0.5)]
