#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds and runs the tests that need a GPU. Needs nvcc and a C++17 compiler, nothing else: no test library, nothing fetched.
#
#   tests/gpu/run.sh [--build-only | --no-build] [--quick] [--sanitize] [test...]
#
# A test is the name of a tests/gpu/*_test.cu without "_test.cu" (append, backend, ...); none = all. --sanitize runs the backend suite under
# compute-sanitizer too (memcheck, racecheck, synccheck). TQ_GPU_BUILD is the build folder (default build/gpu); binaries built on another
# machine of the same processor family run as they are with --no-build. TQ_CUDA_ARCH is the architecture (default 90a), TQKV_JOBS the number of
# compilers at a time. The last line is "N passed, N failed".
set -uo pipefail
cd "$(dirname "$0")/../.."

build=1 run=1 quick="" sanitize=0 tests=""
for argument in "$@"; do
  case $argument in
    --build-only) run=0 ;;
    --no-build) build=0 ;;
    --quick) quick=--quick ;;
    --sanitize) sanitize=1 ;;
    -h | --help) sed -n '3,12s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) tests+=" $argument" ;;
  esac
done
if [ -z "$tests" ]; then for source in tests/gpu/*_test.cu; do name=$(basename "$source" _test.cu); tests+=" $name"; done; fi
out=${TQ_GPU_BUILD:-build/gpu}
arch=${TQ_CUDA_ARCH:-90a}
jobs=${TQKV_JOBS:-$(nproc)}
mkdir -p "$out"

nvcc=${NVCC:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
flags=(-std=c++17 -O3 -lineinfo -I. -Isrc -Iinclude -Itests/gpu --expt-relaxed-constexpr -gencode=arch=compute_"$arch",code=sm_"$arch"
  -Xcompiler=-ffp-contract=off,-Wall,-Wextra)
# Wheels of the toolkit have lib where nvcc looks for lib64.
root=$(dirname "$(dirname "$nvcc")")
if [ -d "$root/lib" ]; then flags+=(-L"$root/lib"); fi

if [ $build = 1 ]; then
  sources="src/status.cpp $(ls cuda/*.cu cuda/*.cpp cuda/launch/*.cu)"
  for test in $tests; do sources+=" tests/gpu/${test}_test.cu"; done
  # Slow ones first. An object is kept while the preprocessed content is unchanged: the hash of all sources and headers is in its name.
  state=$(cat src/*.h src/format/*.h codebooks/*.h tests/gpu/*.cuh tests/gpu/*.h cuda/*.h cuda/*/*.h cuda/*/*.cuh | sha256sum | cut -c1-12)
  object() { echo "$out/$(echo "$1" | tr / _).$(sha256sum "$1" | cut -c1-8).$state.$arch.o"; }
  list=$(ls -S $sources)
  missing=0
  for source in $list; do
    o=$(object "$source")
    if [ ! -f "$o" ]; then
      echo "$nvcc ${flags[*]} -c $source -o $o.part && mv $o.part $o"
    fi
  done | xargs -r -d '\n' -P "$jobs" -n 1 nice bash -c
  objects=""
  for source in $list; do
    o=$(object "$source")
    [ -f "$o" ] || { echo "FAILED to compile $source"; missing=1; }
    case $source in tests/*) ;; *) objects+=" $o" ;; esac
  done
  [ $missing = 0 ] || exit 1
  for test in $tests; do
    "$nvcc" "${flags[@]}" -cudart static "$(object tests/gpu/"${test}"_test.cu)" $objects -lpthread -o "$out/${test}_test" || exit 1
  done
fi
[ $run = 1 ] || exit 0

failed=0
for test in $tests; do
  start=$(date +%s)
  "$out/${test}_test" $quick || failed=$((failed + 1))
  echo "   ${test}: $(($(date +%s) - start)) s"
done
if [ $sanitize = 1 ]; then
  for tool in memcheck racecheck synccheck; do
    start=$(date +%s)
    compute-sanitizer --tool "$tool" --error-exitcode 9 "$out/backend_test" --small >"$out/$tool.log" 2>&1 || {
      failed=$((failed + 1))
      echo "FAILED compute-sanitizer $tool:"
      tail -n 30 "$out/$tool.log"
    }
    echo "   $tool: $(grep -E 'ERROR SUMMARY|RACECHECK SUMMARY' "$out/$tool.log" | tail -n 1) $(($(date +%s) - start)) s"
  done
fi
echo "$(echo $tests | wc -w) suites, $failed failed"
[ $failed = 0 ]
