# Fine-tuning on ImageNet-1k with SparK's recipe; published: 76.98 from scratch -> 80.01 with H-GKD.
_base_ = 'mmpretrain::spark/benchmarks/resnet50_8xb256-coslr-300e_in1k.py'

model = dict(
    backbone=dict(
        init_cfg=dict(
            checkpoint='work_dirs/hgkd_sparse-resnet50_vit-base-teacher_8xb512-amp-coslr-300e_in1k/'
            'epoch_300.pth'
        )
    )
)
