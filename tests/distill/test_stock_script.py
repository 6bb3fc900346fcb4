"""A distilled student belongs to stock mmdet: its own test script reads it where there is no mmextra."""

import json
import os
import subprocess
import sys
from pathlib import Path

import mmdet
import pytest
from mmengine.runner import Runner
from training import coco_dataset, detection_run, small_gfl, train


def test_stock_script_tests_the_distilled_student(shapes_root, tmp_path):
    teacher = dict(config=dict(model=small_gfl(12), default_scope='mmdet'))
    hook = dict(type='mmextra.LocalizationDistillationHook', teacher=teacher)
    cfg = detection_run(small_gfl(), shapes_root, tmp_path / 'distilled', [hook])
    cfg.default_hooks.checkpoint.published_keys = ['meta', 'state_dict']
    train(cfg)
    checkpoint = next((tmp_path / 'distilled').glob('epoch_2-*.pth'))

    # The plain student's config, which names nothing of mmextra.
    plain = detection_run(small_gfl(), shapes_root, tmp_path / 'plain')
    plain.custom_hooks = []
    plain.model.test_cfg.score_thr = 0.0
    plain.test_cfg = dict(type='TestLoop')
    plain.test_dataloader = dict(
        batch_size=2,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=coco_dataset(shapes_root, 'train', train=False),
    )
    annotations = str(shapes_root / 'annotations/instances_train.json')
    plain.test_evaluator = dict(type='CocoMetric', ann_file=annotations, metric='bbox')
    path = tmp_path / 'plain.py'
    plain.dump(path)

    hidden = tmp_path / 'hidden' / 'mmextra'
    hidden.mkdir(parents=True)
    (hidden / '__init__.py').write_text("raise ImportError('mmextra is hidden')\n")
    script = Path(mmdet.__file__).parent / '.mim' / 'tools' / 'test.py'
    command = [sys.executable, script, path, checkpoint, '--work-dir', tmp_path / 'stock']
    environment = dict(os.environ, PYTHONPATH=str(hidden.parent))
    done = subprocess.run(
        [str(c) for c in command], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    log = next((tmp_path / 'stock').glob('*/*.json'))
    stock = json.loads(log.read_text().splitlines()[-1])

    plain.update(load_from=str(checkpoint), experiment_name='with-mmextra')
    ours = Runner.from_cfg(plain).test()
    assert ours and ours == pytest.approx({k: stock[k] for k in ours})
