_base_ = './stvit_vit-nano_1xb32-10e_distractors_demo.py'

# The same number of tokens and layers, but nine averages in the place of cluster centres.
model = dict(backbone=dict(stgm_layers=0, pool='avg'))
