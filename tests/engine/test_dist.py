import os
import socket

import pytest
import torch.distributed as torch_dist
from mmengine.config import Config

from mmextra.engine import dist
from mmextra.engine.dist import cpu_process_group


@pytest.fixture
def launched(monkeypatch):
    """The environment of a process that was launched alone, on a machine without a GPU."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    variables = dict(RANK=0, WORLD_SIZE=1, LOCAL_RANK=0, MASTER_ADDR='127.0.0.1', MASTER_PORT=port)
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv('GLOO_SOCKET_IFNAME', '')  # so that what the test sets is undone
    monkeypatch.delenv('GLOO_SOCKET_IFNAME')
    monkeypatch.setattr(dist, 'get_device', lambda: 'cpu')


def test_processes_are_joined_and_parted(launched):
    cfg = Config(dict(launcher='pytorch', find_unused_parameters=True))
    with cpu_process_group(cfg):
        assert torch_dist.get_backend() == 'gloo' and torch_dist.get_world_size() == 1
        assert os.environ['GLOO_SOCKET_IFNAME'].startswith('lo')
    assert not torch_dist.is_initialized()
    assert cfg.model_wrapper_cfg == dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=True,
        device_ids=None,
    )


def test_processes_are_parted_after_an_error_too(launched):
    with pytest.raises(KeyError), cpu_process_group(Config(dict(launcher='pytorch'))):
        raise KeyError('in training')
    assert not torch_dist.is_initialized()


@pytest.mark.parametrize('launcher', ['none', 'slurm', 'mpi'])
def test_other_launchers_are_left_alone(launched, launcher):
    cfg = Config(dict(launcher=launcher))
    with cpu_process_group(cfg):
        assert not torch_dist.is_initialized()
    assert cfg.to_dict() == dict(launcher=launcher)


def test_an_accelerator_is_left_to_the_runner(launched, monkeypatch):
    monkeypatch.setattr(dist, 'get_device', lambda: 'cuda')
    with cpu_process_group(Config(dict(launcher='pytorch'))):
        assert not torch_dist.is_initialized()


def test_a_script_that_nobody_launched(launched, monkeypatch):
    monkeypatch.delenv('RANK')
    monkeypatch.delenv('MASTER_PORT')
    with (
        pytest.raises(RuntimeError, match=r'needs RANK, MASTER_PORT .* torch.distributed.run'),
        cpu_process_group(Config(dict(launcher='pytorch'))),
    ):
        pass


@pytest.mark.parametrize(
    'address, given, expected',
    [('127.0.0.1', None, 'lo'), ('localhost', 'eth7', 'eth7'), ('10.1.2.3', None, None)],
)
def test_the_interface_is_chosen_on_one_machine_only(
    launched, monkeypatch, address, given, expected
):
    calls = []
    for name in ('init_process_group', 'barrier', 'destroy_process_group'):
        monkeypatch.setattr(torch_dist, name, lambda *args, n=name, **kw: calls.append((n, kw)))
    monkeypatch.setenv('MASTER_ADDR', address)
    if given:
        monkeypatch.setenv('GLOO_SOCKET_IFNAME', given)
    with cpu_process_group(
        Config(dict(launcher='pytorch', env_cfg=dict(dist_cfg=dict(timeout=90))))
    ):
        assert (os.environ.get('GLOO_SOCKET_IFNAME') or 'none').startswith(expected or 'none')
    names = [name for name, _ in calls]
    assert names == ['init_process_group', 'barrier', 'destroy_process_group']
    assert calls[0][1]['timeout'].total_seconds() == 90


def test_layers_and_wrappers_that_need_cuda_are_replaced(launched):
    norm = dict(type='SyncBN', requires_grad=True)
    cfg = Config(
        dict(
            launcher='pytorch',
            model=dict(
                type='M', parts=[dict(type='P', norm_cfg=norm)], head=(dict(norm_cfg=norm),)
            ),
            model_wrapper_cfg=dict(type='MMDistributedDataParallel', static_graph=True),
        )
    )
    with cpu_process_group(cfg):
        pass
    expected = dict(type='BN', requires_grad=True)
    assert cfg.model.parts[0].norm_cfg == expected == cfg.model.head[0].norm_cfg
    assert cfg.model.type == 'M'
    assert cfg.model_wrapper_cfg == dict(
        type='MMDistributedDataParallel', static_graph=True, device_ids=None
    )
