"""Annotate a folder of images for token labeling with any mmpretrain classifier.

Each image, resized to a square, goes through the classifier; the best classes at each place of its
last feature map are written to a tree of ``.pt`` files that mirrors the images, as
``mmextra.LoadTokenLabel`` reads them.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import load_state_dict
from mmengine.utils import ProgressBar
from mmpretrain.registry import MODELS
from PIL import Image

from mmextra.backbones.token_labeling import dense_scores, top_classes
from mmextra.engine.checkpoint import read_checkpoint, state_dict_of

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp')


def parse_args(argv=None):
    cli = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    cli.add_argument('config', help='config of the classifier')
    cli.add_argument('checkpoint', help='its weights')
    cli.add_argument('images', type=Path, help='folder of images, with one folder for each class')
    cli.add_argument('labels', type=Path, help='folder to write the label maps to')
    cli.add_argument('--size', type=int, default=576, help='side of the images (default: 576)')
    cli.add_argument('--topk', type=int, default=5, help='classes kept at each place (default: 5)')
    cli.add_argument('--batch-size', type=int, default=32)
    cli.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    args = cli.parse_args(argv)
    args.files = sorted(p for p in args.images.rglob('*') if p.suffix.lower() in SUFFIXES)
    if not args.files:
        cli.error(f'there are no images in {args.images}')
    return args


def load_images(files, size):
    """Read images as BGR, as the host does, and resize them: (B, 3, size, size)."""
    images = [Image.open(f).convert('RGB').resize((size, size), Image.BICUBIC) for f in files]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).flip(1)


def main(argv=None):
    args = parse_args(argv)
    cfg = Config.fromfile(args.config)
    init_default_scope(cfg.get('default_scope', 'mmpretrain'))
    if 'data_preprocessor' in cfg:
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    model = MODELS.build(cfg.model).to(args.device)
    load_state_dict(model, state_dict_of(read_checkpoint(args.checkpoint)), strict=True)
    model.eval()

    progress = ProgressBar(len(args.files))
    for start in range(0, len(args.files), args.batch_size):
        files = args.files[start : start + args.batch_size]
        data = model.data_preprocessor(dict(inputs=load_images(files, args.size)))
        for file, label in zip(files, top_classes(dense_scores(model, data['inputs']), args.topk)):
            path = args.labels / file.parent.relative_to(args.images)
            path.mkdir(parents=True, exist_ok=True)
            torch.save(label.cpu().clone(), path / f'{file.name.partition(".")[0]}.pt')
            progress.update()


if __name__ == '__main__':
    main()
