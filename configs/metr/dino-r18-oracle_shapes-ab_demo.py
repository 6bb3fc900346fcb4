# The best that can be had: all boxes of all images.
_base_ = 'dino-r18-merged_shapes-ab_demo.py'

train_dataloader = dict(dataset=dict(ann_file='full.json'))
