"""What every registered backbone owes its users."""

import copy
import inspect
import pickle
from functools import partial

import pytest
import torch
from contracts import registered, tiny
from mmcv.cnn import fuse_conv_bn
from mmcv.cnn.bricks import DropPath
from mmengine.registry import init_default_scope
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmextra.engine import checkpoint
from mmextra.registry import MODELS

NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
# What training and eval mode differ in.
MODAL = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd, DropPath)
NAMES = sorted(
    n for n, module in registered('MODELS').items() if module.startswith('mmextra.backbones.')
)

# Nothing in them depends on the size of the images, which they do not take.
WITHOUT_POSITIONS = {'DSNet', 'SPSAMobileNetV2', 'SPSAMobileViT'}


def backbones():
    from mmengine.model import BaseModule
    from mmpretrain.models.backbones.base_backbone import BaseBackbone

    for name in NAMES:
        cls = MODELS.get(name)
        if isinstance(cls, type) and issubclass(cls, BaseModule) and issubclass(cls, BaseBackbone):
            yield name


@pytest.fixture(params=list(backbones()))
def name(request):
    return request.param


def build(name, **overrides):
    """Build the small instance; a paper's TINY may name the size of its input, square, as
    `img_size`."""
    torch.manual_seed(0)
    model = MODELS.build(dict(type=name, **{**tiny('MODELS', name), **overrides}))
    model.init_weights()
    return model


def images(name, batch=2, size=None):
    side = tiny('MODELS', name).get('img_size', 64)
    height, width = size or (side, side) if isinstance(side, int) else size or side
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def stages(name):
    return tiny('MODELS', name).get('out_indices', (-1,))


def accepts(name, argument):
    parameters = inspect.signature(MODELS.get(name).__init__).parameters
    return argument in parameters or any(
        argument in inspect.signature(base.__init__).parameters
        for base in MODELS.get(name).__mro__[:-1]
    )


def redraw(model):
    """Parameters and running statistics that are far from their initial values."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
        for key, buffer in model.named_buffers():
            if key.endswith('running_var'):
                buffer.uniform_(0.5, 1.5)
            elif key.endswith('running_mean'):
                buffer.normal_()
    return model


def tensors(outs):
    """All tensors of a backbone's output, in order."""
    if isinstance(outs, torch.Tensor):
        return [outs]
    return [t for out in outs for t in tensors(out)] if isinstance(outs, (tuple, list)) else []


def test_each_stage_alone_equals_the_stage_among_all(name):
    model = build(name).eval()
    with torch.no_grad():
        together = model(images(name))
    assert isinstance(together, tuple) and len(together) == len(stages(name))
    areas = [out.shape[-2] * out.shape[-1] for out in together]
    assert all(out.ndim == 4 for out in together), (
        'TINY must ask for feature maps (out_type="featmap")'
    )
    assert areas == sorted(areas, reverse=True)
    for index, expected in zip(stages(name), together):
        alone = build(name, out_indices=(index,)).eval()
        own = alone.state_dict()
        alone.load_state_dict(
            {k: v for k, v in model.state_dict().items() if k in own}, strict=False
        )
        with torch.no_grad():
            torch.testing.assert_close(alone(images(name))[0], expected)


@pytest.mark.parametrize('extra', [(0, 32), (9, 3), (32, 0)])
def test_other_input_sizes(name, extra):
    side = tiny('MODELS', name).get('img_size', 64)
    size = (side + extra[0], side + extra[1])
    model = build(name)
    stride = side // tensors(model(images(name)))[0].shape[-1]
    for mode in (True, False):
        outs = tensors(model.train(mode)(images(name, size=size)))
        assert all(torch.isfinite(t).all() for t in outs)
        grid = outs[0].shape[2:]  # papers that thin out the tokens have fewer of them later
        assert all(n // stride <= found <= -(-n // stride) for n, found in zip(size, grid))


@torch.no_grad()
def test_calls_leave_nothing_behind(name):
    """Not in the input, and not for the next call; copies do the same."""
    model, x = redraw(build(name)).eval(), images(name)
    given = x.clone()
    expected = tensors(model(x))
    model(images(name, size=(x.shape[2] + 32, x.shape[3])))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        model(x)
    for twin in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert all(torch.equal(a, b) for a, b in zip(tensors(twin(x)), expected))
    assert torch.equal(x, given)


@torch.no_grad()
def test_memory_format_does_not_matter(name):
    model, x = build(name).eval(), images(name)
    strided = torch.stack((x, -x), dim=-1)[..., 0]
    for other in (strided, x.contiguous(memory_format=torch.channels_last)):
        for a, b in zip(tensors(model(other)), tensors(model(x))):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_one_image_gives_what_it_gives_in_a_batch(name):
    model = build(name).eval()
    x = images(name)
    with torch.no_grad():
        for together, alone in zip(tensors(model(x)), tensors(model(x[:1]))):
            torch.testing.assert_close(alone, together[:1], rtol=1e-4, atol=1e-5)


def test_every_parameter_gets_a_gradient(name):
    model = build(name).train()
    sum(t.float().square().mean() for t in tensors(model(images(name)))).backward()
    without = [k for k, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without, f'DDP would wait for these: {without}'


def test_state_dict_round_trip(name):
    model, other = build(name).eval(), build(name).eval()
    redraw(other)
    with torch.no_grad():
        other(images(name))  # whatever it may have computed from its weights
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        for a, b in zip(tensors(model(images(name))), tensors(other(images(name)))):
            assert torch.equal(a, b)


@torch.no_grad()
def test_stock_fusion_of_conv_and_bn_changes_nothing(name):
    """The hosts' `--fuse-conv-bn` takes the order in which modules are registered for that in which they run."""
    model, x = redraw(build(name)).eval(), images(name)
    for a, b in zip(tensors(fuse_conv_bn(copy.deepcopy(model))(x)), tensors(model(x))):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * b.abs().max().item())


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_mixed_precision_is_finite(name, dtype):
    model = build(name).train()
    with torch.autocast('cpu', dtype=dtype):
        outs = tensors(model(images(name)))
    sum(t.float().mean() for t in outs).backward()
    assert all(torch.isfinite(t).all() for t in outs)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


class NoRounding(TorchDispatchMode):
    """Double precision is not given up in between."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and args[0].dtype == torch.double:
            assert out.dtype == torch.double or not out.is_floating_point(), func
        return out


@pytest.mark.parametrize('extra', [0, 32])
def test_double_precision_throughout(name, extra):
    model, x = build(name).double().train(), images(name).double()
    x = nn.functional.pad(x, (0, extra, 0, extra))
    with NoRounding():
        outs = tensors(model(x))
    assert all(t.dtype == torch.double for t in outs)


def test_export(name):
    model = build(name).eval()
    x = images(name)
    program = torch.export.export(model, (x,))
    with torch.no_grad():
        for a, b in zip(tensors(program.module()(x)), tensors(model(x))):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def trained(module):
    return any(p.requires_grad for p in module.parameters())


def test_frozen_stages_stay_frozen(name):
    if not accepts(name, 'frozen_stages'):
        pytest.skip(f'{name} takes no frozen_stages')
    model = build(name, frozen_stages=1)
    learns = [p.requires_grad for p in model.parameters()]
    model.eval().train()
    assert learns == [p.requires_grad for p in model.parameters()], (
        'DDP, which is there before training starts, would wait for what is frozen later'
    )
    frozen = [p for p in model.parameters() if not p.requires_grad]
    assert frozen and len(frozen) < len(list(model.parameters()))
    parts = [m for m, free in zip(model.modules(), build(name).modules()) if trained(free)]
    parts = [m for m in parts if not trained(m)]
    assert not any(m.training for part in parts for m in part.modules() if isinstance(m, MODAL))
    before = [b.clone() for part in parts for b in part.buffers()]
    sum(t.square().mean() for t in tensors(model(images(name)))).backward()
    assert all(torch.equal(*pair) for pair in zip(before, [b for p in parts for b in p.buffers()]))
    assert all((p.grad is None) != p.requires_grad for p in model.parameters())


def add_to(found, tensor):
    found.append(tensor)
    return tensor


def test_activation_checkpointing_changes_nothing(name):
    if not accepts(name, 'with_cp'):
        pytest.skip(f'{name} takes no with_cp')
    options = dict(drop_path_rate=0.5) if accepts(name, 'drop_path_rate') else {}
    results, kept = [], []
    for with_cp in (False, True):
        model, saved = build(name, with_cp=with_cp, **options).train(), []
        torch.manual_seed(1)
        keep = partial(add_to, saved)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            outs = tensors(model(images(name)))
        kept.append(len(saved))
        sum(t.square().mean() for t in outs).backward()
        grads = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
        results.append((outs, grads, dict(model.named_buffers())))
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert kept[1] < kept[0]


def test_drop_path(name):
    if not accepts(name, 'drop_path_rate'):
        pytest.skip(f'{name} takes no drop_path_rate')
    plain, model = build(name), build(name, drop_path_rate=0.5)
    model.load_state_dict(redraw(plain).state_dict())
    x = images(name)
    for mode, same in ((False, True), (True, False)):
        for a, b in zip(tensors(model.train(mode)(x))[-1:], tensors(plain.train(mode)(x))[-1:]):
            assert torch.equal(a, b) == same


@pytest.mark.parametrize('kind', ['Pretrained', 'mmextra.OfficialCheckpoint'])
def test_initialisation_leaves_a_checkpoint_alone(name, kind, tmp_path, monkeypatch):
    monkeypatch.setitem(checkpoint._LAYOUTS, 'as it is', lambda state: state)
    source, path = redraw(build(name)), str(tmp_path / 'weights.pth')
    torch.save(dict(state_dict=source.state_dict()), path)
    layout = {} if kind == 'Pretrained' else dict(layout='as it is')
    model = build(name, init_cfg=dict(type=kind, checkpoint=path, **layout))
    for (key, a), b in zip(model.state_dict().items(), source.state_dict().values()):
        assert torch.equal(a, b), key


@pytest.mark.parametrize(
    'name', [name for name in backbones() if name not in WITHOUT_POSITIONS], indirect=True
)
def test_official_weights_fit_another_image_size(name, tmp_path, monkeypatch):
    """They give what the model of their own size gives for such images."""
    side = tiny('MODELS', name)['img_size']
    monkeypatch.setitem(checkpoint._LAYOUTS, 'as it is', lambda state: state)
    source, path = redraw(build(name)).eval(), str(tmp_path / 'weights.pth')
    torch.save(source.state_dict(), path)
    init = dict(type='mmextra.OfficialCheckpoint', checkpoint=path, layout='as it is')
    model = build(name, img_size=2 * side, init_cfg=init).eval()
    x = images(name, size=(2 * side, 2 * side))
    with torch.no_grad():
        torch.testing.assert_close(model(x), source(x))


def classifier(name):
    """The host's classifier around the small instance."""
    init_default_scope('mmpretrain')
    backbone = {**tiny('MODELS', name), 'type': f'mmextra.{name}', 'out_indices': stages(name)[-1:]}
    backbone.pop('out_type', None)
    with torch.no_grad():
        features = MODELS.build(backbone).eval()(images(name))[-1]
    return MODELS.build(
        dict(
            type='mmpretrain.ImageClassifier',
            backbone=backbone,
            neck=dict(type='GlobalAveragePooling') if features.ndim == 4 else None,
            head=dict(type='LinearClsHead', num_classes=3, in_channels=features.shape[1]),
        )
    )


def test_classifies_with_a_stock_head(name):
    from mmpretrain.structures import DataSample

    model = classifier(name)
    model.init_weights()
    samples = [DataSample().set_gt_label(i) for i in range(2)]
    losses = model.train()(images(name), samples, mode='loss')
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    scores = [s.pred_score for s in model.eval()(images(name), samples, mode='predict')]
    torch.testing.assert_close(torch.stack(scores).sum(1), torch.ones(2))


def test_stock_optimizer_constructors(name):
    """Learning rates fall by a factor with each depth; norms, biases and vectors have no weight decay."""
    from mmpretrain.engine.optimizers import LearningRateDecayOptimWrapperConstructor

    model = classifier(name)
    constructor = LearningRateDecayOptimWrapperConstructor(
        dict(optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.1)),
        dict(layer_decay_rate=0.5, norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0),
    )
    groups = constructor(model).optimizer.param_groups
    group_of = {id(p): group for group in groups for p in group['params']}
    assert len(group_of) == sum(len(g['params']) for g in groups) == len(list(model.parameters()))
    for key, parameter in model.named_parameters():
        depth, total = model.backbone.get_layer_depth(key, 'backbone.')
        assert group_of[id(parameter)]['lr'] == 0.5 ** (total - 1 - depth), key
        decays = parameter.ndim > 1
        assert (group_of[id(parameter)]['weight_decay'] > 0) == decays, key
    norms = [p for m in model.modules() if isinstance(m, NORMS) for p in m.parameters()]
    assert all(group_of[id(p)]['weight_decay'] == 0 for p in norms)


def test_compiles_without_a_break(name):
    """In training, where more is traced; what follows on the trace is torch's own."""
    torch._dynamo.reset()
    model, x = build(name).train(), images(name)
    outs = []
    for run in (copy.deepcopy(model), torch.compile(model, backend='eager', fullgraph=True)):
        torch.manual_seed(1)
        outs.append(tensors(run(x)))
    torch.testing.assert_close(*outs, rtol=1e-4, atol=1e-5)
