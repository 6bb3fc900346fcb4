# All that this student learns of boxes comes from the teacher: its own box losses have no weight.
_base_ = 'ld_gfl_bccd.py'

model = dict(bbox_head=dict(loss_bbox=dict(loss_weight=0.0), loss_dfl=dict(loss_weight=0.0)))
