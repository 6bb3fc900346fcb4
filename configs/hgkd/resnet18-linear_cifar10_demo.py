# Linear probe: the student of the demonstration stays as it is, and 2,500 labels train the classifier on its normalised
# features. Pre-trained weights as in resnet18-500-labels_cifar10_demo.py.
_base_ = 'resnet18-500-labels_cifar10_demo.py'

model = dict(
    backbone=dict(frozen_stages=3, zero_init_residual=False),  # random blocks do something, too
    neck=[dict(type='GlobalAveragePooling'), dict(type='ClsBatchNormNeck', input_features=64)],
)
train_dataloader = dict(dataset=dict(indices=list(range(3, 50000, 20))))
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-2, weight_decay=0.0))
train_cfg = dict(max_epochs=8, val_interval=8)
