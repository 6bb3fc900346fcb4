# The published evaluation: p * (1 - w) for seen classes, p * w for unseen ones.
_base_ = './tagclip_vit-b16_8xb2-20k_voc12aug-512x512.py'

model = dict(decode_head=dict(eval_disc_weight='both'))
