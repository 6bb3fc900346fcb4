_base_ = './dsnet-nano_1xb32-15e_colours-outline_demo.py'

# Self-attention at 1/32 of the image on all channels, with as many parameters.
model = dict(backbone=dict(streams='global'))
