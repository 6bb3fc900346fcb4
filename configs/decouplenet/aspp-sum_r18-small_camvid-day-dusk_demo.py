# CamVid: the upper bound, with the labels of day and dusk.
_base_ = './aspp-sum_r18-small_camvid-day_demo.py'

train_dataloader = dict(
    dataset=dict(prefixes=['0006R0_', '0016E5_', '0001TP_']),
)
