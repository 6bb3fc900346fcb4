#!/usr/bin/env bash
# Make a virtual environment with one of the two supported stacks and mmextra in it. Usage: setup_env.sh [stock|onedl]
#
# Does nothing when the environment is up to date. The mmcv wheel, which takes minutes to build, is kept outside the
# checkout, one for each version of torch and Python.
set -euo pipefail
cd "$(dirname "$0")/.."

STACK=${1:-stock}
PYTHON=${PYTHON:-python3}
TORCH=${TORCH:-2.12.1}
TORCHVISION=${TORCHVISION:-0.27.1}
case $STACK in
  stock) VENV=${VENV:-.venv}; MMCV=mmcv==2.1.0 ;;
  onedl) VENV=${VENV:-.venv-onedl}; MMCV=onedl-mmcv==2.3.6 ;;
  *) echo "unknown stack '$STACK': expected 'stock' or 'onedl'" >&2; exit 2 ;;
esac

stamp=$VENV/.mmextra-ready
want=$(cat "$0" requirements/"$STACK".txt requirements/dev.txt setup.py | cksum; echo "$TORCH $TORCHVISION")
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ]; then exit 0; fi

[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
pip() { "$VENV/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }
tag=$("$VENV/bin/python" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
wheels=${MMEXTRA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mmextra}/wheels/torch$TORCH-$tag

echo "[1/4] torch $TORCH"
pip install 'setuptools>=80,<81' wheel ninja psutil 'numpy<2.4' "torch==$TORCH" "torchvision==$TORCHVISION"

package=${MMCV%%==*}; version=${MMCV##*==}
if ! ls "$wheels/${package//-/_}-$version"-*.whl >/dev/null 2>&1; then
  echo "[2/4] $MMCV with its compiled operators: 10 to 15 minutes on 2 cores, done once"
  mkdir -p "$wheels/.building.$$"
  # Isolated, the build would not see torch and would leave the operators out.
  MMCV_WITH_OPS=1 MAX_JOBS=${MAX_JOBS:-$(nproc)} pip wheel --no-deps --no-build-isolation --wheel-dir "$wheels/.building.$$" "$MMCV"
  mv "$wheels/.building.$$"/*.whl "$wheels/" && rmdir "$wheels/.building.$$"
else
  echo "[2/4] $MMCV from $wheels"
fi
pip install --no-deps --force-reinstall "$wheels/${package//-/_}-$version"-*.whl

echo "[3/4] hosts ($STACK) and tools"
pip install -r "requirements/$STACK.txt" -r requirements/dev.txt "torch==$TORCH" "torchvision==$TORCHVISION"
if [ "$STACK" = stock ]; then pip install --no-deps openmim==0.3.9; fi
# The desktop build of OpenCV needs libGL, which a bare machine lacks; the headless one is the same module without it.
if ! "$VENV/bin/python" -c 'import cv2' 2>/dev/null; then
  pip uninstall --yes opencv-python && pip install opencv-python-headless
fi

echo "[4/4] mmextra"
pip install --no-deps --no-build-isolation --editable .
# mim and mmengine look for an installed package in site-packages, where pip's editable installs put no folder.
ln -sfn "$PWD/mmextra" "$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/mmextra"
"$VENV/bin/python" -c 'import mmcv.ops, mmdet, mmseg, mmpretrain, mmextra.registry'
echo "$want" > "$stamp"
