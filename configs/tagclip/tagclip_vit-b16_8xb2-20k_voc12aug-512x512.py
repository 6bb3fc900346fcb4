# Inductive: 15 seen classes of VOC 2012 are named in training, 5 are not. Results are reported with
# tagclip_vit-b16_8xb2-20k_voc12aug-512x512_eval.py, which weighs the scores by the trusty map.
_base_ = [
    'mmseg::_base_/default_runtime.py',
    '../_base_/datasets/tagclip_voc12aug.py',
    '../_base_/models/tagclip_vit-b16.py',
    '../_base_/schedules/tagclip_20k.py',
]

novel_class = [15, 16, 17, 18, 19]  # pottedplant, sheep, sofa, train, tvmonitor

model = dict(text_encoder=dict(vocabulary={{_base_.classes}}), novel_class=novel_class)
val_evaluator = dict(
    _delete_=True, type='mmextra.ZeroShotIoUMetric', novel_class=novel_class, iou_metrics=['mIoU']
)
test_evaluator = val_evaluator
