"""TagCLIP (arXiv 2304.07547)."""

import argparse
import copy
import importlib.util
import inspect
import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn.bricks.transformer import MultiheadAttention
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import nn

from mmextra.engine.checkpoint import load_official
from mmextra.registry import MODELS
from mmextra.seg.tagclip import (
    TagCLIPHead,
    TagCLIPLoss,
    VPTCLIPVisionTransformer,
    ZeroShotIoUMetric,
    class_split,
    class_vectors,
    official_layout,
    read_clip,
)

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / 'configs' / 'tagclip'
VOC = 'tagclip_vit-b16_8xb2-20k_voc12aug-512x512.py'
COCO = 'tagclip_vit-b16_8xb2-80k_coco-stuff164k-512x512.py'
NAMES = ['cat', 'dog', 'car', 'road', 'sky']
VECTORS = dict(num_seen=3, num_novel=2, dim=16, cosine=0.8, seed=0)
VISION = dict(
    input_resolution=32,
    patch_size=8,
    width=16,
    layers=3,
    heads=2,
    output_dim=16,
    num_tokens=2,
    total_d_layer=2,
)
TEXT = dict(
    type='CLIPTextEncoder',
    vocabulary=NAMES,
    templates=['a photo of a {}'],
    cat_bg=False,
    embed_dims=16,
    num_layers=1,
    num_heads=2,
    output_dims=16,
)
HEAD = dict(type='mmextra.TagCLIPHead', in_channels=16, num_heads=2)
TINY = dict(
    VPTCLIPVisionTransformer=VISION,
    TagCLIPHead=dict(in_channels=16, num_heads=2, seen_idx=[0, 1, 2], all_idx=range(5)),
    TagCLIPLoss=dict(),
    TagCLIP=dict(
        backbone=dict(type='mmextra.VPTCLIPVisionTransformer', **VISION),
        text_encoder=TEXT,
        decode_head=HEAD,
        novel_class=[1, 4],
        test_cfg=dict(mode='slide', crop_size=(32, 32), stride=(24, 24)),
    ),
    ZeroShotIoUMetric=dict(novel_class=[1, 4]),
    ClassVectorBackbone=dict(),
    ClassVectorEncoder=dict(vectors=VECTORS),
    ClassVectorGrids=dict(num_images=4, vectors=VECTORS),
)


def build(**overrides):
    """The small segmentor."""
    init_default_scope('mmseg')
    torch.manual_seed(0)
    cfg = Config(dict(model=dict(copy.deepcopy(TINY['TagCLIP']), type='mmextra.TagCLIP')))
    cfg.merge_from_dict({f'model.{k}': v for k, v in overrides.items()})
    model = MODELS.build(cfg.model)
    model.init_weights()
    return model


def head(**overrides):
    torch.manual_seed(0)
    init_default_scope('mmseg')
    return TagCLIPHead(**{**TINY['TagCLIPHead'], **overrides}).eval()


def head_inputs(classes=5, batch=2, grid=(3, 4), dim=16):
    draw = torch.Generator().manual_seed(1)
    shapes = ((batch, dim, *grid), (batch, dim), (classes, dim))
    return tuple(F.normalize(torch.randn(s, generator=draw), dim=1) for s in shapes)


def sample(label):
    """A data sample with a label map (H, W)."""
    out = SegDataSample(metainfo=dict(img_shape=tuple(label.shape), ori_shape=tuple(label.shape)))
    out.gt_sem_seg = PixelData(data=label[None])
    return out


@cache
def demo_tool():
    spec = importlib.util.spec_from_file_location('tagclip_demo', ROOT / 'tools/tagclip_demo.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def random_clip(**overrides):
    """A random checkpoint in OpenAI's layout that fits the small segmentor."""
    sizes = dict(
        embed_dim=16,
        resolution=16,
        vision_layers=3,
        vision_width=16,
        patch_size=8,
        text_width=16,
        text_layers=1,
    )
    torch.manual_seed(3)
    return demo_tool().random_clip(**{**sizes, **overrides})


# --- golden files -------------------------------------------------------------------------------


@pytest.mark.golden('tagclip', 'vpt_vit*')
def test_image_encoder(case):
    args = dict(case.meta['args'])
    args.pop('drop_path_rate', None)  # built upstream, but never applied
    model = VPTCLIPVisionTransformer(**args).eval()
    case.load(model, layout='tagclip')
    with torch.no_grad():
        outs = model(case.inputs['x'])
    maps, image = outs if args.get('get_embeddings', True) else (outs, None)
    case.check({'feature': maps[-1], 'global': image})


@pytest.mark.golden('tagclip', 'text_encoder*')
def test_stock_text_encoder_with_official_weights(case):
    args = case.meta['args']
    encoder = MODELS.build(
        dict(
            type='mmseg.CLIPTextEncoder',
            _scope_='mmseg',
            vocabulary=['unused'],
            templates=['{}'],
            cat_bg=False,
            total_vocab_size=args['vocab_size'],
            context_length=args['context_length'],
            embed_dims=args['transformer_width'],
            num_heads=args['transformer_heads'],
            num_layers=args['transformer_layers'],
            output_dims=args['embed_dim'],
        )
    )
    case.load(encoder, layout='tagclip')
    encoder.eval()
    case.check(dict(embed=encoder.encode_text(case.inputs['tokens'])))


@pytest.mark.golden('tagclip', 'head*')
def test_head(case):
    args = case.meta['args']
    names = ('in_channels', 'channels', 'num_classes', 'num_layers', 'num_heads', 'operator')
    names += ('seen_idx', 'all_idx', 'discriminate', 'eval_disc_weight')
    init_default_scope('mmseg')
    model = TagCLIPHead(**{k: args[k] for k in names if k in args}).eval()
    case.load(model, layout='tagclip')
    feature, image, text = (case.inputs[k] for k in ('feature', 'global', 'text'))
    size = torch.Size((args['img_size'], args['img_size']))
    metas = [dict(img_shape=size)]
    outs = {}
    with torch.no_grad():
        for name, rows in (('seen', text[case.inputs['seen_idx']]), ('all', text)):
            masks, trusty = model((feature, image, rows))
            outs[f'masks_{name}'] = model.predict_by_feat(masks, metas)
            if trusty is not None:
                outs[f'disc_{name}'] = model.predict_by_feat(trusty, metas)
        outs['pred_trusty'] = model.predict((feature, image, text), metas, None)
        model.eval_disc_weight = False
        outs['pred_plain'] = model.predict((feature, image, text), metas, None)
        model.self_training = True
        outs['pred_selftrain'] = model.predict((feature, image, text), metas, None)
    case.check(outs)


@pytest.mark.golden('tagclip', 'loss*')
def test_losses(case):
    args = case.meta['args']
    weights = {k: v for k, v in args.items() if k.endswith('_weight')}
    seen, novel = (case.inputs[k].tolist() for k in ('seen_idx', 'novel_idx'))
    model = head(seen_idx=seen, all_idx=range(len(seen) + len(novel)))
    masked, trusty_target = model.mask_labels(case.inputs['label_all'])
    assert torch.equal(masked, case.inputs['label_seen'])
    losses = TagCLIPLoss(**weights)(
        case.leaf('pred_masks'), masked, case.leaf('pred_disc'), trusty_target
    )
    sum(losses.values()).backward()
    case.check(losses)


# --- the image encoder --------------------------------------------------------------------------


def slow_encoder(model, x):
    """The encoder as the card writes it, token by token, for prompts in every block."""
    outs = []
    for image in x:
        conv = F.conv2d(image[None], model.conv1.weight, stride=model.patch_size)[0]
        grid = conv.shape[-2:]
        stored = model.positional_embedding[1:].reshape(model.grid, model.grid, -1)
        stored = F.interpolate(stored.permute(2, 0, 1)[None], grid, mode='bilinear')[0]
        tokens = [2 * model.class_embedding + model.positional_embedding[0]]
        tokens += [conv[:, i, j] + stored[:, i, j] for i in range(grid[0]) for j in range(grid[1])]
        tokens = model.ln_pre(torch.stack(tokens))
        patches = grid[0] * grid[1]
        for i, block in enumerate(model.transformer.resblocks):
            raw = model.deep_prompt_embeddings[i - 1] if i else model.prompt_embeddings[0]
            tokens = torch.cat((tokens[:1], model.prompt_proj(raw), tokens[-patches:]))
            y = block.ln_1(tokens)
            q, k, v = (y @ block.attn.in_proj_weight.T + block.attn.in_proj_bias).chunk(3, 1)
            heads = block.attn.num_heads
            gathered = []
            for qh, kh, vh in zip(*(t.chunk(heads, 1) for t in (q, k, v))):
                gathered.append((qh @ kh.T / math.sqrt(qh.shape[1])).softmax(1) @ vh)
            tokens = tokens + block.attn.out_proj(torch.cat(gathered, 1))
            y = block.mlp.c_fc(block.ln_2(tokens))
            tokens = tokens + block.mlp.c_proj(y * torch.sigmoid(1.702 * y))
        out = F.normalize(model.ln_post(model.prompt_norm(tokens)) @ model.proj, dim=1)
        outs.append((out[-patches:].T.reshape(-1, *grid), out[0]))
    return [torch.stack(parts) for parts in zip(*outs)]


def test_encoder_equals_the_slow_way():
    torch.manual_seed(0)
    model = VPTCLIPVisionTransformer(**VISION).double().eval()
    x = torch.randn(2, 3, 24, 40, dtype=torch.float64)
    (feature,), image = model(x)
    slow = slow_encoder(model, x)
    torch.testing.assert_close(feature, slow[0])
    torch.testing.assert_close(image, slow[1])


@pytest.mark.parametrize('deep, lengths', [(2, (19, 19, 19)), (1, (19, 19, 17)), (0, (19, 19, 19))])
def test_which_blocks_have_prompts(deep, lengths):
    model = VPTCLIPVisionTransformer(**{**VISION, 'total_d_layer': deep}).eval()
    seen = []
    for block in model.transformer.resblocks:
        block.register_forward_hook(lambda m, args, out: seen.append(args[0]))
    x = torch.randn(1, 3, 32, 32)
    model(x)
    assert tuple(t.shape[1] for t in seen) == lengths
    before = [t.clone() for t in seen]
    seen.clear()
    with (
        torch.no_grad()
    ):  # the shallow prompts reach later blocks only where no deep ones replace them
        model.prompt_embeddings.add_(1.0)
    model(x)
    changed = [not torch.allclose(a[:, 1:3], b[:, 1:3]) for a, b in zip(before, seen)]
    assert changed[:2] == [True, deep == 0]


def test_several_maps_are_not_projected():
    model = VPTCLIPVisionTransformer(**VISION, out_indices=[0, 2], get_embeddings=False).eval()
    maps = model(torch.randn(2, 3, 32, 24))
    assert [tuple(m.shape) for m in maps] == [(2, 16, 4, 3)] * 2
    kept = []
    model.transformer.resblocks[2].register_forward_hook(lambda m, args, out: kept.append(out))
    maps = model(torch.randn(2, 3, 32, 24))
    assert torch.equal(maps[1].flatten(2).mT, kept[0][:, -12:])


def test_only_prompts_are_trained_and_all_get_a_gradient():
    model = VPTCLIPVisionTransformer(**VISION)
    trained = {k for k, p in model.named_parameters() if p.requires_grad}
    assert (
        trained == {k for k, _ in model.named_parameters() if 'prompt' in k} and len(trained) == 6
    )
    (feature,), image = model(torch.randn(1, 3, 32, 32))
    draw = torch.randn_like(feature)
    ((feature * draw).sum() + (image * draw[..., 0, 0]).sum()).backward()
    assert all((p.grad is not None) == (k in trained) for k, p in model.named_parameters())


@pytest.mark.parametrize('out_indices, embeddings', [([0, 1], False), ([0, 2], True), ([2], False)])
def test_all_that_is_trained_is_read(out_indices, embeddings):
    """So that distributed training needs no `find_unused_parameters`, whatever head reads the maps."""
    model = VPTCLIPVisionTransformer(
        **VISION, out_indices=out_indices, get_embeddings=embeddings
    ).train()
    ran = []
    model.transformer.resblocks[2].register_forward_hook(lambda *_: ran.append(1))
    outs = model(torch.randn(1, 3, 32, 32))
    maps, image = outs if embeddings else (outs, torch.zeros(()))
    (sum((m * torch.randn_like(m)).sum() for m in maps) + image.sum()).backward()
    idle = [k for k, p in model.named_parameters() if p.requires_grad != (p.grad is not None)]
    assert not idle and len(maps) == len(out_indices)
    assert bool(ran) == (embeddings or 2 in out_indices)


def test_stock_head_on_the_maps():
    init_default_scope('mmseg')
    backbone = VPTCLIPVisionTransformer(**VISION, get_embeddings=False)
    fcn = MODELS.build(
        dict(type='mmseg.FCNHead', in_channels=16, channels=8, num_classes=3, in_index=0)
    )
    assert fcn(backbone(torch.randn(2, 3, 32, 32))).shape == (2, 3, 4, 4)


# --- the head -----------------------------------------------------------------------------------


def test_mask_logits_are_head_means_before_softmax():
    model = head().double()
    attention = model.decoder[-1].cross_attn
    query, memory = torch.randn(2, 6, 16).double(), torch.randn(2, 12, 16).double()
    q, k, v = attention.q(query), attention.k(memory), attention.v(memory)
    logits, values = [], []
    for qh, kh, vh in zip(*(t.chunk(2, 2) for t in (q, k, v))):
        logits.append(qh @ kh.mT / math.sqrt(8))
        values.append(logits[-1].softmax(2) @ vh)
    torch.testing.assert_close(attention.masks(query, memory), sum(logits) / 2)
    torch.testing.assert_close(attention(query, memory), attention.proj(torch.cat(values, 2)))


def test_permuted_texts_permute_masks():
    model = head()
    feature, image, text = head_inputs()
    order = torch.tensor([3, 0, 4, 1, 2])
    masks, trusty = model((feature, image, text))
    permuted, same = model((feature, image, text[order]))
    torch.testing.assert_close(permuted, masks[:, order])
    torch.testing.assert_close(same, trusty)


@pytest.mark.parametrize(
    'operator, independent', [('n_n_n', True), ('a_n_n', False), ('n_a_n', False)]
)
def test_trusty_token_reaches_masks_through_self_attention_alone(operator, independent):
    model = head(operator=operator)
    plain = head(operator=operator, discriminate=False, eval_disc_weight=False)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if k != 'trusty_token'})
    masks, trusty = model(head_inputs())
    alone, absent = plain(head_inputs())
    assert trusty.shape == (2, 1, 3, 4) and absent is None and masks.shape == (2, 5, 3, 4)
    assert torch.allclose(masks, alone, atol=1e-6) == independent


def test_neutral_weighting_keeps_the_argmax_and_extreme_ones_choose_a_side():
    scores = torch.rand(2, 5, 6, 6)
    model = head(seen_idx=[0, 2, 3], gamma=0.0)
    half = model.weigh(scores, torch.full((2, 1, 6, 6), 0.5))
    assert torch.equal(half.argmax(1), scores.argmax(1))
    model.gamma = 0.1
    novel = torch.tensor([1, 4])
    for w, is_novel in ((0.0, False), (1.0, True)):
        winner = model.weigh(scores.clamp(min=0.2), torch.full((2, 1, 6, 6), w)).argmax(1)
        assert (torch.isin(winner, novel) == is_novel).all()


def test_each_weighting():
    scores, w = torch.rand(1, 5, 2, 2), torch.rand(1, 1, 2, 2)
    seen = torch.tensor([True, False, True, True, False]).view(1, 5, 1, 1)
    taken = scores - 0.1 * seen
    expected = {
        False: taken,
        'seen': torch.where(seen, taken * (1 - w), taken),
        'unseen': torch.where(seen, taken, taken * w),
        'both': torch.where(seen, taken * (1 - w), taken * w),
    }
    expected[True] = expected['both']
    for option, value in expected.items():
        model = head(seen_idx=[0, 2, 3], eval_disc_weight=option)
        torch.testing.assert_close(model.weigh(scores, w), value)
    transductive = head(seen_idx=[0, 2, 3], eval_disc_weight='both', self_training=True)
    torch.testing.assert_close(
        transductive.weigh(scores, w), torch.where(seen, scores * (1 - w), scores * w)
    )


def test_initialisation_of_the_head():
    model = head(in_channels=64)
    before = model.trusty_token.clone()
    model.init_weights()
    bound = math.sqrt(6 / 65)
    assert not torch.equal(before, model.trusty_token)
    assert 0.7 * bound < model.trusty_token.abs().max() <= bound
    weight = model.descriptor.weight
    assert weight.abs().max() <= math.sqrt(6 / (64 + 128)) < 1.05 * weight.abs().max()
    assert (model.decoder[0].norm1.weight == 1).all() and not hasattr(model, 'conv_seg')


def test_labels_are_masked():
    label = torch.tensor([[[0, 1, 2], [3, 4, 255], [200, 0, 4]]])
    model = head(seen_idx=[3, 0, 2])
    masked, trusty = model.mask_labels(label)
    assert masked.tolist() == [[[1, 255, 2], [0, 255, 255], [255, 1, 255]]]
    assert trusty.int().tolist() == [[[0, 1, 0], [0, 1, 0], [0, 0, 1]]]
    model = head(seen_idx=[3, 0, 2], trusty_target='unlabelled')
    assert model.mask_labels(label)[1].int().tolist() == [[[0, 1, 0], [0, 1, 1], [0, 0, 1]]]
    # Honest: it does not depend on which of the two, novel or background, a pixel is.
    other = torch.where(label == 255, 1, label)
    assert all(
        torch.equal(a, b) for a, b in zip(model.mask_labels(label), model.mask_labels(other))
    )


def test_more_classes_than_255():
    """Class 255 is a class, where `ignore_index` says that another label stands for none."""
    model = head(seen_idx=[255, 7], all_idx=range(300), ignore_index=65535, pad_index=65534)
    masked, trusty = model.mask_labels(torch.tensor([[[255, 7, 256], [65535, 65534, 0]]]))
    assert masked.tolist() == [[[0, 1, 65535], [65535, 65535, 65535]]]
    assert trusty.int().tolist() == [[[0, 0, 1], [0, 0, 1]]]


def test_self_training_labels_novel_pixels_with_its_own_choice():
    model = head(seen_idx=[0, 2, 3], self_training=True)
    masks = torch.zeros(1, 5, 2, 2)
    masks[0, 4, 0, 1], masks[0, 1, 1, 0], masks[0, 2, 1, 0] = 1.0, 1.0, 9.0
    label = torch.tensor([[[2, 1], [4, 255]]])
    masked, trusty = model.mask_labels(label)
    assert masked.tolist() == [[[2, 255], [255, 255]]]  # queries are all classes now
    assert model.pseudo_label(masked, trusty, masks).tolist() == [[[2, 4], [1, 255]]]


# --- the losses ---------------------------------------------------------------------------------


def slow_losses(masks, label, trusty, novel, ignore):
    """The equations of the card, pixel by pixel."""

    def focal(logits, positive):
        total = 0.0
        for z, t in zip(logits, positive):
            p = 1 / (1 + math.exp(-z))
            total += -0.25 * (1 - p) ** 2 * math.log(p) if t else -0.75 * p**2 * math.log(1 - p)
        return total / len(logits)

    mask = dice = disc = pairs = 0
    for b in range(len(masks)):
        kept = (label[b] != ignore).flatten()
        labels = label[b].flatten()[kept].tolist()
        for c in range(masks.shape[1]):
            logits = masks[b, c].flatten()[kept].tolist()
            positive = [x == c for x in labels]
            mask += focal(logits, positive)
            if any(positive):
                p = [1 / (1 + math.exp(-z)) for z in logits]
                overlap = sum(x for x, t in zip(p, positive) if t)
                dice += 1 - (2 * overlap + 1) / (sum(p) + sum(positive) + 1)
                pairs += 1
        disc += focal(trusty[b, 0].flatten()[kept].tolist(), novel[b].flatten()[kept].tolist())
    n = max(1, pairs)
    return dict(loss_mask=20 * mask / n, loss_dice=dice / n, loss_disc=10 * disc / n)


def test_losses_equal_the_slow_way():
    torch.manual_seed(0)
    masks, trusty = torch.randn(2, 3, 4, 5).double() * 3, torch.randn(2, 1, 4, 5).double()
    label = torch.tensor([0, 1, 255, 200])[torch.randint(4, (2, 4, 5))]
    novel = (torch.rand(2, 4, 5) > 0.5) & (label == 255)
    losses = TagCLIPLoss()(masks, label, trusty, novel, label != 200)
    for name, value in slow_losses(masks, label, trusty, novel, 200).items():
        assert losses[name].item() == pytest.approx(value, rel=1e-5)


def test_gradients_of_the_losses():
    from mmextra.seg.tagclip.loss import binary_focal_loss, dice_loss

    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    target, valid = torch.rand(2, 3, 4) > 0.5, torch.rand(2, 3, 4) > 0.2
    assert torch.autograd.gradcheck(lambda x: dice_loss(x, target, valid), logits)
    assert torch.autograd.gradcheck(
        lambda x: binary_focal_loss(x[None], target[None], valid[None]), logits
    )


def test_double_precision():
    torch.manual_seed(0)
    masks, trusty = (torch.randn(2, n, 3, 4).double().requires_grad_() for n in (3, 1))
    label = torch.tensor([0, 1, 255, 200])[torch.randint(4, (2, 3, 4))]

    def loss(masks, trusty):
        return sum(TagCLIPLoss()(masks, label, trusty, label == 255, label != 200).values())

    assert torch.autograd.gradcheck(loss, (masks, trusty))
    assert build().double().text_embeddings().dtype == torch.float64


def test_number_of_masks_is_averaged_over_processes(monkeypatch):
    def all_reduce(count, op):
        """As if other processes had twice as many masks."""
        assert op == 'mean'
        count.mul_(2)

    masks, trusty, label = torch.randn(1, 3, 4, 4), torch.randn(1, 1, 4, 4), torch.eye(4)[None]
    args = (masks, label.long(), trusty, label == 0)
    alone = TagCLIPLoss()(*args)
    monkeypatch.setattr('mmextra.seg.tagclip.loss.all_reduce', all_reduce)
    for name, value in TagCLIPLoss()(*args).items():
        torch.testing.assert_close(value, alone[name] / 2)


@pytest.mark.parametrize('fill', [255, 200])
def test_labels_all_ignored(fill):
    masks, trusty = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(2, 1, 4, 4)
    label = torch.full((2, 4, 4), fill)
    losses = TagCLIPLoss()(masks, label, trusty, torch.zeros_like(label).bool(), label != 200)
    sum(losses.values()).backward()
    assert all(torch.isfinite(v) for v in losses.values()) and torch.isfinite(masks.grad).all()
    assert losses['loss_dice'] == 0
    # 255 is background, not ignored; padding is.
    assert (losses['loss_mask'] > 0) == (fill == 255)


def test_extreme_logits_are_finite_in_half_precision():
    masks = torch.tensor([60000.0, -60000.0]).half().view(1, 1, 1, 2).requires_grad_()
    for label in (0, 255):
        labels = torch.full((1, 1, 2), label)
        loss = sum(TagCLIPLoss()(masks, labels, masks, labels == 255).values())
        (grad,) = torch.autograd.grad(loss, masks)
        assert torch.isfinite(loss) and torch.isfinite(grad).all()


# --- the segmentor ------------------------------------------------------------------------------


def test_losses_and_who_is_trained():
    model = build().train()
    label = torch.randint(0, 5, (2, 32, 32))
    losses = model.loss(torch.randn(2, 3, 32, 32), [sample(x) for x in label])
    assert set(losses) == {'decode.loss_mask', 'decode.loss_dice', 'decode.loss_disc'}
    sum(losses.values()).backward()
    # What follows the masks in the last layer, and the norm before no self-attention, are never read:
    # they are frozen, so that distributed training has no unused parameter.
    unread = ('2.cross_attn.v.', '2.cross_attn.proj.', '2.ffn.', '2.norm', '1.norm1.')
    for name, parameter in model.named_parameters():
        trained = name.startswith('decode_head.') or 'prompt' in name
        trained = trained and not name.startswith(tuple(f'decode_head.decoder.{n}' for n in unread))
        assert parameter.requires_grad == trained, name
        assert (parameter.grad is not None) == trained, name


def test_training_has_seen_queries_and_test_all():
    model = build()
    x = torch.randn(1, 3, 32, 32)
    masks, _ = model.train()._forward(x)
    assert masks.shape[1] == 3
    masks, _ = model.eval()._forward(x)
    assert masks.shape[1] == 5
    model = build(**{'decode_head.self_training': True})
    assert model.train()._forward(x)[0].shape[1] == 5


def test_training_knows_nothing_of_novel_names():
    """Which novel class a pixel is changes nothing; nor does the vocabulary's text for it."""
    x, label = torch.randn(1, 3, 32, 32), torch.randint(0, 5, (1, 32, 32))
    swapped = torch.where(label == 1, 4, torch.where(label == 4, 1, label))
    losses = []
    for y, names in ((label, NAMES), (swapped, ['cat', 'zebra', 'car', 'road', 'ship'])):
        model = build(**{'text_encoder.vocabulary': names}).train()
        torch.manual_seed(1)
        losses.append(model.loss(x, [sample(y[0])]))
    assert losses[0] == losses[1]


def test_transductive_and_fully_supervised_training():
    x, label = torch.randn(2, 3, 32, 32), torch.randint(0, 5, (2, 32, 32))
    label[:, :4] = 200
    model = build(**{'decode_head.self_training': True}).train()
    losses = model.loss(x, [sample(y) for y in label])
    assert all(torch.isfinite(v) for v in losses.values())
    full = {'novel_class': [], 'decode_head.discriminate': False}
    model = build(**full, **{'decode_head.eval_disc_weight': False, 'decode_head.gamma': 0.0})
    losses = model.train().loss(x, [sample(y) for y in label])
    assert set(losses) == {'decode.loss_mask', 'decode.loss_dice'}
    result = model.eval().predict(x)
    assert result[0].seg_logits.data.shape == (5, 32, 32) and 'trusty_map' not in result[0]


def test_training_sees_the_border_of_any_size():
    """As in testing, images are padded to whole patches; the losses leave the padding out."""
    model = build(**{'decode_head.dropout_ratio': 0.0, 'backbone.prompt_dropout': 0.0}).train()
    x, label = torch.randn(2, 3, 37, 45, requires_grad=True), torch.randint(0, 5, (2, 37, 45))
    losses = model.loss(x, [sample(y) for y in label])
    sum(losses.values()).backward()
    assert (x.grad[..., -1, :].abs().sum() > 0) and (x.grad[..., -1].abs().sum() > 0)
    padded = F.pad(x.detach(), (0, 3, 0, 3)), F.pad(label, (0, 3, 0, 3), value=200)
    masks, trusty = (
        F.interpolate(m, (40, 48), mode='bilinear')[..., :37, :45]
        for m in model._forward(padded[0])
    )
    seen = torch.tensor([0, 255, 1, 2, 255])[label]
    expected = TagCLIPLoss()(masks, seen, trusty, seen == 255)
    for name, value in expected.items():
        torch.testing.assert_close(losses[f'decode.{name}'], value)


def test_one_class():
    """Every pixel is of the only class; scores are not taken for binary logits."""
    options = {'text_encoder.vocabulary': ['cat'], 'novel_class': []}
    x = torch.randn(1, 3, 32, 32)
    for trusty in (True, False):
        head = {'decode_head.discriminate': trusty, 'decode_head.eval_disc_weight': False}
        model = build(**options, **head).eval()
        (result,) = model.predict(x)
        assert result.pred_sem_seg.data.shape == (1, 32, 32) and not result.pred_sem_seg.data.any()
        torch.testing.assert_close(result.seg_logits.data, model.encode_decode(x, [])[0])
        assert ('trusty_map' in result) == trusty


def test_pictures_name_the_classes_of_the_model():
    """mmseg hands on the classes of the training set, which the vocabulary may have replaced."""
    model = build()
    assert not hasattr(model, 'dataset_meta')
    trained = dict(classes=NAMES, palette=[[i, 0, 0] for i in range(5)])
    model.dataset_meta = trained
    assert model.dataset_meta == trained
    model.dataset_meta = dict(classes=('road', 'sky'), palette=[[1, 2, 3], [4, 5, 6]])
    assert model.dataset_meta['classes'] == tuple(NAMES)
    assert len({tuple(colour) for colour in model.dataset_meta['palette']}) == 5


@pytest.mark.parametrize('size', [(40, 61), (32, 32), (20, 50), (5, 9)])
def test_windows_in_batches_equal_those_of_mmseg(size):
    from mmseg.models.segmentors import EncoderDecoder

    model = build().eval()
    x = torch.randn(2, 3, *size)
    for batch in (1, 3, 64):
        model.test_cfg.window_batch = batch
        with torch.no_grad():
            ours = model.slide_inference(x, [{}])
            stock = EncoderDecoder.slide_inference(model, x, [{}])
        assert ours.shape == (2, 6, *size)
        torch.testing.assert_close(ours[:, :5], stock, rtol=1e-4, atol=1e-5)


def test_windows_go_through_the_model_together_and_texts_through_once():
    model = build(**{'test_cfg.window_batch': 4}).eval()
    batches, texts = [], []
    model.backbone.register_forward_hook(lambda m, args, out: batches.append(len(args[0])))
    model.text_encoder.register_forward_hook(lambda m, args, out: texts.append(1))
    for _ in range(2):
        model.predict(torch.randn(1, 3, 80, 56))  # 3 x 2 windows
    assert batches == [4, 2, 4, 2] and len(texts) == 1
    model.load_state_dict(model.state_dict())
    model.predict(torch.randn(1, 3, 32, 32))
    assert len(texts) == 2


def test_new_text_weights_give_new_embeddings():
    model = build().eval()
    before = model.text_embeddings()
    assert torch.allclose(before.norm(dim=1), torch.ones(5))
    state = {k: v + torch.randn_like(v) for k, v in model.text_encoder.state_dict().items()}
    model.text_encoder.load_state_dict(state)
    assert not torch.allclose(model.text_embeddings(), before)
    assert not model.text_embeddings().requires_grad


def test_mean_over_templates():
    templates = ['a photo of a {}.', 'There is the {} in the scene.']
    model = build(**{'text_encoder.templates': templates}).eval()
    singles = []
    for template in templates:
        single = build(**{'text_encoder.templates': [template]})
        single.load_state_dict(model.state_dict())
        singles.append(single.eval().text_embeddings())
    torch.testing.assert_close(
        model.text_embeddings(), F.normalize(sum(singles) / 2, dim=1), rtol=1e-4, atol=1e-5
    )


def test_prediction_in_the_size_of_the_original():
    model = build().eval()
    data = SegDataSample(metainfo=dict(img_shape=(48, 64), ori_shape=(30, 40)))
    (result,) = model.predict(torch.randn(1, 3, 48, 64), [data])
    assert result.seg_logits.data.shape == (5, 30, 40)
    assert result.pred_sem_seg.data.shape == result.trusty_map.data.shape == (1, 30, 40)
    assert torch.equal(result.pred_sem_seg.data[0], result.seg_logits.data.argmax(0))
    assert 0 <= result.trusty_map.data.min() and result.trusty_map.data.max() <= 1


def test_flips_reach_the_trusty_map():
    model = build(**{'test_cfg': dict(mode='whole')}).eval()
    x = torch.randn(1, 3, 32, 32)
    metas = dict(img_shape=(32, 32), ori_shape=(32, 32))
    (plain,) = model.predict(x, [SegDataSample(metainfo=metas)])
    flip = dict(flip=True, flip_direction='horizontal')
    (flipped,) = model.predict(x, [SegDataSample(metainfo={**metas, **flip})])
    for name in ('trusty_map', 'pred_sem_seg', 'seg_logits'):
        assert torch.equal(getattr(plain, name).data.flip(-1), getattr(flipped, name).data)


def test_text_embedding_file_in_half_precision(tmp_path):
    encoder = build().eval()
    rows = encoder.text_embeddings()
    path = tmp_path / 'text.npy'
    np.save(path, (3 * rows).half().numpy())
    model = build(text_encoder=None, text_embedding=str(path)).eval()
    torch.testing.assert_close(model.text_embeddings(), rows, rtol=2e-3, atol=2e-3)
    assert model.text_embeddings().dtype == torch.float32
    own = {k: v for k, v in encoder.state_dict().items() if not k.startswith('text_encoder.')}
    model.load_state_dict(own)
    x = torch.randn(1, 3, 32, 32)
    got, expected = model.predict(x)[0], encoder.predict(x)[0]
    torch.testing.assert_close(got.seg_logits.data, expected.seg_logits.data, rtol=1e-2, atol=1e-2)


def test_another_vocabulary_with_the_same_checkpoint():
    """What `--cfg-options` does at test time, on the shipped evaluation config."""
    cfg = Config.fromfile(CONFIGS / VOC.replace('.py', '_eval.py'))
    cfg.model.backbone.update(VISION)
    cfg.model.text_encoder.update({k: v for k, v in TEXT.items() if k != 'vocabulary'})
    cfg.model.decode_head.update(in_channels=16, channels=16, num_heads=2)
    cfg.model.init_cfg = None
    init_default_scope('mmseg')
    trained = MODELS.build(cfg.model)
    trained.init_weights()
    cli = argparse.ArgumentParser()
    cli.add_argument('--cfg-options', nargs='+', action=DictAction)
    names = "model.text_encoder.vocabulary=['road','dog','sky']"
    words = ['--cfg-options', names, 'model.novel_class=[0]']
    cfg.merge_from_dict(cli.parse_args(words).cfg_options)
    other = MODELS.build(cfg.model).eval()
    other.load_state_dict(trained.state_dict())
    (result,) = other.predict(torch.randn(1, 3, 40, 32))
    assert result.seg_logits.data.shape == (3, 40, 32)
    assert other.decode_head.novel_idx == [0] and other.decode_head.seen_idx == [1, 2]
    cfg.merge_from_dict(cli.parse_args(['--cfg-options', 'model.novel_class=None']).cfg_options)
    equal = MODELS.build(cfg.model)
    assert equal.decode_head.seen_idx == [0, 1, 2] and not equal.decode_head.novel_idx


def test_mixed_precision():
    model = build().train()
    label = torch.randint(0, 5, (1, 32, 32))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses = model.loss(torch.randn(1, 3, 32, 32), [sample(x) for x in label])
        model.eval().predict(torch.randn(1, 3, 40, 32))
    sum(losses.values()).backward()
    assert all(torch.isfinite(v) for v in losses.values())
    # The text embeddings, computed inside, are not of low precision for ever.
    assert torch.equal(model.text_embeddings(), build().text_embeddings())


def test_frozen_text_encoder_stays_in_eval_mode(monkeypatch):
    """mmcv's attention keeps the dropout of a DETR that was built before in the same process."""
    default = inspect.signature(MultiheadAttention).parameters['dropout_layer'].default
    monkeypatch.setitem(default, 'drop_prob', 0.5)
    model = build()
    assert any(isinstance(m, nn.Dropout) and m.p == 0.5 for m in model.text_encoder.modules())
    assert not model.text_encoder.training
    expected = model.text_embeddings().clone()
    model.train()
    assert model.decode_head.training and not model.text_encoder.training
    model._forget_text()
    assert torch.equal(model.text_embeddings(), expected)


def test_parameter_counts():
    unread = 2_629_120  # of the head; see test_losses_and_who_is_trained
    for file, prompts, backbone in ((VOC, 684_288, 87_512_832), (COCO, 1_513_728, None)):
        cfg = Config.fromfile(CONFIGS / file)
        init_default_scope('mmseg')
        with torch.device('meta'):
            model = MODELS.build(ConfigDict(cfg.model, init_cfg=None))
        trained = {k: p.numel() for k, p in model.named_parameters() if p.requires_grad}
        assert sum(n for k, n in trained.items() if 'prompt' in k) == prompts
        assert sum(p.numel() for p in model.decode_head.parameters()) == 11_036_160
        assert all('prompt' in k or k.startswith('decode_head.') for k in trained)
        assert sum(trained.values()) == prompts + 11_036_160 - unread
        assert backbone in (None, sum(p.numel() for p in model.backbone.parameters()))


def test_learning_rates_of_the_published_config():
    from mmengine.optim import build_optim_wrapper

    cfg = Config.fromfile(CONFIGS / VOC)
    wrapper = build_optim_wrapper(build(), cfg.optim_wrapper)
    rates = {True: set(), False: set()}
    for group in wrapper.optimizer.param_groups:
        rates[group['params'][0].requires_grad].add((round(group['lr'], 9), group['weight_decay']))
    assert rates[True] == {(2e-4, 0.01)}


# --- official weights ---------------------------------------------------------------------------


class Archive(nn.Module):
    """A module with the given state dict, to be saved as TorchScript."""

    def __init__(self, state):
        super().__init__()
        for key, value in state.items():
            *path, name = key.split('.')
            module = self
            for part in path:
                if part not in dict(module.named_children()):
                    module.add_module(part, nn.Module())
                module = getattr(module, part)
            module.register_buffer(name, value)

    def forward(self, x):
        return x


def save(state, path, kind):
    if kind == 'torchscript':
        torch.jit.script(Archive(state)).save(str(path))
    else:
        torch.save(state, path)
    return str(path)


@pytest.mark.parametrize('kind', ['torchscript', 'state dict'])
def test_openai_weights(tmp_path, kind):
    state = random_clip()
    path = save(state, tmp_path / 'clip.pt', kind)
    assert set(read_clip(path)) == set(state)
    init = dict(type='mmextra.OfficialCheckpoint', checkpoint=path)
    model = build(init_cfg=init)
    own = model.state_dict()
    assert torch.equal(own['backbone.proj'], state['visual.proj'].float())
    fc = 'transformer.resblocks.0.mlp.c_fc.weight'
    assert torch.equal(
        own['text_encoder.transformer.0.ffns.0.layers.0.0.weight'], state[fc].float()
    )
    assert own['backbone.conv1.weight'].dtype == torch.float32
    # Positions: 2x2 in the file, 4x4 in the model; the class token's stays.
    stored, resized = (
        state['visual.positional_embedding'].float(),
        own['backbone.positional_embedding'],
    )
    assert resized.shape == (17, 16) and torch.equal(resized[0], stored[0])
    square = stored[1:].T.reshape(1, 16, 2, 2)
    expected = F.interpolate(square, (4, 4), mode='bilinear', align_corners=False)
    torch.testing.assert_close(resized[1:], expected.flatten(2)[0].T)
    assert torch.isfinite(model.eval().predict(torch.randn(1, 3, 32, 32))[0].seg_logits.data).all()

    parts = {'backbone.init_cfg': init, 'text_encoder.init_cfg': dict(init, type='Pretrained')}
    by_parts = build(**parts).state_dict()
    frozen = [k for k in own if 'prompt' not in k and not k.startswith('decode_head.')]
    assert all(torch.equal(own[k], by_parts[k]) for k in frozen)


def test_files_that_do_not_fit_are_refused(tmp_path):
    init = dict(type='mmextra.OfficialCheckpoint')
    state = random_clip()
    missing = {k: v for k, v in state.items() if k != 'visual.ln_pre.bias'}
    path = save(missing, tmp_path / 'missing.pt', 'state dict')
    with pytest.raises(ValueError, match='missing: backbone.ln_pre.bias'):
        build(init_cfg=dict(init, checkpoint=path))
    path = save({**state, 'visual.extra': torch.ones(1)}, tmp_path / 'more.pt', 'state dict')
    with pytest.raises(ValueError, match='left over: backbone.extra'):
        build(init_cfg=dict(init, checkpoint=path))
    path = save(random_clip(vision_width=32), tmp_path / 'wide.pt', 'state dict')
    with pytest.raises(ValueError, match='size mismatch for backbone.'):
        build(init_cfg=dict(init, checkpoint=path))
    (tmp_path / 'noise.pt').write_bytes(b'not a checkpoint')
    with pytest.raises(ValueError, match='cannot be read'):
        read_clip(str(tmp_path / 'noise.pt'))
    with pytest.raises(FileNotFoundError):
        read_clip(str(tmp_path / 'absent.pt'))


def authors_state(model):
    """The weights of a model under the names that the authors' training saves."""
    state = {}
    for key, value in model.state_dict().items():
        if key.startswith('text_encoder.'):
            continue
        for ours, theirs in (
            ('trusty_token', 'disc_token'),
            ('descriptor.', 'relationship_discriptor.q_proj.'),
            ('cross_attn.', 'multihead_attn.'),
            ('ffn.layers.0.0.', 'linear1.'),
            ('ffn.layers.1.', 'linear2.'),
            ('decode_head.decoder.', 'decode_head.decoder.layers.'),
        ):
            key = key.replace(ours, theirs)
        state[key] = value + 1
    return {**state, 'decode_head.loss_decode.criterion.empty_weight': torch.ones(4)}


def test_weights_of_the_authors(tmp_path):
    np.save(tmp_path / 'text.npy', np.eye(5, 16, dtype=np.float16))
    options = dict(text_encoder=None, text_embedding=str(tmp_path / 'text.npy'))
    model = build(**options)
    state = authors_state(model)
    other = build(**options)
    load_official(other, state, 'tagclip')
    for key, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[key], value + 1)
    path = save(dict(state_dict=state), tmp_path / 'tagclip.pth', 'state dict')
    third = build(**options, init_cfg=dict(type='mmextra.OfficialCheckpoint', checkpoint=path))
    assert torch.equal(third.decode_head.trusty_token, other.decode_head.trusty_token)
    mapped = official_layout(state)
    assert official_layout(mapped).keys() == mapped.keys()


# --- the metric ---------------------------------------------------------------------------------


def metric_of(truth, predicted, classes=5, **options):
    metric = ZeroShotIoUMetric(**{**TINY['ZeroShotIoUMetric'], **options})
    metric.dataset_meta = dict(classes=[str(i) for i in range(classes)])
    samples = [
        dict(gt_sem_seg=dict(data=t), pred_sem_seg=dict(data=p)) for t, p in zip(truth, predicted)
    ]
    metric.process({}, samples)
    return metric.compute_metrics(metric.results)


def test_metric_equals_the_slow_way():
    torch.manual_seed(0)
    truth, predicted = torch.randint(0, 5, (3, 8, 8)), torch.randint(0, 5, (3, 8, 8))
    predicted = torch.where(torch.rand(3, 8, 8) < 0.6, truth, predicted)
    truth[:, 0] = 255
    values = metric_of(truth, predicted)
    iou, right = [], 0
    for c in range(5):
        both = either = 0
        for t, p in zip(truth.flatten().tolist(), predicted.flatten().tolist()):
            if t != 255:
                both += t == c and p == c
                either += t == c or p == c
        iou.append(100 * both / either)
        right += both
    seen, unseen = (iou[0] + iou[2] + iou[3]) / 3, (iou[1] + iou[4]) / 2
    assert values['mIoU_seen'] == pytest.approx(seen, abs=0.01)
    assert values['mIoU_unseen'] == pytest.approx(unseen, abs=0.01)
    assert values['hIoU'] == pytest.approx(2 * seen * unseen / (seen + unseen), abs=0.01)
    assert values['pAcc'] == pytest.approx(100 * right / (truth != 255).sum().item(), abs=0.01)
    assert values['mIoU'] == pytest.approx(sum(iou) / 5, abs=0.01)


def test_metric_of_absent_classes():
    truth = torch.zeros(1, 4, 4).long()
    values = metric_of(truth, truth)
    assert (
        values['mIoU_seen'] == 100 and np.isnan(values['mIoU_unseen']) and np.isnan(values['hIoU'])
    )
    truth[0, 0], predicted = 1, torch.full((1, 4, 4), 2)
    values = metric_of(truth, predicted)
    assert values['mIoU_seen'] == values['mIoU_unseen'] == values['hIoU'] == 0
    assert metric_of(truth, truth, nan_to_num=0)['mIoU_unseen'] == 50


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'options, message',
    [
        ({'text_encoder.vocabulary': ['cat', 'dog', 'Cat ', 'road', 'sky']}, "'Cat ' twice"),
        ({'text_encoder.vocabulary': ['cat', ' ', 'car', 'road', 'sky']}, 'empty name at 1'),
        ({'text_encoder.vocabulary': []}, 'list of class names'),
        ({'text_encoder.vocabulary': 'cat'}, 'list of class names'),
        (
            {'novel_class': [1, 5]},
            r'novel_class holds 5, but the vocabulary has 5 names \(0 to 4\)',
        ),
        ({'novel_class': [-1]}, 'novel_class holds -1'),
        ({'base_class': [0, 1, 2, 3]}, r'\[1\] are in both'),
        ({'base_class': [0, 2]}, r'\[3\] in neither'),
        ({'both_class': [0, 1, 2]}, 'both_class must be 0 to 4'),
        ({'pretrained': 'x.pt'}, 'in init_cfg'),
        ({'text_encoder': None}, 'either text_encoder or text_embedding'),
        ({'text_embedding': 'x.npy'}, 'either text_encoder or text_embedding'),
        ({'decode_head.seen_idx': [0, 1]}, 'leave it out of decode_head'),
        ({'decode_head.operator': 'a_b'}, "'a' or an 'n'"),
        ({'decode_head.operator': ''}, "'a' or an 'n'"),
        ({'decode_head.num_layers': 2}, "operator 'a_n_n' has 3"),
        ({'decode_head.num_classes': 7}, '3 seen and 5'),
        ({'decode_head.channels': 8}, 'must be in_channels=16'),
        ({'decode_head.num_heads': 3}, 'no multiple of num_heads=3'),
        ({'decode_head.eval_disc_weight': 'all'}, 'eval_disc_weight must be one of'),
        ({'decode_head.trusty_target': 'background'}, 'trusty_target must be one of'),
        ({'decode_head.discriminate': False}, 'needs the trusty token'),
        ({'decode_head.self_training': True, 'novel_class': []}, 'self_training needs novel'),
        ({'backbone.total_d_layer': 3}, 'total_d_layer must be 0 to 2'),
        ({'backbone.prompt_dim': 8}, 'prompt_dim must be width=16'),
        ({'backbone.out_indices': [0, 3]}, 'out_indices must be 0 to 2'),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_wrong_labels():
    model = build().train()
    x, label = torch.randn(1, 3, 32, 32), torch.zeros(32, 32).long()
    label[0, 0] = 7
    with pytest.raises(ValueError, match='label 7 is not one of the 5 classes'):
        model.loss(x, [sample(label)])
    model = build(base_class=[], novel_class=None)
    assert model.eval().predict(x)[0].seg_logits.data.shape[0] == 5
    with pytest.raises(ValueError, match='training needs seen classes'):
        head(seen_idx=[]).mask_labels(label[None])
    with pytest.raises(ValueError, match='set pad_index beyond them'):
        head(all_idx=range(201)).mask_labels(label[None])
    with pytest.raises(ValueError, match='set ignore_index beyond them'):
        head(all_idx=range(300), pad_index=1000).mask_labels(label[None])


def test_all_labels_ignored_in_training():
    model = build().train()
    losses = model.loss(torch.randn(1, 3, 32, 32), [sample(torch.full((32, 32), 255))])
    sum(losses.values()).backward()
    assert all(torch.isfinite(v) for v in losses.values()) and losses['decode.loss_dice'] == 0


def test_wrong_embedding_files(tmp_path):
    path = tmp_path / 'text.npy'
    for rows, message in (
        (np.ones((5, 8)), r'expected \(classes, 16\)'),
        (np.ones(16), 'expected'),
        (np.zeros((5, 16)), 'zero or not finite'),
        (np.full((5, 16), np.nan), 'not finite'),
    ):
        np.save(path, rows)
        with pytest.raises(ValueError, match=message):
            build(text_encoder=None, text_embedding=str(path))


def test_wrong_metric_arguments():
    truth = torch.zeros(1, 4, 4).long()
    with pytest.raises(ValueError, match=r'novel_class of the metric holds \[5\]'):
        metric_of(truth, truth, novel_class=[5])
    with pytest.raises(ValueError, match='the data set has 4 classes'):  # before anything runs
        ZeroShotIoUMetric(novel_class=[3, 4]).dataset_meta = dict(classes='abcd')
    with pytest.raises(ValueError, match='names a class twice'):
        metric_of(truth, truth, novel_class=[1, 1])
    with pytest.raises(ValueError, match='use IoUMetric'):
        metric_of(truth, truth, novel_class=[])


def test_images_smaller_than_a_patch():
    with pytest.raises(ValueError, match='smaller than a patch of 8'):
        VPTCLIPVisionTransformer(**VISION)(torch.randn(1, 3, 7, 32))


def test_splits():
    assert class_split(4) == ([0, 1, 2, 3], [0, 1, 2, 3])
    assert class_split(4, novel_class=[1]) == ([0, 2, 3], [0, 1, 2, 3])
    assert class_split(4, base_class=[3, 0]) == ([3, 0], [0, 1, 2, 3])
    assert class_split(3, [0], [1, 2], [0, 1, 2]) == ([0], [0, 1, 2])


# --- demonstrations -----------------------------------------------------------------------------


def test_class_vectors_and_grids():
    names, vectors = class_vectors(6, 2, 32, 0.8, 0)
    cosines = vectors @ vectors.T
    assert len(names) == 8 and np.allclose(np.diag(cosines), 1, atol=1e-6)
    assert np.allclose([cosines[6, 0], cosines[7, 1]], 0.8, atol=1e-6)
    from mmextra.seg.tagclip import ClassVectorGrids

    dataset = ClassVectorGrids(**TINY['ClassVectorGrids'], noise=0.0)
    counts = set()
    for i in range(4):
        data = dataset[i]
        label = data['data_samples'].gt_sem_seg.data[0]
        assert data['inputs'].shape == (16, 16, 16) and label.shape == (16, 16)
        torch.testing.assert_close(
            data['inputs'].permute(1, 2, 0), torch.from_numpy(dataset.vectors)[label]
        )
        counts.add(len(label.unique()))
    assert counts <= {2, 3, 4} and torch.equal(dataset[1]['inputs'], dataset[1]['inputs'])
    with pytest.raises(ValueError, match='num_novel must be 0 to'):
        class_vectors(2, 3, 8, 0.8, 0)
    with pytest.raises(ValueError, match='size must be at least 8'):
        ClassVectorGrids(4, VECTORS, size=4)


def test_demonstration_runs(tmp_path, capsys):
    demo_tool().main(['--out', str(tmp_path), 'vectors', '--iterations', '2'])
    rows = (tmp_path / 'table.md').read_text().splitlines()
    assert len(rows) == 5 and rows[2].startswith('| without trusty token | ')
    assert (tmp_path / 'class_vectors.png').is_file()


def test_open_vocab_demo(tmp_path):
    import cv2

    spec = importlib.util.spec_from_file_location('open_vocab', ROOT / 'tools/open_vocab_demo.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    model = ConfigDict(copy.deepcopy(TINY['TagCLIP']), type='mmextra.TagCLIP')
    model.data_preprocessor = dict(type='SegDataPreProcessor', size=(32, 32))
    pipeline = [dict(type=t) for t in ('LoadImageFromFile', 'LoadAnnotations', 'PackSegInputs')]
    cfg = Config(dict(model=model, default_scope='mmseg', test_pipeline=pipeline))
    cfg.dump(tmp_path / 'config.py')
    torch.save(dict(state_dict=build().state_dict()), tmp_path / 'model.pth')
    image = np.random.RandomState(0).randint(0, 255, (50, 70, 3), np.uint8)
    cv2.imwrite(str(tmp_path / 'image.png'), image)
    files = [str(tmp_path / name) for name in ('image.png', 'config.py', 'model.pth')]
    common = ['--device', 'cpu']
    out = tool.main([files[0], '--classes', 'road, dog, tall tree', *files[1:], *common])
    assert out == tmp_path / 'image_open_vocab.png'
    assert cv2.imread(str(out)).shape == (74, 70 + 70 + 220 + 12, 3)
    seen = ['--classes', 'road, dog', '--seen', 'dog', '--out', str(tmp_path / 'seen.png')]
    assert tool.main([*files, *seen, *common]).is_file()
    cfg.model.decode_head.self_training = True  # a transductive model; of these names none is novel
    cfg.dump(tmp_path / 'config.py')
    for names in (
        ['road, dog'],
        ['road, dog', '--seen', 'dog, road'],
        ['road, dog', '--seen', 'dog'],
    ):
        out = tool.main([*files, '--classes', *names, '--out', str(tmp_path / 'o.png'), *common])
        assert out.is_file()
    for wrong, message in (
        (['--classes', 'road, road'], 'twice'),
        (['--classes', 'road,,dog'], 'empty name at 1'),
        (['--classes', 'road', '--seen', 'cat'], 'not among --classes'),
    ):
        with pytest.raises(SystemExit, match=message):
            tool.main([*files, *wrong, *common])
    with pytest.raises(SystemExit, match='not an image'):
        tool.main([files[1], *files[1:], '--classes', 'road', *common])
