"""ReviewKD: the authors' fusion and loss, the numbers of the paper, and the hook on stock detectors and classifiers."""

import json

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from tiny_detectors import ONE_STAGE, TWO_STAGE, tiny_detector
from torch import nn
from training import assert_equal_weights, coco_dataset, detection_run, losses_of, train, weights

from mmextra.distill.base import ADAPTERS_KEY, Recorder
from mmextra.distill.reviewkd import (
    CIFARResNet,
    HierarchicalContextLoss,
    ReviewFusion,
    ReviewKDHook,
    SameLevelAdapters,
)
from mmextra.distill.reviewkd.hook import before_last_relu, feature_levels
from mmextra.engine.checkpoint import load_official
from mmextra.registry import HOOKS, MODELS

TINY = dict(
    ReviewKDHook=dict(teacher=dict(config='mmdet::gfl/gfl_r50_fpn_1x_coco.py')),
    ReviewFusion=dict(in_channels=[4, 6], out_channels=[5, 7], mid_channels=4),
    SameLevelAdapters=dict(in_channels=[4, 6], out_channels=[5, 7]),
    HierarchicalContextLoss=dict(),
    CIFARResNet=dict(depth=8, stem_channels=4, base_channels=4, out_indices=(0, 1, 2), img_size=32),
)


# The authors' tensors.


def golden_features(case):
    """Student features (leaves) and teacher features, shallow to deep."""
    levels = len(case.meta['in_channels'])
    return [case.leaf(f'student{i}') for i in range(levels)], case.series('teacher')


def golden_fusion(case):
    meta = case.meta
    fusion = ReviewFusion(meta['in_channels'], meta['out_channels'], meta['mid_channel'])
    return case.load(fusion).eval()


@pytest.mark.golden('reviewkd', 'abf_hcl_det')
def test_detection_is_the_authors(case):
    fusion = golden_fusion(case)
    student, teacher = golden_features(case)
    assert [list(x.shape[-2:]) for x in student] == case.meta['sizes']
    fused = fusion(student)
    per_level = HierarchicalContextLoss()(fused, teacher)
    sum(per_level).backward()
    got = {f'fused{i}': x for i, x in enumerate(fused)}
    got.update(hcl=sum(per_level), hcl_per_level=torch.stack(per_level))
    trained = fusion.train()(student)
    got.update({f'train_fused{i}': x for i, x in enumerate(trained)})
    got['train_hcl'] = sum(HierarchicalContextLoss()(trained, teacher))
    case.check(got)


@pytest.mark.golden('reviewkd', 'abf_hcl_hetero')
def test_other_resolutions_are_the_authors(case):
    student, teacher = golden_features(case)
    sizes = [(side, side) for side in case.meta['out_shapes'][::-1]]
    assert [tuple(x.shape[-2:]) for x in teacher] == sizes
    fused = golden_fusion(case)(student, sizes)
    loss = sum(HierarchicalContextLoss()(fused, teacher))
    loss.backward()
    case.check({f'fused{i}': x for i, x in enumerate(fused)} | dict(hcl=loss))


# The fusion.


def slow_fusion(fusion, features):
    """Equations of Section 3.3 in eval mode, one level at a time and one pixel of the residual at a time."""

    def conv_norm(layers, x):
        conv, norm = layers
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        x = F.conv2d(x, conv.weight, padding=conv.padding)
        return (x - norm.running_mean.view(1, -1, 1, 1)) * scale.view(1, -1, 1, 1) + norm.bias.view(
            1, -1, 1, 1
        )

    outs, passed = [], None
    for abf, x in zip(fusion.abfs, features[::-1]):
        x = conv_norm(abf.conv1, x)
        if passed is not None:
            (h, w), (height, width) = passed.shape[-2:], x.shape[-2:]
            near = torch.empty_like(x)
            for i in range(height):
                for j in range(width):
                    near[:, :, i, j] = passed[:, :, i * h // height, j * w // width]
            both = torch.cat([x, near], 1)
            weight, bias = abf.att_conv[0].weight[:, :, 0, 0], abf.att_conv[0].bias
            z = torch.einsum('oc,bchw->bohw', weight, both) + bias.view(1, 2, 1, 1)
            z = 1 / (1 + (-z).exp())
            x = x * z[:, 0, None] + near * z[:, 1, None]
        passed = x
        outs.append(conv_norm(abf.conv2, x))
    return outs[::-1]


def random_fusion(in_channels=(3, 5, 6), out_channels=(4, 6, 6), mid_channels=4):
    """A fusion in eval mode whose norms are not the identity, in float64."""
    fusion = ReviewFusion(in_channels, out_channels, mid_channels).double().eval()
    for norm in (m for m in fusion.modules() if isinstance(m, nn.BatchNorm2d)):
        for values in (norm.weight, norm.bias, norm.running_mean):
            nn.init.normal_(values)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    return fusion


def test_fusion_equals_the_slow_loop():
    fusion = random_fusion()
    features = [torch.randn(2, c, *s).double() for c, s in ((3, (9, 7)), (5, (4, 5)), (6, (2, 3)))]
    for got, expected in zip(fusion(features), slow_fusion(fusion, features)):
        torch.testing.assert_close(got, expected)


def test_what_is_passed_on_is_the_fused_map_not_the_output():
    """The trap of re-implementations where all channels agree: the deepest conv2 must not reach the other levels."""
    fusion = random_fusion((4, 4), (4, 4), 4)
    features = [torch.randn(1, 4, s, s).double() for s in (4, 2)]
    before = fusion(features)
    nn.init.normal_(fusion.abfs[0].conv2[0].weight)
    after = fusion(features)
    assert torch.equal(before[0], after[0]) and not torch.equal(before[1], after[1])
    nn.init.normal_(fusion.abfs[0].conv1[0].weight)
    assert not torch.equal(fusion(features)[0], after[0])


def test_deep_levels_help_shallow_ones_and_not_the_other_way():
    fusion = random_fusion()
    assert [abf.att_conv is None for abf in fusion.abfs] == [True, False, False]
    features = [
        torch.randn(1, c, s, s).double().requires_grad_() for c, s in ((3, 8), (5, 4), (6, 2))
    ]
    fused = fusion(features)
    for i, out in enumerate(fused):
        grads = torch.autograd.grad(out.sum(), features, allow_unused=True, retain_graph=True)
        assert [g is not None and bool(g.abs().sum() > 0) for g in grads] == [
            j >= i for j in range(3)
        ]


def parameters(in_channels, out_channels, mid_channels=None):
    with torch.device('meta'):
        fusion = ReviewFusion(in_channels, out_channels, mid_channels)
    return sum(p.numel() for p in fusion.parameters())


@pytest.mark.parametrize(
    'in_channels, out_channels, mid_channels, expected',
    [
        ([256] * 5, [256] * 5, 256, 3_286_024),
        ([64, 128, 256, 512, 512], [64, 128, 256, 512, 512], 512, 7_552_904),
        ([128, 256, 512, 1024, 1024], [256, 512, 1024, 2048, 2048], 256, 14_338_056),
        ([16, 32, 64, 64], [16, 32, 64, 64], 64, 114_278),
    ],
)
def test_parameter_counts(in_channels, out_channels, mid_channels, expected):
    assert parameters(in_channels, out_channels, mid_channels) == expected


def test_mid_channels_default_to_the_deepest_width_up_to_512():
    assert ReviewFusion([4, 6], [5, 7]).abfs[0].conv1[0].out_channels == 6
    with torch.device('meta'):
        assert ReviewFusion([4, 1024], [5, 7]).abfs[0].conv1[0].out_channels == 512


def test_initialisation_is_kaiming_uniform():
    conv = ReviewFusion([64], [48], 32).abfs[0]
    for weight in (conv.conv1[0].weight, conv.conv2[0].weight):
        bound = (3 / weight[0].numel()) ** 0.5  # a = 1: gain 1
        assert weight.abs().max() <= bound and weight.abs().max() > 0.98 * bound
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


@pytest.mark.parametrize('norm_cfg', [dict(type='BN'), dict(type='GN', num_groups=2)])
def test_one_image_and_a_pooled_level(norm_cfg):
    """A single value per channel: batch statistics of it do not exist, and the running ones serve."""
    fusion = ReviewFusion([4, 4], [4, 4], 4, norm_cfg).train()
    features = [torch.randn(1, 4, s, s) for s in (4, 1)]
    fused = fusion(features)
    sum(HierarchicalContextLoss()(fused, [torch.zeros_like(f) for f in fused])).backward()
    assert all(torch.isfinite(p.grad).all() for p in fusion.parameters())
    if norm_cfg['type'] == 'BN':
        norm = fusion.abfs[0].conv1[1]
        assert not norm.running_mean.any()
        alone = fusion.abfs[0].eval()(features[1], None, None)[0]
        torch.testing.assert_close(fused[1], alone)


def test_levels_must_be_as_many_on_both_sides():
    for cls in (ReviewFusion, SameLevelAdapters):
        with pytest.raises(ValueError, match='the student has 2 .*, the teacher 3 .*num_outs'):
            cls([4, 4], [4, 4, 4])
        with pytest.raises(ValueError, match='same number of levels'):
            cls([], [])


def test_same_level_adapters_do_not_mix_levels():
    adapters = SameLevelAdapters([3, 5], [4, 6])
    features = [torch.randn(1, 3, 4, 4), torch.randn(1, 5, 2, 2)]
    out = adapters(features)
    assert [tuple(x.shape) for x in out] == [(1, 4, 4, 4), (1, 6, 2, 2)]
    torch.testing.assert_close(
        out[0][0, :, 1, 2],
        adapters.convs[0].weight[:, :, 0, 0] @ features[0][0, :, 1, 2] + adapters.convs[0].bias,
    )
    resized = adapters(features, [(8, 8), (2, 2)])
    assert torch.equal(resized[0][..., ::2, ::2], out[0]) and torch.equal(resized[1], out[1])


# The loss.


def slow_hcl(student, teacher, pool_sizes=(4, 2, 1)):
    """The loss of one level, cell by cell: each cell of a grid averages the pixels that it touches."""

    def mse(a, b):
        return sum((x - y) ** 2 for x, y in zip(a.flatten(), b.flatten())) / a.numel()

    def pool(x, k):
        height, width = x.shape[-2:]
        out = x.new_zeros(*x.shape[:2], k, k)
        for i in range(k):
            for j in range(k):
                rows = slice(i * height // k, -(-(i + 1) * height // k))
                columns = slice(j * width // k, -(-(j + 1) * width // k))
                out[:, :, i, j] = x[:, :, rows, columns].mean((2, 3))
        return out

    loss, total, weight = mse(student, teacher), 1.0, 1.0
    for k in pool_sizes:
        if k >= student.shape[2]:
            continue
        weight /= 2
        loss = loss + weight * mse(pool(student, k), pool(teacher, k))
        total += weight
    return loss / total


@pytest.mark.parametrize('size', [(5, 7), (3, 9), (9, 2), (1, 6)])
def test_hcl_equals_the_slow_loop(size):
    student, teacher = torch.randn(2, 2, 3, *size).double()
    got = HierarchicalContextLoss()([student], [teacher])[0]
    torch.testing.assert_close(got, slow_hcl(student, teacher))
    student.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: HierarchicalContextLoss()([x], [teacher])[0], (student,)
    )


@pytest.mark.parametrize('side', [1, 2, 3, 4, 5, 16])
def test_hcl_of_zeros_and_ones_is_one(side):
    zeros = torch.zeros(2, 3, side, side)
    assert HierarchicalContextLoss()([zeros], [zeros + 1])[0].item() == pytest.approx(1)


def test_hcl_of_a_checkerboard():
    """Averages vanish: what is left is the MSE over the sum of the weights."""

    def hcl(height, pool_sizes=(4, 2, 1)):
        board = (torch.arange(height)[:, None] + torch.arange(16)) % 2 * 2.0 - 1
        board = board.expand(1, 1, height, 16)
        return HierarchicalContextLoss(pool_sizes)([board], [torch.zeros_like(board)])[0].item()

    assert hcl(16) == pytest.approx(1 / 1.875) == pytest.approx(0.533333, abs=1e-6)
    assert hcl(1) == 1  # the MSE alone
    assert hcl(4) == pytest.approx(1 / 1.75)  # 1, .5 (k=2), .25 (k=1)
    assert hcl(2) == pytest.approx(1 / 1.5)  # k=1 gets the first half
    assert hcl(16, ()) == 1
    # An odd height leaves something in the averages; what counts is that k=2 weighs one half.
    assert hcl(3) == pytest.approx(slow_hcl_of_board(3), rel=1e-6)


def slow_hcl_of_board(height):
    board = (torch.arange(height)[:, None] + torch.arange(16)) % 2 * 2.0 - 1
    board = board.expand(1, 1, height, 16)
    halves, whole = (F.adaptive_avg_pool2d(board, k).square().mean().item() for k in (2, 1))
    return (1 + 0.5 * halves + 0.25 * whole) / 1.75


def test_hcl_refuses_other_shapes():
    with pytest.raises(ValueError, match=r'equal shapes: student \[\(1, 2, 4, 4\)\], teacher'):
        HierarchicalContextLoss()([torch.zeros(1, 2, 4, 4)], [torch.zeros(1, 1, 4, 4)])


# The hook on stock detectors.


def review(model, **options):
    """A hook whose teacher is a random model of this config."""
    scope = 'mmpretrain' if model['type'] == 'ImageClassifier' else 'mmdet'
    teacher = dict(config=dict(model=model, default_scope=scope), **options.pop('teacher', {}))
    return dict(type='mmextra.ReviewKDHook', teacher=teacher, **options)


def one_epoch(root, work_dir, student, hooks, masks=False, **overrides):
    """Two iterations of four images."""
    cfg = detection_run(student, root, work_dir, hooks, **overrides)
    cfg.train_cfg.max_epochs = 1
    cfg.train_dataloader.dataset = coco_dataset(root, 'train', train=True, masks=masks)
    return cfg


def hook_of(runner):
    return next(h for h in runner.hooks if isinstance(h, ReviewKDHook))


@pytest.mark.parametrize('name', ONE_STAGE + TWO_STAGE)
def test_trains_stock_detectors(name, shapes_root, tmp_path):
    hook = review(tiny_detector(name, width=12), mid_channels=8)
    student = tiny_detector(name)
    cfg = one_epoch(shapes_root, tmp_path, student, [hook], masks=name == 'mask_rcnn')
    runner = train(cfg)
    losses = losses_of(runner)
    assert len(losses['loss_hcl']) == 2 and all(0 < v < float('inf') for v in losses['loss_hcl'])
    assert len(hook_of(runner).adapters.abfs) == 5
    checkpoint = torch.load(tmp_path / 'epoch_1.pth', weights_only=True)
    stock = MODELS.build(dict(student, _scope_='mmdet'))
    stock.load_state_dict(checkpoint['state_dict'])  # every key, no other


def test_only_student_and_fusion_learn(shapes_root, tmp_path):
    cfg = one_epoch(
        shapes_root, tmp_path, tiny_detector('gfl'), [review(tiny_detector('gfl', width=12))]
    )
    cfg.experiment_name = 'reviewkd-learns'
    runner = Runner.from_cfg(cfg)
    hook = hook_of(runner)
    before = {}

    def remember(*_):
        before.update(teacher=weights(hook.teacher.model), fusion=weights(hook.adapters))

    hook.before_train = remember
    runner.train()
    assert_equal_weights(before['teacher'], weights(hook.teacher.model))
    assert all(p.grad is None for p in hook.teacher.model.parameters())
    after = weights(hook.adapters)
    still = [k for k in after if torch.equal(after[k], before['fusion'][k])]
    assert not still, f'not trained: {still}'


def test_resume_equals_an_unbroken_run(shapes_root, tmp_path):
    hook = review(tiny_detector('gfl', width=12), mid_channels=8)
    cfg = detection_run(tiny_detector('gfl'), shapes_root, tmp_path / 'a', [hook])
    # The same teacher in both runs: random, so its seed decides.
    cfg.custom_hooks.append(dict(type='mmextra.FixedTeacherHook'))
    unbroken = train(cfg)
    cfg.work_dir, cfg.resume, cfg.load_from = (
        str(tmp_path / 'b'),
        True,
        str(tmp_path / 'a/epoch_1.pth'),
    )
    resumed = train(cfg)
    assert resumed.iter == unbroken.iter == 4
    assert_equal_weights(weights(unbroken.model), weights(resumed.model))
    fusions = [weights(hook_of(r).adapters) for r in (unbroken, resumed)]
    assert_equal_weights(*fusions)
    saved = torch.load(tmp_path / 'b/epoch_2.pth', weights_only=True)[ADAPTERS_KEY]['ReviewKDHook']
    assert_equal_weights(fusions[0], saved)
    momenta = [
        [
            r.optim_wrapper.optimizer.state[p]['momentum_buffer']
            for p in hook_of(r).adapters.parameters()
        ]
        for r in (unbroken, resumed)
    ]
    assert all(torch.equal(a, b) and a.abs().sum() > 0 for a, b in zip(*momenta))


@HOOKS.register_module(force=True)
class FixedTeacherHook(Hook):
    """Gives a random teacher the same weights in every run."""

    def before_train(self, runner):
        generator = torch.Generator().manual_seed(5)
        for p in hook_of(runner).teacher.model.parameters():
            p.data.copy_(torch.randn(p.shape, generator=generator) * p.numel() ** -0.5)


def test_without_weight_it_is_the_plain_run(shapes_root, tmp_path):
    plain = train(one_epoch(shapes_root, tmp_path / 'a', tiny_detector('gfl'), []))
    hook = review(tiny_detector('gfl', width=12), loss_weight=0.0)
    zero = train(one_epoch(shapes_root, tmp_path / 'b', tiny_detector('gfl'), [hook]))
    assert_equal_weights(weights(plain.model), weights(zero.model))
    # With a weight, but a warm-up that begins at 0, the fusion is built and run: still the same.
    hook = review(tiny_detector('gfl', width=12), warmup=20)
    warm = train(one_epoch(shapes_root, tmp_path / 'c', tiny_detector('gfl'), [hook]))
    assert_equal_weights(weights(plain.model), weights(warm.model))
    assert losses_of(warm)['loss_hcl'] == [0, 0]


def test_warmup_is_linear_in_epochs():
    """20 epochs in the CIFAR experiments: nothing in epoch 0, everything from epoch 20 on."""
    factors = []

    class Session:
        def arm(self, hook, factor):
            factors.append(factor)

    class RunnerAt:
        def __init__(self, epoch):
            self.epoch = epoch

    from mmextra.distill import base

    hook = ReviewKDHook(**TINY['ReviewKDHook'], warmup=20)
    hook.teacher = object()
    for epoch in (0, 5, 20, 200):
        runner = RunnerAt(epoch)
        base._SESSIONS[runner] = Session()
        hook.before_train_iter(runner, 0)
    assert factors == [0, 0.25, 1, 1]


def test_with_localization_distillation_on_one_student(shapes_root, tmp_path):
    teacher = dict(config=dict(model=tiny_detector('gfl', width=12), default_scope='mmdet'))
    hooks = [
        dict(type=f'mmextra.{name}', teacher=teacher)
        for name in ('LocalizationDistillationHook', 'ReviewKDHook')
    ]
    cfg = one_epoch(shapes_root, tmp_path, tiny_detector('gfl'), hooks)
    cfg.experiment_name = 'reviewkd-and-ld'
    runner = Runner.from_cfg(cfg)
    hook, forwards = hook_of(runner), []

    def count(*_):
        hook.teacher.model.backbone.register_forward_hook(lambda *_: forwards.append(1))

    hook.before_train = count
    runner.train()
    assert len(forwards) == 2  # one forward of the teacher an iteration, for both methods
    assert {'loss_ld', 'loss_kd', 'loss_hcl'} <= set(losses_of(runner))


def test_images_without_objects_and_a_single_roi(shapes_root, tmp_path):
    empty = json.loads((shapes_root / 'annotations/instances_train.json').read_text())
    empty['annotations'] = empty['annotations'][:1]
    path = tmp_path / 'empty.json'
    path.write_text(json.dumps(empty))
    for name in ('gfl', 'faster_rcnn'):
        hook = review(tiny_detector(name, width=12))
        cfg = one_epoch(shapes_root, tmp_path / name, tiny_detector(name, rois=1), [hook])
        cfg.train_dataloader.dataset.ann_file = str(path)
        cfg.train_dataloader.dataset.filter_cfg = dict(filter_empty_gt=False)
        losses = losses_of(train(cfg))
        assert all(0 < v < float('inf') for v in losses['loss_hcl'])


def start(cfg):
    """Start a run far enough for the hooks to build and check their teachers."""
    cfg.experiment_name = f'start-{torch.rand(()).item()}'
    runner = Runner.from_cfg(cfg)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.call_hook('before_run')


def test_necks_that_do_not_fit(shapes_root, tmp_path):
    def begin(teacher, **options):
        hook = review(teacher, **options)
        start(one_epoch(shapes_root, tmp_path, tiny_detector('gfl'), [hook]))

    other = tiny_detector('gfl')
    other['neck']['num_outs'] = 4
    with pytest.raises(ValueError, match='student has 5 .*the teacher 4 .*num_outs'):
        begin(other)
    coarser = tiny_detector('gfl')
    coarser['neck'].update(start_level=0, add_extra_convs=False)  # strides 4-64 in place of 8-128
    with pytest.raises(ValueError, match='differ in size.*resize_to_teacher=True'):
        begin(coarser)
    begin(coarser, resize_to_teacher=True)
    begin(tiny_detector('gfl', channels=64))  # other widths are what the fusion is for
    with pytest.raises(ValueError, match="no submodule 'nek'; near names"):
        begin(tiny_detector('gfl'), student_layers='nek')
    with pytest.raises(ValueError, match='student has 1 .*the teacher 2'):
        begin(tiny_detector('gfl'), student_channels=[32], teacher_channels=[32, 32])
    with pytest.raises(ValueError, match="pre_relu must be .*'neck'"):
        begin(tiny_detector('gfl'), pre_relu=dict(neck=True))


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(student_channels=[32] * 5, teacher_channels=[48] * 5), 'teacher_channels is .48'),
        (dict(student_channels=[16] * 5, teacher_channels=[32] * 5), 'student_channels is .16'),
        (dict(student_channels=[32] * 4, teacher_channels=[32] * 4), 'levels of the student have'),
        (
            dict(
                student_channels=[32] * 5,
                teacher_channels=[32] * 5,
                teacher=dict(input_size=(64, 64)),
            ),
            'differ in size',
        ),
    ],
)
def test_given_channels_are_checked_in_the_first_iteration(
    options, message, shapes_root, tmp_path
):
    hook = review(tiny_detector('gfl'), **options)
    with pytest.raises(ValueError, match=message):
        train(one_epoch(shapes_root, tmp_path, tiny_detector('gfl'), [hook]))


# The hook on stock classifiers.

STAGES = tuple(f'backbone.layer{i}' for i in range(1, 5))
SIDE = 32


@pytest.fixture(scope='session')
def image_folders(tmp_path_factory):
    """Sixteen small images of two classes, as class folders."""
    root = tmp_path_factory.mktemp('images')
    rng = np.random.default_rng(0)
    for label, color in enumerate(((200, 60, 40), (40, 60, 200))):
        folder = root / f'class{label}'
        folder.mkdir()
        for i in range(8):
            image = np.clip(rng.normal(color, 60, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
            cv2.imwrite(str(folder / f'{i}.png'), image)
    return root


PIXELS = dict(mean=[120.0, 115.0, 110.0], std=[60.0, 61.0, 62.0], to_rgb=True)


def classifier(backbone, channels, pixels=PIXELS):
    return dict(
        type='ImageClassifier',
        data_preprocessor=dict(type='ClsDataPreprocessor', num_classes=2, **pixels),
        backbone=backbone,
        neck=dict(type='GlobalAveragePooling'),
        head=dict(
            type='LinearClsHead',
            num_classes=2,
            in_channels=channels,
            loss=dict(type='CrossEntropyLoss'),
        ),
    )


def resnet(width=4, depth=18, **kwargs):
    return classifier(
        dict(type='ResNet', depth=depth, stem_channels=width, base_channels=width),
        width * (8 if depth < 50 else 32),
        **kwargs,
    )


def classification_run(model, root, work_dir, hooks, batch=4, epochs=1):
    return Config(
        dict(
            default_scope='mmpretrain',
            model=model,
            work_dir=str(work_dir),
            train_dataloader=dict(
                batch_size=batch,
                num_workers=0,
                sampler=dict(type='DefaultSampler', shuffle=True),
                dataset=dict(
                    type='CustomDataset',
                    data_root=str(root),
                    pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')],
                ),
            ),
            train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=epochs),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.02, momentum=0.9)),
            default_hooks=dict(logger=dict(type='LoggerHook', interval=1)),
            custom_hooks=list(hooks),
            log_level='WARNING',
            randomness=dict(seed=0),
        )
    )


MOBILENET = classifier(dict(type='MobileNetV2', widen_factor=0.1), 1280)
SHUFFLENET = classifier(dict(type='ShuffleNetV2', widen_factor=0.5), 1024)


@pytest.mark.parametrize(
    'student, layers, teacher_layers, channels',
    [
        (resnet(), [*STAGES, 'neck'], None, [4, 8, 16, 32, 32]),
        (
            MOBILENET,
            [f'backbone.layer{i}' for i in (2, 3, 5, 7)] + ['neck'],
            [*STAGES, 'neck'],
            [8, 8, 8, 32, 1280],
        ),
        (
            SHUFFLENET,
            [f'backbone.layers.{i}' for i in range(3)] + ['neck'],
            [*STAGES[1:], 'neck'],
            [48, 96, 192, 1024],
        ),
    ],
    ids=['ResNet', 'MobileNetV2', 'ShuffleNetV2'],
)
def test_trains_stock_classifiers(student, layers, teacher_layers, channels, image_folders, tmp_path):
    hook = review(
        resnet(8, depth=50),
        student_layers=layers,
        teacher_layers=teacher_layers,
        mid_channels=8,
        pre_relu=True,
    )
    runner = train(classification_run(student, image_folders, tmp_path, [hook]))
    assert hook_of(runner).channels['student'] == channels
    assert hook_of(runner).channels['teacher'] == [32, 64, 128, 256, 256][-len(channels) :]
    losses = losses_of(runner)['loss_hcl']
    assert len(losses) == 4 and all(0 < v < float('inf') for v in losses)
    saved = torch.load(tmp_path / 'epoch_1.pth', weights_only=True)['state_dict']
    assert saved.keys() == MODELS.build(dict(student, _scope_='mmpretrain')).state_dict().keys()


def test_the_loss_falls(image_folders, tmp_path):
    hook = review(resnet(8), student_layers=[*STAGES, 'neck'], mid_channels=8)
    run = classification_run(resnet(), image_folders, tmp_path, [hook], batch=8, epochs=15)
    losses = losses_of(train(run))['loss_hcl']
    assert sum(losses[-4:]) < 0.5 * sum(losses[:4])


def test_pre_relu_is_what_the_last_relu_takes_in():
    """The ReLU of a block runs two or three times, in place: the last input counts, with its gradient."""
    for depth, modules in ((18, ('1', '1', '1', '1')), (50, ('2', '3', '5', '2'))):
        model = MODELS.build(dict(resnet(4, depth=depth), _scope_='mmpretrain'))
        names = [before_last_relu(model, name) for name in STAGES]
        assert names == [f'{s}.{m}.relu:input' for s, m in zip(STAGES, modules)]
        recorder = Recorder(model, 'student')
        recorder.watch([*names, *STAGES])
        recorder.arm()
        model.extract_feat(torch.randn(2, 3, SIDE, SIDE))
        before, after = (feature_levels(recorder, n) for n in (names, STAGES))
        assert all((x < 0).any() and torch.equal(x.relu(), y) for x, y in zip(before, after))
        sum(x.square().mean() for x in before).backward()
        assert all(p.grad.abs().sum() > 0 for p in model.backbone.conv1.parameters())
        recorder.disarm()


def test_pre_relu_leaves_other_layers_as_they_are():
    for model, layers in ((MOBILENET, ['backbone.layer2']), (SHUFFLENET, ['backbone.layers.0'])):
        model = MODELS.build(dict(model, _scope_='mmpretrain'))
        for name in [*layers, 'neck', 'backbone.nothing', 'backbone.conv1:input']:
            assert before_last_relu(model, name) == name


def test_sides_may_differ_in_pre_relu(image_folders, tmp_path):
    """The CIFAR experiments: the teacher before its ReLUs, the student after them."""
    hook = review(
        resnet(8), student_layers=[*STAGES, 'neck'], pre_relu=dict(teacher=True), mid_channels=4
    )
    cfg = classification_run(resnet(), image_folders, tmp_path, [hook])
    hook = hook_of(train(cfg))
    assert hook.student_records == (*STAGES, 'neck')
    assert hook.teacher_records == (*(f'{s}.1.relu:input' for s in STAGES), 'neck')


def test_levels_of_several_outputs():
    """A backbone that returns all stages, and a neck that pools each of them: the deepest pooled one counts."""
    model = MODELS.build(dict(resnet(), _scope_='mmpretrain'))
    model.backbone.out_indices = (0, 1, 2, 3)
    recorder = Recorder(model, 'student')
    recorder.watch(['backbone', 'neck', 'head'])
    recorder.arm()
    model(torch.randn(2, 3, SIDE, SIDE), mode='tensor')
    levels = feature_levels(recorder, ['backbone', 'neck'])
    assert [tuple(x.shape[1:]) for x in levels] == [
        (4, 8, 8),
        (8, 4, 4),
        (16, 2, 2),
        (32, 1, 1),
        (32, 1, 1),
    ]
    torch.testing.assert_close(levels[4], levels[3].mean((2, 3), keepdim=True))
    recorder.calls('head')[-1].output = torch.zeros(2, 9, 4)
    with pytest.raises(ValueError, match="'head' of the student gives .*name other layers"):
        feature_levels(recorder, ['head'])


def test_a_teacher_of_another_size_and_normalisation(image_folders, tmp_path):
    """It sees the same images as it was trained on; its larger maps are what the fusion is resized to."""
    bgr = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)
    teacher = resnet(8, pixels=bgr)
    hook = review(
        teacher,
        student_layers=[*STAGES, 'neck'],
        mid_channels=4,
        resize_to_teacher=True,
        teacher=dict(input_size=2 * SIDE),
    )
    cfg = classification_run(resnet(), image_folders, tmp_path, [hook])
    cfg.experiment_name = 'other-size'
    runner = Runner.from_cfg(cfg)
    hook, seen = hook_of(runner), []

    def watch(*_):
        hook.teacher.model.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        runner.model.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))

    hook.before_train = watch
    runner.train()
    assert all(0 < v < float('inf') for v in losses_of(runner)['loss_hcl'])
    own, other = seen[-2:]
    assert own.shape[-1] == SIDE and other.shape[-1] == 2 * SIDE
    columns = [torch.tensor(v).view(1, 3, 1, 1) for v in (PIXELS['std'], PIXELS['mean'])]
    pixels = (own * columns[0] + columns[1]).flip(1) - torch.tensor(bgr['mean']).view(1, 3, 1, 1)
    torch.testing.assert_close(F.avg_pool2d(other, 2).mean(), pixels.mean(), rtol=1e-3, atol=0.1)
    correlation = torch.corrcoef(torch.stack([F.avg_pool2d(other, 2).flatten(), pixels.flatten()]))
    assert correlation[0, 1] > 0.9


def test_a_teacher_in_train_mode_uses_batch_statistics(image_folders, tmp_path):
    """As in the authors' CIFAR code, where nobody calls eval()."""
    moved = []
    for mode in ('eval', 'train'):
        hook = review(
            resnet(8),
            student_layers=[*STAGES, 'neck'],
            mid_channels=4,
            teacher=dict(mode=mode),
        )
        runner = train(classification_run(resnet(), image_folders, tmp_path / mode, [hook]))
        moved.append(bool(hook_of(runner).teacher.model.backbone.bn1.running_mean.any()))
    assert moved == [False, True]


# The networks of the CIFAR experiments.


@pytest.mark.parametrize(
    'kwargs, expected',
    [
        (dict(depth=20), 0.28e6),
        (dict(depth=56), 0.86e6),
        (dict(depth=110), 1.74e6),
        (dict(depth=8, stem_channels=32, base_channels=64), 1.23e6),
        (dict(depth=32, stem_channels=32, base_channels=64), 7.43e6),
    ],
)
def test_cifar_resnets(kwargs, expected):
    """Sizes as published for CIFAR-100, to the digits given, with the classifier."""
    with torch.device('meta'):
        model = CIFARResNet(**kwargs)
        head = nn.Linear(model.feat_dim, 100)
    count = sum(p.numel() for m in (model, head) for p in m.parameters())
    assert count == pytest.approx(expected, abs=0.006e6)
    convolutions = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    shortcuts = [n for n in convolutions if 'downsample' in n]
    assert len(convolutions) - len(shortcuts) + 1 == kwargs['depth']


def test_cifar_resnet_stages():
    model = CIFARResNet(8, out_indices=(0, 1, 2)).eval()
    outs = model(torch.zeros(1, 3, 32, 32))
    assert [tuple(x.shape[1:]) for x in outs] == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]


def test_official_layout_of_the_teachers():
    """The CIFAR code and torchvision name a ResNet's parts alike; every key finds its place."""
    backbone = dict(type='mmextra.CIFARResNet', depth=8)
    model = MODELS.build(dict(classifier(backbone, 64), _scope_='mmpretrain'))
    state = {
        k.replace('backbone.', '').replace('head.', ''): torch.randn_like(v.float()).to(v.dtype)
        for k, v in model.state_dict().items()
    }
    assert 'fc.weight' in state and 'layer2.0.downsample.1.running_var' in state
    load_official(model, state, 'reviewkd')
    assert torch.equal(model.backbone.layer3[0].conv2.weight, state['layer3.0.conv2.weight'])
    assert torch.equal(model.head.fc.weight, state['fc.weight'])
