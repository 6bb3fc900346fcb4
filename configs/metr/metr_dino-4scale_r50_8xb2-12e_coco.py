# METR on COCO alone: DINO's 12 epochs.
_base_ = 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'

model = dict(
    type='mmextra.METR',
    label_spaces=dict(coco='mmdet.CocoDataset'),
    # CLIP ViT-B/16 with 'a photo of a {}.', by tools/make_category_embeddings.py
    embeddings=dict(source='file', path='data/metr/names_clip.npz'),
    num_categories=20,  # n: 45 of the 900 queries for each category
    cem=dict(num_layers=2, loss_weight=1.0),  # asymmetric loss: gamma 0 and 4, margin 0.05
    bbox_head=dict(type='mmextra.METRHead'),
    # Focal 2, L1 5, GIoU 2, within each category.
    train_cfg=dict(assigner=dict(type='mmextra.GroupHungarianAssigner')),
)
custom_hooks = [dict(type='mmextra.LabelSpaceCheckHook')]
