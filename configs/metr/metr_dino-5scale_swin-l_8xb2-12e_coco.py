# METR on COCO alone with Swin-L and five scales.
_base_ = 'mmdet::dino/dino-5scale_swin-l_8xb2-12e_coco.py'

model = dict(
    type='mmextra.METR',
    label_spaces=dict(coco='mmdet.CocoDataset'),
    embeddings=dict(source='file', path='data/metr/names_clip.npz'),
    num_categories=20,  # n: 45 of the 900 queries for each category
    cem=dict(num_layers=2, loss_weight=1.0),  # asymmetric loss: gamma 0 and 4, margin 0.05
    bbox_head=dict(type='mmextra.METRHead'),
    train_cfg=dict(assigner=dict(type='mmextra.GroupHungarianAssigner')),
)
custom_hooks = [dict(type='mmextra.LabelSpaceCheckHook')]
