"""STViT beside DeiT-S, STViT-R beside Swin-S, and its blocks beside a realisation that unfolds before it projects."""

import torch
import torch.nn.functional as F
from benchmark_case import Case
from mmpretrain.models import SwinTransformer, VisionTransformer
from torch import nn

from mmextra.backbones.stvit import (
    SemanticAttentionBlock,
    SemanticRecoveryBlock,
    STViT,
    STViTRSwin,
)
from mmextra.backbones.stvit.blocks import from_windows, semantic_grid, to_windows


class Unfolded(nn.Module):
    """Norm and projection of every copy of a key, as the released code does; zeros beyond the map take part."""

    def __init__(self, block: nn.Module, stride: int) -> None:
        super().__init__()
        self.block, self.stride = block, stride

    def keys(self, tokens, hw_shape, whole):
        size, channels = self.block.key_size, tokens.shape[-1]
        before, after = (size - self.stride) // 2, (size - self.stride + 1) // 2
        grid = tokens.transpose(1, 2).unflatten(2, hw_shape)
        right, bottom = whole[1] - hw_shape[1] + after, whole[0] - hw_shape[0] + after
        grid = F.pad(grid, (before, right, before, bottom))
        copies = F.unfold(grid, size, stride=self.stride).unflatten(1, (channels, -1))
        copies = copies.permute(0, 3, 2, 1).flatten(0, 1)
        return self.block.attn.kv(self.block.norm1(copies))


class UnfoldedSemanticAttention(Unfolded):
    def forward(self, x, hw_shape, semantic):
        block, window = self.block, self.block.window_size
        whole = tuple(side + -side % window for side in hw_shape)
        grid = semantic_grid(hw_shape, window, block.sample_size)
        query = block.norm1(to_windows(semantic, grid, block.sample_size))
        branch = block.attn(query, self.keys(x, hw_shape, whole))
        return block.add(semantic, from_windows(branch, grid, block.sample_size))


class UnfoldedRecovery(Unfolded):
    def forward(self, x, hw_shape, semantic):
        block, window = self.block, self.block.window_size
        whole = tuple(side + -side % window for side in hw_shape)
        grid = semantic_grid(hw_shape, window, block.sample_size)
        query = F.pad(
            x.unflatten(1, hw_shape), (0, 0, 0, whole[1] - hw_shape[1], 0, whole[0] - hw_shape[0])
        )
        query = block.norm1(to_windows(query.flatten(1, 2), whole, window))
        branch = from_windows(block.attn(query, self.keys(semantic, grid, grid)), whole, window)
        branch = branch.unflatten(1, whole)[:, : hw_shape[0], : hw_shape[1]].flatten(1, 2)
        return block.add(x, branch)


def images(device, batch=4):
    return (torch.randn(batch, 3, 224, 224, device=device),)


def block_inputs(device, hw_shape=(38, 50)):
    num = semantic_grid(hw_shape)[0] * semantic_grid(hw_shape)[1]
    x = torch.randn(1, hw_shape[0] * hw_shape[1], 384, device=device)
    return x, hw_shape, torch.randn(1, num, 384, device=device)


def cases(device):
    select = SemanticAttentionBlock(384, 12, key_size=21, pad_mask=False).to(device)
    recover = SemanticRecoveryBlock(384, 12, key_size=27, pad_mask=False).to(device)
    return [
        Case(
            'STViT-DeiT-S, 224, batch 4',
            ours=lambda: (STViT('deit-small').to(device), images(device)),
            yardstick=lambda: (VisionTransformer('deit-small').to(device), images(device)),
            yardstick_name='mmpretrain DeiT-S',
        ),
        Case(
            'STViT-R-Swin-S, classifier, 224, batch 4',
            ours=lambda: (STViTRSwin('small', 'cls').to(device), images(device)),
            yardstick=lambda: (SwinTransformer('small').to(device), images(device)),
            yardstick_name='mmpretrain Swin-S',
        ),
        Case(
            'semantic attention, 21x21 keys, 38x50 tokens',
            ours=lambda: (select, block_inputs(device)),
            yardstick=lambda: (UnfoldedSemanticAttention(select, 7), block_inputs(device)),
            yardstick_name='unfold before norm and projection',
        ),
        Case(
            'recovery, 27x27 keys, 38x50 tokens',
            ours=lambda: (recover, block_inputs(device)),
            yardstick=lambda: (UnfoldedRecovery(recover, 3), block_inputs(device)),
            yardstick_name='unfold before norm and projection',
        ),
    ]
