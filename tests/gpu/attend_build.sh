#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Builds the attend test and bench with the nvcc on PATH: attend_build.sh FOLDER [extra nvcc flags]. Objects
# compile in parallel.
set -e
out=$1
shift
mkdir -p "$out"
cd "$(dirname "$0")/../.."
arch=${TQ_ARCH:-arch=compute_90a,code=sm_90a}
flags="-std=c++17 -O3 --expt-relaxed-constexpr -gencode=$arch -Isrc -Iinclude -I. -Xcompiler -Wall,-Wextra,-ffp-contract=off $*"
objects=
for source in cuda/launch/attend*.cu $(ls cuda/launch/prefill*.cu 2>/dev/null) cuda/runtime.cu cuda/schedule/work_list.cpp src/status.cpp tests/gpu/attend_test.cu tests/bench/gpu/attend_bench.cu; do
  object=$out/$(basename "$source" | tr . _).o
  nvcc $flags -Xptxas -v -c -o "$object" "$source" >"$object.log" 2>&1 &
  pids="$pids $!:$source"
  case $source in tests/*) ;; *) objects="$objects $object" ;; esac
done
failed=0
for entry in $pids; do wait "${entry%%:*}" || { echo "FAILED to compile ${entry#*:}"; failed=1; }; done
if [ $failed = 1 ]; then grep -h -A3 "error" "$out"/*.log | head -40; exit 1; fi
nvcc -o "$out/attend_test" "$out/attend_test_cu.o" $objects
nvcc -o "$out/attend_bench" "$out/attend_bench_cu.o" $objects
