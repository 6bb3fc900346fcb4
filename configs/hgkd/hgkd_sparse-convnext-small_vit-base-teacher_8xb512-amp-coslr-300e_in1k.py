# ConvNeXt-Small from a ViT-B/16. Its maps are normalised as its own layers are.
_base_ = 'hgkd_sparse-resnet50_vit-base-teacher_8xb512-amp-coslr-300e_in1k.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='SparseConvNeXt',
        arch='small',
        drop_path_rate=0.2,
        out_indices=(0, 1, 2, 3),
        gap_before_output=False,
    ),
    decoder=dict(sparse_norm_cfg=dict(type='SparseLN2d', eps=1e-6)),
)
