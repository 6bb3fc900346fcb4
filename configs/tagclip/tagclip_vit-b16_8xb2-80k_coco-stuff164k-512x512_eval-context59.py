# Cross-dataset: the model of COCO-Stuff, with the class names of PASCAL Context. Which of them training
# named is not asked: all are equal.
_base_ = './tagclip_vit-b16_8xb2-80k_coco-stuff164k-512x512.py'

classes = (
    'aeroplane', 'bag', 'bed', 'bedclothes', 'bench', 'bicycle', 'bird', 'boat', 'book', 'bottle',
    'building', 'bus', 'cabinet', 'car', 'cat', 'ceiling', 'chair', 'cloth', 'computer', 'cow', 'cup',
    'curtain', 'dog', 'door', 'fence', 'floor', 'flower', 'food', 'grass', 'ground', 'horse',
    'keyboard', 'light', 'motorbike', 'mountain', 'mouse', 'person', 'plate', 'platform',
    'pottedplant', 'road', 'rock', 'sheep', 'shelves', 'sidewalk', 'sign', 'sky', 'snow', 'sofa',
    'table', 'track', 'train', 'tree', 'truck', 'tvmonitor', 'wall', 'water', 'window', 'wood',
)  # fmt: skip
model = dict(
    text_encoder=dict(dataset_name=None, vocabulary=classes),
    novel_class=None,
    decode_head=dict(eval_disc_weight=False, gamma=0.0),
)
test_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='PascalContextDataset59',
        data_root='data/VOCdevkit/VOC2010',
        data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClassContext'),
        ann_file='ImageSets/SegmentationContext/val.txt',
        pipeline={{_base_.test_pipeline}},
    )
)
test_evaluator = dict(_delete_=True, type='IoUMetric', iou_metrics=['mIoU'])
