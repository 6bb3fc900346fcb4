# ATSS with distributions for box edges: the teacher.
_base_ = 'mmdet::atss/atss_r101_fpn_1x_coco.py'

model = dict(
    bbox_head=dict(
        type='mmextra.ATSSDistHead',
        reg_max=16,
        bbox_coder=dict(_delete_=True, type='mmextra.CenterDistanceBBoxCoder'),
    )
)
