# The baseline of o2detr_r18_rotated-rectangles_demo.py: the same network, every angle held at 0.
_base_ = 'o2detr_r18_rotated-rectangles_demo.py'

model = dict(bbox_head=dict(predict_angle=False))
