_base_ = 'deit-nano_1xb64-5e_cifar10-64px.py'

# The same weights, but each token attends to the nearest half of the 65.
custom_hooks = [dict(type='mmextra.KNNAttentionHook', topk=33)]
