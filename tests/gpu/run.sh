#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds and runs everything that needs a GPU, and prints one summary. Needs nvcc, a C++17 compiler and
# Python; no test library, nothing fetched.
#
#   tests/gpu/run.sh [--quick] [--only PART,...] [--skip PART,...] [--bench | --bench-full] [--build-only |
#   --no-build] [--list]
#
# Without --only every part but the bench runs. --quick shortens the long ones. Parts run side by side where
# they do not disturb one another; each writes $TQ_GPU_BUILD/logs/PART.log, and the end of the log is shown
# when it fails. A part that checked nothing has failed. The last line is "N passed, N failed, N skipped" over
# single checks; the exit status is 0 only if nothing failed and something passed.
#
# TQ_GPU_BUILD: build folder (default build/gpu). TQ_CUDA_ARCH: architecture (default 90a). TQKV_JOBS:
# compilers at a time. TQ_DEPS_INCLUDE: folder with hwy/highway.h and xxhash.h if they are not system headers
# (default .gpu_deps/include); without them the parts that need the whole library are skipped. PYTHON:
# interpreter with torch. Objects are kept while their source, the headers and the flags are unchanged.
set -uo pipefail
cd "$(dirname "$0")/../.."

parts_exclusive="resources backend"  # backend counts free device memory: nothing may run beside it
parts_side="attend conformance memcheck initcheck synccheck racecheck append graph limits python golden"
all_parts="$parts_exclusive $parts_side bench"
declare -A about=(
  [resources]="registers and spills of the attend kernels, from the compiler's output"
  [backend]="capture, failing calls, slots and pages, merge"
  [attend]="attention against float64 over the same codes; the same bits for any distribution"
  [append]="codes and scales against the scalar encoder"
  [conformance]="the library on the GPU against the library on the CPU: stored bytes, decoded values, attention at every edge"
  [graph]="append, attend and merge captured once, replayed 1,000 steps; determinism"
  [limits]="pages beyond 2^31 and 2^32 bytes; asynchronous errors"
  [python]="the Python package with torch tensors, the contract cases"
  [golden]="golden vectors of the NumPy oracle on the GPU"
  [memcheck]="compute-sanitizer memcheck" [initcheck]="compute-sanitizer initcheck"
  [synccheck]="compute-sanitizer synccheck" [racecheck]="compute-sanitizer racecheck, small shapes; what it says of worker queues is counted, not judged (racecheck_report.py)"
  [bench]="tests/bench/gpu/bench.py beside torch SDPA (only with --bench, --bench-full or --only bench)")

build=1 run=1 quick="" only="" skip_list="" bench="" bench_cases=short
while [ $# -gt 0 ]; do
  case $1 in
    --quick) quick=--quick ;;
    --only) only=${2//,/ }; shift ;;
    --skip) skip_list=${2//,/ }; shift ;;
    --bench) bench=1 ;;
    --bench-full) bench=1 bench_cases=full ;;
    --build-only) run=0 ;;
    --no-build) build=0 ;;
    --list) for part in $all_parts; do echo "$part: ${about[$part]}"; done; exit 0 ;;
    -h | --help) sed -n '3,16s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) echo "run.sh: unknown argument $1 (--help says what there is)"; exit 2 ;;
  esac
  shift
done
for part in $only $skip_list; do [ -n "${about[$part]:-}" ] || { echo "run.sh: no part is called '$part'; there are: $all_parts"; exit 2; }; done
wanted() {
  [[ " $skip_list " == *" $1 "* ]] && return 1
  if [ -n "$only" ]; then [[ " $only " == *" $1 "* ]]; else [ "$1" != bench ] || [ -n "$bench" ]; fi
}

out=$(mkdir -p "${TQ_GPU_BUILD:-build/gpu}" && cd "${TQ_GPU_BUILD:-build/gpu}" && pwd)
logs=$out/logs
mkdir -p "$logs"
arch=${TQ_CUDA_ARCH:-90a}
jobs=${TQKV_JOBS:-$(nproc)}
python=${PYTHON:-python3}
deps=${TQ_DEPS_INCLUDE:-$PWD/.gpu_deps/include}
nvcc=${NVCC:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
cxx=${CXX:-g++}

needs_library() { [[ " conformance graph limits python golden bench " == *" $1 "* ]]; }

# ---- Build ----

common="-std=c++17 -O3 -DNDEBUG -I. -Isrc -Iinclude -Itests/gpu -DTQ_BUILDING_LIBRARY"
host_flags="$common -fPIC -fvisibility=hidden -fvisibility-inlines-hidden -fno-semantic-interposition -ffp-contract=off -Wall -Wextra -Wno-array-bounds
  -isystem $deps -DTQ_CUDA=1 -DTQ_CUDA_ARCHS_BUILT=\\\"$arch\\\""
cuda_flags="$common -lineinfo --expt-relaxed-constexpr -gencode=arch=compute_$arch,code=sm_$arch -DCUB_WRAPPED_NAMESPACE=tq -Xptxas -v
  -Xcompiler=-fPIC,-fvisibility=hidden,-ffp-contract=off,-Wall,-Wextra"
# Wheels of the toolkit have lib where nvcc looks for lib64.
root=$(dirname "$(dirname "$nvcc")")
[ -d "$root/lib64" ] || cuda_flags+=" -L$root/lib"
PATH=$PATH:$root/bin  # compute-sanitizer

cuda_flags=${cuda_flags//$'\n'/ } host_flags=${host_flags//$'\n'/ }

suites="backend append attend"            # linked with the kernels alone
api_suites="conformance graph limits"     # linked with the library
programs="attend_bench"
cuda_sources=$(find cuda -name "*.cu" -o -name "*.cpp")
host_sources=$(ls src/*.cpp src/cpu/*.cpp)
slow="cuda/attend/instances/generic_large.cu cuda/append/instances/d576.cu cuda/append/instances/d512.cu cuda/attend/instances/generic_mid.cu cuda/append/instances/dsmall.cu
  cuda/append/instances/dmid.cu cuda/attend/instances/d192.cu cuda/attend/instances/d256.cu cuda/append/instances/d256.cu src/cpu/simd_kernels.cpp src/cpu/vbmi_kernels.cpp"

source_of() { case $1 in attend_bench) echo tests/bench/gpu/attend_bench.cu ;; *) echo "tests/gpu/${1}_test.cu" ;; esac; }
hash_of() { sha256sum | cut -c1-12; }
library_state="" test_state=""
# object source : where its object lies; the compiler's output lies beside it (.log).
object() {
  local state=$library_state
  case $1 in tests/*) state=$test_state ;; esac
  echo "$out/$(echo "$1" | tr / _).$(cat "$1" <(echo "$state") | hash_of).o"
}
compile() { # compile source : to be run by xargs
  local o flags=$cuda_flags compiler=$nvcc
  o=$(object "$1")
  [ -f "$o" ] && return 0
  case $1 in src/*) flags=$host_flags compiler=$cxx ;; esac
  eval "nice $compiler $flags -c $1 -o $o.part" >"$o.log.part" 2>&1 || { mv "$o.log.part" "$o.failed.log"; return 1; }
  mv "$o.log.part" "$o.log"
  mv "$o.part" "$o"
}
have_deps() { echo '#include <hwy/highway.h>
#include <xxhash.h>' | "$cxx" -std=c++17 -I"$deps" -E -x c++ - >/dev/null 2>&1; }
library_trouble=""
have_deps || library_trouble="hwy/highway.h or xxhash.h is neither a system header nor in $deps (TQ_DEPS_INCLUDE)"
link() { # link target object... flag... : keeps a log
  local target=$1
  shift
  eval "$nvcc $(echo "$cuda_flags" | grep -o -- '-L[^ ]*' || true) -cudart static $* -lpthread -ldl -o $target" >"$target.link.log" 2>&1 && return 0
  echo "FAILED to link $target"
  tail -n 20 "$target.link.log"
  return 1
}
build_all() {
  local list="" source failed=0 objects="" warnings test begin=$SECONDS
  command -v "$nvcc" >/dev/null || { echo "run.sh: no nvcc (PATH, NVCC)"; return 1; }
  library_state=$(cat include/*.h src/*.h src/*/*.h codebooks/*.h cuda/*.h cuda/*/*.h cuda/*/*.cuh <(echo "$host_flags $cuda_flags") | hash_of)
  test_state=$(cat tests/gpu/*.cuh tests/gpu/*.h tests/gpu/*.inc <(echo "$library_state") | hash_of)
  local part library="" chosen=""
  for part in $all_parts; do
    wanted "$part" || continue
    case $part in *check) chosen+=" $suites" library=1 ;; *) chosen+=" $part" ;; esac
    ! needs_library "$part" || library=1
  done
  suites=$(for test in $suites; do [[ " $chosen " == *" $test "* ]] && echo "$test"; done | xargs)
  if [ -n "$library_trouble" ] || [ -z "$library" ]; then host_sources="src/status.cpp" api_suites=""; fi
  for test in $suites $api_suites $programs; do list+=" $(source_of "$test")"; done
  list="$slow $list $cuda_sources $host_sources"
  list=$(echo $list | tr ' ' '\n' | awk '!seen[$0]++' | while read -r source; do [ -f "$source" ] && echo "$source"; done)
  [ -n "$api_suites" ] || list=$(grep -v '^src/cpu/' <<<"$list")
  export -f compile object hash_of
  export out nvcc cxx cuda_flags host_flags library_state test_state
  echo "$list" | xargs -P "$jobs" -I{} bash -c 'compile {} || true'
  for source in $list; do
    [ -f "$(object "$source")" ] && continue
    echo "FAILED to compile $source"
    failed=$((failed + 1))
    [ $failed -le 5 ] || continue
    grep -E 'error|fatal' -A3 "$(object "$source").failed.log" | head -n 20
  done
  [ $failed = 0 ] || return 1
  warnings=$(for source in $list; do grep -hE '^[^ ]+:[0-9]+:.*warning|^[^ ]+\([0-9]+\): warning' "$(object "$source").log"; done | sort -u)
  [ -z "$warnings" ] || printf '%s compiler warnings, the first:\n%s\n' "$(wc -l <<<"$warnings")" "$(head -n 3 <<<"$warnings")"
  rm -f "$out"/*_test "$out/attend_bench" "$out/libtqkv.so.0"  # nothing older than this build may run
  : >"$out/objects"
  for source in $cuda_sources src/status.cpp; do object "$source" >>"$out/objects"; done
  objects=$(tr '\n' ' ' <"$out/objects")
  for test in $suites $programs; do
    link "$out/$(case $test in attend_bench) echo "$test" ;; *) echo "${test}_test" ;; esac)" "$(object "$(source_of "$test")")" "$objects" &
  done
  if [ -n "$api_suites" ]; then
    for source in $host_sources; do [ "$source" = src/status.cpp ] || objects+=" $(object "$source")"; done
    link "$out/libtqkv.so.0" -shared "$objects" -Xlinker -soname,libtqkv.so.0 -Xlinker --version-script=packaging/exports.map \
      -Xlinker --exclude-libs,ALL,--as-needed -Xlinker -z,defs,-z,now,-z,relro,-z,nodelete,-z,noexecstack || failed=1
    for test in $api_suites; do
      link "$out/${test}_test" "$(object "$(source_of "$test")")" "$(object src/status.cpp)" "-Xlinker $out/libtqkv.so.0" "-Xlinker -rpath -Xlinker '\$ORIGIN'" || failed=1
    done
  fi
  for job in $(jobs -p); do wait "$job" || failed=1; done
  echo "built in $((SECONDS - begin)) s: $(echo "$list" | wc -l) sources, architecture $arch"
  return $failed
}

# ---- Parts ----

# Prints "checks: P passed, F failed, S skipped" as its last line; anything else counts as a failure.
sanitizer() { # sanitizer tool limit suite-and-arguments...
  local tool=$1 limit=$2 reports=1000 passed=0 failed=0 skipped=0 run name line errors
  shift 2
  command -v compute-sanitizer >/dev/null || { echo "SKIPPED: compute-sanitizer is not installed"; echo "checks: 0 passed, 0 failed, 1 skipped"; return; }
  for run in "$@"; do
    name=${run%% *}
    [ -x "$out/${name}_test" ] || { echo "SKIPPED $name: $library_trouble"; skipped=$((skipped + 1)); continue; }
    # shellcheck disable=SC2086
    timeout "$limit" compute-sanitizer --tool "$tool" --error-exitcode 9 --print-limit "$reports" "$out/${name}_test" ${run#"$name"} >"$logs/$tool-$name.log" 2>&1
    local rc=$?
    if [ "$tool" = racecheck ] && { [ $rc = 0 ] || [ $rc = 9 ]; }; then
      "$python" tests/gpu/racecheck_report.py "$logs/$tool-$name.log" "$reports"
      rc=$?
    fi
    line=$(grep -E '^[a-z_]+_test: [0-9]+ passed, 0 failed' "$logs/$tool-$name.log" | tail -n 1)
    errors=$(grep -E 'ERROR SUMMARY|RACECHECK SUMMARY' "$logs/$tool-$name.log" | tail -n 1 | sed 's/=* *//')
    if [ $rc = 0 ] && [ -n "$line" ] && [ -n "$errors" ] && ! [[ "$line" =~ :\ 0\ passed ]]; then
      passed=$((passed + 1))
    else
      failed=$((failed + 1))
      echo "FAILED $tool $run: exit status $rc (124: ran past $limit s)"
      tail -n 30 "$logs/$tool-$name.log"
    fi
    echo "$tool $run: ${errors:-no summary}; ${line:-no last line}"
  done
  echo "checks: $passed passed, $failed failed, $skipped skipped"
}
# A program that hangs on the device must not hold the script.
limited() {
  local limit=2400 rc=0
  [ -z "$quick" ] || limit=300
  timeout -k 10 "$limit" "$@" || rc=$?
  [ $rc -lt 124 ] || echo "FAILED: exit status $rc; 124 and 137: ran past $limit s"
  return $rc
}
pytest_part() { # pytest_part file
  local log
  log=$(TQKV_LIBRARY=$out/libtqkv.so.0 limited "$python" -m pytest -q -rs -p no:cacheprovider "$1" 2>&1)
  local rc=$? last p f e s
  echo "$log"
  last=$(grep -E '[0-9]+ (passed|failed|skipped|error)' <<<"$log" | tail -n 1)
  p=$(sed -nE 's/.*\b([0-9]+) passed.*/\1/p' <<<"$last") f=$(sed -nE 's/.*\b([0-9]+) failed.*/\1/p' <<<"$last")
  e=$(sed -nE 's/.*\b([0-9]+) errors?.*/\1/p' <<<"$last") s=$(sed -nE 's/.*\b([0-9]+) skipped.*/\1/p' <<<"$last")
  f=$((${f:-0} + ${e:-0}))
  # 5: all was skipped, with reasons
  [ $rc = 0 ] || [ $f -gt 0 ] || { [ $rc = 5 ] && [ "${s:-0}" -gt 0 ]; } || f=1
  echo "checks: ${p:-0} passed, $f failed, ${s:-0} skipped"
}
# shellcheck disable=SC2086
part() {
  case $1 in
    resources)
      "$python" tests/gpu/check_resources.py --list $(sed 's/$/.log/' "$out/objects") ;;
    append | attend | backend | conformance | graph | limits) limited "$out/${1}_test" $quick ;;
    python) pytest_part tests/gpu/test_python_torch.py ;;
    golden) pytest_part tests/gpu/test_golden_torch.py ;;
    memcheck) sanitizer memcheck 150 "backend --small" "append --small" "attend --small" "graph --small" ;;
    initcheck) sanitizer initcheck 150 "backend --small" "append --small" "attend --small" "graph --small" ;;
    synccheck) sanitizer synccheck 150 "backend --small" "append --small" "attend --small" "graph --small" ;;
    racecheck) sanitizer racecheck 150 "append --tiny" "backend --small" "attend --tiny" ;;
    bench) TQKV_LIBRARY=$out/libtqkv.so.0 limited "$python" tests/bench/gpu/bench.py --cases $bench_cases --json "$out/bench.json" ;;
  esac
}
start() { # start part : in the background
  local begin=$SECONDS
  {
    if needs_library "$1" && [ ! -f "$out/libtqkv.so.0" ]; then
      printf 'SKIPPED: %s\nchecks: 0 passed, 0 failed, 1 skipped\n' "${library_trouble:-the library was not built}" >"$logs/$1.log"
      echo "0 0" >"$logs/$1.rc"
    else
      part "$1" >"$logs/$1.log" 2>&1 </dev/null
      echo "$? $((SECONDS - begin))" >"$logs/$1.rc"
    fi
    report "$1"
  } &
}
report() { # report part : one line, and the end of the log if it failed
  local rc=1 seconds=0 line p=0 f=0 s=0
  read -r rc seconds <"$logs/$1.rc"
  line=$(grep -E '^[a-z_]+: [0-9]+ passed, [0-9]+ failed' "$logs/$1.log" | tail -n 1)
  if [[ "$line" =~ :\ ([0-9]+)\ passed,\ ([0-9]+)\ failed(,\ ([0-9]+)\ skipped)? ]]; then
    p=${BASH_REMATCH[1]} f=${BASH_REMATCH[2]} s=${BASH_REMATCH[4]:-0}
  fi
  if [ "$f" = 0 ] && { [ "$rc" != 0 ] || [ $((p + s)) = 0 ]; }; then f=1; fi
  echo "$p $f $s" >"$logs/$1.count"
  {
    printf '%-12s %9d passed %4d failed %4d skipped %5d s   %s\n' "$1" "$p" "$f" "$s" "$seconds" "${about[$1]}"
    grep -E '^ *SKIPPED' "$logs/$1.log" | sort -u | head -n 12 | sed 's/^ */   | /'
    if [ "$f" != 0 ]; then
      echo "   exit status $rc; $logs/$1.log ends:"
      { grep -E '^FAILED' "$logs/$1.log" | head -n 12; tail -n 25 "$logs/$1.log"; } | cut -c1-400 | sed 's/^/   | /'
    fi
  } >"$logs/$1.report"
  cat "$logs/$1.report"
}
run_all() {
  local chosen="" p=0 f=0 s=0 began=$SECONDS one two three
  rm -f "$logs"/*.rc "$logs"/*.count "$logs"/*.report
  for part in $parts_exclusive; do
    wanted "$part" && { start "$part"; wait; chosen+=" $part"; }
  done
  for part in $parts_side; do
    wanted "$part" || continue
    while [ "$(jobs -rp | wc -l)" -ge "${TQ_GPU_SIDE:-6}" ]; do wait -n; done
    start "$part"
    chosen+=" $part"
  done
  wait
  if wanted bench; then
    start bench
    wait
    chosen+=" bench"
    grep -v '^checks:' "$logs/bench.log" | tail -n 60
  fi
  printf '\nsummary, %d s:\n' $((SECONDS - began))
  for part in $chosen; do
    grep -v '^   |' "$logs/$part.report" | head -n 1
    read -r one two three <"$logs/$part.count"
    p=$((p + one)) f=$((f + two)) s=$((s + three))
  done
  echo "$p passed, $f failed, $s skipped"
  [ $f = 0 ] && [ $p -gt 0 ]
}

if [ $build = 1 ]; then build_all || { echo "0 passed, 1 failed, 0 skipped"; exit 1; }; fi
[ $run = 0 ] || run_all
