"""Export every backbone to ONNX and compare what onnxruntime computes with what torch does.

    pip install onnx onnxscript onnxruntime
    python tools/stress/onnx_export.py [NAME ...]

The small instances of the tests are exported through `torch.export`, with random weights. Takes some seconds each.
"""

import argparse
import logging
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
# torch has no ONNX form of adaptive max pooling, which makes their semantic tokens.
WITHOUT = ('STViTRSwin', 'STViTSwin')


def deviation(model: torch.nn.Module, images: torch.Tensor, contract) -> float:
    """Largest difference between onnxruntime's and torch's outputs, over the largest value of each."""
    import onnxruntime

    with torch.no_grad():
        expected = contract.tensors(model(images))
    program = torch.onnx.export(model, (images,), dynamo=True, verbose=False)
    with tempfile.TemporaryDirectory() as folder:
        path = f'{folder}/model.onnx'
        program.save(path)
        session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
        found = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    if len(found) != len(expected):
        raise RuntimeError(f'{len(expected)} outputs are expected, ONNX has {len(found)}')
    return max(
        float((torch.from_numpy(a) - b).abs().max() / b.abs().max())
        for a, b in zip(found, expected)
    )


def main() -> int:
    cli = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_argument('names', nargs='*', metavar='NAME', help='backbones; default: all')
    args = cli.parse_args()
    sys.path.insert(0, str(ROOT / 'tests'))
    import test_contracts_backbone as contract

    logging.disable(logging.WARNING)
    failed = []
    for name in args.names or [n for n in contract.backbones() if n not in WITHOUT]:
        model = contract.redraw(contract.build(name)).eval()
        found = deviation(model, contract.images(name, batch=1), contract)
        print(f'{name}: differs by {found:.1e}', flush=True)
        if not found < 1e-4:
            failed.append(name)
    if failed:
        print(f'too far off: {", ".join(failed)}', file=sys.stderr)
    return int(bool(failed))


if __name__ == '__main__':
    sys.exit(main())
