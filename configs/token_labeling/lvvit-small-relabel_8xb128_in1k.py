# One label for each crop, cut out of the label map, and no classifier of patch tokens.
_base_ = './lvvit-small_8xb128_in1k.py'

model = dict(
    backbone=dict(mix_token=False, out_type='cls_token'),
    head=dict(with_aux=False),
)
data_preprocessor = dict(label_size=1)
