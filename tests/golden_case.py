"""Reference tensors computed with the authors' code, and how tests use them.

A golden file ``tests/golden/<paper>/<case>.npz`` holds ``meta`` (JSON), ``in/*``, ``out/*``,
``grad/*`` and ``state/*`` (the authors' own checkpoint layout). A test claims files by name and is
run once for each:

    @pytest.mark.golden('volo', 'outlook_attention*')
    def test_outlook_attention(case):
        layer = OutlookAttention(dim=case.inputs['x'].shape[-1], **case.meta['kwargs'])
        case.load(layer, layout='volo')
        x = case.leaf('x')
        out = layer(x)
        out.sum().backward()
        case.check(dict(y=out), dict(x=x.grad))

Everything comes from the file: constructor arguments from ``meta``, shapes from the arrays. So the
same tests run over another folder of files: ``pytest -m golden --golden-dir DIR``.
"""

import json
from pathlib import Path
from typing import Dict, Mapping, Optional

import numpy as np
import torch
from torch import Tensor, nn

from mmextra.engine.checkpoint import load_official


class GoldenCase:
    """One golden file.

    Attributes:
        meta (dict): What the file says of itself: class, constructor arguments, notes.
        inputs, outputs, grads, state (dict): Name -> array as tensor, without the ``in/`` ...
            prefix.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with np.load(path, allow_pickle=False) as file:
            arrays = {k: file[k] for k in file.files}
        self.meta = json.loads(str(arrays.pop('meta')))
        self.inputs, self.outputs, self.grads, self.state = (
            {
                k[len(prefix) :]: torch.from_numpy(np.array(v))
                for k, v in arrays.items()
                if k.startswith(prefix)
            }
            for prefix in ('in/', 'out/', 'grad/', 'state/')
        )
        self._leaves: Dict[str, Tensor] = {}

    def leaf(self, name: str) -> Tensor:
        """The input ``name`` as a leaf that records its gradient; the same tensor at every call."""
        if name not in self._leaves:
            self._leaves[name] = self.inputs[name].clone().requires_grad_()
        return self._leaves[name]

    def series(self, prefix: str, group: str = 'inputs') -> list:
        """The tensors ``prefix0``, ``prefix1``, ... of a group, as a list."""
        found = getattr(self, group)
        return [found[f'{prefix}{i}'] for i in range(len(found)) if f'{prefix}{i}' in found]

    def load(self, module: nn.Module, layout: Optional[str] = None) -> nn.Module:
        """Load ``state/*`` strictly, in the paper's official key layout or, without one, as it is."""
        if layout:
            load_official(module, self.state, layout)
        else:
            module.load_state_dict(self.state)
        return module

    def check(
        self,
        outputs: Mapping[str, Tensor],
        grads: Optional[Mapping[str, Tensor]] = None,
        rtol: float = 1e-4,
        atol: float = 1e-5,
        skip: tuple = (),
    ) -> None:
        """Compare with every ``out/*`` and ``grad/*`` of the file.

        Args:
            outputs (Mapping): Name -> tensor, for each ``out/`` entry.
            grads (Mapping, optional): The same for ``grad/``. Defaults to the gradients of the
                leaves.
            rtol, atol (float): ``atol`` is relative to the largest reference value, where that
                exceeds one.
            skip (tuple): Entries of the file that another test checks.
        """
        if grads is None:  # a leaf that was not used has gradient zero
            grads = {
                k: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
                for k, leaf in self._leaves.items()
            }
        for kind, got, reference in (('out', outputs, self.outputs), ('grad', grads, self.grads)):
            absent = [k for k in reference if k not in got and k not in skip]
            assert not absent, (
                f'{self.path.name}: {kind}/ entries that the test does not compare: {absent}'
            )
            for name, expected in reference.items():
                if name in skip:
                    continue
                value = got[name].detach().to(expected.dtype)
                scale = (
                    max(1.0, expected.abs().max().item())
                    if expected.numel() and expected.is_floating_point()
                    else 1.0
                )
                torch.testing.assert_close(
                    value,
                    expected,
                    rtol=rtol,
                    atol=atol * scale,
                    msg=lambda m, n=f'{kind}/{name}': f'{self.path.name} {n}: {m}',
                )
