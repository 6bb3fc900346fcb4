# Inductive: 156 seen classes of COCO-Stuff are named in training, 15 are not. Results are reported with
# tagclip_vit-b16_8xb2-80k_coco-stuff164k-512x512_eval.py, which weighs the scores by the trusty map.
_base_ = [
    'mmseg::_base_/default_runtime.py',
    '../_base_/datasets/tagclip_coco-stuff164k.py',
    '../_base_/models/tagclip_vit-b16.py',
    '../_base_/schedules/tagclip_20k.py',
]

# cow, giraffe, suitcase, frisbee, skateboard, carrot, scissors, cardboard, clouds, grass, playingfield,
# river, road, tree, wall-concrete
novel_class = [19, 23, 28, 29, 36, 51, 76, 88, 94, 112, 133, 136, 137, 157, 160]
# The embedding of a class is the mean over these.
templates = [
    'a photo of a {}.',
    'a photo of a small {}.',
    'a photo of a medium {}.',
    'a photo of a large {}.',
    'This is a photo of a {}.',
    'This is a photo of a small {}.',
    'This is a photo of a medium {}.',
    'This is a photo of a large {}.',
    'a {} in the scene.',
    'a photo of a {} in the scene.',
    'There is a {} in the scene.',
    'There is the {} in the scene.',
    'This is a {} in the scene.',
    'This is the {} in the scene.',
    'This is one {} in the scene.',
]

model = dict(
    backbone=dict(num_tokens=100),
    text_encoder=dict(dataset_name='cocostuff', templates=templates),
    novel_class=novel_class,
)
val_evaluator = dict(
    _delete_=True, type='mmextra.ZeroShotIoUMetric', novel_class=novel_class, iou_metrics=['mIoU']
)
test_evaluator = val_evaluator
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, begin=0, end=1500, by_epoch=False),
    dict(type='PolyLR', power=0.9, eta_min=1e-6, begin=1500, end=80000, by_epoch=False),
]
train_cfg = dict(max_iters=80000, val_interval=8000)
default_hooks = dict(checkpoint=dict(interval=8000))
