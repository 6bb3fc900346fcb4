"""Head and discriminator of DecoupleNet, and the key layout of the authors' checkpoints."""

from typing import Sequence

import torch.nn.functional as F
from mmengine.model import BaseModule
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor, nn

from mmextra.engine.checkpoint import StateDict, is_checkpoint_init, register_layout
from mmextra.registry import MODELS

# The authors' names of the parts of the network, and ours.
PARTS = dict(
    B1='source_shallow',
    B2='backbone',
    B='backbone',
    head='decode_head',
    classifier='decode_head.conv_seg',
    aux_classifier='decode_head.conv_aux',
    D1='feat_discriminator',
    D2='out_discriminator',
)


@register_layout('decouplenet')
def decouplenet_layout(state: StateDict) -> StateDict:
    """Map the authors' keys, ``PART.KEY``, to those of :class:`DecoupleNet`.

    Args:
        state (dict): Keys begin with ``B1``, ``B2``, ``B``, ``head``, ``classifier``, ``aux_classifier``, ``D1``
            or ``D2``; a ``module.`` of data parallel training may follow.

    Returns:
        dict: Keys of an mm checkpoint. What the authors' ResNet holds beyond its stages (``fc``) is left out.
    """
    mapped = {}
    for key, value in state.items():
        part, _, rest = key.partition('.')
        rest = rest.removeprefix('module.').replace('conv2d_list.', 'convs.')
        if part in ('B1', 'B2', 'B') and rest.startswith('fc.'):
            continue
        mapped[f'{PARTS[part]}.{rest}' if part in PARTS else key] = value
    return mapped


@MODELS.register_module()
class ASPPSumHead(BaseDecodeHead):
    """The head of DeepLab v2 with a narrow hidden layer: dilated convolutions, summed, then a 1x1 classifier.

    Neither normalisation nor activation stands between the two. ``channels`` is the width of the hidden layer.

    Args:
        dilations (Sequence[int]): Rates of the 3x3 convolutions. Defaults to (6, 12, 18, 24).
        aux_classifier (bool): Whether there is a second 1x1 classifier, for self-discrimination. It starts from
            the first one's weights, also when a checkpoint without it is loaded. Defaults to False.
        dropout_ratio (float): Defaults to 0, as in the paper.
        align_corners (bool): Defaults to True, as in the paper.
        loss_decode (dict or list): Defaults to cross entropy, averaged over the labelled pixels.
        init_cfg (dict, optional): Defaults to a normal distribution of standard deviation 0.01.
        **kwargs: Further arguments of mmseg's ``BaseDecodeHead``, such as ``in_channels``, ``channels`` and
            ``num_classes``.
    """

    official_layout = 'decouplenet'

    def __init__(
        self,
        dilations: Sequence[int] = (6, 12, 18, 24),
        aux_classifier: bool = False,
        dropout_ratio: float = 0.0,
        align_corners: bool = True,
        loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True),
        init_cfg=dict(type='Normal', layer='Conv2d', std=0.01),
        **kwargs,
    ) -> None:
        super().__init__(
            dropout_ratio=dropout_ratio,
            align_corners=align_corners,
            loss_decode=loss_decode,
            init_cfg=init_cfg,
            **kwargs,
        )
        self.convs = nn.ModuleList(
            nn.Conv2d(self.in_channels, self.channels, 3, padding=d, dilation=d) for d in dilations
        )
        self.conv_aux = nn.Conv2d(self.channels, self.out_channels, 1) if aux_classifier else None
        self._register_load_state_dict_pre_hook(self._complete)

    def _complete(self, state: StateDict, prefix: str, *args) -> None:
        """Let the auxiliary classifier start from the classifier, where a checkpoint holds that alone."""
        for name in ('weight', 'bias'):
            main, aux = f'{prefix}conv_seg.{name}', f'{prefix}conv_aux.{name}'
            if self.conv_aux is not None and main in state and aux not in state:
                state[aux] = state[main].clone()

    def init_weights(self) -> None:
        """Initialise, both classifiers alike, unless a checkpoint holds them."""
        fresh = not (self.is_init or is_checkpoint_init(self.init_cfg))
        super().init_weights()
        if fresh and self.conv_aux is not None:
            self.conv_aux.load_state_dict(self.conv_seg.state_dict())

    def forward_hidden(self, inputs: Sequence[Tensor]) -> Tensor:
        """Features of the stage ``in_index`` to hidden features (B, channels, h, w)."""
        x = self._transform_inputs(inputs)
        return sum(conv(x) for conv in self.convs)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Features of all stages to logits (B, num_classes, h, w)."""
        return self.cls_seg(self.forward_hidden(inputs))

    def forward_aux(self, hidden: Tensor) -> Tensor:
        """Hidden features to the logits of the auxiliary classifier, (B, num_classes, h, w)."""
        return self.conv_aux(hidden)


@MODELS.register_module()
class FCDiscriminator(BaseModule):
    """Tells domains apart, patch by patch: five 4x4 convolutions of stride 2.

    Args:
        in_channels (int): Channels of what is judged: features, or class probabilities.
        base_channels (int): Width of the first layer; it doubles three times. Defaults to 64.
        init_cfg (dict, optional): Defaults to None, torch's own initialisation.
    """

    official_layout = 'decouplenet'

    def __init__(self, in_channels: int, base_channels: int = 64, init_cfg=None) -> None:
        super().__init__(init_cfg)
        widths = [in_channels, *(base_channels * 2**i for i in range(4))]
        for i in range(4):
            self.add_module(
                f'conv{i + 1}', nn.Conv2d(widths[i], widths[i + 1], 4, stride=2, padding=1)
            )
        self.classifier = nn.Conv2d(widths[4], 1, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, in_channels, H, W) to scores (B, 1, H // 32, W // 32), without activation.

        Raises:
            ValueError: If the maps are smaller than 32 x 32, or of other channels.
        """
        if x.shape[1] != self.conv1.in_channels:
            raise ValueError(
                f'a discriminator of {self.conv1.in_channels} channels cannot judge maps of {x.shape[1]}: set its '
                'in_channels, for probabilities to the number of classes'
            )
        if min(x.shape[-2:]) < 32:
            raise ValueError(
                f'a discriminator halves its input five times and needs at least 32x32, got '
                f'{x.shape[-2]}x{x.shape[-1]}: use larger crops'
            )
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = F.leaky_relu(conv(x), 0.2)
        return self.classifier(x)
