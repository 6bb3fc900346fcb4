"""Several processes without a GPU."""

import datetime
import logging
import os
import socket
from contextlib import contextmanager

import torch.distributed as torch_dist
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmengine.registry import MODEL_WRAPPERS
from torch.distributed.constants import default_pg_timeout
from torch.nn.parallel import DistributedDataParallel

LAUNCHER_VARIABLES = ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT')
LOCAL_ADDRESSES = ('127.0.0.1', 'localhost', '::1')


@contextmanager
def cpu_process_group(cfg: Config):
    """Let ``--launcher pytorch`` work on a machine without an accelerator.

    mmengine's own initialisation asks for CUDA whatever the backend, and so does its wrapping of
    the model. Inside this context the processes are joined through gloo, and ``cfg`` is completed
    so that the runner wraps the model on the CPU. With an accelerator, or with another launcher,
    nothing is done: the runner looks after itself.

    Args:
        cfg (Config): The config that the runner will be built from, inside the context. Its
            ``launcher`` decides; ``model_wrapper_cfg`` is completed, and ``SyncBN`` in the model,
            which torch has for CUDA only, becomes ``BN``.

    Raises:
        RuntimeError: If a variable that ``torchrun`` or ``torch.distributed.launch`` sets is
            missing from the environment.
    """
    if cfg.get('launcher') != 'pytorch' or get_device() != 'cpu' or torch_dist.is_initialized():
        yield
        return
    missing = [name for name in LAUNCHER_VARIABLES if name not in os.environ]
    if missing:
        raise RuntimeError(
            f'`--launcher pytorch` needs {", ".join(missing)} in the environment: start the script '
            'with `python -m torch.distributed.run --nproc_per_node=N` or tools/dist_train.sh'
        )
    if os.environ['MASTER_ADDR'] in LOCAL_ADDRESSES:
        # gloo may pick an interface through which the processes do not reach each other, and hang.
        loopback = [name for _, name in socket.if_nameindex() if name.startswith('lo')]
        os.environ.setdefault('GLOO_SOCKET_IFNAME', loopback[0] if loopback else 'lo')
    seconds = cfg.get('env_cfg', {}).get('dist_cfg', {}).get('timeout')
    timeout = datetime.timedelta(seconds=seconds) if seconds else default_pg_timeout
    torch_dist.init_process_group('gloo', timeout=timeout)
    _wrap_on_cpu(cfg)
    try:
        yield
        torch_dist.barrier()  # the first process to end would cut the connections of the others
    finally:
        torch_dist.destroy_process_group()


def _wrap_on_cpu(cfg: Config) -> None:
    """Ask for a wrapper without device ids, and for no layer that needs CUDA."""
    wrapper = cfg.get('model_wrapper_cfg') or dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    kind = MODEL_WRAPPERS.get(wrapper.get('type', 'MMDistributedDataParallel'))
    if issubclass(kind, DistributedDataParallel):
        wrapper = dict(wrapper, device_ids=None)
    cfg.model_wrapper_cfg = wrapper
    if _replace_type(cfg.get('model'), 'SyncBN', 'BN') and is_main_process():
        print_log(
            'SyncBN needs CUDA: each process normalises over its own part of the batch',
            'current',
            logging.WARNING,
        )


def _replace_type(node, old: str, new: str) -> int:
    """Replace ``type=old`` by ``type=new`` throughout nested dicts and lists; count them."""
    if isinstance(node, (list, tuple)):
        return sum(_replace_type(item, old, new) for item in node)
    if not isinstance(node, dict):
        return 0
    here = int(node.get('type') == old)
    if here:
        node['type'] = new
    return here + sum(_replace_type(value, old, new) for value in node.values())
