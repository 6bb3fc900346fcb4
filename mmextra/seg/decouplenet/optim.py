"""Several optimizers, and several backward passes in one iteration."""

from typing import Optional

from mmengine.dist import all_reduce_params
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper, OptimWrapperDict
from torch import Tensor, nn

from mmextra.registry import MODEL_WRAPPERS, OPTIM_WRAPPER_CONSTRUCTORS


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class MultiOptimWrapperConstructor:
    """Builds an ``OptimWrapperDict`` from named configs.

    A config that bears the name of a child of the model is for the parameters of that child. One config may
    bear another name: it is for all the rest. What is set beside the named configs (``type``, ``loss_scale``,
    ``accumulative_counts``, ``clip_grad``) holds for each of them that does not set it itself. ``None`` takes back
    what a base config says.

    Args:
        optim_wrapper_cfg (dict): The named configs, each with an ``optimizer`` and, if wanted, a
            ``paramwise_cfg``, and what they have in common.
        paramwise_cfg (dict, optional): For all configs that have none of their own. Defaults to None.

    Raises:
        ValueError: If there is no named config.

    Example:
        >>> optim_wrapper = dict(
        ...     constructor='mmextra.MultiOptimWrapperConstructor',
        ...     generator=dict(optimizer=dict(type='SGD', lr=2.5e-4)),
        ...     feat_discriminator=dict(optimizer=dict(type='Adam', lr=1e-4)),
        ... )
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: Optional[dict] = None) -> None:
        named = {
            k: v
            for k, v in optim_wrapper_cfg.items()
            if isinstance(v, dict) and isinstance(v.get('optimizer'), dict)
        }
        if not named:
            raise ValueError(
                'optim_wrapper needs named configs, such as generator=dict(optimizer=dict(...)); '
                f'got {", ".join(optim_wrapper_cfg) or "nothing"}'
            )
        common = {k: v for k, v in optim_wrapper_cfg.items() if k not in named and v is not None}
        self.configs = {k: {**common, **v} for k, v in named.items()}
        self.paramwise_cfg = paramwise_cfg

    def __call__(self, model: nn.Module) -> OptimWrapperDict:
        """Build the wrappers.

        Raises:
            ValueError: If two configs bear names that no child of the model has, or if the model is wrapped for
                one optimizer.
        """
        if type(model) is MMDistributedDataParallel:
            raise ValueError(
                'MMDistributedDataParallel steps one optimizer; set '
                "model_wrapper_cfg=dict(type='mmextra.StepwiseDataParallel')"
            )
        model = getattr(model, 'module', model)
        children = dict(model.named_children())
        others = [name for name in self.configs if name not in children]
        if len(others) > 1:
            raise ValueError(
                f'one config may take all parameters that no other takes, got {" and ".join(others)}; '
                f'the children of {type(model).__name__} are {", ".join(children)}'
            )
        rest = nn.Module()
        for name, child in children.items():
            if name not in self.configs:
                rest.add_module(name, child)
        for name, parameter in model.named_parameters(recurse=False):
            rest.register_parameter(name, parameter)
        wrappers = {}
        for name, config in self.configs.items():
            config = dict(config)
            paramwise = config.pop('paramwise_cfg', self.paramwise_cfg)
            build = DefaultOptimWrapperConstructor(config, paramwise)
            wrappers[name] = build(children.get(name, rest))
        return OptimWrapperDict(**wrappers)


@MODEL_WRAPPERS.register_module()
class StepwiseDataParallel(nn.Module):
    """Leaves the training step to the model, which averages gradients over the processes itself.

    For models with several backward passes in an iteration: their gradients travel once, just before an
    optimizer steps. Parameters start equal because the runner broadcasts them.

    Args:
        module (nn.Module): The model.
        **kwargs: Accepted for the sake of runners, which pass the options of ``DistributedDataParallel``.
    """

    def __init__(self, module: nn.Module, **kwargs) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        """The model's own."""
        return self.module(*args, **kwargs)

    def train_step(self, data, optim_wrapper) -> dict:
        """The model's own."""
        return self.module.train_step(data, optim_wrapper)

    def val_step(self, data) -> list:
        """The model's own."""
        return self.module.val_step(data)

    def test_step(self, data) -> list:
        """The model's own."""
        return self.module.test_step(data)


def accumulate(wrapper: OptimWrapper, loss: Tensor) -> None:
    """Back-propagate one loss of several in an iteration: gradients add up, the iteration is not counted yet."""
    wrapper.backward(wrapper.scale_loss(loss))
    wrapper._inner_count -= 1


def finish(wrapper: OptimWrapper) -> None:
    """Count the iteration and, where gradients have been accumulated for long enough, step."""
    wrapper._inner_count += 1
    if not wrapper.should_update():
        return
    groups = wrapper.optimizer.param_groups
    grads = [p.grad for group in groups for p in group['params'] if p.grad is not None]
    if grads:
        all_reduce_params(grads, op='mean')
    wrapper.step()
    wrapper.zero_grad()
