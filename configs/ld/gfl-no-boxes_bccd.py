# The control of ld-only-boxes_gfl_bccd.py: no box losses, no teacher.
_base_ = 'gfl-plain_bccd.py'

model = dict(bbox_head=dict(loss_bbox=dict(loss_weight=0.0), loss_dfl=dict(loss_weight=0.0)))
