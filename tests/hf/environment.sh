#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Prints an interpreter that has torch and transformers, for tests on the CPU; fails with a text. 1.6 GB the
# first time. TQKV_HF_PYTHON names an interpreter of your own, such as one on a GPU machine.
cd "$(dirname "$0")"
. ./torch_venv.sh
if [ -n "${TQKV_HF_PYTHON:-}" ]; then
  echo "$TQKV_HF_PYTHON"
  exit
fi
torch_venv hf "torch and transformers" 2.15.0 requirements.txt "import torch, transformers"
