"""Reading checkpoints: safely, strictly, in the authors' own layout."""

import copy

import numpy as np
import pytest
import torch
from mmcv.cnn import ConvModule
from mmengine.config import Config
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import nn

import mmextra.registry  # noqa: F401
from mmextra.engine.checkpoint import (
    OfficialCheckpoint,
    get_layout,
    is_checkpoint_init,
    load_official,
    read_checkpoint,
    register_layout,
    state_dict_of,
)
from mmextra.engine.safe_globals import _history_method


class Anything:
    """A class that no checkpoint should hold."""


@register_layout('toy')
def toy_layout(state):
    return {
        k.replace('fc.', 'head.') if k.startswith('fc.') else f'backbone.{k}': v
        for k, v in state.items()
    }


class Backbone(BaseModule):
    official_layout = 'toy'

    def __init__(self, width=4, init_cfg=None):
        super().__init__(init_cfg)
        self.conv = nn.Conv2d(3, width, 1)


class Model(BaseModule):
    def __init__(self, init_cfg=None):
        super().__init__(init_cfg)
        self.backbone = Backbone(init_cfg=dict(type='Constant', layer='Conv2d', val=0.5))
        self.head = nn.Linear(4, 2)


def official():
    torch.manual_seed(1)
    return {
        'conv.weight': torch.randn(4, 3, 1, 1),
        'conv.bias': torch.randn(4),
        'fc.weight': torch.randn(2, 4),
        'fc.bias': torch.randn(2),
    }


def test_training_checkpoints_of_mmengine_are_read(tmp_path):
    hub = MessageHub('reading')
    hub.update_scalar('train/loss', torch.tensor(2.0))
    hub.update_scalar('train/loss', 4.0)
    path = tmp_path / 'epoch_1.pth'
    torch.save(
        dict(state_dict=official(), message_hub=hub.state_dict(), numbers=np.float64(3)), path
    )
    read = read_checkpoint(str(path))
    history = read['message_hub']['log_scalars']['train/loss']
    assert isinstance(history, HistoryBuffer) and history.mean() == 3
    assert state_dict_of(read).keys() == official().keys()


def test_other_pickled_classes_are_refused(tmp_path):
    path = tmp_path / 'evil.pth'
    torch.save(dict(state_dict=official(), extra=Anything()), path)
    with pytest.raises(ValueError, match=r'is refused: it holds a pickled .*Anything'):
        read_checkpoint(str(path))
    for owner, name in ((HistoryBuffer, '__init__'), (dict, 'clear'), (HistoryBuffer, '_x')):
        with pytest.raises(ValueError, match='refused to look up'):
            _history_method(owner, name)


@pytest.mark.parametrize('damage', [lambda b: b[: len(b) // 2], lambda b: b'', lambda b: b'text'])
def test_damaged_files_are_named(tmp_path, damage):
    path = tmp_path / 'cut.pth'
    torch.save(official(), path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r'cut.pth cannot be read: it is cut short'):
        read_checkpoint(str(path))


def test_missing_files_and_empty_ones(tmp_path):
    with pytest.raises(FileNotFoundError, match='there is no checkpoint'):
        read_checkpoint('nowhere.pth')
    with pytest.raises(ValueError, match='no weights found; top-level keys: epoch'):
        state_dict_of(dict(epoch=3))
    torch.save([1, 2], tmp_path / 'list.pth')
    with pytest.raises(ValueError, match='holds a list, expected a dict'):
        read_checkpoint(str(tmp_path / 'list.pth'))


@pytest.mark.parametrize(
    'wrap',
    [
        lambda s: s,
        lambda s: dict(state_dict=s, epoch=3),
        lambda s: dict(model=s),
        lambda s: {f'module.{k}': v for k, v in s.items()},
    ],
)
def test_usual_wrappings(wrap):
    assert state_dict_of(wrap(official())).keys() == official().keys()


def test_official_weights_load_whole_and_in_part(tmp_path):
    path = tmp_path / 'official.pth'
    torch.save(dict(state_dict=official()), path)
    model = Model(init_cfg=dict(type='mmextra.OfficialCheckpoint', checkpoint=str(path)))
    model.init_weights()  # the backbone's own Constant must not undo the load
    assert torch.equal(model.backbone.conv.weight, official()['conv.weight'])
    assert torch.equal(model.head.weight, official()['fc.weight'])
    alone = Backbone(init_cfg=dict(type='mmextra.OfficialCheckpoint', checkpoint=str(path)))
    alone.init_weights()
    assert torch.equal(alone.conv.bias, official()['conv.bias'])


def test_layers_that_initialise_themselves_keep_the_weights(tmp_path):
    """mmcv's ConvModule does, and is none of mmengine's modules."""
    path = tmp_path / 'official.pth'
    module = BaseModule(dict(type='mmextra.OfficialCheckpoint', checkpoint=str(path), layout='toy'))
    module.stem = ConvModule(3, 4, 1, norm_cfg=dict(type='BN'))
    state = {k: torch.rand_like(v.float()) for k, v in module.state_dict().items()}
    torch.save(dict(state_dict=state), path)
    module.init_weights()
    assert torch.equal(module.stem.conv.weight, state['stem.conv.weight'])
    assert torch.equal(module.stem.bn.weight, state['stem.bn.weight'])


def test_a_part_gets_the_weights_it_shares_most_names_with():
    state = dict(official(), **{'fc.conv.weight': torch.ones(2, 4, 1)})  # `conv.weight` twice
    head = nn.Linear(4, 2)
    head.conv = nn.Conv1d(4, 2, 1, bias=False)
    load_official(head, state, 'toy')
    assert torch.equal(head.weight, state['fc.weight'])
    assert torch.equal(head.conv.weight, state['fc.conv.weight'])


def test_every_key_is_accounted_for():
    state = official()
    state['extra.weight'] = state.pop('fc.bias')
    with pytest.raises(ValueError, match=r'missing: head.bias; left over: backbone.extra.weight'):
        load_official(Model(), state, 'toy')
    with pytest.raises(
        ValueError, match=r'size mismatch for conv.weight: .*\[4, 3, 1, 1\].*\[8, 3, 1, 1\]'
    ):
        load_official(Backbone(8), official(), 'toy')


def test_layouts_by_name():
    assert get_layout('ld')({'teacher.a': 1, 'backbone.b': 2}) == {'backbone.b': 2}
    with pytest.raises(
        KeyError, match="no official checkpoint layout is known for 'lda'; known: .*ld"
    ):
        get_layout('lda')
    with pytest.raises(ValueError, match='Linear declares no official checkpoint layout'):
        OfficialCheckpoint('x.pth')(nn.Linear(1, 1))


def test_checkpoint_initialisation_is_recognised():
    assert is_checkpoint_init(dict(type='mmextra.OfficialCheckpoint', checkpoint='x'))
    assert is_checkpoint_init([dict(type='Constant'), dict(type='Pretrained', checkpoint='x')])
    assert not is_checkpoint_init(None) and not is_checkpoint_init(dict(type='Constant'))


def test_detectors_of_mmdet_2_load(tmp_path):
    """LD's published files: mmdet 2.x keys, some with the teacher inside."""
    from training import small_gfl

    model = dict(small_gfl(), _scope_='mmdet')
    source = MODELS.build(copy.deepcopy(model))
    state = source.state_dict()
    state.update({f'teacher.{k}': v for k, v in state.items()})
    torch.save(dict(state_dict=state, meta=dict(mmdet_version='2.11.0')), tmp_path / 'ld.pth')
    init = dict(type='mmextra.OfficialCheckpoint', checkpoint=str(tmp_path / 'ld.pth'), layout='ld')
    target = MODELS.build(Config(dict(model=dict(model, init_cfg=init))).model)
    target.init_weights()
    for k, v in source.state_dict().items():
        assert torch.equal(target.state_dict()[k], v), k
