# The pre-trained ResNet-50 in a stock detector. Batch norms are trained: the statistics of the pre-training are those
# of visible cells.
_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'

model = dict(
    backbone=dict(
        frozen_stages=-1,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        norm_eval=False,
        init_cfg=dict(
            _delete_=True,
            type='Pretrained',
            checkpoint='work_dirs/hgkd_sparse-resnet50_vit-base-teacher_8xb512-amp-coslr-300e_in1k/'
            'epoch_300.pth',
            prefix='backbone.',
        ),
    )
)
