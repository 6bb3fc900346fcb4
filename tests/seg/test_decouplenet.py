"""DecoupleNet: the authors' numbers, gradient routes, pairs of domains, training, resuming."""

import copy
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmengine.runner.checkpoint import load_checkpoint
from mmengine.structures import PixelData
from mmseg.registry import DATASETS, MODELS
from mmseg.structures import SegDataSample
from PIL import Image
from training import ROOT, assert_equal_weights, forget_instances, train, weights

from mmextra.engine.checkpoint import get_layout, load_official, read_checkpoint
from mmextra.seg.decouplenet import (
    ASPPSumHead,
    ClassIoUMetric,
    DecoupleNet,
    DecoupleSelfTraining,
    DomainPairDataPreprocessor,
    DomainPairDataset,
    DomainPairSampler,
    FCDiscriminator,
    LoadSoftLabel,
    MultiOptimWrapperConstructor,
    SoftLabelDumper,
    TrackedRandomSizedCrop,
)
from mmextra.seg.decouplenet.data import class_balanced
from mmextra.seg.decouplenet.optim import StepwiseDataParallel, accumulate, finish
from mmextra.seg.decouplenet.pseudo_labels import (
    ConfidenceBank,
    confident_labels,
    follow_geometry,
    keep_threshold,
    masked_cross_entropy,
)
from mmextra.seg.decouplenet.segmentors import Seen, domain_loss, unpadded_cells
from mmextra.seg.decouplenet.transforms import TorchColorJitter, apply

CLASSES = 5
BACKBONE = dict(
    type='ResNet',
    depth=18,
    stem_channels=8,
    base_channels=8,
    strides=(1, 2, 1, 1),
    dilations=(1, 1, 2, 4),
    contract_dilation=True,
    norm_cfg=dict(type='BN'),
    zero_init_residual=False,
)
HEAD = dict(
    type='mmextra.ASPPSumHead',
    in_channels=64,
    in_index=3,
    channels=8,
    num_classes=CLASSES,
    dilations=(1, 2),
    aux_classifier=True,
)
D1 = dict(type='mmextra.FCDiscriminator', in_channels=8, base_channels=4)
D2 = dict(type='mmextra.FCDiscriminator', in_channels=CLASSES, base_channels=4)
PREPROCESSOR = dict(
    type='mmextra.DomainPairDataPreprocessor',
    mean=[0] * 3,
    std=[255] * 3,
    bgr_to_rgb=True,
    size=(32, 32),
)
PHASE1 = dict(
    backbone=BACKBONE,
    decode_head=HEAD,
    feat_discriminator=D1,
    out_discriminator=D2,
    data_preprocessor=PREPROCESSOR,
)
PHASE2 = dict(
    backbone=BACKBONE,
    decode_head=dict(HEAD, aux_classifier=False),
    data_preprocessor=PREPROCESSOR,
    thresholds=[0.3] * CLASSES,
    test_cfg=dict(mode='whole'),
)
OPTIMIZERS = dict(
    constructor='mmextra.MultiOptimWrapperConstructor',
    generator=dict(
        optimizer=dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=5e-4),
        paramwise_cfg=dict(custom_keys={'decode_head': dict(lr_mult=10.0)}),
    ),
    feat_discriminator=dict(optimizer=dict(type='Adam', lr=1e-4, betas=(0.9, 0.99))),
    out_discriminator=dict(optimizer=dict(type='Adam', lr=1e-4, betas=(0.9, 0.99))),
)
TINY = dict(
    ASPPSumHead={k: v for k, v in HEAD.items() if k != 'type'},
    FCDiscriminator=dict(in_channels=5, base_channels=4),
    DecoupleNet=PHASE1,
    DecoupleSelfTraining=PHASE2,
    DomainPairDataPreprocessor=dict(size=(32, 32)),
    DomainPairDataset=dict(
        source=dict(type='mmextra.DrawnDomains', domain='source', num_images=4, size=32),
        target=dict(type='mmextra.DrawnDomains', domain='target', num_images=3, size=32),
    ),
    DrawnDomains=dict(domain='source', num_images=4, size=32),
    PrefixSegDataset=dict(prefixes=['a']),
    DomainPairSampler=dict(),
    TrackedRandomSizedCrop=dict(width=40, crop_size=(32, 32)),
    LoadSoftLabel=dict(folder='soft'),
    TorchColorJitter=dict(brightness=0.5),
    SoftLabelDumper=dict(folder='soft'),
    ClassIoUMetric=dict(),
    MultiOptimWrapperConstructor=dict(),
    StepwiseDataParallel=dict(),
)


@pytest.fixture(autouse=True)
def seg_scope(fresh_process):
    """What a config says with `default_scope`."""
    init_default_scope('mmseg')


def build(cfg, kind='DecoupleNet', **overrides):
    torch.manual_seed(0)
    model = MODELS.build(copy.deepcopy(dict(cfg, type=f'mmextra.{kind}', **overrides)))
    model.init_weights()
    return model


def samples(labels):
    return [
        SegDataSample(gt_sem_seg=PixelData(data=label[None]), metainfo=dict(img_path=f'{i}'))
        for i, label in enumerate(labels)
    ]


def images(seed, size=(32, 32), batch=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, *size, generator=generator)


def labels(seed, size=(32, 32), batch=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, CLASSES, (batch, *size), generator=generator)


def batch(size=(32, 32), target_size=None):
    target = images(2, target_size or size)
    return (
        dict(source=images(0, size), target=target),
        dict(source=samples(labels(1, size)), target=samples([torch.zeros(1, 1)] * 2)),
    )


def optimizers(model, **overrides):
    cfg = {k: v for k, v in copy.deepcopy(OPTIMIZERS).items() if k != 'constructor'}
    return MultiOptimWrapperConstructor(dict(cfg, **overrides))(model)


# The authors' numbers


@pytest.mark.golden('decouplenet', 'aspp_head')
def test_aspp_head(case):
    in_channels, dilations, paddings, num_classes, hidden_dim = case.meta['args']
    assert dilations == paddings
    head = ASPPSumHead(
        in_channels=in_channels,
        channels=hidden_dim,
        num_classes=num_classes,
        dilations=dilations,
        in_index=0,
    )
    mapped = {'decode_head.' + k: v for k, v in head.state_dict().items()}
    assert set(get_layout('decouplenet')(case.state)) == set(mapped)
    case.load(head, layout='decouplenet')
    features = [case.leaf('x')]
    hidden = head.forward_hidden(features)
    logits = head(features)
    size = case.outputs['logits_up'].shape[-2:]
    metas = [dict(img_shape=size)]
    up = head.predict(features, metas, None)
    case.check(dict(hidden=hidden, logits=logits, logits_up=up), {})


@pytest.mark.golden('decouplenet', 'discriminator')
def test_discriminator(case):
    args = case.meta['args']
    discriminator = FCDiscriminator(args['num_classes'], args['ndf'])
    case.load(discriminator)
    x = case.leaf('x')
    out = discriminator(x)
    out.sum().backward()
    case.check(dict(out=out))


def golden_model(case):
    """A model of the sizes of the file; its backbone is there for its channels alone."""
    shapes = {k: v.shape for k, v in case.state.items()}
    shallow = case.inputs['shallow_src'].shape[1]
    classes, hidden = shapes['classifier.weight'][:2]
    m = case.meta['args']
    assert m['gan'] == 'LS'
    head = dict(HEAD, in_channels=8 * shallow, channels=hidden, num_classes=classes)
    model = build(
        dict(
            backbone=dict(BACKBONE, stem_channels=shallow, base_channels=shallow),
            decode_head=dict(head, ignore_index=m['ignore']),
            feat_discriminator=dict(
                D1, in_channels=shallow, base_channels=shapes['D1.conv1.weight'][0]
            ),
            out_discriminator=dict(
                D2, in_channels=classes, base_channels=shapes['D2.conv1.weight'][0]
            ),
            adapt_cfg=dict(
                temperature=m['T'],
                adv_src=m['lambda_adv_src'],
                adv_tgt=m['lambda_adv_tgt'],
                st=m['lambda_st'],
                keep=m['conf_p'],
            ),
        )
    )
    mapped = get_layout('decouplenet')(case.state)
    assert not model.load_state_dict(mapped, strict=False).unexpected_keys
    return model


@pytest.mark.golden('decouplenet', 'phase1_losses')
def test_phase1_losses(case):
    model = golden_model(case)
    size = tuple(case.meta['args']['crop'])
    shallow, logits = case.leaf('shallow_src'), case.leaf('logits_src')
    hidden = case.leaf('hidden_tgt')
    with model.frozen_discriminators():
        source = model.source_losses(shallow, logits, samples(case.inputs['label_src']))
        target, target_logits = model.target_losses(hidden, size)
    total = source['decode.loss_ce'] + source['loss_adv_src']
    (total + target['loss_st'] + target['loss_adv_tgt']).backward()
    assert all(p.grad is None for name, p in model.named_parameters() if 'discriminator' in name)
    judged = dict(
        model.discriminator_losses(
            Seen(shallow.detach(), logits.detach(), size),
            Seen(case.inputs['shallow_tgt'], target_logits.detach(), size),
        )
    )
    first, second = judged['feat_discriminator'], judged['out_discriminator']
    classes = target_logits.softmax(1).max(1)
    pseudo = confident_labels(*classes, model.bank.thresholds, model.decode_head.ignore_index)
    case.check(
        dict(
            loss_seg=source['decode.loss_ce'],
            loss_adv_src=source['loss_adv_src'],
            loss_st=target['loss_st'],
            loss_adv_tgt=target['loss_adv_tgt'],
            loss_D1_src=first['loss_feat_discriminator_src'],
            loss_D1_tgt=first['loss_feat_discriminator_tgt'],
            loss_D2_src=second['loss_out_discriminator_src'],
            loss_D2_tgt=second['loss_out_discriminator_tgt'],
            thresholds=model.bank.thresholds,
            pseudo=pseudo,
        )
    )


@pytest.mark.golden('decouplenet', 'oest')
def test_online_self_training(case):
    classes = case.inputs['logits_full'].shape[1]
    args = case.meta['args']
    crop = tuple(args['crop'])
    model = build(
        PHASE2,
        'DecoupleSelfTraining',
        decode_head=dict(
            HEAD, aux_classifier=False, num_classes=classes, ignore_index=args['ignore']
        ),
        thresholds=case.inputs['thresholds'].tolist(),
    )
    keys = ('resize_h', 'resize_w', 'crop_y', 'crop_x', 'flip')
    geometries = [
        dict(size=(h, w), offset=(y, x), shape=crop, flip=flip)
        for h, w, y, x, flip in zip(*(case.inputs[k].tolist() for k in keys))
    ]
    online = model.whole_predictions(case.inputs['logits_full'], geometries, crop)
    pseudo, _ = model.combine(online, case.inputs['soft_logits'].softmax(1), crop)
    logits = case.leaf('student_logits')
    loss = masked_cross_entropy(model.upsample(logits, crop), pseudo, args['ignore'])
    loss.backward()
    case.check(dict(pred_aligned=torch.stack(online), pseudo=pseudo, loss=loss))


def test_official_layout_is_strict():
    model = build(PHASE1)
    theirs = {
        v: k
        for k, v in dict(
            source_shallow='B1', feat_discriminator='D1', out_discriminator='D2'
        ).items()
    }
    state = {}
    for key, value in model.state_dict().items():
        part, _, rest = key.partition('.')
        if part == 'backbone':
            part = 'B2' if rest.split('.')[0] in model.source_shallow else 'B'
        elif part == 'decode_head':
            name, _, tail = rest.partition('.')
            names = dict(conv_seg='classifier', conv_aux='aux_classifier', convs='head')
            part, rest = names[name], f'conv2d_list.{tail}' if name == 'convs' else tail
        else:
            part = {v: k for k, v in theirs.items()}[part]
        state[f'{part}.module.{rest}'] = torch.randn_like(value.float()).to(value.dtype)
    state['B.fc.weight'] = torch.zeros(2)
    load_official(model, state, 'decouplenet')
    torch.testing.assert_close(
        model.backbone.layer1[0].conv1.weight, state['B2.module.layer1.0.conv1.weight']
    )
    assert torch.equal(model.decode_head.conv_aux.bias, state['aux_classifier.module.bias'])
    del state['D2.module.conv1.weight']
    with pytest.raises(ValueError, match='missing: out_discriminator.conv1.weight'):
        load_official(model, state, 'decouplenet')


def test_checkpoints_are_not_initialised_away(tmp_path):
    """What an `init_cfg` loads stays: the source's own layers, and the trained auxiliary classifier."""
    trained = build(PHASE1)
    for p in trained.parameters():
        p.data.normal_()
    file = str(tmp_path / 'phase1.pth')
    torch.save(dict(state_dict=trained.state_dict()), file)
    load = dict(type='Pretrained', checkpoint=file)
    assert_equal_weights(weights(build(PHASE1, init_cfg=load)), weights(trained))
    trained.init_weights()  # a runner does so with a model that it is given
    assert_equal_weights(weights(trained), torch.load(file)['state_dict'])
    head = build(PHASE1, decode_head=dict(HEAD, init_cfg=dict(load, prefix='decode_head.')))
    assert_equal_weights(weights(head.decode_head), weights(trained.decode_head))

    theirs = {'source_shallow': 'B1', 'feat_discriminator': 'D1', 'out_discriminator': 'D2'}
    theirs |= {'decode_head.conv_seg': 'classifier', 'decode_head.conv_aux': 'aux_classifier'}
    theirs |= {'decode_head.convs': 'head.conv2d_list', 'backbone': 'B'}
    state = {}
    for key, value in trained.state_dict().items():
        part = next(p for p in theirs if key.startswith(f'{p}.'))
        state[key.replace(part, theirs[part], 1)] = value
    torch.save(state, tmp_path / 'official.pth')
    load = dict(type='mmextra.OfficialCheckpoint', checkpoint=str(tmp_path / 'official.pth'))
    assert_equal_weights(weights(build(PHASE1, init_cfg=load)), weights(trained))


def test_copies_are_their_own(tmp_path):
    """What an EMA hook and a saved object hold: their weights, banks and completion of checkpoints."""
    model = build(PHASE1)
    model.loss(*batch())  # fills the bank
    torch.save(model, tmp_path / 'model.pth')
    for other in (copy.deepcopy(model), torch.load(tmp_path / 'model.pth', weights_only=False)):
        assert_equal_weights(weights(other), weights(model))
        plain = {k: torch.ones_like(v) for k, v in model.state_dict().items() if 'backbone' in k}
        other.load_state_dict(dict(plain), strict=False)
        assert (other.source_shallow['conv1'].weight == 1).all()
        other.bank.update(torch.tensor([0.5]), torch.tensor([0]))
        assert len(other.bank.values[0]) == len(model.bank.values[0]) + 1
        assert not (model.source_shallow['conv1'].weight == 1).any()


def test_parameters_of_the_published_model():
    cfg = Config.fromfile(
        ROOT / 'configs/decouplenet/decouplenet_r101-d8_4xb2-60k_gta5-to-cityscapes-512x896.py'
    ).model
    cfg.backbone.init_cfg = None
    with torch.device('meta'):
        model = MODELS.build(cfg)

    def count(*modules):
        return sum(p.numel() for m in modules for p in m.parameters())

    assert count(model.decode_head.convs) == 9_437_696
    assert count(model.decode_head.conv_seg) == count(model.decode_head.conv_aux) == 2_451
    assert count(model.feat_discriminator) == 823_777
    assert count(model.out_discriminator) == 2_781_121
    assert count(model.source_shallow) == 225_344
    deep = [getattr(model.backbone, f'layer{i}') for i in (2, 3, 4)]
    assert count(*deep) == 42_274_816


# Network


@pytest.mark.parametrize('kind', ['ResNet', 'ResNetV1c'])
@pytest.mark.parametrize('split_after', ['stem', 'layer1', 'layer2'])
def test_target_branch_is_the_stock_backbone(split_after, kind):
    channels = dict(stem=8, layer1=8, layer2=16)[split_after]
    model = build(
        PHASE1, split_after=split_after, feat_discriminator=dict(D1, in_channels=channels)
    )
    model.eval()
    x = images(0)
    shallow, features = model.domain_features(x, source=False)
    for ours, stock in zip(features, model.extract_feat(x)):
        torch.testing.assert_close(ours, stock)
    assert shallow.shape[1] == channels
    # Both copies start alike, and are copies.
    for ours, theirs in zip(model.domain_features(x, True)[1], model.domain_features(x, False)[1]):
        torch.testing.assert_close(ours, theirs)
    own = {id(p) for p in model.source_shallow.parameters()}
    assert own and not own & {id(p) for p in model.backbone.parameters()}


def test_source_copy_follows_frozen_stages_and_norm():
    frozen = build(PHASE1, backbone=dict(BACKBONE, frozen_stages=1))
    frozen.train()
    assert not any(m.training for m in frozen.source_shallow['layer1'].modules())
    assert not any(p.requires_grad for p in frozen.source_shallow.parameters())
    fixed = build(PHASE1, backbone=dict(BACKBONE, norm_eval=True)).train()
    assert not fixed.source_shallow['bn1'].training and fixed.source_shallow['conv1'].training


def test_frozen_discriminators_stay_frozen():
    model = build(PHASE1)
    model.feat_discriminator.conv1.requires_grad_(False)
    model.loss(*batch())
    learning = {n for n, p in model.feat_discriminator.named_parameters() if p.requires_grad}
    assert learning == {n for n, _ in model.feat_discriminator.named_parameters()} - {
        'conv1.weight',
        'conv1.bias',
    }


def test_auxiliary_head_learns_from_the_source():
    """As in the host, where its loss comes beside that of the head."""
    head = dict(type='FCNHead', in_channels=32, in_index=2, channels=8, num_classes=CLASSES)
    head.update(num_convs=1, concat_input=False, dropout_ratio=0.0)
    loss = dict(type='CrossEntropyLoss', loss_weight=0.4)
    model = build(PHASE1, auxiliary_head=dict(head, loss_decode=loss))
    inputs, data_samples = batch()
    losses, _ = model.source_pass(inputs['source'], data_samples['source'])
    features = model.domain_features(inputs['source'], source=True)[1]
    logits = F.interpolate(model.auxiliary_head(features), (32, 32), mode='bilinear')
    target = torch.stack([s.gt_sem_seg.data[0] for s in data_samples['source']])
    torch.testing.assert_close(losses['aux.loss_ce'], 0.4 * F.cross_entropy(logits, target))
    losses['aux.loss_ce'].backward()
    assert model.auxiliary_head.conv_seg.weight.grad.abs().sum() > 0
    assert model.source_shallow['conv1'].weight.grad.abs().sum() > 0


def test_stages_come_out_in_the_order_of_the_backbone():
    model = build(
        PHASE1, backbone=dict(BACKBONE, out_indices=(3, 1)), decode_head=dict(HEAD, in_index=1)
    )
    x = images(0)
    ours, stock = model.eval().domain_features(x, source=False)[1], model.extract_feat(x)
    assert [f.shape for f in ours] == [f.shape for f in stock] and stock[1].shape[1] == 64


def test_without_decoupling_all_layers_are_shared():
    model = build(PHASE1, decouple=False)
    assert model.source_shallow is None
    model.loss(*batch())
    x = images(0)
    for ours, stock in zip(model.domain_features(x, True)[1], model.extract_feat(x)):
        torch.testing.assert_close(ours, stock)


def test_auxiliary_classifier_starts_from_the_main_one():
    head = build(PHASE1).decode_head
    assert torch.equal(head.conv_seg.weight, head.conv_aux.weight)
    other = {k: torch.randn_like(v) for k, v in head.state_dict().items() if 'aux' not in k}
    head.load_state_dict(other)
    assert torch.equal(head.conv_aux.weight, other['conv_seg.weight'])
    assert head.conv_aux.weight is not head.conv_seg.weight


# Thresholds and geometry


def test_threshold_rule():
    bank = torch.tensor([0.9, 0.7, 0.5, 0.8, 0.6])
    assert keep_threshold(bank, 0.8).item() == pytest.approx(0.5)
    assert keep_threshold(bank, 0.5).item() == pytest.approx(0.7)
    assert keep_threshold(bank, 1.0).item() == pytest.approx(0.5)
    for n in range(1, 40):
        values = torch.rand(n)
        assert keep_threshold(values, 0.8) == values.sort(descending=True)[0][int(0.8 * n)]


def test_bank_against_slow_lists():
    bank, capacity = ConfidenceBank(3, keep=0.6, capacity=7), 7
    lists, thresholds = [[], [], []], [0.0] * 3
    for step in range(6):
        confidence, classes = torch.rand(10), torch.randint(0, 2 + step // 4, (10,))
        got = bank.update(confidence, classes)
        for c in range(3):
            new = confidence[classes == c].tolist()
            if not new:
                continue
            lists[c] += new
            ranked = sorted(lists[c], reverse=True)
            thresholds[c] = ranked[min(int(0.6 * len(ranked)), len(ranked) - 1)]
            lists[c] = lists[c][-capacity:]
        torch.testing.assert_close(got, torch.tensor(thresholds))
        if step < 4:
            assert got[2] == 0  # a class that was not seen lets everything pass
    other = ConfidenceBank(3, keep=0.6, capacity=7)
    assert not other.state_dict()
    other.load_state_dict(bank.state_dict())
    assert torch.equal(other.thresholds, bank.thresholds)
    assert all(torch.equal(a, b) for a, b in zip(other.values, bank.values))
    with pytest.raises(RuntimeError, match='3 classes'):
        ConfidenceBank(4).load_state_dict(bank.state_dict())


def test_thresholds_are_averaged_over_processes(monkeypatch):
    others = torch.tensor([0.5, 0.2, 0.1])

    def all_reduce(values, op):
        assert op == 'mean'
        values.copy_((values + others) / 2)

    monkeypatch.setattr('mmextra.seg.decouplenet.pseudo_labels.all_reduce', all_reduce)
    bank = ConfidenceBank(3)
    got = bank.update(torch.tensor([0.9, 0.8]), torch.tensor([0, 1]))
    torch.testing.assert_close(got, torch.tensor([0.7, 0.5, 0.05]))


@pytest.mark.parametrize('flip', [False, True])
def test_follow_geometry_equals_interpolation(flip):
    maps = torch.randn(3, 7, 9)
    geometry = dict(size=(31, 45), offset=(4, 10), shape=(20, 24), flip=flip)
    for via in (None, (24, 40)):
        expected = maps[None]
        for size in ([via] if via else []) + [(31, 45)]:
            expected = F.interpolate(expected, size, mode='bilinear', align_corners=True)
        expected = expected[0, :, 4:24, 10:34]
        expected = expected.flip(-1) if flip else expected
        torch.testing.assert_close(follow_geometry(maps, geometry, via), expected)


def test_pseudo_labels_lie_where_the_image_lies():
    """Check 8: a network whose logits are a channel of the image, followed to the augmented crop."""
    np.random.seed(3)
    y, x = np.mgrid[:48, :64] / 20.0
    whole = np.stack([np.sin(x + y), np.cos(2 * x), y - 1], -1).astype(np.float32)
    model = build(PHASE2, 'DecoupleSelfTraining')
    for _ in range(4):
        step = TrackedRandomSizedCrop(width=64, crop_size=(32, 40), keep_image=True)
        results = step(dict(img=whole, seg_fields=[]))
        logits = torch.from_numpy(whole).permute(2, 0, 1)[None]
        online = model.whole_predictions(logits, [results['geometry']], (48, 64))[0]
        expected = torch.from_numpy(results['img']).permute(2, 0, 1).softmax(0)
        assert results['full_img'] is whole
        torch.testing.assert_close(online, expected, atol=0.04, rtol=0)
        wrong = dict(results['geometry'], flip=not results['geometry']['flip'])
        assert (follow_geometry(logits[0].softmax(1), wrong) - expected).abs().max() > 0.2


# Gradients


def grads(model):
    return {
        k: p.grad is not None and p.grad.abs().sum().item() > 0 for k, p in model.named_parameters()
    }


def test_gradients_go_where_they_should():
    """Check 5."""
    model = build(PHASE1)
    inputs, data_samples = batch()
    losses, _ = model.source_pass(inputs['source'], data_samples['source'])
    (losses['decode.loss_ce'] + losses['loss_adv_src']).backward()
    reached = grads(model)
    shallow = tuple(f'backbone.{name}.' for name in model.source_shallow)
    assert all(v for k, v in reached.items() if k.startswith('source_shallow.'))
    assert not any(v for k, v in reached.items() if k.startswith(shallow))
    assert not any(v for k, v in reached.items() if 'discriminator' in k or 'conv_aux' in k)
    assert reached['decode_head.conv_seg.weight'] and reached['backbone.layer4.0.conv1.weight']

    model.zero_grad()
    losses, _ = model.target_pass(inputs['target'], data_samples['target'])
    losses['loss_st'].backward(retain_graph=True)
    reached = grads(model)
    assert not any(v for k, v in reached.items() if k.startswith('source_shallow.'))
    assert not reached['decode_head.conv_seg.weight'] and reached['decode_head.conv_aux.weight']
    assert reached['backbone.conv1.weight'] and reached['decode_head.convs.0.weight']
    model.zero_grad()
    losses['loss_adv_tgt'].backward()
    reached = grads(model)
    assert not any(v for k, v in reached.items() if k.startswith('source_shallow.'))
    assert not any(v for k, v in reached.items() if 'discriminator' in k or 'conv_aux' in k)
    assert reached['decode_head.conv_seg.weight'] and reached['backbone.conv1.weight']
    assert all(p.requires_grad for p in model.feat_discriminator.parameters())

    model.zero_grad()
    steps = model.steps(inputs, data_samples)
    names = []
    for name, losses in steps:
        names.append(name)
        if name != 'generator':
            sum(losses.values()).backward()
    assert names == ['generator', 'generator', 'feat_discriminator', 'out_discriminator']
    assert all(v == ('discriminator' in k) for k, v in grads(model).items())


def test_without_adaptation_the_source_path_is_plain_training():
    """Check 6: three iterations of the whole optimisation, bit for bit."""
    off = dict(temperature=1.0, adv_src=0, adv_tgt=0, st=0)
    ours = build(PHASE1, adapt_cfg=off)
    stock = MODELS.build(
        dict(
            type='EncoderDecoder',
            backbone=BACKBONE,
            decode_head=dict(HEAD, aux_classifier=False),
            data_preprocessor=dict(PREPROCESSOR, type='SegDataPreProcessor'),
            train_cfg=dict(),
        )
    )
    stock.load_state_dict({k: v for k, v in ours.state_dict().items() if k in stock.state_dict()})
    plain = dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9))
    wrappers = optimizers(ours, generator=plain)
    single = OptimWrapper(torch.optim.SGD(stock.parameters(), lr=0.05, momentum=0.9))
    ours.train(), stock.train()
    for seed in range(3):
        data = dict(
            inputs=list((images(seed) * 255).to(torch.uint8)), data_samples=samples(labels(seed))
        )
        pair = dict(source=copy.deepcopy(data), target=copy.deepcopy(data))
        log = ours.train_step(pair, wrappers)
        stock_log = stock.train_step(data, single)
        assert torch.equal(log['decode.loss_ce'], stock_log['decode.loss_ce'])
    for key, value in stock.state_dict().items():
        name = key.removeprefix('backbone.')
        own = f'source_shallow.{name}' if f'source_shallow.{name}' in ours.state_dict() else key
        assert torch.equal(ours.state_dict()[own], value), key


@pytest.mark.parametrize(
    'off, expected',
    [
        ('adv_src', ['generator', 'generator', 'out_discriminator']),
        ('adv_tgt', ['generator', 'generator', 'feat_discriminator']),
        ('st', ['generator', 'generator', 'feat_discriminator', 'out_discriminator']),
    ],
)
def test_a_weight_of_zero_leaves_its_term_out(off, expected):
    part = dict(adv_src='feat_discriminator', adv_tgt='out_discriminator').get(off)
    model = build(PHASE1, adapt_cfg={off: 0}, **({part: None} if part else {}))
    names, losses = zip(*model.steps(*batch()))
    assert list(names) == expected
    assert not any(f'loss_{off}' in several for several in losses)


def test_feature_alignment_alone_learns_nothing_from_the_target():
    model = build(PHASE1, adapt_cfg=dict(adv_tgt=0, st=0))
    names, losses = zip(*model.steps(*batch()))
    assert names == ('generator', 'feat_discriminator')
    sum(losses[1].values()).backward()
    assert all(v == k.startswith('feat_discriminator') for k, v in grads(model).items())


def test_train_step_equals_one_backward_of_all_losses():
    """The step by step backward passes add up to the gradient of the sum."""
    plain = dict(PREPROCESSOR, bgr_to_rgb=False)
    model, other = (build(PHASE1, data_preprocessor=plain) for _ in range(2))
    inputs, data_samples = batch()
    total = sum(v for k, v in other.loss(inputs, data_samples).items() if 'loss' in k)
    total.backward()
    pair = dict(
        source=dict(inputs=list(inputs['source'] * 255), data_samples=data_samples['source']),
        target=dict(inputs=list(inputs['target'] * 255), data_samples=data_samples['target']),
    )
    wrappers = optimizers(model)
    for wrapper in wrappers.values():
        wrapper.zero_grad = lambda: None
    log = model.train_step(pair, wrappers)
    for (name, p), q in zip(model.named_parameters(), other.parameters()):
        torch.testing.assert_close(
            p.grad, q.grad, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: n + m
        )
    assert log['loss'] + log['loss_feat_discriminator'] + log['loss_out_discriminator'] == (
        pytest.approx(total.item(), rel=1e-4)
    )
    assert 0 < log['pseudo_kept'] <= 1 and 0 < log['pseudo_confidence'] <= 1
    assert 1 <= log['pseudo_classes'] <= CLASSES and log['pseudo_threshold'] > 0


def test_no_hidden_second_pass():
    """Every network runs once for each batch that it has to see, and once for each judgement."""
    model, calls = build(PHASE1), Counter()
    parts = dict(
        source_shallow=model.source_shallow['layer1'],
        target_shallow=model.backbone.layer1,
        deep=model.backbone.layer4,
        head=model.decode_head.convs[0],
        classifier=model.decode_head.conv_seg,
        aux=model.decode_head.conv_aux,
        features=model.feat_discriminator,
        outputs=model.out_discriminator,
    )
    for name, part in parts.items():
        part.register_forward_hook(lambda *_, n=name: calls.update([n]))
    inputs, data_samples = batch()
    pair = {d: dict(inputs=list(inputs[d]), data_samples=data_samples[d]) for d in inputs}
    model.train_step(pair, optimizers(model))
    assert calls == dict(
        source_shallow=1,
        target_shallow=1,
        deep=2,
        head=2,
        classifier=2,
        aux=1,
        features=3,
        outputs=3,
    )


def test_domains_of_different_sizes():
    model = build(PHASE1)
    losses = model.loss(*batch((32, 48), (64, 40)))
    assert all(torch.isfinite(v) for v in losses.values())


def test_padding_gets_no_pseudo_label():
    model = build(PHASE1)
    padded = SegDataSample(metainfo=dict(padding_size=(0, 16, 0, 8)))
    whole = SegDataSample(metainfo=dict(padding_size=(0, 0, 0, 0)))
    valid = unpadded_cells([padded, whole], (32, 32), (5, 5))
    assert valid[0].sum() == 4 * 3 and valid[1].all()
    assert unpadded_cells([whole], (32, 32), (5, 5)) is None
    made, _ = model.pseudo_labels(torch.randn(2, CLASSES, 5, 5), valid)
    assert (made[~valid] == 255).all()
    assert sum(len(v) for v in model.bank.values) == valid.sum()


def test_mixed_precision():
    model = build(PHASE1)
    inputs, data_samples = batch()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses = model.loss(inputs, data_samples)
    sum(v for k, v in losses.items() if 'loss' in k).backward()
    assert all(torch.isfinite(v) for v in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    reference = build(PHASE1).loss(inputs, data_samples)
    for key in losses:
        if 'loss' in key:
            torch.testing.assert_close(losses[key].float(), reference[key], rtol=0.1, atol=0.02)


class BFloat16(OptimWrapper):
    """AmpOptimWrapper wants a GPU; this is its context on the CPU."""

    @contextmanager
    def optim_context(self, model):
        with super().optim_context(model), torch.autocast('cpu', dtype=torch.bfloat16):
            yield


def test_double_precision_is_kept():
    logits = torch.randn(1, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 1, 2, 255] * 5).view(1, 4, 5)
    torch.autograd.gradcheck(lambda x: masked_cross_entropy(x, target, 255), logits)
    torch.autograd.gradcheck(lambda x: domain_loss(x, 1.0), logits)
    geometry = dict(size=(9, 11), offset=(1, 2), shape=(6, 7), flip=True)
    torch.autograd.gradcheck(lambda x: follow_geometry(x[0], geometry, via=(5, 6)), logits)
    inputs, data_samples = batch()
    single = build(PHASE1).loss(inputs, data_samples)
    double = build(PHASE1).double().loss({k: v.double() for k, v in inputs.items()}, data_samples)
    for key, value in double.items():
        if 'loss' in key:
            assert value.dtype == torch.float64
            torch.testing.assert_close(value.float(), single[key], rtol=1e-3, atol=1e-4)


def test_phase_2_in_mixed_precision_reaches_all_weights():
    """The pass over whole images makes no graph; the next one needs weights that were cast with one."""
    model = build(PHASE2, 'DecoupleSelfTraining', thresholds=[0.0] * CLASSES)
    geometry = dict(size=(32, 32), offset=(0, 0), shape=(32, 32), flip=False)
    meta = dict(
        geometry=geometry,
        full_img=np.zeros((32, 32, 3), np.uint8),
        soft_label=np.zeros((CLASSES, 4, 4), np.float32),
    )
    inputs, data_samples = batch()
    data_samples['target'] = [SegDataSample(metainfo=meta) for _ in range(2)]
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses = model.loss(dict(inputs, full=images(5)), data_samples)
    losses['loss_target'].backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_train_step_in_mixed_precision():
    model = build(PHASE1)
    plain = optimizers(model)
    # In any order: a config that was written to a file has its keys sorted.
    wrappers = {k: BFloat16(plain[k].optimizer) for k in sorted(plain.keys())}
    wrappers = OptimWrapperDict(**wrappers)
    inputs, data_samples = batch()
    pair = {d: dict(inputs=list(inputs[d] * 255), data_samples=data_samples[d]) for d in inputs}
    before = weights(model)
    log = model.train_step(pair, wrappers)
    assert all(torch.isfinite(torch.as_tensor(v)) for v in log.values())
    after = weights(model)
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert {
        'source_shallow.conv1.weight',
        'backbone.conv1.weight',
        'decode_head.conv_aux.weight',
        'feat_discriminator.conv1.weight',
        'out_discriminator.conv1.weight',
    } <= changed


def test_gradient_accumulation():
    """Two iterations accumulated are the mean of their gradients, and step once."""
    model = build(PHASE1)
    wrappers = optimizers(model, accumulative_counts=2)
    stepped = []
    for name, wrapper in wrappers.items():
        step = wrapper.optimizer.step
        wrapper.optimizer.step = lambda *a, n=name, s=step, **k: (stepped.append(n), s(*a, **k))
    for i in range(4):
        inputs, data_samples = batch()
        pair = {d: dict(inputs=list(inputs[d] * 255), data_samples=data_samples[d]) for d in inputs}
        model.train_step(pair, wrappers)
        assert len(stepped) == 3 * ((i + 1) // 2)
    wrapper = OptimWrapper(
        torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0), accumulative_counts=2
    )
    parameter = wrapper.optimizer.param_groups[0]['params'][0]
    for factor in (1.0, 3.0):
        accumulate(wrapper, factor * parameter.sum())
        accumulate(wrapper, factor * parameter.sum())
        finish(wrapper)
    assert parameter.item() == pytest.approx(1 - (1 + 1 + 3 + 3) / 2)


# Data


PACK = dict(
    type='PackSegInputs',
    meta_keys=(
        'img_path',
        'seg_map_path',
        'ori_shape',
        'img_shape',
        'flip',
        'flip_direction',
        'geometry',
        'full_img',
        'soft_label',
    ),
)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Eight source images of 48x36 and five target images of 40x40, with labels on disk for both."""
    root = tmp_path_factory.mktemp('pairs')
    for domain, count, size in (('source', 8, (36, 48)), ('target', 5, (40, 40))):
        random = np.random.RandomState(len(domain))
        for kind in ('img', 'ann'):
            (root / domain / kind).mkdir(parents=True)
        for i in range(count):
            label = np.kron(random.randint(0, CLASSES, (4, 4)), np.ones((10, 12)))[
                : size[0], : size[1]
            ]
            label = (
                label.astype(np.uint8)
                if label.shape == size
                else np.resize(label, size).astype(np.uint8)
            )
            image = (label[..., None] * [40, 20, 50] + random.randint(0, 40, (*size, 3))).astype(
                np.uint8
            )
            if i % 4 == 0:
                label[:3] = 255
            cv2.imwrite(str(root / domain / 'img' / f'{domain}{i}.png'), image)
            cv2.imwrite(str(root / domain / 'ann' / f'{domain}{i}.png'), label)
    return root


def dataset(root, domain, steps=None, **kwargs):
    crop = dict(type='mmextra.TrackedRandomSizedCrop', width=44, crop_size=(32, 32))
    steps = steps or [dict(type='LoadAnnotations'), crop]
    return dict(
        type='BaseSegDataset',
        img_suffix='.png',
        data_root=str(root / domain),
        data_prefix=dict(img_path='img', seg_map_path='ann'),
        metainfo=dict(classes=[str(i) for i in range(CLASSES)]),
        pipeline=[dict(type='LoadImageFromFile'), *steps, PACK],
        **kwargs,
    )


def pairs(root, **kwargs):
    return dict(
        dict(
            type='mmextra.DomainPairDataset',
            source=dataset(root, 'source'),
            target=dataset(root, 'target'),
        ),
        **kwargs,
    )


def test_pairs(folder):
    data = DATASETS.build(pairs(folder))
    assert len(data) == 8 and data.metainfo['classes'] == [str(i) for i in range(CLASSES)]
    item = data[7]
    assert item['source']['data_samples'].img_path.endswith('source7.png')
    assert item['target']['data_samples'].img_path.endswith('target2.png')
    assert 'gt_sem_seg' in item['source']['data_samples']
    assert 'gt_sem_seg' not in item['target']['data_samples']
    assert data[(1, 4)]['target']['data_samples'].img_path.endswith('target4.png')


def test_sampler_draws_every_image_and_splits_by_process(folder):
    data = DATASETS.build(pairs(folder))
    sampler = DomainPairSampler(data, seed=3)
    order = [p for p, _ in zip(sampler, range(40))]
    assert sorted(s for s, _, _ in order[:8]) == list(range(8))
    assert sorted(t for _, t, _ in order[:5]) == list(range(5))
    assert len({seed for _, _, seed in order}) == 40
    assert order == [p for p, _ in zip(DomainPairSampler(data, seed=3), range(40))]
    assert order != [p for p, _ in zip(DomainPairSampler(data, seed=4), range(40))]
    parts = []
    for rank in range(2):
        part = DomainPairSampler(data, seed=3)
        part.rank, part.world_size = rank, 2
        parts.append([p for p, _ in zip(part, range(20))])
    assert [p for both in zip(*parts) for p in both] == order
    part.skip(7)
    assert [p for p, _ in zip(part, range(13))] == parts[1][7:]
    with pytest.raises(ValueError, match='BaseSegDataset'):
        DomainPairSampler(data.source)


def test_augmentation_follows_from_the_place_in_the_order(folder):
    data = DATASETS.build(pairs(folder))
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    one, again, other = data[(1, 2, 77)], data[(1, 2, 77)], data[(1, 2, 78)]
    assert torch.equal(one['target']['inputs'], again['target']['inputs'])
    assert torch.equal(one['source']['inputs'], again['source']['inputs'])
    assert not torch.equal(one['source']['inputs'], other['source']['inputs'])
    assert np.array_equal(before[0], np.random.get_state()[1])
    assert torch.equal(before[1], torch.get_rng_state())


def test_class_balanced_sampling():
    # Class 0 fills nine images; class 1 is small, in the tenth alone; class 2 is never there.
    counts = np.array([[100, 0, 0]] * 9 + [[90, 10, 0]])
    drawn = class_balanced(counts, np.random.RandomState(0))
    order = [next(drawn) for _ in range(400)]
    assert 150 < order.count(9) < 400
    slow, seen, random = [], np.zeros(3), np.random.RandomState(0)
    queues = {c: random.permutation(np.flatnonzero(counts[:, c])) for c in (0, 1)}
    taken = {0: 0, 1: 0}
    for _ in range(400):
        weights = [1 / np.log(1.01 + seen[c] / max(seen.sum(), 1)) for c in (0, 1)]
        c = random.choice([0, 1], p=np.array(weights) / sum(weights))
        slow.append(int(queues[c][taken[c] % len(queues[c])]))
        taken[c] += 1
        seen += counts[slow[-1]]
    assert order == slow
    again = class_balanced(counts, np.random.RandomState(1), reset_every=1)
    first = [next(again) for _ in range(400)]
    # With the shares forgotten after each draw, both classes are as likely.
    assert abs(first.count(9) / 400 - (0.5 + 0.5 / 10)) < 0.08


def test_class_counts_are_kept_in_a_file(folder, tmp_path, monkeypatch):
    file = tmp_path / 'sub' / 'counts.npy'
    data = DATASETS.build(pairs(folder, class_balanced=True, class_counts=str(file)))
    counts = data.count_pixels()
    assert counts.shape == (8, CLASSES) and counts[1].sum() == 36 * 48
    assert counts[0].sum() == 33 * 48  # what is ignored is not counted
    assert np.array_equal(np.load(file), counts)
    np.save(file, counts + 1)
    assert np.array_equal(data.count_pixels(), counts + 1)

    def broken_off(target, array, save=np.save):
        save(target, array)
        raise KeyboardInterrupt

    monkeypatch.setattr(np, 'save', broken_off)
    other = tmp_path / 'other.npy'
    with pytest.raises(KeyboardInterrupt):
        DATASETS.build(pairs(folder, class_counts=str(other))).count_pixels()
    assert not other.exists()
    monkeypatch.undo()
    np.save(file, counts[:3])
    with pytest.raises(ValueError, match='remove it'):
        data.count_pixels()
    next(iter(DomainPairSampler(DATASETS.build(pairs(folder, class_balanced=True)), seed=0)))
    with pytest.raises(ValueError, match='DomainPairSampler'):
        data[0]


@pytest.mark.parametrize('wrapped', [False, True])
def test_target_labels_are_never_read(folder, wrapped):
    crop = dict(type='RandomCrop', crop_size=(32, 32), cat_max_ratio=0.5)
    target = dataset(folder, 'target', [dict(type='LoadAnnotations'), crop])
    target['data_prefix'] = dict(img_path='img', seg_map_path='there/is/none')
    if wrapped:
        target = dict(
            type='RepeatDataset', times=2, dataset=dict(type='ConcatDataset', datasets=[target])
        )
    data = DATASETS.build(pairs(folder, target=target))
    for index in range(5):
        assert 'gt_sem_seg' not in data[index]['target']['data_samples']


def test_labels_that_come_with_the_image_are_blanked():
    cfg = dict(TINY['DomainPairDataset'], type='mmextra.DomainPairDataset')
    seen = []

    def look(results):
        seen.append(results['gt_seg_map'].copy())
        return results

    cfg = copy.deepcopy(cfg)
    for domain in ('source', 'target'):
        cfg[domain]['pipeline'] = [PACK]
    data = DATASETS.build(cfg)
    data.target.pipeline.transforms.insert(0, look)
    item = data[1]
    assert 'gt_sem_seg' in item['source']['data_samples']
    assert 'gt_sem_seg' not in item['target']['data_samples']
    assert (seen[0] == 255).all()


def test_drawn_domains_show_one_scene():
    source, target = (
        DATASETS.build(dict(type='mmextra.DrawnDomains', domain=d, num_images=3, size=48))
        for d in ('source', 'target')
    )
    for i in range(3):
        a, b = source.get_data_info(i), target.get_data_info(i)
        assert np.array_equal(a['gt_seg_map'], b['gt_seg_map'])
        assert np.abs(a['img'].astype(int) - b['img']).mean() > 10
        assert np.array_equal(a['img'], source.get_data_info(i)['img'])
    found = [source.get_data_info(i)['gt_seg_map'] for i in range(3)]
    assert len(np.unique(found)) > 2


def test_prefix_dataset(folder):
    cfg = dict(dataset(folder, 'source'), type='mmextra.PrefixSegDataset')
    assert len(DATASETS.build(dict(cfg, prefixes=['source1', 'source3']))) == 2
    with pytest.raises(ValueError, match='begins with night'):
        DATASETS.build(dict(cfg, prefixes=['night']))


def test_augmentation_keeps_labels_and_image_together():
    np.random.seed(0)
    image = np.random.randint(0, 255, (30, 40, 3), np.uint8)
    step = TrackedRandomSizedCrop(width=40, crop_size=(20, 24), ratio_range=(0.8, 1.6))
    flips = set()
    for _ in range(8):
        maps = image[..., 0].copy()
        results = step(dict(img=image, gt_seg_map=maps, seg_fields=['gt_seg_map']))
        geometry = results['geometry']
        height, width = geometry['size']
        assert 32 <= width < 64 and height == round(width * 30 / 40)
        assert results['img'].shape == (20, 24, 3) and results['gt_seg_map'].shape == (20, 24)
        assert np.array_equal(results['gt_seg_map'], apply(maps, geometry, 'nearest'))
        flips.add(geometry['flip'])
    assert flips == {True, False}
    small = TrackedRandomSizedCrop(width=20, crop_size=(64, 64))(dict(img=image))
    assert small['img'].shape[:2] == small['geometry']['shape'] == small['geometry']['size']
    jittered = TorchColorJitter(0.5, 0.5, 0.5, 0.2)(dict(img=image))['img']
    assert jittered.shape == image.shape and not np.array_equal(jittered, image)
    assert np.array_equal(TorchColorJitter()(dict(img=image))['img'], image)


def test_preprocessor(folder):
    preprocessor = MODELS.build(PREPROCESSOR)
    target = dataset(
        folder,
        'target',
        [
            dict(
                type='mmextra.TrackedRandomSizedCrop', width=44, crop_size=(32, 32), keep_image=True
            )
        ],
    )
    data = DATASETS.build(pairs(folder, target=target))
    items = [data[i] for i in range(2)]
    collated = {
        d: {k: [item[d][k] for item in items] for k in ('inputs', 'data_samples')}
        for d in ('source', 'target')
    }
    out = preprocessor(collated, True)
    assert out['inputs']['source'].shape == out['inputs']['target'].shape == (2, 3, 32, 32)
    whole = cv2.imread(str(folder / 'target/img/target1.png'))[..., ::-1] / 255
    torch.testing.assert_close(
        out['inputs']['full'][1].permute(1, 2, 0), torch.from_numpy(whole).float()
    )
    collated['target']['data_samples'][0].set_metainfo(dict(full_img=np.zeros((9, 9, 3), np.uint8)))
    with pytest.raises(ValueError, match='Resize'):
        preprocessor(collated, True)
    plain = preprocessor(dict(inputs=[torch.ones(3, 8, 8)], data_samples=[SegDataSample()]))
    assert plain['inputs'].shape == (1, 3, 8, 8)


# Bad input


def test_all_ignored_batch_is_no_accident():
    logits = torch.randn(1, CLASSES, 4, 4, requires_grad=True)
    loss = masked_cross_entropy(logits, torch.full((1, 4, 4), 255), 255)
    loss.backward()
    assert loss == 0 and (logits.grad == 0).all()
    model = build(PHASE1)
    inputs, data_samples = batch()
    data_samples['source'] = samples(torch.full((2, 32, 32), 255))
    losses = model.loss(inputs, data_samples)
    assert losses['decode.loss_ce'] == 0 and all(torch.isfinite(v) for v in losses.values())
    sum(v for k, v in losses.items() if 'loss' in k).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_labels_beyond_the_classes(folder):
    cfg = pairs(folder)
    cfg['source']['metainfo'] = cfg['target']['metainfo'] = dict(classes=['0', '1'])
    data = DATASETS.build(cfg)
    with pytest.raises(ValueError, match='there are 2 classes'):
        for i in range(8):
            data[i]


def test_different_classes(folder):
    cfg = pairs(folder)
    cfg['target']['metainfo'] = dict(classes=list('01243'))
    with pytest.raises(ValueError, match='same classes'):
        DATASETS.build(cfg)


def test_source_without_labels(folder):
    crop = dict(type='mmextra.TrackedRandomSizedCrop', width=44, crop_size=(32, 32))
    data = DATASETS.build(pairs(folder, source=dataset(folder, 'source', [crop])))
    with pytest.raises(ValueError, match='LoadAnnotations'):
        data[0]


@pytest.mark.parametrize(
    'overrides, message',
    [
        (dict(adapt_cfg=dict(lambda_st=1)), 'adapt_cfg knows'),
        (dict(adapt_cfg=dict(temperature=0)), 'temperature must be positive'),
        (dict(adapt_cfg=dict(keep=1.5)), 'keep must lie in'),
        (dict(adapt_cfg=dict(keep=0)), 'keep must lie in'),
        (dict(adapt_cfg=dict(bank=0)), 'bank must be'),
        (dict(adapt_cfg=dict(st=-1)), 'adapt_cfg.st is -1'),
        (dict(feat_discriminator=None), 'together with feat_discriminator'),
        (dict(out_discriminator=None), 'together with out_discriminator'),
        (dict(decode_head=dict(HEAD, aux_classifier=False)), 'aux_classifier=True'),
        (dict(split_after='layer4'), 'split_after must be stem or one of layer1'),
        (dict(split_after='relu'), 'split_after must be'),
        (
            dict(backbone=dict(type='MixVisionTransformer', embed_dims=8)),
            'backbone must be a ResNet.*MixVisionTransformer',
        ),
        (
            dict(
                decode_head=dict(
                    type='FCNHead', in_channels=64, in_index=3, channels=8, num_classes=CLASSES
                )
            ),
            'decode_head must be a mmextra.ASPPSumHead, got FCNHead',
        ),
        (dict(decode_head=dict(HEAD, num_classes=2, out_channels=1)), 'out_channels is 1 for 2'),
    ],
)
def test_bad_options(overrides, message):
    with pytest.raises(ValueError, match=message):
        build(PHASE1, **overrides)


def test_crops_too_small_for_a_discriminator():
    with pytest.raises(ValueError, match='use larger crops'):
        FCDiscriminator(3, 4)(torch.zeros(1, 3, 31, 64))


@pytest.mark.parametrize('part', ['feat_discriminator', 'out_discriminator'])
def test_discriminators_of_other_widths(part):
    model = build(PHASE1, **{part: dict(D1, in_channels=7)})
    with pytest.raises(ValueError, match='of 7 channels cannot judge maps of .* in_channels'):
        model.loss(*batch())


@pytest.mark.parametrize('absent', ['full_img', 'geometry', 'soft_label'])
def test_samples_of_phase_2_without_a_part(absent):
    model = build(PHASE2, 'DecoupleSelfTraining')
    meta = dict(full_img=np.zeros((4, 4, 3), np.uint8), geometry={}, soft_label=np.zeros((5, 2, 2)))
    del meta[absent]
    inputs, data_samples = batch()
    data_samples['target'] = [SegDataSample(metainfo=meta) for _ in range(2)]
    with pytest.raises(ValueError, match=f'target samples lack {absent}: .*meta_keys'):
        model.loss(dict(inputs, full=images(5)), data_samples)


def test_optimizers_have_to_fit():
    model = build(PHASE1)
    wrappers = optimizers(model)
    names = {id(p): n for n, p in model.named_parameters()}
    owned = {
        name: {names[id(p)].split('.')[0] for g in w.optimizer.param_groups for p in g['params']}
        for name, w in wrappers.items()
    }
    assert owned == dict(
        generator={'backbone', 'decode_head', 'source_shallow'},
        feat_discriminator={'feat_discriminator'},
        out_discriminator={'out_discriminator'},
    )
    rates = {
        names[id(g['params'][0])]: g['lr'] for g in wrappers['generator'].optimizer.param_groups
    }
    assert rates['decode_head.conv_aux.bias'] == pytest.approx(0.2)
    assert rates['source_shallow.conv1.weight'] == pytest.approx(0.02)
    assert len(rates) == sum(1 for n in names.values() if 'discriminator' not in n)
    with pytest.raises(ValueError, match='needs optim_wrapper'):
        model.train_step({}, OptimWrapper(torch.optim.SGD(model.parameters(), lr=1.0)))
    with pytest.raises(ValueError, match='out_discriminator'):
        model.train_step({}, OptimWrapperDict(generator=wrappers['generator']))
    with pytest.raises(ValueError, match='named configs'):
        MultiOptimWrapperConstructor(dict(optimizer=dict(type='SGD', lr=1.0)))
    with pytest.raises(ValueError, match='one and generator|generator and one'):
        optimizers(model, one=dict(optimizer=dict(type='SGD', lr=1.0)))
    clipped = optimizers(model, clip_grad=dict(max_norm=1.0))
    assert all(w.clip_grad_kwargs == dict(max_norm=1.0) for w in clipped.values())


def test_stock_data_parallel_is_refused():
    from mmengine.model import MMDistributedDataParallel

    wrapped = MMDistributedDataParallel.__new__(MMDistributedDataParallel)
    with pytest.raises(ValueError, match='StepwiseDataParallel'):
        MultiOptimWrapperConstructor(dict(a=dict(optimizer=dict(type='SGD', lr=1.0))))(wrapped)


# Between the phases


def dump(model, folder, batches, **kwargs):
    metric = SoftLabelDumper(str(folder), **kwargs)
    metric.dataset_meta = dict(classes=[str(i) for i in range(CLASSES)])
    for x, names in batches:
        size = tuple(x.shape[-2:])
        shapes = dict(ori_shape=size, img_shape=size, pad_shape=size)
        found = [SegDataSample(metainfo=dict(shapes, img_path=f'there/{n}.png')) for n in names]
        with torch.no_grad():
            out = model(x, found, mode='predict')
        metric.process({}, [s.to_dict() for s in out])
    return metric.evaluate(sum(len(names) for _, names in batches))


def test_soft_labels_and_thresholds(tmp_path):
    model = build(PHASE1, test_cfg=dict(mode='logits')).eval()
    x = images(5, (48, 40), batch=3)
    figures = dump(model, tmp_path, [(x[:2], ['a', 'b']), (x[2:], ['c'])])
    assert figures['images'] == 3
    expected = model(x, mode='tensor').detach()
    stored = torch.stack([torch.from_numpy(np.load(tmp_path / f'{n}.npy')) for n in 'abc'])
    torch.testing.assert_close(stored, expected)
    assert stored.shape == (3, CLASSES, 6, 5)
    confidence, classes = stored.softmax(1).max(1)
    content = json.loads((tmp_path / 'thresholds.json').read_text())
    for c, threshold in enumerate(content['thresholds']):
        ranked = confidence[classes == c].sort(descending=True)[0]
        assert threshold == (ranked[int(0.8 * len(ranked))].item() if len(ranked) else 0.0)
    assert build(
        PHASE2, 'DecoupleSelfTraining', thresholds=str(tmp_path / 'thresholds.json')
    ).thresholds.tolist() == pytest.approx(content['thresholds'])
    loaded = LoadSoftLabel(str(tmp_path))(dict(img_path='elsewhere/b.jpg'))['soft_label']
    assert np.array_equal(loaded, stored[1].numpy())
    with pytest.raises(ValueError, match='one file'):
        metric = SoftLabelDumper(str(tmp_path))
        sample = dict(seg_logits=dict(data=stored[0]))
        metric.process({}, [dict(sample, img_path='x/a.png'), dict(sample, img_path='y/a.png')])


def test_what_phase_2_cannot_start_from(tmp_path):
    with pytest.raises(FileNotFoundError, match='SoftLabelDumper'):
        LoadSoftLabel(str(tmp_path))(dict(img_path='a.png'))
    model = build(PHASE2, 'DecoupleSelfTraining', thresholds=str(tmp_path / 'none.json'))
    with pytest.raises(FileNotFoundError, match='SoftLabelDumper'):
        model.thresholds  # noqa: B018  the property reads the file
    with pytest.raises(ValueError, match='thresholds are for 2 classes'):
        build(PHASE2, 'DecoupleSelfTraining', thresholds=[0.5, 0.5]).thresholds  # noqa: B018
    with pytest.raises(ValueError, match='LoadSoftLabel'):
        build(PHASE2, 'DecoupleSelfTraining').loss(*batch())
    geometry = dict(size=(32, 32), offset=(0, 0), shape=(32, 32), flip=False)
    short = SegDataSample(
        metainfo=dict(
            soft_label=np.zeros((2, 4, 4), np.float32),
            geometry=geometry,
            full_img=np.zeros((40, 40, 3), np.uint8),
        )
    )
    with pytest.raises(ValueError, match='has 2 classes, the model 5'):
        build(PHASE2, 'DecoupleSelfTraining').stored_predictions([short], torch.device('cpu'))
    resized = build(PHASE1).eval()
    with pytest.raises(ValueError, match="mode='logits'"):
        dump(resized, tmp_path, [(images(0), ['a', 'b'])])


def test_phase_2_step_by_step():
    """The published order, recomputed: source; whole images in training mode; augmented target."""
    model, slow = (build(PHASE2, 'DecoupleSelfTraining') for _ in range(2))
    np.random.seed(1)
    whole = (images(9, (40, 48)) * 255).to(torch.uint8)
    step = TrackedRandomSizedCrop(width=48, crop_size=(32, 32), keep_image=True)
    crops, targets = [], []
    for i, image in enumerate(whole):
        results = step(dict(img=image.permute(1, 2, 0).numpy()))
        crops.append(torch.from_numpy(results['img']).permute(2, 0, 1))
        soft = torch.randn(CLASSES, 5, 6, generator=torch.Generator().manual_seed(i)) * 3
        targets.append(
            SegDataSample(
                metainfo=dict(
                    geometry=results['geometry'],
                    full_img=results['full_img'],
                    soft_label=soft.numpy(),
                )
            )
        )
    source = dict(inputs=list(images(0) * 255), data_samples=samples(labels(1)))
    pair = dict(source=source, target=dict(inputs=crops, data_samples=targets))
    data = slow.data_preprocessor(copy.deepcopy(pair), True)
    x, s = data['inputs'], data['data_samples']
    expected = slow.decode_head.loss(slow.backbone(x['source']), s['source'], None)['loss_ce']
    with torch.no_grad():
        z = slow.decode_head(slow.backbone(x['full']))
    made = []
    for i, sample in enumerate(s['target']):
        g = sample.metainfo['geometry']

        def to_crop(maps, g=g):
            maps = F.interpolate(maps[None], g['size'], mode='bilinear', align_corners=True)[0]
            (y0, x0), (h, w) = g['offset'], g['shape']
            maps = maps[:, y0 : y0 + h, x0 : x0 + w]
            maps = maps.flip(-1) if g['flip'] else maps
            return F.pad(maps, (0, 32 - w, 0, 32 - h), value=-1.0)

        p = F.interpolate(z[i : i + 1], (32, 32), mode='bilinear', align_corners=True).softmax(1)[0]
        q = torch.from_numpy(sample.metainfo['soft_label'])[None]
        q = F.interpolate(q, (40, 48), mode='bilinear', align_corners=True)[0]
        inside = to_crop(torch.ones(1, 40, 48))[0] > 0
        mean = (to_crop(p) + to_crop(q).softmax(0)) / 2
        confidence, classes = mean.max(0)
        made.append(torch.where(inside & (confidence >= 0.3), classes, 255))
    logits = slow.decode_head(slow.backbone(x['target']))
    logits = F.interpolate(logits, (32, 32), mode='bilinear', align_corners=True)
    target = F.cross_entropy(logits, torch.stack(made), ignore_index=255)
    (expected + target).backward()

    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.0))
    wrapper.zero_grad = lambda: None
    log = model.train_step(pair, wrapper)
    torch.testing.assert_close(log['decode.loss_ce'], expected.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(log['loss_target'], target.detach(), rtol=1e-4, atol=1e-5)
    assert 0 < log['pseudo_kept'] < 1 or (torch.stack(made) != 255).all()
    for (name, a), b in zip(model.named_parameters(), slow.parameters()):
        torch.testing.assert_close(
            a.grad, b.grad, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: n + m
        )
    for (name, a), b in zip(model.named_buffers(), slow.buffers()):
        torch.testing.assert_close(a, b, msg=lambda m, n=name: n + m)


def test_iou_by_class(tmp_path):
    metric = ClassIoUMetric(subsets=dict(mIoU2=['a', 'c']))
    metric.dataset_meta = dict(classes=['a', 'b', 'c', 'd'])
    truth, found = torch.tensor([[0, 0, 1, 2]]), torch.tensor([[0, 1, 1, 1]])
    metric.process({}, [dict(pred_sem_seg=dict(data=found), gt_sem_seg=dict(data=truth))])
    out = metric.evaluate(1)
    assert out['IoU/a'] == 50 and out['IoU/b'] == pytest.approx(33.33) and out['IoU/c'] == 0
    assert 'IoU/d' not in out and out['mIoU2'] == 25 and out['mIoU'] == pytest.approx(27.78)
    pictures = ClassIoUMetric(format_only=True, output_dir=str(tmp_path / 'masks'))
    pictures.dataset_meta = metric.dataset_meta
    sample = dict(pred_sem_seg=dict(data=found), img_path='there/a.jpg')
    pictures.process({}, [sample])
    assert pictures.compute_metrics(pictures.results) == {}
    mask = cv2.imread(str(tmp_path / 'masks/a.png'), cv2.IMREAD_UNCHANGED)
    assert mask.ravel().tolist() == [0, 1, 1, 1]
    metric.subsets = dict(m=['zebra'])
    metric.process({}, [dict(pred_sem_seg=dict(data=found), gt_sem_seg=dict(data=truth))])
    with pytest.raises(ValueError, match='zebra'):
        metric.evaluate(1)


# Whole runs


def run(root, work_dir, iters=4, **overrides):
    cfg = Config(
        dict(
            default_scope='mmseg',
            model=dict(copy.deepcopy(PHASE1), type='mmextra.DecoupleNet', adapt_cfg=dict(bank=60)),
            work_dir=str(work_dir),
            train_dataloader=dict(
                batch_size=2,
                num_workers=0,
                sampler=dict(type='mmextra.DomainPairSampler'),
                dataset=pairs(root, class_balanced=True),
            ),
            train_cfg=dict(type='IterBasedTrainLoop', max_iters=iters, val_interval=100),
            optim_wrapper=copy.deepcopy(OPTIMIZERS),
            param_scheduler=[dict(type='PolyLR', power=0.9, end=8, by_epoch=False)],
            default_hooks=dict(
                logger=dict(type='LoggerHook', interval=1),
                checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2),
            ),
            log_level='WARNING',
            randomness=dict(seed=0),
        )
    )
    cfg.merge_from_dict(overrides)
    return cfg


@pytest.fixture(scope='module')
def trained(folder, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('unbroken')
    runner = train(run(folder, work_dir))
    forget_instances()
    return runner, work_dir


def test_resumed_run_equals_an_unbroken_one(folder, trained, tmp_path):
    runner, work_dir = trained
    broken = run(folder, tmp_path, load_from=str(work_dir / 'iter_2.pth'))
    broken.resume = True
    resumed = train(broken)
    state = weights(runner.model)
    assert state['bank.sizes'].sum() > 60 and state['bank.thresholds'].any()
    assert state['bank.sizes'].max() == 60  # the banks did overflow
    assert_equal_weights(state, weights(resumed.model))
    for name in ('generator', 'feat_discriminator', 'out_discriminator'):
        one, other = (r.optim_wrapper[name].state_dict() for r in (runner, resumed))
        assert str(one['param_groups']) == str(other['param_groups'])
        assert one['state'].keys() == other['state'].keys() and one['state']
        for key, values in one['state'].items():
            for field, value in values.items():
                assert torch.equal(
                    torch.as_tensor(value), torch.as_tensor(other['state'][key][field])
                )
    logged = runner.message_hub.log_scalars
    for key in ('pseudo_kept', 'pseudo_confidence', 'pseudo_threshold', 'loss_feat_discriminator'):
        assert f'train/{key}' in logged


def test_changing_target_labels_changes_nothing(folder, trained, tmp_path):
    other = tmp_path / 'folder'
    shutil.copytree(folder, other)
    for file in sorted((other / 'target/ann').glob('*.png'))[1:]:
        label = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(file), (label + 1) % CLASSES)
    (other / 'target/ann/target0.png').write_bytes(b'no picture')
    runner = train(run(other, tmp_path / 'run'))
    assert_equal_weights(weights(trained[0].model), weights(runner.model))


def test_checkpoint_of_phase_1_loads_on(trained, tmp_path):
    """Check 9: in phase 2, and in a plain config, where only the target's copy counts."""
    runner, work_dir = trained
    model = runner.model.eval()
    checkpoint = str(work_dir / 'iter_4.pth')
    plain = MODELS.build(
        dict(
            type='EncoderDecoder',
            backbone=BACKBONE,
            decode_head=dict(HEAD, aux_classifier=False),
            test_cfg=dict(mode='whole'),
        )
    )
    x = images(4)
    for other in (plain, build(PHASE2, 'DecoupleSelfTraining')):
        load_checkpoint(other, checkpoint, map_location='cpu')
        other.eval()
        torch.testing.assert_close(other(x, mode='tensor'), model(x, mode='tensor'))
    assert not torch.equal(model.source_shallow['conv1'].weight, model.backbone.conv1.weight)
    # And the other way: a source-only checkpoint fills both copies and both classifiers.
    torch.save(dict(state_dict=plain.state_dict(), meta={}), tmp_path / 'plain.pth')
    fresh = build(PHASE1)
    load_checkpoint(fresh, str(tmp_path / 'plain.pth'), map_location='cpu')
    assert torch.equal(fresh.source_shallow['conv1'].weight, plain.backbone.conv1.weight)
    assert torch.equal(fresh.source_shallow['bn1'].running_var, plain.backbone.bn1.running_var)
    assert torch.equal(fresh.decode_head.conv_aux.weight, plain.decode_head.conv_seg.weight)


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(folder, tmp_path):
    """The same pairs in one process and in two: batch statistics fixed, no randomness in the images."""
    resize = dict(type='Resize', scale=(32, 32), keep_ratio=False)
    steps = [dict(type='LoadAnnotations'), resize]
    data = pairs(
        folder, source=dataset(folder, 'source', steps), target=dataset(folder, 'target', steps)
    )
    # Sources without ignored pixels, whose number would weigh the processes differently.
    data['source']['type'] = 'mmextra.PrefixSegDataset'
    data['source']['prefixes'] = [f'source{i}' for i in (1, 2, 3, 5, 6, 7)]

    def config(work_dir, batch_size):
        cfg = run(folder, work_dir)
        cfg.train_dataloader.batch_size = batch_size
        cfg.train_dataloader.dataset = copy.deepcopy(data)
        cfg.model.backbone.norm_eval = True
        # Each process averages over its own pseudo labels, and their number differs.
        cfg.model.adapt_cfg = dict(st=0)
        cfg.model_wrapper_cfg = dict(type='mmextra.StepwiseDataParallel')
        return cfg

    one = train(config(tmp_path / 'one', 4))
    path = tmp_path / 'two.py'
    config(tmp_path / 'two', 2).dump(path)
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    command = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node=2']
    command += [f'--master_port={port}', ROOT / 'tools/train.py', path, '--launcher', 'pytorch']
    environment = dict(os.environ, OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')
    done = subprocess.run(
        [str(c) for c in command], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    two = read_checkpoint(str(tmp_path / 'two' / 'iter_4.pth'))['state_dict']
    for name, value in one.model.state_dict().items():
        torch.testing.assert_close(
            two[name], value, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: n + m
        )


def test_phases_one_after_the_other(folder, trained, tmp_path):
    """Dump with the stock test loop, then two iterations of phase 2, with the stock data parallel's loss too."""
    _, work_dir = trained
    soft = tmp_path / 'soft'
    cfg = run(folder, tmp_path / 'dump', load_from=str(work_dir / 'iter_4.pth'))
    cfg.model.test_cfg = dict(mode='logits')
    test = dataset(folder, 'target', [dict(type='Resize', scale=(40, 40))])
    cfg.test_dataloader = dict(
        batch_size=1,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=test,
    )
    cfg.test_cfg = dict(type='TestLoop')
    cfg.test_evaluator = dict(type='mmextra.SoftLabelDumper', folder=str(soft))
    cfg.experiment_name = 'dump'
    assert Runner.from_cfg(cfg).test()['images'] == 5
    assert len(list(soft.glob('*.npy'))) == 5

    crop = dict(
        type='mmextra.TrackedRandomSizedCrop', width=44, crop_size=(32, 32), keep_image=True
    )
    jitter = dict(type='mmextra.TorchColorJitter', brightness=0.5, hue=0.2)
    steps = [
        dict(type='LoadAnnotations'),
        dict(type='mmextra.LoadSoftLabel', folder=str(soft)),
        dict(type='Resize', scale=(40, 40)),
        crop,
        jitter,
    ]
    cfg = run(folder, tmp_path / 'phase2', iters=2, load_from=str(work_dir / 'iter_4.pth'))
    cfg.train_dataloader.dataset.target = dataset(folder, 'target', steps)
    cfg.model = dict(
        copy.deepcopy(PHASE2),
        type='mmextra.DecoupleSelfTraining',
        thresholds=str(soft / 'thresholds.json'),
    )
    cfg.optim_wrapper = dict(
        type='OptimWrapper',
        optimizer=dict(type='SGD', lr=0.01, momentum=0.9),
        paramwise_cfg=dict(custom_keys=dict(decode_head=dict(lr_mult=10.0))),
    )
    runner = train(cfg)
    assert runner.iter == 2
    logged = runner.message_hub.log_scalars
    assert logged['train/pseudo_kept'].data[0].min() > 0
    assert np.isfinite(logged['train/loss'].data[0]).all()
    item = [runner.train_dataloader.dataset[(i, i)] for i in range(2)]
    collated = {
        d: {k: [one[d][k] for one in item] for k in ('inputs', 'data_samples')} for d in item[0]
    }
    data = runner.model.data_preprocessor(collated, True)
    losses = runner.model(**data, mode='loss')
    assert 'loss_target' in losses and 'decode.loss_ce' in losses


def test_wrapper_hands_on():
    class Model(torch.nn.Module):
        def train_step(self, data, optim_wrapper):
            return dict(data=data)

        def forward(self, x):
            return x + 1

        test_step = val_step = lambda self, data: [data]

    wrapped = StepwiseDataParallel(Model(), device_ids=None, broadcast_buffers=False)
    assert wrapped(1) == 2 and wrapped.train_step(3, None) == dict(data=3)
    assert wrapped.val_step(4) == wrapped.test_step(4) == [4]


def test_compose_is_left_alone_in_the_source(folder):
    data = DATASETS.build(pairs(folder))
    assert isinstance(data.source.pipeline, Compose)
    assert isinstance(MODELS.build(PREPROCESSOR), DomainPairDataPreprocessor)
    assert issubclass(DecoupleSelfTraining, DecoupleNet.__mro__[1])
    assert isinstance(data, DomainPairDataset)


# Tools


def load_tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / 'tools' / f'{name}.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


def test_train_ids(tmp_path, capsys):
    tool = load_tool('train_ids')
    gta5, synthia = tmp_path / 'gta5', tmp_path / 'synthia'
    gta5.mkdir(), synthia.mkdir()
    labels = np.array([[7, 33, 0], [26, 34, 11]], np.uint8)
    picture = Image.fromarray(labels, 'P')
    picture.putpalette([0, 1, 2] * 256)
    picture.save(gta5 / '00001.png')
    first = np.array([[3, 11, 0], [8, 22, 20]], np.uint16)
    cv2.imwrite(str(synthia / '1.png'), np.stack([first * 0 + 5, first * 0 + 9, first], -1))
    expected = dict(gta5=[[0, 18, 255], [13, 255, 2]], synthia=[[0, 18, 255], [13, 255, 16]])
    for folder, name in ((gta5, '00001'), (synthia, '1')):
        assert tool.main([folder.name, str(folder), '--workers', '1']) == 0
        written = cv2.imread(str(folder / f'{name}_labelTrainIds.png'), cv2.IMREAD_UNCHANGED)
        assert written.tolist() == expected[folder.name]
    assert tool.main(['gta5', str(gta5), '--workers', '1']) == 0
    assert '0 written, 1 there already' in capsys.readouterr().out
    (synthia / '1_labelTrainIds.png').unlink()
    assert tool.main(['gta5', str(synthia), '--workers', '1']) == 1
    assert 'is no label of GTA5' in capsys.readouterr().err
    assert tool.main(['gta5', str(tmp_path), '--workers', '1']) == 1


def test_table_of_the_demonstration(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'tools')  # as for a script that is run
    tool = load_tool('decouplenet_demo')
    names = list(tool.TITLES)
    seeds = [
        {
            n: {'mIoU': 10.0 * i + s, 'IoU/a': 1.0, 'on_source': 2.0, 'seconds': 0.5}
            for i, n in enumerate(names)
        }
        for s in (0, 2)
    ]
    lines = tool.table(seeds).splitlines()
    assert lines[2].startswith('| **mIoU** | 1.0 ± 1.4 | 11.0 ± 1.4 |')
    assert lines[3].startswith('| a | 1.0') and len(lines) == 6
    for files in tool.RUNS.values():
        assert all((tool.CONFIGS / file).is_file() for file in files.values())


# Configs


CONFIGS = ROOT / 'configs' / 'decouplenet'
GTA5 = CONFIGS / 'decouplenet_r101-d8_4xb2-60k_gta5-to-cityscapes-512x896.py'


@pytest.mark.parametrize(
    'options',
    [
        {'model.adapt_cfg.st': 0},
        {'model.adapt_cfg.adv_src': 0},
        {'model.adapt_cfg.adv_tgt': 0},
        {'model.decouple': False},
        {'model.split_after': 'stem', 'model.feat_discriminator.in_channels': 64},
        {'model.split_after': 'layer2', 'model.feat_discriminator.in_channels': 512},
        {'train_dataloader.dataset.class_balanced': False},
    ],
    ids=str,
)
def test_ablations_are_overrides(options):
    cfg = Config.fromfile(GTA5)
    cfg.merge_from_dict(options)
    cfg.model.backbone.init_cfg = None
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
        steps = model.steps(
            dict(source=torch.zeros(1, 3, 64, 64), target=torch.zeros(1, 3, 64, 64)), {}
        )
        assert steps is not None
        shallow, features = model.eval().domain_features(torch.zeros(1, 3, 64, 64), source=True)
        model.feat_discriminator(model.upsample(shallow, (64, 64)))
    assert features[-1].shape == (1, 2048, 8, 8)


def test_one_image_and_several_views_are_tested_at_the_size_of_training():
    """`inference_model` reads `test_pipeline`, `--tta` `tta_pipeline`."""
    cfg = Config.fromfile(CONFIGS / 'decouplenet_r18-small_camvid-day-to-dusk_demo.py')
    assert cfg.test_pipeline == cfg.test_dataloader.dataset.pipeline
    results = dict(
        img=np.zeros((360, 480, 3), np.uint8), img_shape=(360, 480), ori_shape=(360, 480)
    )
    results |= dict(seg_fields=[], img_path='a.png')
    views = Compose([s for s in cfg.tta_pipeline if s.type != 'LoadImageFromFile'][:1])(results)
    assert views['img'].shape == (180, 240, 3)
    assert cfg.tta_pipeline[2].transforms[0][1].scale_factor == 1.0


def test_published_numbers():
    cfg = Config.fromfile(GTA5)
    assert cfg.train_cfg.max_iters == 60000 and cfg.param_scheduler[0].end == 93750
    assert cfg.train_dataloader.batch_size == 2
    wrapper = cfg.optim_wrapper.generator
    assert wrapper.optimizer == dict(type='SGD', lr=2.5e-4, momentum=0.9, weight_decay=5e-4)
    second = Config.fromfile(
        CONFIGS / GTA5.name.replace('net_r101', 'net-st_r101').replace('60k', '40k')
    )
    assert second.train_cfg.max_iters == 40000 and second.param_scheduler[0].end == 62500
    assert second.optim_wrapper.optimizer.lr == 5e-4
    synthia = Config.fromfile(CONFIGS / GTA5.name.replace('gta5', 'synthia'))
    assert (
        synthia.model.decode_head.num_classes == synthia.model.out_discriminator.in_channels == 16
    )
    assert len(synthia.val_dataloader.dataset.metainfo.classes) == 16
    assert len(synthia.val_evaluator.subsets.mIoU13) == 13
    warmup = Config.fromfile(
        CONFIGS / GTA5.name.replace('net_r101', 'net-warmup_r101').replace('60k', '20k')
    )
    constructor = MultiOptimWrapperConstructor(
        {k: v for k, v in warmup.optim_wrapper.items() if k != 'constructor'}
    )
    assert set(constructor.configs) == {'generator', 'out_discriminator'}
    assert 'feat_discriminator' not in constructor.configs['generator']
