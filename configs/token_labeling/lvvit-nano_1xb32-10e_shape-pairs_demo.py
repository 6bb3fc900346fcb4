# The baseline: the smoothed class of the image alone. The classifier of patch tokens is not trained.
_base_ = './token-labeling_lvvit-nano_1xb32-10e_shape-pairs_demo.py'

model = dict(head=dict(loss=dict(dense_weight=0.0)))
train_dataloader = dict(dataset=dict(token_label=None))
custom_hooks = []
