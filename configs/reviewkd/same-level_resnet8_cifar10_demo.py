# What the review has to beat: each level alone, through a 1x1 convolution, with the MSE alone.
_base_ = 'reviewkd_resnet8_cifar10_demo.py'

custom_hooks = _base_.custom_hooks
custom_hooks[0].fusion = dict(type='mmextra.SameLevelAdapters')
custom_hooks[0].loss = dict(pool_sizes=())
