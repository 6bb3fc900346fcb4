# Stock DINO, started from what METR has learned:
#   python tools/metr_export.py work_dirs/METR/epoch_1.pth metr_dino_r50.pth
_base_ = 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'

model = dict(backbone=dict(init_cfg=None))
load_from = 'metr_dino_r50.pth'
