"""DecoupleNet: an iteration of phase 1 beside the forward and backward passes that it consists of."""

from functools import partial

import torch
from benchmark_case import Case
from mmengine.config import Config
from mmengine.optim import OptimWrapperDict
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import nn

import mmextra.registry  # noqa: F401
from mmextra.seg.decouplenet.optim import MultiOptimWrapperConstructor
from mmextra.seg.decouplenet.pseudo_labels import masked_cross_entropy
from mmextra.seg.decouplenet.segmentors import SOURCE, TARGET, domain_loss

SIZE, BATCH = (128, 224), 1


def model(device: str):
    """Phase 1 of ResNet-101 at a quarter of the published crop."""
    cfg = Config.fromfile('configs/_base_/models/decouplenet_r101-d8.py').model
    cfg.backbone.update(init_cfg=None, norm_cfg=dict(type='BN'))
    cfg.data_preprocessor.size = SIZE
    torch.manual_seed(0)
    return MODELS.build(cfg).to(device).train()


def batch(device: str):
    """A batch as the data loader hands it over."""
    generator = torch.Generator().manual_seed(0)
    pair = {}
    for domain in ('source', 'target'):
        images = torch.randint(0, 256, (BATCH, 3, *SIZE), generator=generator).to(torch.uint8)
        labels = torch.randint(0, 19, (BATCH, 1, *SIZE), generator=generator)
        samples = [SegDataSample(gt_sem_seg=PixelData(data=one)) for one in labels]
        pair[domain] = dict(inputs=list(images), data_samples=samples)
    return (pair,)


class Step(nn.Module):
    """The training step, backward passes and optimizers included."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.model = model(device)
        adam = dict(optimizer=dict(type='Adam', lr=1e-4))
        sgd = dict(optimizer=dict(type='SGD', lr=2.5e-4, momentum=0.9))
        build = MultiOptimWrapperConstructor(
            dict(generator=sgd, feat_discriminator=adam, out_discriminator=adam)
        )
        self.wrappers: OptimWrapperDict = build(self.model)

    @torch.enable_grad()  # the runner times what it takes for a forward pass without
    def forward(self, pair: dict):
        self.train()
        return self.model.train_step(pair, self.wrappers)['loss']


class Parts(Step):
    """Each network once forward and backward for each domain, written down plainly; the same optimizers step."""

    @torch.enable_grad()  # the runner times what it takes for a forward pass without
    def forward(self, pair: dict):
        net = self.train().model
        data = net.data_preprocessor(pair, True)
        first, second = net.feat_discriminator, net.out_discriminator
        seen = {}
        for domain in ('source', 'target'):
            with net.frozen_discriminators():
                shallow, features = net.domain_features(data['inputs'][domain], domain == 'source')
                hidden = net.decode_head.forward_hidden(features)
                logits = net.decode_head.cls_seg(hidden)
                if domain == 'source':
                    full = net.upsample(logits, SIZE) / net.temperature
                    truth = torch.cat([s.gt_sem_seg.data for s in data['data_samples'][domain]])
                    loss = masked_cross_entropy(full, truth, 255)
                    loss = loss + 0.1 * domain_loss(first(net.upsample(shallow, SIZE)), TARGET)
                else:
                    scores = second(net.probabilities(logits, SIZE))
                    aux = net.decode_head.forward_aux(hidden)
                    loss = 0.1 * masked_cross_entropy(aux, logits.argmax(1), 255)
                    loss = loss + 0.01 * domain_loss(scores, SOURCE)
            loss.backward()
            seen[domain] = (shallow.detach(), logits.detach())
        for domain, number in (('source', SOURCE), ('target', TARGET)):
            shallow, logits = seen[domain]
            (0.5 * domain_loss(first(net.upsample(shallow, SIZE)), number)).backward()
            (0.5 * domain_loss(second(net.probabilities(logits, SIZE)), number)).backward()
        for wrapper in self.wrappers.values():
            wrapper.optimizer.step()
            wrapper.optimizer.zero_grad()
        return loss.detach()


def cases(device: str = 'cpu'):
    def build(kind):
        return kind(device), batch(device)

    return [
        Case(
            'DecoupleNet phase 1, R101-D8, 128x224, 1 + 1 images, a whole iteration',
            ours=partial(build, Step),
            yardstick=partial(build, Parts),
            yardstick_name='its forward and backward passes, written down plainly',
            backward=False,
        )
    ]
