# The ablation: the cells of every label map are exchanged at random.
_base_ = './token-labeling_lvvit-nano_1xb32-10e_shape-pairs_demo.py'

train_dataloader = dict(dataset=dict(token_label='shuffled'))
