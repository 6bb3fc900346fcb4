#!/usr/bin/env bash
# Build the wheel and try it where of the hosts there is mmpretrain alone: a backbone works, and a detector says in one
# line what it lacks. Usage: wheel.sh [FOLDER], after `make setup`, which keeps the wheel of mmcv that is used here.
set -euo pipefail
cd "$(dirname "$0")/../.."

FOLDER=$(realpath -m "${1:-work_dirs/wheel}")
PYTHON=${PYTHON:-.venv/bin/python}
TORCH=$("$PYTHON" -c 'import torch; print(torch.__version__.split("+")[0])')
VISION=$("$PYTHON" -c 'import torchvision; print(torchvision.__version__.split("+")[0])')
tag=$("$PYTHON" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
mmcv=$(ls "${MMEXTRA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mmextra}/wheels/torch$TORCH-$tag"/mmcv-*.whl)

rm -rf "$FOLDER" && mkdir -p "$FOLDER"
"$PYTHON" -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$FOLDER" .
"$PYTHON" -m venv "$FOLDER/venv"
pip() { "$FOLDER/venv/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }
pip install 'setuptools<81' 'numpy<2.4' "torch==$TORCH" "torchvision==$VISION" "$mmcv"
pip install "$(ls "$FOLDER"/mmextra-*.whl)[pretrain]"
if ! "$FOLDER/venv/bin/python" -c 'import cv2' 2>/dev/null; then
  pip uninstall --yes opencv-python && pip install opencv-python-headless
fi
pip check

cd "$FOLDER"  # not the checkout, whose mmextra would be the one that is found
venv/bin/python -W ignore - <<'PYTHON'
import importlib.util

import torch
from mmengine.registry import MODELS

assert not any(map(importlib.util.find_spec, ('mmdet', 'mmseg')))
volo = MODELS.build(dict(type='mmextra.VOLO', arch='d1'))
print('VOLO-D1:', *(tuple(out.shape) for out in volo.eval()(torch.randn(1, 3, 224, 224))))
try:
    MODELS.build(dict(type='mmextra.O2DETR'))
except ModuleNotFoundError as error:
    print('O2DETR:', error)
else:
    raise SystemExit('mmextra.O2DETR was built without mmdet')
PYTHON
