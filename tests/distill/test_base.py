"""The distillation hook itself: attached only while training, resumable, synchronised."""

import copy
from contextlib import contextmanager

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import nn
from training import (
    assert_equal_weights,
    coco_dataset,
    detection_run,
    losses_of,
    small_gfl,
    train,
    weights,
)

from mmextra.distill import base
from mmextra.distill.base import ADAPTERS_KEY, DistillHook, PixelFormat, Recorder, Teacher
from mmextra.engine.checkpoint import read_checkpoint
from mmextra.registry import HOOKS, MODELS, OPTIM_WRAPPERS

TINY = {}


@HOOKS.register_module(force=True)
class NeckHook(DistillHook):
    """The least method with adapters: 1x1 convolutions from neck to neck, squared error."""

    student_records = ('neck',)

    def build_adapters(self, student, teacher):
        return nn.ModuleList([nn.Conv2d(32, 32, 1) for _ in range(3)])

    def losses(self, student, teacher, inputs, data_samples):
        pairs = zip(self.adapters, student['neck'], teacher.features)
        errors = [(a(s.float()) - t.float()).square().mean() for a, s, t in pairs]
        self.seen = {errors[0].dtype, student['neck'][0].dtype}
        return dict(loss_neck=errors)


@pytest.fixture(scope='module')
def teacher_file(shapes_root, tmp_path_factory):
    """A trained teacher: config and checkpoint."""
    work_dir = tmp_path_factory.mktemp('teacher')
    cfg = detection_run(small_gfl(12), shapes_root, work_dir)
    train(cfg)
    path = work_dir / 'config.py'
    cfg.dump(path)
    return dict(config=str(path), checkpoint=str(work_dir / 'epoch_2.pth'))


def ld(teacher, **kwargs):
    return dict(type='mmextra.LocalizationDistillationHook', teacher=dict(teacher), **kwargs)


def neck(teacher, **kwargs):
    return dict(type='mmextra.NeckHook', teacher=dict(teacher), **kwargs)


def test_student_stays_stock(shapes_root, tmp_path, teacher_file):
    plain = train(detection_run(small_gfl(), shapes_root, tmp_path / 'a'))
    hooks = [ld(teacher_file), neck(teacher_file)]
    distilled = train(detection_run(small_gfl(), shapes_root, tmp_path / 'b', hooks))
    losses = losses_of(distilled)
    assert {'loss_ld', 'loss_ld_vlr', 'loss_kd', 'loss_neck'} <= set(losses)
    assert all(v > 0 for v in losses['loss_neck'])
    checkpoint = read_checkpoint(str(tmp_path / 'b' / 'epoch_2.pth'))
    assert list(checkpoint['state_dict']) == list(plain.model.state_dict())
    assert set(checkpoint[ADAPTERS_KEY]['NeckHook']) == {
        f'{i}.{p}' for i in range(3) for p in ('weight', 'bias')
    }
    assert not any('teacher' in k for k in checkpoint['state_dict'])
    # Nothing is left on the model: same modules, no hooks, no wrapped methods.
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in distilled.model.modules())
    assert 'get_targets' not in vars(distilled.model.bbox_head)


def test_one_teacher_serves_hooks_with_the_same_options(shapes_root, tmp_path, teacher_file):
    hooks = [ld(teacher_file), neck(teacher_file)]
    cfg = detection_run(small_gfl(), shapes_root, tmp_path, hooks)
    cfg.experiment_name = 'shared-teacher'
    runner = Runner.from_cfg(cfg)
    forwards = []
    distill = [h for h in runner.hooks if isinstance(h, DistillHook)]
    before_train = distill[0].before_train

    def count(self_runner):
        before_train(self_runner)
        backbone = distill[0].teacher.model.backbone
        backbone.register_forward_hook(lambda *_: forwards.append(1))

    distill[0].before_train = count
    runner.train()
    assert distill[0].teacher is distill[1].teacher
    assert len(forwards) == 4  # iterations, not iterations times hooks
    assert not distill[0].teacher.model.training
    assert not any(p.requires_grad for p in distill[0].teacher.model.parameters())


def test_zero_weight_is_the_plain_run(shapes_root, tmp_path, teacher_file):
    plain = train(detection_run(small_gfl(), shapes_root, tmp_path / 'a'))
    hook = ld(teacher_file, ld=dict(weight=0), vlr=dict(weight=0), kd=dict(weight=0))
    zero = train(detection_run(small_gfl(), shapes_root, tmp_path / 'b', [hook]))
    assert_equal_weights(weights(plain.model), weights(zero.model))


@pytest.mark.parametrize('window', [dict(begin=9), dict(warmup=4, end=1)])
def test_outside_its_window_the_hook_changes_nothing(shapes_root, tmp_path, teacher_file, window):
    """Building a teacher and adapters leaves the random numbers of the run alone, too."""
    plain = train(detection_run(small_gfl(), shapes_root, tmp_path / 'a'))
    late = [neck(teacher_file, **window)]
    distilled = train(detection_run(small_gfl(), shapes_root, tmp_path / 'b', late))
    # A factor of 0 adds a zero gradient; a hook that never begins adds nothing at all.
    assert_equal_weights(weights(plain.model), weights(distilled.model))


def test_windows_are_counted_in_what_the_loop_counts(shapes_root, tmp_path, teacher_file):
    """An iteration loop stays in epoch 0, where a warm-up in epochs would never end."""
    cfg = detection_run(small_gfl(), shapes_root, tmp_path, [neck(teacher_file, warmup=1)])
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=2)
    with pytest.raises(ValueError, match='warmup=1 in epochs.*by_epoch=False'):
        train(cfg)
    cfg.custom_hooks[-1].by_epoch = False
    first, second = losses_of(train(cfg))['loss_neck']
    assert first == 0 < second


def test_testing_after_training_leaves_the_adapters_alone(shapes_root, tmp_path, teacher_file):
    """The runner calls `before_run` for each of train, val and test."""
    cfg = detection_run(small_gfl(), shapes_root, tmp_path, [neck(teacher_file)])
    cfg.train_cfg.max_epochs = 1
    runner = train(cfg)
    hook = next(h for h in runner.hooks if isinstance(h, NeckHook))
    before, groups = weights(hook.adapters), len(runner.optim_wrapper.optimizer.param_groups)
    runner.call_hook('before_run')
    assert_equal_weights(before, weights(hook.adapters))
    assert len(runner.optim_wrapper.optimizer.param_groups) == groups


def test_resume_equals_an_unbroken_run(shapes_root, tmp_path, teacher_file):
    hooks = [ld(teacher_file), neck(teacher_file)]
    cfg = detection_run(small_gfl(), shapes_root, tmp_path / 'a', hooks)
    unbroken = train(cfg)
    # As if the run had been killed in its second epoch.
    broken = copy.deepcopy(cfg)
    broken.work_dir = str(tmp_path / 'b')
    broken.resume = True
    broken.load_from = str(tmp_path / 'a' / 'epoch_1.pth')
    resumed = train(broken)
    assert resumed.iter == unbroken.iter == 4
    assert_equal_weights(weights(unbroken.model), weights(resumed.model))
    adapters = [
        next(h for h in r.hooks if isinstance(h, NeckHook)).adapters for r in (unbroken, resumed)
    ]
    assert_equal_weights(*map(weights, adapters))
    momentum = [r.optim_wrapper.optimizer.state_dict()['state'] for r in (unbroken, resumed)]
    assert momentum[0].keys() == momentum[1].keys()
    for a, b in zip(momentum[0].values(), momentum[1].values()):
        assert torch.equal(a['momentum_buffer'], b['momentum_buffer'])


def test_adapters_train_with_the_base_settings(shapes_root, tmp_path, teacher_file):
    cfg = detection_run(small_gfl(), shapes_root, tmp_path, [neck(teacher_file)])
    cfg.optim_wrapper.paramwise_cfg = dict(custom_keys={'backbone': dict(lr_mult=0.1)})
    cfg.optim_wrapper.optimizer.weight_decay = 0.001
    runner = train(cfg)
    hook = next(h for h in runner.hooks if isinstance(h, NeckHook))
    group = runner.optim_wrapper.optimizer.param_groups[-1]
    assert [id(p) for p in group['params']] == [id(p) for p in hook.adapters.parameters()]
    assert group['initial_lr'] == 0.01 and group['weight_decay'] == 0.001
    assert group['lr'] == pytest.approx(0.001)  # after the milestone, like the base setting
    assert runner.optim_wrapper.base_param_settings['lr'] == pytest.approx(0.001)
    assert runner.optim_wrapper.optimizer.param_groups[0]['lr'] == pytest.approx(0.0001)
    momentum = [runner.optim_wrapper.optimizer.state[p]['momentum_buffer'] for p in group['params']]
    assert all(m.abs().sum() > 0 for m in momentum)
    # `--auto-scale-lr`: four images where the recipe has eight.
    cfg.auto_scale_lr = dict(enable=True, base_batch_size=8)
    cfg.train_cfg.max_epochs = 1
    groups = train(cfg).optim_wrapper.optimizer.param_groups
    assert [groups[i]['initial_lr'] for i in (0, -1)] == pytest.approx([0.0005, 0.005])


@OPTIM_WRAPPERS.register_module(force=True)
class CPUAutocastWrapper(OptimWrapper):
    """What AmpOptimWrapper does, which mmengine allows on accelerators only."""

    @contextmanager
    def optim_context(self, model):
        with super().optim_context(model), torch.autocast('cpu', dtype=torch.bfloat16):
            yield


def test_losses_are_float32_under_autocast(shapes_root, tmp_path, teacher_file):
    cfg = detection_run(small_gfl(), shapes_root, tmp_path, [ld(teacher_file), neck(teacher_file)])
    cfg.optim_wrapper.type = 'mmextra.CPUAutocastWrapper'
    runner = train(cfg)
    hook = next(h for h in runner.hooks if isinstance(h, NeckHook))
    losses = losses_of(runner)
    assert all(torch.isfinite(torch.tensor(v)).all() for v in losses.values())
    assert hook.seen == {torch.float32, torch.bfloat16}  # the loss, and the student's features


@pytest.mark.skipif(not torch.cuda.is_available(), reason='AmpOptimWrapper needs a GPU')
def test_amp(shapes_root, tmp_path, teacher_file):
    cfg = detection_run(small_gfl(), shapes_root, tmp_path, [ld(teacher_file), neck(teacher_file)])
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    losses = losses_of(train(cfg))
    assert all(torch.isfinite(torch.tensor(v)).all() for v in losses.values())


def test_accumulation_equals_the_large_batch(shapes_root, tmp_path, teacher_file):
    """Four images in two steps of two give the extra gradient of the four at once: LD sums over images."""
    results = []
    for name, batch, counts in (('whole', 4, 1), ('halves', 2, 2)):
        hook = ld(teacher_file, kd=None)
        cfg = detection_run(small_gfl(), shapes_root, tmp_path / name, [hook])
        cfg.train_dataloader.batch_size = batch
        cfg.optim_wrapper.accumulative_counts = counts
        cfg.train_cfg.max_epochs = 1
        results.append(losses_of(train(cfg))['loss_ld'])
    assert sum(results[1][:2]) == pytest.approx(results[0][0], rel=0.2)


def test_evaluation_never_sees_the_hook(shapes_root, tmp_path, teacher_file):
    cfg = detection_run(small_gfl(), shapes_root, tmp_path, [ld(teacher_file)])
    evaluator = dict(
        type='CocoMetric',
        ann_file=str(shapes_root / 'annotations/instances_val.json'),
        metric='bbox',
    )
    loader = dict(
        batch_size=2,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=coco_dataset(shapes_root, 'val', train=False),
    )
    cfg.merge_from_dict(
        dict(
            val_dataloader=loader,
            val_evaluator=evaluator,
            val_cfg=dict(type='ValLoop'),
            test_dataloader=loader,
            test_evaluator=evaluator,
            test_cfg=dict(type='TestLoop'),
        )
    )
    cfg.custom_hooks.append(dict(type='EMAHook'))
    runner = train(cfg)
    with_hook = runner.test()
    cfg.custom_hooks = [dict(type='EMAHook')]
    cfg.load_from = str(tmp_path / 'epoch_2.pth')
    cfg.experiment_name = 'plain-test'
    assert Runner.from_cfg(cfg).test() == with_hook


# Names, teachers and pixels.


def test_unknown_names_list_near_ones():
    model = Config(dict(model=small_gfl())).model
    recorder = Recorder(MODELS.build(dict(model, _scope_='mmdet')), 'student')
    with pytest.raises(
        ValueError, match=r"no submodule 'backbone.layer5'; near names: .*backbone.layer4"
    ):
        recorder.watch(['backbone.layer5'])
    with pytest.raises(ValueError, match=r"no method 'get_target'; near names: get_targets"):
        recorder.watch(['bbox_head.get_target()'])


def test_recorder_keeps_inputs_before_in_place_changes():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True))
    recorder = Recorder(model, 'student')
    recorder.watch(['1:input', '0'])
    recorder.arm()
    x = torch.randn(4, 3)
    model(x)
    assert (recorder['1:input'] < 0).any()
    torch.testing.assert_close(recorder['1:input'], model[0].weight.mm(x.T).T + model[0].bias)
    recorder.disarm()
    with pytest.raises(RuntimeError, match='did not run'):
        recorder['0']


def test_teacher_gets_its_own_pixels():
    from mmdet.models import DetDataPreprocessor

    caffe = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], bgr_to_rgb=False)
    torchvision = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)
    images = [torch.randint(0, 255, (3, 20, 30)), torch.randint(0, 255, (3, 32, 24))]

    def batch(options):
        samples = [DetDataSample(metainfo=dict(img_shape=tuple(i.shape[1:]))) for i in images]
        preprocessor = DetDataPreprocessor(pad_size_divisor=32, **options)
        return preprocessor, preprocessor(dict(inputs=list(images), data_samples=samples))

    for own, other in ((caffe, torchvision), (torchvision, caffe)):
        (student, seen), (teacher, expected) = batch(own), batch(other)
        formats = PixelFormat.of(student), PixelFormat.of(teacher)
        assert not formats[0].same_as(formats[1])
        got = formats[0].convert(seen['inputs'], formats[1], seen['data_samples'])
        torch.testing.assert_close(got, expected['inputs'], rtol=1e-4, atol=1e-3)


def test_teacher_with_another_padding():
    own = PixelFormat(torch.zeros(3), torch.ones(3), swap=True, pad_value=114.0)
    other = PixelFormat(torch.zeros(3), torch.ones(3), swap=True, pad_value=0.0)
    assert own.same_as(own) and not own.same_as(other)
    sample = DetDataSample(metainfo=dict(img_shape=(2, 3)))
    inputs = torch.full((1, 3, 4, 4), 114.0)
    inputs[:, :, :2, :3] = 7
    expected = inputs.where(inputs == 7, torch.zeros(()))
    assert torch.equal(own.convert(inputs, other, [sample]), expected)


@pytest.mark.parametrize('normalised', [True, False])
def test_a_teacher_whose_format_is_not_given_sees_what_the_student_sees(normalised):
    """mmpretrain keeps the format outside `model`; its stock default would be raw pixels."""
    config = tiny_classifier()
    pixels = dict(mean=[120.0] * 3, std=[60.0] * 3)
    if normalised:
        config = dict(model=config, default_scope='mmpretrain', data_preprocessor=pixels)
    teacher = Teacher(config)
    student = MODELS.build(
        dict(type='mmpretrain.ClsDataPreprocessor', mean=[0.0] * 3, std=[1.0] * 3)
    )
    inputs = torch.full((1, 3, 32, 32), 180.0)
    teacher.see(inputs, None, student)
    assert torch.equal(teacher.inputs, torch.ones_like(inputs) if normalised else inputs)


def tiny_classifier(size=32):
    """The config of a Vision Transformer for images of this size, without its pixel format."""
    arch = dict(embed_dims=16, num_layers=1, num_heads=2, feedforward_channels=16)
    backbone = dict(type='VisionTransformer', arch=arch, img_size=size, patch_size=8)
    head = dict(type='VisionTransformerClsHead', num_classes=2, in_channels=16)
    return dict(type='ImageClassifier', backbone=backbone, head=head, _scope_='mmpretrain')


def test_teacher_checkpoints_are_read_as_their_model_reads_them(tmp_path):
    """Position maps are fitted to the image size, and files of early mmengine hold pixel means, too."""
    path = str(tmp_path / 'teacher.pth')
    state = MODELS.build(tiny_classifier(32)).state_dict()
    state['data_preprocessor.mean'] = torch.zeros(3, 1, 1)
    torch.save(dict(state_dict=state), path)
    loaded = Teacher(tiny_classifier(64), path).model.state_dict()
    assert loaded['backbone.pos_embed'].shape == (1, 1 + 8 * 8, 16)
    same = [k for k in loaded if k != 'backbone.pos_embed']
    assert_equal_weights({k: loaded[k] for k in same}, {k: state[k] for k in same})
    del state['backbone.cls_token']
    torch.save(dict(state_dict=dict(state, extra=torch.zeros(1))), path)
    with pytest.raises(ValueError, match='missing backbone.cls_token; left over extra'):
        Teacher(tiny_classifier(64), path)


@pytest.mark.parametrize('old_torch', [False, True])
def test_teacher_computes_under_the_autocast_of_the_student(old_torch, monkeypatch):
    for enabled in (True, False):
        with (
            torch.autocast('cpu', dtype=torch.bfloat16, enabled=enabled),
            monkeypatch.context() as m,
        ):
            if old_torch:  # < 2.4
                m.delattr(torch, 'get_autocast_dtype')
            found = base._autocast_of('cpu')
        assert (found['enabled'], found['dtype']) == (enabled, torch.bfloat16)


def build_only(cfg):
    """Start a run far enough for the hooks to build and check their teachers."""
    cfg.experiment_name = f'build-{len(str(cfg))}-{torch.rand(()).item()}'
    runner = Runner.from_cfg(cfg)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.call_hook('before_run')


def test_bad_teachers_are_refused_at_the_start(shapes_root, tmp_path, teacher_file):
    def start(teacher, hook=ld, **model):
        build_only(detection_run(small_gfl(**model), shapes_root, tmp_path, [hook(teacher)]))

    with pytest.raises(FileNotFoundError, match='there is no checkpoint'):
        start(dict(teacher_file, checkpoint='nowhere.pth'))
    cut = tmp_path / 'cut.pth'
    cut.write_bytes(open(teacher_file['checkpoint'], 'rb').read()[:5000])
    with pytest.raises(ValueError, match='cut short'):
        start(dict(teacher_file, checkpoint=str(cut)))
    other = dict(small_gfl(16), default_scope='mmdet')
    other.pop('default_scope')
    with pytest.raises(ValueError, match='is not of this GFL.*size mismatch for backbone'):
        start(dict(teacher_file, config=dict(model=other, default_scope='mmdet')))
    with pytest.raises(ValueError, match='must agree in num_classes'):
        start(teacher_file, num_classes=3)
    with pytest.raises(ValueError, match='must agree in reg_max'):
        start(teacher_file, reg_max=8)
    with pytest.raises(ValueError, match="needs a 'config'"):
        start(dict(checkpoint='x.pth'))


def test_a_teacher_without_weights_is_warned_about(shapes_root, tmp_path, teacher_file, caplog):
    messages = []
    print_log, base.print_log = base.print_log, lambda message, *_, **__: messages.append(message)
    try:
        cfg = detection_run(
            small_gfl(), shapes_root, tmp_path, [ld(dict(config=teacher_file['config']))]
        )
        build_only(cfg)
    finally:
        base.print_log = print_log
    assert any('its weights are random' in m for m in messages)


def test_nan_in_the_teacher_is_named_and_saves_nothing(shapes_root, tmp_path, teacher_file):
    state = torch.load(teacher_file['checkpoint'], weights_only=True)['state_dict']
    state['backbone.layer3.0.conv1.weight'][0] = float('nan')
    broken = tmp_path / 'nan.pth'
    torch.save(dict(state_dict=state), broken)
    cfg = detection_run(small_gfl(), shapes_root, tmp_path / 'run')
    cfg.train_cfg.max_epochs = 1
    train(cfg)
    before = (
        (tmp_path / 'run/epoch_1.pth').read_bytes(),
        (tmp_path / 'run/last_checkpoint').read_text(),
    )
    cfg = detection_run(
        small_gfl(),
        shapes_root,
        tmp_path / 'run',
        [ld(dict(teacher_file, checkpoint=str(broken)), begin=1)],
    )
    cfg.resume = True
    with pytest.raises(FloatingPointError, match=r"first in 'backbone.layer3.0.conv1'"):
        train(cfg)
    assert before == (
        (tmp_path / 'run/epoch_1.pth').read_bytes(),
        (tmp_path / 'run/last_checkpoint').read_text(),
    )
