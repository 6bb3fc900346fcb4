"""Two processes lose what one process loses on the same batches.

One model of each wing but `distill`, which tests/distill/test_distributed.py covers. Longer runs of
several processes, with their checkpoints or evaluation: tests/det/test_o2detr_runs.py,
tests/det/test_metr.py, tests/seg/test_decouplenet.py, tests/distill/test_hgkd.py.
"""

import json
import multiprocessing
import os
import socket

import pytest
import torch
from drawn_rectangles import draw_rectangles, oriented_dataset
from mmengine.config import Config
from tiny_detectors import plain_config_dumps  # noqa: F401  a fixture
from training import ROOT, losses_of, train

from mmextra.engine.dist import cpu_process_group

ITERATIONS = 10


def shipped(name, lr, **changes):
    """A shipped demonstration for ten iterations of four images, without chance.

    Gradients act as they are: Adam would amplify rounding, and clipping would hide a wrong scale.
    """
    cfg = Config.fromfile(ROOT / 'configs' / name)
    plain = dict(_delete_=True, type='OptimWrapper', optimizer=dict(type='SGD', lr=lr))
    cfg.merge_from_dict(
        {
            'train_cfg': dict(_delete_=True, type='IterBasedTrainLoop', max_iters=ITERATIONS),
            'train_dataloader.num_workers': 0,
            'train_dataloader.persistent_workers': False,
            'optim_wrapper': plain,
            'param_scheduler': [],
            'default_hooks.logger.interval': 1,
            'default_hooks.checkpoint': None,
            'log_level': 'ERROR',
            'randomness': dict(seed=0),
            'load_from': None,
            **changes,
        }
    )
    for part in ('val_cfg', 'val_dataloader', 'val_evaluator'):
        cfg[part] = None
    return cfg


def classifier(tmp_path):
    return shipped(
        'vip/vip-nano_1xb64-20e_crossed-bars_demo.py',
        lr=0.05,
        **{'train_dataloader.dataset.num_images': 20},
    )


def o2detr(tmp_path):
    cfg = shipped('o2detr/o2detr_r18_rotated-rectangles_demo.py', lr=1e-4)
    # Statistics of a batch differ where each process has half of it.
    cfg.model.backbone.update(base_channels=4, norm_eval=True)
    cfg.model.neck.in_channels = [8, 16, 32]
    root = draw_rectangles(tmp_path / 'rectangles')
    cfg.train_dataloader.dataset = oriented_dataset(root, 'train', train=False)
    cfg.train_dataloader.dataset.update(test_mode=False)
    return cfg


def tagclip(tmp_path):
    """The demonstration's classes and head, on images that pass the prompted encoder."""
    encoder = dict(
        _delete_=True,
        type='mmextra.VPTCLIPVisionTransformer',
        input_resolution=32,
        patch_size=8,
        width=16,
        layers=2,
        heads=2,
        output_dim=32,
        num_tokens=2,
        total_d_layer=1,
        prompt_dropout=0.0,
    )
    images = dict(
        _delete_=True,
        type='mmextra.DrawnDomains',
        domain='source',
        num_images=16,
        size=32,
        pipeline=[dict(type='PackSegInputs')],
    )
    return shipped(
        'tagclip/tagclip_class-vectors_1xb16-300it_demo.py',
        lr=0.01,
        **{
            'model.data_preprocessor.size': (32, 32),
            'model.backbone': encoder,
            'model.text_encoder.vectors': dict(num_seen=4, num_novel=1),
            'model.novel_class': [4],
            'model.decode_head.dropout_ratio': 0.0,
            'train_dataloader.dataset': images,
        },
    )


def decouplenet(tmp_path):
    plain = dict(optimizer=dict(type='SGD', lr=0.01))
    return shipped(
        'decouplenet/decouplenet_r18-small_drawn-source-to-target_demo.py',
        lr=None,
        **{
            'model.backbone.norm_eval': True,
            # Each process averages over its own pseudo labels, and their number differs.
            'model.adapt_cfg': dict(_delete_=True, st=0),
            'optim_wrapper': dict(
                _delete_=True,
                constructor='mmextra.MultiOptimWrapperConstructor',
                **dict.fromkeys(('generator', 'feat_discriminator', 'out_discriminator'), plain),
            ),
        },
    )


def process(rank, port, cfg, out):
    """One of two processes, as `torchrun --nproc_per_node=2 tools/train.py` starts it."""
    names = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=2, MASTER_ADDR='127.0.0.1')
    os.environ.update({k: str(v) for k, v in names.items()}, MASTER_PORT=str(port))
    cfg.launcher = 'pytorch'
    with cpu_process_group(cfg):
        out.write_text(json.dumps(losses_of(train(cfg)), default=float))


def two_processes(cfg, tmp_path):
    """The losses of either process."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    # Forked, because importing everything anew takes longer than the training.
    context = multiprocessing.get_context('fork')
    files = [tmp_path / f'{rank}.json' for rank in range(2)]
    both = [context.Process(target=process, args=(i, port, cfg, files[i])) for i in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join(timeout=200)
        one.kill()
    assert [one.exitcode for one in both] == [0, 0]
    return [json.loads(file.read_text()) for file in files]


@pytest.mark.skipif(torch.cuda.is_available(), reason='forks, and CUDA cannot be forked')
@pytest.mark.parametrize('case', [classifier, o2detr, tagclip, decouplenet])
def test_two_processes_lose_what_one_loses(case, tmp_path):
    cfg = case(tmp_path)
    cfg.work_dir = str(tmp_path / 'run')
    cfg.train_dataloader.batch_size = 4
    one = losses_of(train(cfg))
    cfg.train_dataloader.batch_size = 2
    first, second = two_processes(cfg, tmp_path)
    assert one.keys() == first.keys() and 'loss' in one
    for name, expected in one.items():
        expected, a, b = (
            torch.tensor([float(x) for x in v]) for v in (expected, first[name], second[name])
        )
        assert len(expected) == ITERATIONS
        torch.testing.assert_close((a + b) / 2, expected, rtol=1e-5, atol=1e-5, msg=name)
    # Else it would be no matter whether gradients are shared: they learn, each from images of its own.
    total, a, b = (torch.tensor([float(x) for x in v['loss']]) for v in (one, first, second))
    assert (total[0] - total[-1]).abs() > 1e-2 and (a - b).abs().max() > 1e-3
