# Batch 1024, AdamW 1e-3, weight decay 0.05, 20 epochs of warm-up from 1e-6, down to 1e-5, 300 epochs, Swin's
# augmentation and gradients clipped at 5: all as the host's Swin-S.
_base_ = 'mmpretrain::swin_transformer/swin-small_16xb64_in1k.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmextra.STViTRSwin',
        arch='small',
        variant='cls',  # the form of the released classifiers, for images of 224
        img_size=224,
        drop_path_rate=0.3,
    )
)
