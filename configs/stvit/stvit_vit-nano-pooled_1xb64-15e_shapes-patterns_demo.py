_base_ = './stvit_vit-nano_1xb64-15e_shapes-patterns_demo.py'

# The same number of tokens and layers, but nine averages in the place of cluster centres.
model = dict(backbone=dict(stgm_layers=0, pool='avg'))
