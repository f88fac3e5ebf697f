#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# build.sh FOLDER CUDA_INCLUDE: the library with the CUDA backend and the programs of tests/gpu for the CPU
# (see emulate.h), in FOLDER. CUDA_INCLUDE: the toolkit's headers. Needs a C++ compiler (CXX, default g++),
# libhwy-dev and libxxhash-dev.
set -euo pipefail
mkdir -p "$1"
out=$(cd "$1" && pwd) include=$2
cd "$(dirname "$0")/../.."
programs="append attend backend conformance"
common="-std=c++17 -O2 -ffp-contract=off -DNDEBUG -DTQ_BUILDING_LIBRARY"
folders="-Isrc -Iinclude -I."
host="$common $folders -DTQ_CUDA=1 -DTQ_CUDA_ARCHS_BUILT=\\\"emulated\\\""
# Jumps between stacks are not what _FORTIFY_SOURCE takes them for. Warnings are nvcc's to give.
emulated="$common -fno-strict-aliasing -U_FORTIFY_SOURCE -w -x c++ -include tests/emulate/emulate.h -Itests/emulate $folders -Itests/gpu -I$include"
launcher=
! command -v ccache >/dev/null || launcher=ccache
compile() { echo "$launcher ${CXX:-g++} $1 -c -o $out/$(echo "$2" | tr /. __).o $2"; }
{
  for source in src/*.cpp src/cpu/*.cpp; do compile "$host" "$source"; done
  for source in $(find cuda -name "*.cu" -o -name "*.cpp") tests/emulate/*.cpp; do compile "$emulated" "$source"; done
  for program in $programs; do compile "$emulated" "tests/gpu/${program}_test.cu"; done
} | xargs -P "${TQKV_JOBS:-$(nproc)}" -d '\n' -n 1 bash -c
objects=$(find "$out" -name 'src_*.o' -o -name 'cuda_*.o' -o -name 'tests_emulate_*.o')
for program in $programs; do
  # shellcheck disable=SC2086
  ${CXX:-g++} -o "$out/${program}_test" "$out/tests_gpu_${program}_test_cu.o" $objects -lpthread
done
