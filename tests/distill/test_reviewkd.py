"""ReviewKD: the authors' fusion and loss, the numbers of the paper, and the hook on stock detectors and classifiers."""

import copy

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config, ConfigDict
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.structures import DataSample
from tiny_detectors import (  # noqa: F401  the fixture
    ONE_STAGE,
    TWO_STAGE,
    build_detector,
    distilled,
    drawn_batch,
    plain_config_dumps,
    start_hook,
    tiny_detector,
    tiny_run,
    tiny_teacher,
)
from torch import nn
from training import assert_equal_weights, losses_of, train, weights

from mmextra.distill import base
from mmextra.distill.base import ADAPTERS_KEY, Recorder
from mmextra.distill.reviewkd import (
    CIFARResNet,
    HierarchicalContextLoss,
    ReviewFusion,
    ReviewKDHook,
    SameLevelAdapters,
)
from mmextra.distill.reviewkd.hook import before_last_relu, feature_levels
from mmextra.engine.checkpoint import load_official, read_checkpoint
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


@pytest.mark.parametrize(
    'norm_cfg', [dict(type='BN'), dict(type='SyncBN'), dict(type='GN', num_groups=2)]
)
def test_one_image_and_a_pooled_level(norm_cfg):
    """A single value per channel: batch statistics of it do not exist, and the running ones serve."""
    fusion = ReviewFusion([4, 4], [4, 4], 4, norm_cfg).train()
    features = [torch.randn(1, 4, s, s) for s in (4, 1)]
    fused = fusion(features)
    sum(HierarchicalContextLoss()(fused, [torch.zeros_like(f) for f in fused])).backward()
    assert all(torch.isfinite(p.grad).all() for p in fusion.parameters())
    if norm_cfg['type'] != 'GN':
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


def hook_of(runner):
    return next(h for h in runner.hooks if isinstance(h, ReviewKDHook))


@pytest.mark.parametrize('name', ONE_STAGE + TWO_STAGE)
def test_trains_stock_detectors(name, shapes_root, tmp_path):
    hook = dict(type='mmextra.ReviewKDHook', teacher=tiny_teacher(name), mid_channels=8)
    runner = train(tiny_run(name, shapes_root, tmp_path, [hook]))
    losses = losses_of(runner)['loss_hcl']
    assert len(losses) == 2 and all(0 < v < float('inf') for v in losses)
    assert len(hook_of(runner).adapters.abfs) == 5
    checkpoint = read_checkpoint(str(tmp_path / 'epoch_1.pth'))
    # Every key of the stock student, and no other.
    build_detector(tiny_detector(name)).load_state_dict(checkpoint['state_dict'])


def start(name='gfl', teacher=None, **options):
    """A hook at work on a small detector with random weights."""
    teacher = {**(teacher or tiny_teacher(name)), **options.pop('teacher_options', {})}
    hook = ReviewKDHook(teacher, **options)
    return hook, start_hook(hook, tiny_detector(name))


def test_only_student_and_fusion_learn():
    hook, model = start()
    before = [weights(m) for m in (hook.teacher.model, hook.adapters)]
    optimizer = torch.optim.SGD([*model.parameters(), *hook.adapters.parameters()], 0.1)
    sum(distilled(hook, model, *drawn_batch())[1]['loss_hcl']).backward()
    optimizer.step()
    assert_equal_weights(before[0], weights(hook.teacher.model))
    assert all(p.grad is None for p in hook.teacher.model.parameters())
    for part in (hook.adapters, model.backbone.layer1):
        assert all(p.grad.abs().sum() > 0 for p in part.parameters())
    after = weights(hook.adapters)
    still = [k for k in after if torch.equal(after[k], before[1][k])]
    assert not still, f'not trained: {still}'


def test_loss_weight_scales_the_loss():
    one, two = (start(loss_weight=w) for w in (1.0, 2.5))
    losses = [distilled(hook, model, *drawn_batch())[1] for hook, model in (one, two)]
    assert losses[0].keys() == {'loss_hcl'} and len(losses[0]['loss_hcl']) == 5
    for a, b in zip(*(x['loss_hcl'] for x in losses)):
        torch.testing.assert_close(2.5 * a, b)


def test_fusion_and_loss_from_the_config():
    hook, model = start(
        mid_channels=8,
        fusion=dict(norm_cfg=dict(type='GN', num_groups=4)),
        loss=dict(pool_sizes=(1,)),
    )
    assert hook.loss.pool_sizes == (1,)
    norm = hook.adapters.abfs[0].conv1[1]
    assert isinstance(norm, nn.GroupNorm) and norm.num_channels == 8
    hook, model = start(fusion=dict(type='mmextra.SameLevelAdapters'))
    assert isinstance(hook.adapters, SameLevelAdapters)
    losses = distilled(hook, model, *drawn_batch())[1]['loss_hcl']
    assert len(losses) == 5 and all(v > 0 for v in losses)


def test_warmup_is_linear_in_epochs():
    """20 epochs in the CIFAR experiments: nothing in epoch 0, everything from epoch 20 on."""
    factors = []

    class Session:
        def arm(self, hook, factor):
            factors.append(factor)

    class RunnerAt:
        def __init__(self, epoch):
            self.epoch = epoch

    hook = ReviewKDHook(**TINY['ReviewKDHook'], warmup=20)
    hook.teacher = object()
    for epoch in (0, 5, 20, 200):
        runner = RunnerAt(epoch)
        base._SESSIONS[runner] = Session()
        hook.before_train_iter(runner, 0)
    assert factors == [0, 0.25, 1, 1]


def test_with_localization_distillation_on_one_student(shapes_root, tmp_path):
    hooks = [
        dict(type=f'mmextra.{name}', teacher=tiny_teacher('gfl'))
        for name in ('LocalizationDistillationHook', 'ReviewKDHook')
    ]
    cfg = tiny_run('gfl', shapes_root, tmp_path, hooks)
    cfg.experiment_name = 'reviewkd-and-ld'
    runner = Runner.from_cfg(cfg)
    hook, forwards = hook_of(runner), []

    def count(*_):
        hook.teacher.model.backbone.register_forward_hook(lambda *_: forwards.append(1))

    hook.before_train = count
    runner.train()
    assert len(forwards) == 2  # one forward of the teacher an iteration, for both methods
    assert {'loss_ld', 'loss_kd', 'loss_hcl'} <= set(losses_of(runner))


@pytest.mark.parametrize('name', ['gfl', 'faster_rcnn', 'cascade_rcnn'])
def test_images_without_objects_and_a_single_roi(name):
    """Objects play no part in this method: the loss is the same without them, and for any number of RoIs."""
    inputs, losses = drawn_batch()[0], []
    for objects, rois in ((3, 32), (0, 32), (1, 1)):
        hook = ReviewKDHook(tiny_teacher(name))
        model = start_hook(hook, tiny_detector(name, rois=rois))
        own, extra, _ = distilled(hook, model, inputs, drawn_batch(objects=objects)[1])
        assert 'loss_cls' in own or 's0.loss_cls' in own
        losses.append(torch.stack(extra['loss_hcl']))
    assert torch.isfinite(losses[0]).all() and (losses[0] > 0).all()
    assert torch.equal(losses[0], losses[1]) and torch.equal(losses[0], losses[2])


def test_necks_that_do_not_fit():
    def teacher(channels=32, **neck):
        model = tiny_detector('gfl', channels=channels)
        model['neck'].update(neck)
        return dict(config=dict(model=model, default_scope='mmdet'))

    with pytest.raises(ValueError, match='student has 5 .*the teacher 4 .*num_outs'):
        start(teacher=teacher(num_outs=4))
    coarser = teacher(start_level=0, add_extra_convs=False)  # strides 4-64 in place of 8-128
    with pytest.raises(ValueError, match='differ in size.*resize_to_teacher=True'):
        start(teacher=coarser)
    hook, model = start(teacher=coarser, resize_to_teacher=True)
    assert all(v > 0 for v in distilled(hook, model, *drawn_batch())[1]['loss_hcl'])
    start(teacher=teacher(channels=64))  # other widths are what the fusion is for
    with pytest.raises(ValueError, match="no submodule 'nek'; near names"):
        start(student_layers='nek')
    with pytest.raises(ValueError, match='student has 1 .*the teacher 2'):
        start(student_channels=[32], teacher_channels=[32, 32])
    with pytest.raises(ValueError, match="pre_relu must be .*'neck'"):
        start(pre_relu=dict(neck=True))


@pytest.mark.parametrize(
    'student_channels, teacher_channels, teacher_options, message',
    [
        ([32] * 5, [48] * 5, {}, 'teacher_channels is .48'),
        ([16] * 5, [32] * 5, {}, 'student_channels is .16'),
        ([32] * 4, [32] * 4, {}, 'levels of the student have'),
        ([32] * 5, [32] * 5, dict(input_size=(64, 64)), 'differ in size'),
    ],
)
def test_given_channels_are_checked_in_the_first_iteration(
    student_channels, teacher_channels, teacher_options, message
):
    hook, model = start(
        student_channels=student_channels,
        teacher_channels=teacher_channels,
        teacher_options=teacher_options,
    )
    with pytest.raises(ValueError, match=message):
        distilled(hook, model, *drawn_batch())


# The hook on stock classifiers.

STAGES = tuple(f'backbone.layer{i}' for i in range(1, 5))
SIDE = 32
PIXELS = dict(mean=[120.0, 115.0, 110.0], std=[60.0, 61.0, 62.0], to_rgb=True)


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


MOBILENET = classifier(dict(type='MobileNetV2', widen_factor=0.1), 1280)
SHUFFLENET = classifier(dict(type='ShuffleNetV2', widen_factor=0.5), 1024)


def build_classifier(model):
    return MODELS.build(ConfigDict(model, _scope_='mmpretrain'))


def classifier_hook(model=None, **options):
    """The config of a hook with a random classifier as teacher, on all stages and the pooled feature."""
    model = model or resnet(8)
    teacher = dict(config=dict(model=model, default_scope='mmpretrain'))
    teacher.update(options.pop('teacher_options', {}))
    defaults = dict(student_layers=[*STAGES, 'neck'], mid_channels=4)
    return dict(type='mmextra.ReviewKDHook', teacher=teacher, **{**defaults, **options})


def start_on_classifier(student=None, **options):
    hook = HOOKS.build(classifier_hook(**options))
    return hook, start_hook(hook, build_classifier(student or resnet()))


def raw_batch(count=4):
    """Images as a data loader gives them."""
    pixels = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (count, 3, SIDE, SIDE), generator=pixels, dtype=torch.uint8)
    samples = [
        DataSample(metainfo=dict(img_shape=(SIDE, SIDE))).set_gt_label(i % 2) for i in range(count)
    ]
    return dict(inputs=list(images), data_samples=samples)


def distil_classifier(hook, model, count=4):
    batch = model.data_preprocessor(raw_batch(count), True)
    return distilled(hook, model, batch['inputs'], batch['data_samples'])


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
            custom_hooks=[dict(type='mmextra.SeedEachEpochHook'), *hooks],
            log_level='WARNING',
            randomness=dict(seed=0),
        )
    )


@pytest.mark.parametrize(
    'student, layers, teacher_layers, channels',
    [
        (resnet(), [*STAGES, 'neck'], None, [4, 8, 16, 32, 32]),
        (
            MOBILENET,
            [f'backbone.layer{i}' for i in (2, 3, 5, 7)] + ['neck'],
            [*STAGES, 'neck'],
            [8, 8, 16, 32, 1280],
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
def test_trains_stock_classifiers(
    student, layers, teacher_layers, channels, image_folders, tmp_path
):
    hook = classifier_hook(
        resnet(8, depth=50), student_layers=layers, teacher_layers=teacher_layers, pre_relu=True
    )
    runner = train(classification_run(student, image_folders, tmp_path, [hook]))
    assert hook_of(runner).channels['student'] == channels
    assert hook_of(runner).channels['teacher'] == [32, 64, 128, 256, 256][-len(channels) :]
    losses = losses_of(runner)['loss_hcl']
    assert len(losses) == 4 and all(0 < v < float('inf') for v in losses)
    saved = read_checkpoint(str(tmp_path / 'epoch_1.pth'))['state_dict']
    assert saved.keys() == build_classifier(student).state_dict().keys()


def blurred_images(seed):
    """Sixteen images of 4x4 coloured patches."""
    generator = torch.Generator().manual_seed(seed)
    images = F.interpolate(torch.rand(16, 3, 4, 4, generator=generator), SIDE) * 255
    return dict(raw_batch(16), inputs=list(images))


def test_student_and_teacher_come_closer():
    """With a few steps of the loss alone; on images that were not seen, too."""
    hook, model = start_on_classifier(mid_channels=16)
    optimizer = torch.optim.Adam([*model.parameters(), *hook.adapters.parameters()], 1e-2)

    def loss(seed):
        batch = model.data_preprocessor(blurred_images(seed), True)
        return sum(distilled(hook, model, batch['inputs'], batch['data_samples'])[1]['loss_hcl'])

    before = loss(0).item()
    for seed in range(1, 31):
        optimizer.zero_grad()
        loss(seed).backward()
        optimizer.step()
    assert loss(0).item() < 0.5 * before


@HOOKS.register_module(force=True)
class FixedTeacherHook(Hook):
    """Gives a random teacher the same weights in every run."""

    def before_train(self, runner):
        generator = torch.Generator().manual_seed(5)
        for p in hook_of(runner).teacher.model.parameters():
            p.data.copy_(torch.randn(p.shape, generator=generator) * p.numel() ** -0.5)


def test_resume_equals_an_unbroken_run(image_folders, tmp_path):
    hooks = [classifier_hook(), dict(type='mmextra.FixedTeacherHook')]
    cfg = classification_run(resnet(), image_folders, tmp_path / 'a', hooks, batch=8, epochs=2)
    unbroken = train(cfg)
    cfg.merge_from_dict(
        dict(work_dir=str(tmp_path / 'b'), resume=True, load_from=str(tmp_path / 'a/epoch_1.pth'))
    )
    resumed = train(cfg)
    assert resumed.iter == unbroken.iter == 4
    assert_equal_weights(weights(unbroken.model), weights(resumed.model))
    fusions = [hook_of(r).adapters for r in (unbroken, resumed)]
    assert_equal_weights(*map(weights, fusions))
    saved = read_checkpoint(str(tmp_path / 'b/epoch_2.pth'))
    assert_equal_weights(weights(fusions[0]), saved[ADAPTERS_KEY]['ReviewKDHook'])
    states = [r.optim_wrapper.optimizer.state for r in (unbroken, resumed)]
    for a, b in zip(*(f.parameters() for f in fusions)):
        momenta = states[0][a]['momentum_buffer'], states[1][b]['momentum_buffer']
        assert torch.equal(*momenta) and momenta[0].abs().sum() > 0


def test_without_weight_it_is_the_plain_run(image_folders, tmp_path):
    """No weight: nothing is built. A warm-up that begins at 0: all is built and run, and changes nothing."""
    runs = [[], [classifier_hook(loss_weight=0.0)], [classifier_hook(warmup=20)]]
    done = [
        train(classification_run(resnet(), image_folders, tmp_path / str(i), hooks))
        for i, hooks in enumerate(runs)
    ]
    for runner in done[1:]:
        assert_equal_weights(weights(done[0].model), weights(runner.model))
    assert hook_of(done[1]).teacher is None and hook_of(done[2]).teacher is not None
    assert losses_of(done[2])['loss_hcl'] == [0] * 4


def test_pre_relu_is_what_the_last_relu_takes_in():
    """The ReLU of a block runs two or three times, in place: the last input counts, with its gradient."""
    for depth, blocks in ((18, '1111'), (50, '2352')):
        model = build_classifier(resnet(4, depth=depth))
        names = [before_last_relu(model, name) for name in STAGES]
        assert names == [f'{s}.{b}.relu:input' for s, b in zip(STAGES, blocks)]
        recorder = Recorder(model, 'student')
        recorder.watch([*names, *STAGES])
        recorder.arm()
        model.extract_feat(torch.randn(2, 3, SIDE, SIDE))
        before, after = (feature_levels(recorder, n) for n in (names, STAGES))
        assert all((x < 0).any() and torch.equal(x.relu(), y) for x, y in zip(before, after))
        sum(x.square().mean() for x in before).backward()
        assert model.backbone.conv1.weight.grad.abs().sum() > 0
        recorder.disarm()


def test_pre_relu_leaves_other_layers_as_they_are():
    for model, layer in ((MOBILENET, 'backbone.layer2'), (SHUFFLENET, 'backbone.layers.0')):
        model = build_classifier(model)
        for name in (layer, 'neck', 'backbone.nothing', 'backbone.conv1:input'):
            assert before_last_relu(model, name) == name


def test_sides_may_differ_in_pre_relu():
    """The CIFAR experiments: the teacher before its ReLUs, the student after them."""
    hook, model = start_on_classifier(pre_relu=dict(teacher=True))
    distil_classifier(hook, model)
    assert hook.student_records == (*STAGES, 'neck')
    assert hook.teacher_records == (*(f'{s}.1.relu:input' for s in STAGES), 'neck')


def test_levels_of_several_outputs():
    """A backbone that returns all stages, and a neck that pools each of them: the deepest pooled one counts."""
    model = build_classifier(resnet())
    model.backbone.out_indices = (0, 1, 2, 3)
    recorder = Recorder(model, 'student')
    recorder.watch(['backbone', 'neck', 'head'])
    recorder.arm()
    model(torch.randn(2, 3, SIDE, SIDE), mode='tensor')
    model.head(model.extract_feat(torch.randn(2, 3, SIDE, SIDE)))
    levels = feature_levels(recorder, ['backbone', 'neck'])
    shapes = [(4, 8, 8), (8, 4, 4), (16, 2, 2), (32, 1, 1), (32, 1, 1)]
    assert [tuple(x.shape[1:]) for x in levels] == shapes
    torch.testing.assert_close(levels[4], levels[3].mean((2, 3), keepdim=True))
    recorder.calls('head')[-1].output = torch.zeros(2, 9, 4)
    with pytest.raises(ValueError, match="'head' of the student gives .*name other layers"):
        feature_levels(recorder, ['head'])


def test_a_teacher_of_another_size_and_normalisation():
    """It sees the images as it was trained to; the fusion is resized to its larger maps."""
    bgr = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)
    hook, model = start_on_classifier(
        model=resnet(8, pixels=bgr),
        resize_to_teacher=True,
        teacher_options=dict(input_size=2 * SIDE),
    )
    batch = raw_batch()
    losses = distil_classifier(hook, model)[1]['loss_hcl']
    assert len(losses) == 5 and all(0 < v < float('inf') for v in losses)
    expected = hook.teacher.model.data_preprocessor(copy.deepcopy(batch))['inputs']
    expected = F.interpolate(expected, scale_factor=2, mode='bilinear', align_corners=False)
    torch.testing.assert_close(hook.teacher.inputs, expected, rtol=1e-4, atol=1e-2)


def test_a_teacher_in_train_mode_uses_batch_statistics():
    """As in the authors' CIFAR code, where nobody calls eval()."""
    moved = []
    for mode in ('eval', 'train'):
        hook, model = start_on_classifier(teacher_options=dict(mode=mode))
        distil_classifier(hook, model)
        moved.append(bool(hook.teacher.model.backbone.bn1.running_mean.any()))
    assert moved == [False, True]


def test_a_last_batch_of_one_image():
    """The student's own statistics are frozen here; those of the fusion at 1x1 cannot be taken."""
    hook, model = start_on_classifier()
    model.eval()
    assert hook.adapters.training
    losses = distil_classifier(hook, model, count=1)[1]['loss_hcl']
    assert all(torch.isfinite(v) for v in losses)


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
    model = CIFARResNet(**kwargs)
    head = nn.Linear(model.feat_dim, 100)
    count = sum(p.numel() for m in (model, head) for p in m.parameters())
    assert count == pytest.approx(expected, abs=0.006e6)
    convolutions = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    shortcuts = [n for n in convolutions if 'downsample' in n]
    assert len(convolutions) - len(shortcuts) + 1 == kwargs['depth']


def test_cifar_resnet_stages():
    model = CIFARResNet(8, out_indices=(0, 1, 2))
    outs = model(torch.zeros(1, 3, 32, 32))
    assert [tuple(x.shape[1:]) for x in outs] == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]


def test_official_layout_of_the_teachers():
    """The CIFAR code and torchvision name a ResNet's parts alike; every key finds its place."""
    backbone = dict(type='mmextra.CIFARResNet', depth=8)
    model = build_classifier(classifier(backbone, 64))
    state = {
        k.replace('backbone.', '').replace('head.', ''): torch.randn_like(v.float()).to(v.dtype)
        for k, v in model.state_dict().items()
    }
    assert 'fc.weight' in state and 'layer2.0.downsample.1.running_var' in state
    load_official(model, state, 'reviewkd')
    assert torch.equal(model.backbone.layer3[0].conv2.weight, state['layer3.0.conv2.weight'])
    assert torch.equal(model.head.fc.weight, state['fc.weight'])
