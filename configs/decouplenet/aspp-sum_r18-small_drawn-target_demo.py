# Coloured shapes: the upper bound, with the labels of the target.
_base_ = './aspp-sum_r18-small_drawn-source_demo.py'

train_dataloader = dict(dataset=dict(domain='target', seed=1))
