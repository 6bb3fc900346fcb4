# Transductive: go on from the inductive model for half as many iterations, with queries of all classes;
# pixels of novel classes are labelled by the model itself.
_base_ = './tagclip_vit-b16_8xb2-80k_coco-stuff164k-512x512.py'

load_from = 'work_dirs/tagclip_vit-b16_8xb2-80k_coco-stuff164k-512x512/iter_80000.pth'
model = dict(
    init_cfg=None,
    data_preprocessor=dict(seg_pad_val=200),  # padding, which the losses then ignore
    decode_head=dict(self_training=True),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, begin=0, end=1500, by_epoch=False),
    dict(type='PolyLR', power=0.9, eta_min=1e-6, begin=1500, end=40000, by_epoch=False),
]
train_cfg = dict(max_iters=40000, val_interval=4000)
default_hooks = dict(checkpoint=dict(interval=4000))
