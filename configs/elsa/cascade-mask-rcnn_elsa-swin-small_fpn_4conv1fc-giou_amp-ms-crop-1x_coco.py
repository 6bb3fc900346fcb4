_base_ = './cascade-mask-rcnn_elsa-swin-tiny_fpn_4conv1fc-giou_amp-ms-crop-1x_coco.py'

model = dict(
    backbone=dict(
        arch='small',
        group_width=8,
        drop_path_rate=0.2,  # of Mask R-CNN; not published for Cascade R-CNN
    )
)
