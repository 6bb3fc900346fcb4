# TagCLIP on CLIP ViT-B/16 at 512x512, with the numbers that all its settings share.
model = dict(
    type='mmextra.TagCLIP',
    # From the authors of CLIP, as it is: a TorchScript archive, or its state dict.
    init_cfg=dict(type='mmextra.OfficialCheckpoint', checkpoint='checkpoints/ViT-B-16.pt'),
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        # ImageNet's, as published, and not CLIP's own.
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(512, 512),
    ),
    backbone=dict(
        type='mmextra.VPTCLIPVisionTransformer',
        input_resolution=512,
        num_tokens=10,
        total_d_layer=11,  # every block has prompts of its own
    ),
    text_encoder=dict(
        type='CLIPTextEncoder', vocabulary=None, templates=['a photo of a {}'], cat_bg=False
    ),
    decode_head=dict(
        type='mmextra.TagCLIPHead',
        in_channels=512,
        channels=512,
        num_heads=8,
        operator='a_n_n',
        eval_disc_weight=False,  # during training, as published; the *_eval configs switch it on
        gamma=0.1,
        trusty_target='novel',
        loss_decode=dict(
            type='mmextra.TagCLIPLoss', mask_weight=20.0, dice_weight=1.0, disc_weight=10.0
        ),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(426, 426)),
)
