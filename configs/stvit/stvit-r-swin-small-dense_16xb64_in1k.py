_base_ = './stvit-r-swin-small_16xb64_in1k.py'

# The form of the detectors: images of any size, semantic tokens that start from the pooled image tokens.
model = dict(backbone=dict(variant='dense'))
