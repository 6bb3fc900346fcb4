"""Image backbones for mmpretrain, mmdet and mmseg."""
