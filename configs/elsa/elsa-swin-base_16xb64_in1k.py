_base_ = './elsa-swin-tiny_16xb64_in1k.py'

model = dict(
    backbone=dict(arch='base', group_width=8, drop_path_rate=0.5), head=dict(in_channels=1024)
)
# The averaged weights are evaluated. The momentum is that of the host's DeiT-B, ours.
custom_hooks = [dict(type='EMAHook', momentum=4e-5, priority='ABOVE_NORMAL')]
