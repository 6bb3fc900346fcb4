"""Checkpoints that survive being killed at any moment.

mmengine's ``CheckpointHook`` writes in place and, with ``max_keep_ckpts``, removes the old checkpoint before it writes
the new one: a job that is killed in between has a cut file, an empty ``last_checkpoint`` or no checkpoint at all.

Registered here: ``AtomicCheckpointHook``; and, with mmengine's file backends, ``'atomic'``.
"""

import hashlib
import io
import os
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, List, Optional, Union

import torch
from mmengine.dist import is_main_process, master_only
from mmengine.fileio.backends import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook

from mmextra.engine.checkpoint import read_checkpoint
from mmextra.registry import HOOKS


def write_atomically(content: bytes, path: Union[str, Path]) -> None:
    """Write a file such that, whatever happens, it has its old content or its new one.

    The content goes to ``PATH.part`` first, is brought to the disk, and then takes the name.
    """
    part = f'{path}.part'
    with open(part, 'wb') as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    folder = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name, too
    finally:
        os.close(folder)


@register_backend('atomic', force=True)
class AtomicBackend(LocalBackend):
    """mmengine's local files, written atomically: ``backend_args=dict(backend='atomic')``."""

    def __init__(self) -> None:
        self._outdated: Optional[List[str]] = None

    def put(self, obj: bytes, filepath: Union[str, Path]) -> None:
        """Write bytes to a file, making its folder if need be."""
        os.makedirs(os.path.dirname(os.path.abspath(filepath)), exist_ok=True)
        write_atomically(obj, filepath)

    def put_text(self, obj: str, filepath: Union[str, Path], encoding: str = 'utf-8') -> None:
        """Write text to a file, making its folder if need be."""
        self.put(obj.encode(encoding), filepath)

    def remove(self, filepath: Union[str, Path]) -> None:
        """Remove a file; within :meth:`removals_last`, at its end."""
        if self._outdated is None:
            super().remove(filepath)
        else:
            self._outdated.append(str(filepath))

    @contextmanager
    def removals_last(self) -> Iterator[None]:
        """Put off what is to be removed until all else is done; if that fails, nothing is removed."""
        self._outdated = []
        try:
            yield
            outdated = self._outdated
        finally:
            self._outdated = None
        for path in outdated:
            if self.isfile(path):
                super().remove(path)


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's checkpoint hook, safe against being killed.

    Files appear whole or not at all, ``last_checkpoint`` always names a whole file, and old checkpoints are removed
    after the new one is there (for that moment there is one more than ``max_keep_ckpts``). What a killed process left
    undone, a resumed one does: it removes outdated and unfinished files, and publishes (``published_keys``) also if
    there is nothing left to train. Takes the arguments of mmengine's ``CheckpointHook``.

    Args:
        *args: Those of mmengine's ``CheckpointHook``.
        backend_args (dict, optional): Defaults to ``dict(backend='atomic')``, local files.
        **kwargs: Those of mmengine's ``CheckpointHook``.

    Raises:
        ValueError: If another backend is asked for.

    Example:
        >>> default_hooks = dict(checkpoint=dict(type='mmextra.AtomicCheckpointHook', max_keep_ckpts=1))
    """

    def __init__(
        self, *args, backend_args: Optional[dict] = dict(backend='atomic'), **kwargs
    ) -> None:
        if dict(backend_args or {}) != dict(backend='atomic'):
            raise ValueError(
                f"AtomicCheckpointHook writes local files, backend_args=dict(backend='atomic'), got {backend_args}; "
                "for other storage take mmengine's CheckpointHook"
            )
        super().__init__(*args, backend_args=backend_args, **kwargs)

    def before_train(self, runner) -> None:
        """Find out what there is, and tidy up after a process that was killed."""
        super().before_train(runner)
        last = runner.message_hub.runtime_info.get('last_ckpt')
        self.last_ckpt = last if last and self.file_backend.isfile(last) else None
        if is_main_process():
            for part in Path(self.out_dir).glob('*.pth.part'):
                self.file_backend.remove(part)

    def after_val_epoch(self, runner, metrics) -> None:
        """Save the best checkpoint before the one that it replaces is removed."""
        with self.file_backend.removals_last():
            super().after_val_epoch(runner, metrics)

    def _save_checkpoint_with_step(self, runner, step: int, meta: dict) -> None:
        outdated = []
        if self.max_keep_ckpts > 0 and step not in list(self.keep_ckpt_ids)[-1:]:
            before = list(self.keep_ckpt_ids)
            self.keep_ckpt_ids.append(step)  # holds no more than `max_keep_ckpts`
            outdated = [i for i in before if i not in self.keep_ckpt_ids]
            # With the outdated: a run that is resumed from the new file removes them if this one does not come to it.
            runner.message_hub.update_info('keep_ckpt_ids', [*before, step])
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            name,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if not is_main_process():
            return
        self.file_backend.put_text(self.last_ckpt, os.path.join(runner.work_dir, 'last_checkpoint'))
        for old in outdated:
            path = self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(old))
            if self.file_backend.isfile(path):
                self.file_backend.remove(path)

    @master_only
    def _publish_model(self, runner, ckpt_path: str) -> None:
        checkpoint = read_checkpoint(ckpt_path)
        file = io.BytesIO()
        torch.save({k: v for k, v in checkpoint.items() if k in self.published_keys}, file)
        digest = hashlib.sha256(file.getvalue()).hexdigest()
        self.file_backend.put(file.getvalue(), f'{os.path.splitext(ckpt_path)[0]}-{digest[:8]}.pth')
