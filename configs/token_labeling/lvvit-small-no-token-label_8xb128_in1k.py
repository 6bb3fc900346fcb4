# LV-ViT without label maps, for data of your own: change `num_classes`.
_base_ = './lvvit-small_8xb128_in1k.py'

# Only the class token is trained; its targets are smoothed, and mixed with the tokens. The classifier
# of the patch tokens stays as it was drawn and has no say at test time.
model = dict(head=dict(aux_test_weight=0.0, loss=dict(dense_weight=0.0)))

train_pipeline = [step for step in _base_.train_pipeline if 'LoadTokenLabel' not in step['type']]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
