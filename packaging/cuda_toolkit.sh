#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs the CUDA 13.0 compiler and the libraries that tqkv needs from their Python wheels, without root and
# without a driver, and prints the folder that then holds nvidia/cu13. Nothing happens when it is there
# already. About 100 MB to download, 270 MB on disk.
#
# The place is ${XDG_CACHE_HOME:-~/.cache}/tqkv/cuda-13.0. TQKV_CUDA_WHEELS names a site-packages folder that
# has the wheels already; nothing is installed then. packaging/cmake/PipCudaToolkit.cmake finds both.
# TQKV_PYTHON is the interpreter whose pip is used (default python3).
set -euo pipefail

packages=(nvidia-cuda-nvcc nvidia-cuda-crt nvidia-nvvm nvidia-cuda-runtime nvidia-cuda-cccl)
version='13.0.*'
python=${TQKV_PYTHON:-python3}

fail() {
  echo "cuda_toolkit.sh: $*" >&2
  exit 1
}
complete() { [ -x "$1/nvidia/cu13/bin/nvcc" ] && [ -f "$1/nvidia/cu13/include/cuda_runtime.h" ]; }

if [ -n "${TQKV_CUDA_WHEELS:-}" ]; then
  complete "$TQKV_CUDA_WHEELS" ||
    fail "TQKV_CUDA_WHEELS=$TQKV_CUDA_WHEELS does not hold nvidia/cu13/bin/nvcc and its headers"
  echo "$TQKV_CUDA_WHEELS"
  exit
fi

cache=${XDG_CACHE_HOME:-$HOME/.cache}/tqkv
target=$cache/cuda-13.0
if ! complete "$target"; then
  "$python" -m pip --version >/dev/null 2>&1 ||
    fail "$python has no pip (Debian: apt-get install python3-pip), or set TQKV_PYTHON"
  echo "cuda_toolkit.sh: installing ${packages[*]} $version into $target ..." >&2
  mkdir -p "$cache"
  # Into a new folder that is moved when it is whole, so that an interrupted run leaves nothing half done.
  fresh=$(mktemp -d "$cache/cuda-toolkit.XXXXXX")
  trap 'rm -rf "$fresh"' EXIT
  "$python" -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps \
    --no-compile --only-binary :all: --target "$fresh" "${packages[@]/%/==$version}" >&2 ||
    fail "pip could not install the toolkit; see its message above"
  chmod -R u+rwX,go+rX "$fresh"
  complete "$fresh" || fail "the wheels do not hold nvidia/cu13/bin/nvcc and cuda_runtime.h as expected"
  if ! complete "$target"; then # another run may have been faster
    rm -rf "$target"
    mv "$fresh" "$target"
  fi
fi
echo "$target"
