#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Prints an interpreter that has torch and transformers, for tests on the CPU; fails with a text.
#
# The registry's torch for Linux is linked to 3 GB of CUDA libraries, which a CPU run loads and never calls.
# In their place come empty ones (standins.py), so the environment takes 1.6 GB, in the user's cache.
# TQKV_HF_PYTHON names an interpreter of your own, such as one on a GPU machine.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../../packaging/deps.sh"
trap 'rm -f "$tq_log"' EXIT
torch=2.15.0

if [ -n "${TQKV_HF_PYTHON:-}" ]; then
  echo "$TQKV_HF_PYTHON"
  exit
fi
venv=$tq_cache/hf
stamp=$(cat "$here/requirements.txt" "$here/standins.py" "$0" | sha256sum | cut -c1-16)
if [ ! -f "$venv/$stamp" ]; then
  mkdir -p "$tq_cache"
  {
    python3 -m venv --clear "$venv" &&
      "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps "torch==$torch" &&
      "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$here/requirements.txt" &&
      "$venv/bin/python" "$here/standins.py" &&
      "$venv/bin/python" -c 'import torch, transformers; torch.ones(8, 8) @ torch.ones(8, 8)'
  } >"$tq_log" 2>&1 || {
    echo "torch and transformers could not be installed into $venv:" >&2
    tail -n 5 "$tq_log" >&2
    exit 1
  }
  touch "$venv/$stamp"
fi
echo "$venv/bin/python"
