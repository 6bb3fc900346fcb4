# Phase 1: feature alignment and self-discrimination, from a checkpoint that was trained on the source alone.
_base_ = [
    'mmseg::_base_/default_runtime.py',
    '../_base_/models/decouplenet_r101-d8.py',
    '../_base_/datasets/gta5_cityscapes.py',
    '../_base_/schedules/decouplenet_phase1.py',
]

load_from = 'work_dirs/aspp-sum_r101-d8_4xb2-20k_gta5-512x896/iter_20000.pth'
