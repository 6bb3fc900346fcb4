# Outlook attention gives way to ELSA; VOLO's recipe stays. No code was released: the architecture is our reading.
_base_ = '../volo/volo-d1_8xb128_in1k.py'

model = dict(backbone=dict(type='mmextra.ELSAVOLO'))
