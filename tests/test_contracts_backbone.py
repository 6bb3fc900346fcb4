"""What every registered backbone owes its users."""

import inspect

import pytest
import torch
from contracts import registered, tiny

from mmextra.registry import MODELS

NAMES = sorted(
    n for n, module in registered('MODELS').items() if module.startswith('mmextra.backbones.')
)


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
    for mode in (True, False):
        outs = build(name).train(mode)(images(name, batch=2, size=size))
        assert all(torch.isfinite(t).all() for t in tensors(outs))


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
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter)
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        for a, b in zip(tensors(model(images(name))), tensors(other(images(name)))):
            assert torch.equal(a, b)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_mixed_precision_is_finite(name, dtype):
    model = build(name).train()
    with torch.autocast('cpu', dtype=dtype):
        outs = tensors(model(images(name)))
    sum(t.float().mean() for t in outs).backward()
    assert all(torch.isfinite(t).all() for t in outs)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_export(name):
    model = build(name).eval()
    x = images(name)
    program = torch.export.export(model, (x,))
    with torch.no_grad():
        for a, b in zip(tensors(program.module()(x)), tensors(model(x))):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_frozen_stages_stay_frozen(name):
    if not accepts(name, 'frozen_stages'):
        pytest.skip(f'{name} takes no frozen_stages')
    model = build(name, frozen_stages=1).train()
    frozen = [p for p in model.parameters() if not p.requires_grad]
    assert frozen and len(frozen) < len(list(model.parameters()))
    before = [b.clone() for m in model.modules() if not m.training for b in m.buffers()]
    model(images(name))
    after = [b for m in model.modules() if not m.training for b in m.buffers()]
    assert all(torch.equal(a, b) for a, b in zip(before, after))


def test_activation_checkpointing_changes_nothing(name):
    if not accepts(name, 'with_cp'):
        pytest.skip(f'{name} takes no with_cp')
    grads = []
    for with_cp in (False, True):
        model = build(name, with_cp=with_cp).train()
        torch.manual_seed(1)
        sum(t.square().mean() for t in tensors(model(images(name)))).backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(grads[0]) == len(grads[1])
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_layer_depths_for_layer_wise_decay(name):
    model = build(name)
    depths = {k: model.get_layer_depth(k)[0] for k, _ in model.named_parameters()}
    total = {model.get_layer_depth(k)[1] for k, _ in model.named_parameters()}
    assert len(total) == 1 and min(depths.values()) == 0 and max(depths.values()) < total.pop()
