# Cross-dataset: the model of COCO-Stuff, with the class names of VOC 2012. Which of them training named
# is not asked: all are equal.
_base_ = './tagclip_vit-b16_8xb2-80k_coco-stuff164k-512x512.py'

classes = (
    'aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair', 'cow',
    'diningtable', 'dog', 'horse', 'motorbike', 'person', 'pottedplant', 'sheep', 'sofa', 'train',
    'tvmonitor',
)  # fmt: skip
model = dict(
    text_encoder=dict(dataset_name=None, vocabulary=classes),
    novel_class=None,
    decode_head=dict(eval_disc_weight=False, gamma=0.0),
)
test_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='PascalVOCDataset',
        data_root='data/VOCdevkit/VOC2012',
        data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'),
        ann_file='ImageSets/Segmentation/val.txt',
        metainfo=dict(classes=classes),
        pipeline={{_base_.test_pipeline}},
    )
)
test_evaluator = dict(_delete_=True, type='IoUMetric', iou_metrics=['mIoU'])
