"""TagCLIP: sliding windows of 512 over an image, with windows in batches and texts encoded once."""

from functools import partial
from pathlib import Path

import torch
from benchmark_case import Case
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.models.segmentors import EncoderDecoder
from torch import nn

from mmextra.registry import MODELS

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / 'configs/tagclip/tagclip_vit-b16_8xb2-20k_voc12aug-512x512_eval.py'


class Inference(nn.Module):
    """Scores of an image by sliding windows.

    Args:
        batched (bool): Whether windows share a batch.
        cached (bool): Whether the text embeddings outlive a window.
        device (str): Where the model lives.
    """

    def __init__(self, batched: bool, cached: bool, device: str) -> None:
        super().__init__()
        init_default_scope('mmseg')
        cfg = Config.fromfile(CONFIG)
        cfg.model.init_cfg = None
        self.model = MODELS.build(cfg.model).to(device)
        self.slide = self.model.slide_inference
        if not batched:  # mmseg's own loop
            self.slide = partial(EncoderDecoder.slide_inference, self.model)
        if not cached:
            self.model.backbone.register_forward_pre_hook(self.model._forget_text)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Segment images (1, 3, H, W)."""
        return self.slide(x, [{}])


def cases(device: str = 'cpu'):
    def build(batched, cached):
        return Inference(batched, cached, device), (torch.randn(1, 3, 512, 938, device=device),)

    return [
        Case(
            'TagCLIP ViT-B/16, 20 names, 512x938 in 2 windows',
            ours=partial(build, True, True),
            yardstick=partial(build, False, False),
            yardstick_name="mmseg's loop over windows, texts encoded for each",
            reference=partial(build, False, True),
            reference_name="mmseg's loop, texts encoded once",
            backward=False,
        )
    ]
