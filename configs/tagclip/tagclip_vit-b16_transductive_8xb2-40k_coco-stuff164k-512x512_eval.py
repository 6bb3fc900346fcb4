# The published evaluation. Nothing is taken off the scores of seen classes after self-training.
_base_ = './tagclip_vit-b16_transductive_8xb2-40k_coco-stuff164k-512x512.py'

model = dict(decode_head=dict(eval_disc_weight='both'))
