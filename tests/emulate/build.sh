#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# build.sh FOLDER [CUDA_INCLUDE]: preset emulate in a folder; CUDA_INCLUDE: headers of CUDA, if CMake would
# not find them.
set -eu
cd "$(dirname "$0")/../.."
cmake --preset emulate -B "$1" ${2:+-DTQ_CUDA_INCLUDE="$2"} &&
  cmake --build "$1" --target gpu_programs -j "${TQKV_JOBS:-$(nproc)}"
