_base_ = './dsnet-nano_1xb64-15e_quadrants_demo.py'

# Self-attention at 1/32 of the image on all channels; the MLP makes up for the difference in parameters.
model = dict(backbone=dict(streams='global', arch=dict(mlp_ratio=3.8)))
