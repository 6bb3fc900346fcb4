# Baseline: set B alone. Half the images, so half the iterations.
_base_ = 'dino-r18-merged_shapes-ab_demo.py'

metainfo = dict(classes=('circle', 'triangle'))
model = dict(bbox_head=dict(num_classes=2))
train_dataloader = dict(dataset=dict(ann_file='b.json', metainfo=metainfo))
val_dataloader = dict(dataset=dict(metainfo=metainfo))
test_dataloader = val_dataloader
