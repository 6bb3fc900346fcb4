_base_ = './dsnet-nano_1xb32-15e_colours-outline_demo.py'

# Depth-wise convolutions on all channels; a wider MLP makes up for the attentions' parameters.
model = dict(backbone=dict(streams='local', arch=dict(mlp_ratio=5.4)))
