"""Show what TagCLIP's trusty token does, and that the published size runs.

    python tools/tagclip_demo.py vectors --seeds 0 1 2     # 2 minutes a seed on one CPU core
    python tools/tagclip_demo.py size IMAGE                # ViT-B/16 with a random CLIP checkpoint

`vectors` trains the head on class vectors (configs/tagclip/*_demo.py) with and without trusty token,
and with the trusty target that an inductive data set shows by itself; it writes a table and a
picture to work_dirs/tagclip_demo. `size` builds the VOC model, loads a random checkpoint in
OpenAI's layout strictly, segments an image with sliding windows, and prints time and peak memory.
"""

import argparse
import resource
import statistics
import time
from pathlib import Path
from typing import Dict, List

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner

import mmextra.registry  # noqa: F401  for `mmextra::` bases

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / 'configs' / 'tagclip'
PUBLISHED = 'tagclip_vit-b16_8xb2-20k_voc12aug-512x512_eval.py'
TRUSTY = 'tagclip_class-vectors_1xb16-300it_demo.py'
RUNS = {
    'without trusty token': ('tagclip_class-vectors-no-trusty_1xb16-300it_demo.py', {}),
    "trusty, 'novel'": (TRUSTY, {}),
    "trusty, 'unlabelled'": (TRUSTY, {'model.decode_head.trusty_target': 'unlabelled'}),
}
METRICS = ('mIoU_seen', 'mIoU_unseen', 'hIoU', 'pAcc')


def train(file: str, seed: int, out: Path, options: dict) -> Runner:
    """Train one run; the seed is that of the vectors, the images and the weights."""
    cfg = Config.fromfile(CONFIGS / file)
    cfg.work_dir = str(out / f'runs_seed{seed}')
    cfg.experiment_name = f'{Path(file).stem}-{seed}-{time.time_ns()}'
    cfg.log_level = 'WARNING'
    cfg.default_hooks.checkpoint = None
    cfg.randomness = dict(seed=seed)
    for part in (cfg.model.text_encoder, cfg.train_dataloader.dataset, cfg.val_dataloader.dataset):
        part.vectors.seed = seed
    cfg.train_dataloader.dataset.seed = 2 * seed
    cfg.val_dataloader.dataset.seed = 2 * seed + 1
    cfg.merge_from_dict(options)
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def metrics_of(runner: Runner) -> Dict[str, float]:
    """What the evaluation after the last iteration gave."""
    scalars = runner.message_hub.log_scalars
    return {m: scalars[f'val/{m}'].current() for m in METRICS}


def table(results: List[Dict[str, Dict[str, float]]]) -> str:
    """Mean over seeds, and the spread where there is more than one."""
    lines = ['| run | mIoU seen | mIoU unseen | hIoU | pAcc | s/iter |', '| --- ' * 6 + '|']
    for name in RUNS:
        cells = []
        for key, digits in (*((m, 1) for m in METRICS), ('seconds', 3)):
            values = [rows[name][key] for rows in results]
            spread = f' ± {statistics.stdev(values):.{digits}f}' if len(values) > 1 else ''
            cells.append(f'{statistics.mean(values):.{digits}f}{spread}')
        lines.append(f'| {name} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def draw(runners: Dict[str, Runner], out: Path, count: int = 4) -> Path:
    """Truth, both predictions and the trusty map of some test images."""
    plain, trusty = (runners[name] for name in list(RUNS)[:2])
    dataset = plain.val_dataloader.dataset
    palette = np.array(dataset.metainfo['palette'], np.uint8)
    rows = []
    for i in range(count):
        samples = []
        for runner in (plain, trusty):
            data = dataset[i]
            batch = dict(inputs=[data['inputs']], data_samples=[data['data_samples']])
            with torch.no_grad():
                samples += runner.model.eval().test_step(batch)
        heat = (samples[1].trusty_map.data[0].numpy() * 255).astype(np.uint8)
        panels = [palette[samples[0].gt_sem_seg.data[0].numpy()]]
        panels += [palette[s.pred_sem_seg.data[0].numpy()] for s in samples]
        panels += [np.repeat(heat[..., None], 3, 2)]
        panels = [cv2.resize(p, (160, 160), interpolation=cv2.INTER_NEAREST) for p in panels]
        rows.append(np.concatenate([np.pad(p, ((4, 4), (4, 4), (0, 0))) for p in panels], 1))
    header = np.full((24, rows[0].shape[1], 3), 255, np.uint8)
    for i, title in enumerate(('truth', 'without trusty', 'TagCLIP', 'trusty map')):
        position = (168 * i + 6, 17)
        cv2.putText(header, title, position, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1)
    picture = out / 'class_vectors.png'
    cv2.imwrite(str(picture), np.concatenate((header, *rows))[..., ::-1])
    return picture


def vectors(seeds: List[int], out: Path, iterations: int) -> None:
    """The demonstration on class vectors."""
    out.mkdir(parents=True, exist_ok=True)
    options = {
        'train_cfg.max_iters': iterations,
        'train_cfg.val_interval': iterations,
        'param_scheduler.0.end': iterations,
    }
    results, first = [], None
    for seed in seeds:
        rows, runners = {}, {}
        for name, (file, own) in RUNS.items():
            start = time.perf_counter()
            runners[name] = train(file, seed, out, {**options, **own})
            seconds = (time.perf_counter() - start) / iterations
            rows[name] = dict(metrics_of(runners[name]), seconds=seconds)
            print(seed, name, {k: round(float(v), 3) for k, v in rows[name].items()}, flush=True)
        results.append(rows)
        first = first or runners
    text = table(results)
    (out / 'table.md').write_text(text + '\n')
    print(f'\n{text}\nwritten: {out / "table.md"}, {draw(first, out)}')


def random_clip(
    embed_dim: int = 512,
    resolution: int = 224,
    vision_layers: int = 12,
    vision_width: int = 768,
    patch_size: int = 16,
    context_length: int = 77,
    vocab_size: int = 49408,
    text_width: int = 512,
    text_layers: int = 12,
) -> Dict[str, torch.Tensor]:
    """A state dict with the keys, shapes and precision of OpenAI's ``ViT-B-16.pt``, at random."""
    shapes = {
        'positional_embedding': (context_length, text_width),
        'text_projection': (text_width, embed_dim),
        'logit_scale': (),
        'token_embedding.weight': (vocab_size, text_width),
        'visual.class_embedding': (vision_width,),
        'visual.positional_embedding': ((resolution // patch_size) ** 2 + 1, vision_width),
        'visual.proj': (vision_width, embed_dim),
        'visual.conv1.weight': (vision_width, 3, patch_size, patch_size),
    }
    norms = {'ln_final': text_width, 'visual.ln_pre': vision_width, 'visual.ln_post': vision_width}
    for tower, layers, width in (
        ('', text_layers, text_width),
        ('visual.', vision_layers, vision_width),
    ):
        for i in range(layers):
            block = f'{tower}transformer.resblocks.{i}.'
            linear = dict(
                zip(('attn.in_proj_', 'attn.out_proj.', 'mlp.c_fc.', 'mlp.c_proj.'), (3, 1, 4, 1))
            )
            for name, times in linear.items():
                inner = 4 * width if name == 'mlp.c_proj.' else width
                shapes[f'{block}{name}weight'] = (times * width, inner)
                shapes[f'{block}{name}bias'] = (times * width,)
            norms.update({f'{block}ln_{j}': width for j in (1, 2)})
    for name, width in norms.items():
        shapes[f'{name}.weight'] = shapes[f'{name}.bias'] = (width,)
    state = {k: 0.02 * torch.randn(shape) for k, shape in shapes.items()}
    state.update({f'{name}.weight': torch.ones(width) for name, width in norms.items()})
    state = {k: v.half() for k, v in state.items()}
    numbers = dict(
        input_resolution=resolution, context_length=context_length, vocab_size=vocab_size
    )
    return {**state, **{k: torch.tensor(v) for k, v in numbers.items()}}


def size(image: Path, out: Path) -> None:
    """Build, load and run the published model."""
    from mmseg.apis import inference_model

    out.mkdir(parents=True, exist_ok=True)
    MMLogger.get_current_instance().setLevel('WARNING')  # it would list every parameter
    cfg = Config.fromfile(CONFIGS / PUBLISHED)
    cfg.model.init_cfg.checkpoint = str(out / 'random_clip.pt')
    torch.save(random_clip(), cfg.model.init_cfg.checkpoint)
    init_default_scope('mmseg')
    model = MODELS.build(cfg.model)
    start = time.perf_counter()
    model.init_weights()
    print(f'loaded strictly in {time.perf_counter() - start:.1f} s')
    model.cfg = cfg
    model.eval()
    for call in ('first', 'second'):  # the text embeddings are there for the second
        start, cpu = time.perf_counter(), time.process_time()
        result = inference_model(model, str(image))
        seconds = f'{time.perf_counter() - start:.1f} s, {time.process_time() - cpu:.1f} s of CPU'
        print(f'{call} image, scores {tuple(result.seg_logits.data.shape)}: {seconds}')
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f'peak memory of the process: {peak:.2f} GiB; threads: {torch.get_num_threads()}')
    Path(cfg.model.init_cfg.checkpoint).unlink()


def main(argv=None) -> None:
    cli = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_argument('--out', type=Path, default=ROOT / 'work_dirs' / 'tagclip_demo')
    commands = cli.add_subparsers(dest='command', required=True)
    command = commands.add_parser('vectors', help='with and without trusty token')
    command.add_argument('--seeds', type=int, nargs='+', default=[0])
    command.add_argument('--iterations', type=int, default=300)
    command = commands.add_parser('size', help='the published size on one image')
    command.add_argument('image', type=Path)
    args = cli.parse_args(argv)
    if args.command == 'vectors':
        vectors(args.seeds, args.out, args.iterations)
    else:
        size(args.image, args.out)


if __name__ == '__main__':
    main()
