# Phase 1 on the 16 classes that SYNTHIA and Cityscapes share; the mean over 13 of them is reported too.
_base_ = [
    'mmseg::_base_/default_runtime.py',
    '../_base_/models/decouplenet_r101-d8.py',
    '../_base_/datasets/synthia_cityscapes.py',
    '../_base_/schedules/decouplenet_phase1.py',
]

model = dict(decode_head=dict(num_classes=16), out_discriminator=dict(in_channels=16))
load_from = 'work_dirs/aspp-sum_r101-d8_4xb2-20k_synthia-512x896/iter_20000.pth'
