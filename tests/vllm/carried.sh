#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Python files of vLLM 0.32 and of what they import, in a folder that travels to a machine with a GPU, torch,
# Triton and Transformers but neither vLLM nor a network: tests/gpu/run.sh --only vllm looks for it in
# TQKV_VLLM_FILES. About 26 MB compressed. vLLM's compiled parts stay behind, so no model runs: its metadata,
# builder and attention class do.
#
#   tests/vllm/carried.sh FOLDER PYTHON      PYTHON: of the same version as there
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
[ $# = 2 ] || { sed -n '3,9s/^# \{0,1\}//p' "$0"; exit 2; }
folder=$1 python=$2
# What vllm.config and vllm.v1.attention import and such a machine lacks.
needed="annotated-types apache-tvm-ffi cachetools cbor2 cloudpickle dnspython email-validator fastapi
  httpcore2 httpx2 jiter llguidance msgspec openai opentelemetry-api opentelemetry-sdk
  opentelemetry-semantic-conventions oss-harmony partial-json-parser pybase64 pydantic pydantic-core
  pydantic-extra-types python-multipart pyzmq sniffio starlette truststore typing-inspection xgrammar"

vllm=$("$here/environment.sh")
mkdir -p "$folder"
versions=$("$vllm" -c 'import importlib.metadata, sys
print(" ".join(f"{name}=={importlib.metadata.version(name)}" for name in sys.argv[1:]))' $needed)
# shellcheck disable=SC2086
"$python" -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --upgrade \
  --target "$folder" $versions
from=$("$vllm" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
(cd "$from" && find vllm -name '*.py' -print0 | tar cf - --null -T -) | tar xf - -C "$folder"
# Modules that vLLM imports on CUDA for their compiled operators, of which importing it asks for some answers.
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
mkdir -p "$folder/vllm-0.32.0.dist-info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0\n' >"$folder/vllm-0.32.0.dist-info/METADATA"
echo "$(find "$folder" -type f | wc -l) files in $folder"
