"""How often the classifier of patch tokens is right."""

from typing import List

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch import Tensor, nn

from mmextra.registry import HOOKS

from .head import TokenLabelClsHead
from .targets import token_label_target


def token_hits(scores: Tensor, target: Tensor) -> Tensor:
    """Count the patch tokens with a definite label, and those of them whose best class is that of the label.

    Args:
        scores (Tensor): Logits of the patch tokens, (B, N, K).
        target (Tensor): Their labels, (B, K, N). One is definite if a class has more than half of it.

    Returns:
        Tensor: Right ones and all of them, (2, ), float.
    """
    share, label = target.max(1)
    definite = share > 0.5
    right = definite & (scores.argmax(2) == label)
    return torch.stack((right.sum(), definite.sum())).float()


@HOOKS.register_module()
class TokenAccuracyHook(Hook):
    """Log the accuracy of the classifier of patch tokens in the validation.

    Writes ``token_accuracy``, in percent, beside the metrics of the validation: of all patch tokens with a definite
    label, how many have their highest score at its class. A token without object, whose label is undecided, does not
    count.

    The data samples of the validation need a ``token_label`` (2, k, H, W) of the whole image, the model a
    :class:`TokenLabelClsHead` with ``with_aux``.
    """

    def before_val(self, runner) -> None:
        """Listen to the classifier.

        Raises:
            ValueError: If the model has none.
        """
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        heads = [m for m in model.modules() if isinstance(m, TokenLabelClsHead)]
        if not heads or heads[0].aux_fc is None:
            raise ValueError(
                f'TokenAccuracyHook: {type(model).__name__} has no TokenLabelClsHead with with_aux=True'
            )
        self._scores: List[Tensor] = []
        self._hits = torch.zeros(2)
        self._handle = heads[0].aux_fc.register_forward_hook(self._record)

    def _record(self, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        self._scores.append(output)  # (B, H, W, K)

    def after_val_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Hold the scores of a batch against its labels.

        Raises:
            ValueError: If there are no labels.
        """
        scores, self._scores = torch.cat(self._scores), []
        if not all('token_label' in sample for sample in outputs):
            raise ValueError(
                'TokenAccuracyHook needs a token_label in every data sample of the validation: name it in '
                'algorithm_keys of PackInputs'
            )
        labels = torch.stack([torch.as_tensor(sample.token_label) for sample in outputs])
        target = token_label_target(
            labels.to(scores.device),
            scores.new_tensor([[0.0, 0.0, 1.0, 1.0]]).expand(len(scores), -1),
            torch.cat([sample.gt_label for sample in outputs]).to(scores.device),
            num_classes=scores.shape[-1],
            label_size=scores.shape[1],
            smoothing=0.0,
        )
        self._hits = self._hits.to(scores.device)
        self._hits += token_hits(scores.flatten(1, 2), target[..., 2:])

    def after_val_epoch(self, runner, metrics=None) -> None:
        """Write the accuracy to the log, and stop listening."""
        self._handle.remove()
        all_reduce(self._hits)
        right, total = self._hits.tolist()
        runner.message_hub.update_scalar('val/token_accuracy', 100 * right / max(total, 1))
