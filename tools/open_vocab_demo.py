"""Segment an image with class names of your own choice.

    python tools/open_vocab_demo.py IMG --classes "road, dog, ..." CONFIG CHECKPOINT

CONFIG is one of configs/tagclip with a text encoder, CHECKPOINT a trained model. Writes the image with
coloured masks and a legend, beside it the trusty map: where the model sees what training did not
name. `--seen` says which of the names training did name; the scores are then weighed by the trusty
map, and otherwise all names are equal.
"""

import argparse
import sys
from pathlib import Path
from typing import List, Optional

import cv2
import numpy as np
import torch
from mmengine.config import Config, DictAction
from mmengine.structures import BaseDataElement
from mmseg.apis import inference_model, init_model

import mmextra.registry  # noqa: F401  for `mmextra::` bases and safe loading
from mmextra.engine.checkpoint import read_checkpoint, state_dict_of
from mmextra.seg.tagclip.segmentor import class_colours

LEGEND_WIDTH, LINE = 220, 22


def parse_args(argv=None) -> argparse.Namespace:
    cli = argparse.ArgumentParser(description='Segment an image with class names of your choice')
    cli.add_argument('image', type=Path)
    cli.add_argument('config', type=Path)
    cli.add_argument('checkpoint', type=Path)
    cli.add_argument('--classes', required=True, help='names, separated by commas')
    cli.add_argument('--seen', default='', help='those of them that training named')
    cli.add_argument('--out', type=Path, help='picture to write (default: IMAGE_open_vocab.png)')
    cli.add_argument('--opacity', type=float, default=0.6, help='of the masks (default: 0.6)')
    cli.add_argument('--device', default='cuda:0' if torch.cuda.is_available() else 'cpu')
    cli.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE')
    return cli.parse_args(argv)


def names_of(text: str) -> List[str]:
    """The names of a list that is separated by commas."""
    return [name.strip() for name in text.split(',')] if text.strip() else []


def build(cfg: Config, checkpoint: str, classes: List[str], seen: List[str], device: str):
    """The model of a config, with another vocabulary.

    Raises:
        ValueError: If the config has no text encoder, a name is empty or given twice, a seen one is
            not among the classes, or the checkpoint does not fit.
    """
    if not cfg.model.get('text_encoder'):
        raise ValueError('the config has no text_encoder, so that no names can be encoded')
    unknown = [name for name in seen if name not in classes]
    if unknown:
        raise ValueError(f'--seen names {unknown[0]!r}, which is not among --classes')
    cfg.model.text_encoder.update(dataset_name=None, vocabulary=classes)
    cfg.model.update(
        base_class=[classes.index(name) for name in seen] if seen else None,
        novel_class=None,
        both_class=None,
        init_cfg=None,
    )
    head = cfg.model.decode_head
    head.eval_disc_weight = 'both' if seen and head.get('discriminate', True) else False
    if not seen:
        head.gamma = 0.0
    if len(set(seen)) in (0, len(classes)):  # no novel names, which self-training is about
        head.self_training = False
    model = init_model(cfg, device=device)
    try:
        model.load_state_dict(state_dict_of(read_checkpoint(checkpoint)))
    except RuntimeError as error:
        raise ValueError(f'{checkpoint} does not fit the config: {error}') from error
    return model


def legend(names: List[str], shares: np.ndarray, palette: np.ndarray, height: int) -> np.ndarray:
    """A column with colour, name and share of the pixels of each class."""
    panel = np.full((max(height, LINE * len(names) + 8), LEGEND_WIDTH, 3), 255, np.uint8)
    for i, name in enumerate(names):
        top = 4 + LINE * i
        panel[top + 3 : top + LINE - 3, 6:26] = palette[i]
        text = f'{name[:18]} {100 * shares[i]:.0f}%'.encode('ascii', 'replace').decode()
        cv2.putText(panel, text, (32, top + 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1)
    return panel


def picture(
    image: np.ndarray, result: BaseDataElement, names: List[str], opacity: float
) -> np.ndarray:
    """Masks over the image (H, W, 3), the trusty map if there is one, and the legend."""
    label = result.pred_sem_seg.data[0].cpu().numpy()
    palette = np.array(class_colours(len(names)), np.uint8)
    panels = [(image * (1 - opacity) + palette[label] * opacity).astype(np.uint8)]
    if 'trusty_map' in result:
        heat = (255 * result.trusty_map.data[0].float().cpu().numpy()).astype(np.uint8)
        panels.append(cv2.applyColorMap(heat, cv2.COLORMAP_VIRIDIS)[..., ::-1])
    shares = np.bincount(label.ravel(), minlength=len(names)) / label.size
    panels.append(legend(names, shares, palette, len(image)))
    height = max(len(p) for p in panels)
    pads = [((0, height - len(p)), (0, 4), (0, 0)) for p in panels]
    return np.concatenate([np.pad(p, w, constant_values=255) for p, w in zip(panels, pads)], 1)


def main(argv: Optional[List[str]] = None) -> Path:
    """Run the tool and return the path of the picture."""
    args = parse_args(argv)
    image = cv2.imread(str(args.image))
    if image is None:
        sys.exit(f'{args.image} is not an image that can be read')
    cfg = Config.fromfile(args.config)
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    classes = names_of(args.classes)
    try:
        model = build(cfg, str(args.checkpoint), classes, names_of(args.seen), args.device)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(str(error))
    result = inference_model(model, image)
    out = args.out or args.image.with_name(f'{args.image.stem}_open_vocab.png')
    out.parent.mkdir(parents=True, exist_ok=True)
    panels = picture(image[..., ::-1], result, classes, args.opacity)
    cv2.imwrite(str(out), panels[..., ::-1])
    print(f'written: {out}')
    return out


if __name__ == '__main__':
    main()
