#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds preset gpu of CMakePresets.json, runs everything that needs a GPU, and prints one summary. Needs
# CMake, nvcc, a C++17 compiler and Python; no test library, nothing fetched.
#
#   tests/gpu/run.sh [--quick] [--only PART,...] [--skip PART,...] [--bench | --bench-full] [--build-only |
#   --no-build] [--list]
#
# Without --only every part runs but those that say "only with". --quick shortens the long ones. Parts run
# side by side where they do not disturb one another; each writes $TQ_GPU_BUILD/logs/PART.log, and the end of
# the log is shown when it fails. A part that checked nothing has failed. The last line is "N passed, N
# failed, N skipped" over single checks; the exit status is 0 only if nothing failed and something passed.
#
# TQ_GPU_BUILD: build folder (default build/gpu). --no-build takes its programs (*_test, attend_bench),
# libtqkv.so.0 and kernels.log as they are; they find one another wherever they are copied together.
# TQ_CUDA_ARCH: architectures as CMake names them (default 90a-real; native: of this machine's GPU). NVCC:
# compiler, if not the one that CMake finds. TQKV_JOBS: compilers at a time. TQ_DEPS_INCLUDE: folder with
# hwy/highway.h and xxhash.h if they are not system headers (default .gpu_deps/include, if it is there).
# PYTHON: interpreter with torch. TQKV_VLLM_FILES: folder made by tests/vllm/carried.sh, for part vllm.
set -uo pipefail
cd "$(dirname "$0")/../.."
. packaging/deps.sh
trap 'rm -f "$tq_log"' EXIT

# they count free device memory: nothing may run beside them
parts_exclusive="resources backend growth faults"
parts_side="attend conformance layers modes products vectors"
parts_side+=" memcheck initcheck synccheck racecheck append calibration move once state"
parts_side+=" paged graph latent limits"
parts_side+=" python golden"
parts_asked="torch hf vllm nccl validate eval"  # only with --only
all_parts="$parts_exclusive $parts_side $parts_asked bench"
declare -A about=(
  [resources]="registers and spills of the attend kernels, from the compiler's output"
  [backend]="capture, failing calls, slots and pages, merge"
  [growth]="pools that grow in place under a captured graph; failing calls"
  [faults]="every CUDA call and allocation of every call made to fail: state unchanged, nothing leaked"
  [attend]="attention against float64 over the same codes; the same bits for any distribution"
  [products]="products of warpgroups: every layout against float64"
  [append]="codes and scales against the scalar encoder"
  [calibration]="calibration fed from device memory: the host's file, byte for byte; failing calls"
  [move]="tokens taken out of sequences, against the CPU and fresh sequences"
  [once]="windows whose tokens are stored once: the same bits as codes at once, in graphs too"
  [state]="parts and saved sequences: the CPU's bytes, both ways, from and to any memory"
  [paged]="pages that an engine owns: work lists, bytes, bits, captured steps"
  [conformance]="the library on GPU and CPU: stored bytes, decoded values, attention at every edge"
  [layers]="layers of different shape, sliding ones among them, on GPU and CPU"
  [modes]="attention over prod, grouped and levels codes and keys in bands against float64"
  [graph]="append, attend and merge captured once, replayed 1,000 steps; determinism"
  [latent]="latent layers beside the CPU: bytes, reads, attention; drafts, graphs, refusals"
  [limits]="pages beyond 2^31 and 2^32 bytes; asynchronous errors"
  [vectors]="vectors on their own: records, products and searches, bit for bit the CPU's"
  [python]="the Python package with torch tensors, the contract cases"
  [golden]="golden vectors of the NumPy oracle on the GPU"
  [memcheck]="compute-sanitizer memcheck" [initcheck]="compute-sanitizer initcheck"
  [synccheck]="compute-sanitizer synccheck"
  [racecheck]="compute-sanitizer racecheck, small shapes, judged by racecheck_report.py"
  [torch]="torch.ops.tqkv, compiled and captured (only with --only torch)"
  [hf]="Transformers' generate() on a TurboCache (only with --only hf)"
  [vllm]="vLLM's builder and attention class, captured (only with --only vllm, see tests/vllm/carried.sh)"
  [nccl]="tensor and context parallelism on 2 GPUs (only with --only nccl)"
  [validate]="tqkv validate's rows of a GPU (only with --only validate)"
  [eval]="tqkv-eval release on the constructed model (only with --only eval)"
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
    -h | --help) sed -n '3,20s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) echo "run.sh: unknown argument $1 (--help says what there is)"; exit 2 ;;
  esac
  shift
done
for part in $only $skip_list; do
  [ -n "${about[$part]:-}" ] && continue
  echo "run.sh: no part is called '$part'; there are: $all_parts"
  exit 2
done
wanted() {
  [[ " $skip_list " == *" $1 "* ]] && return 1
  if [ -n "$only" ]; then [[ " $only " == *" $1 "* ]]; else
    [[ " $parts_asked " != *" $1 "* ]] && { [ "$1" != bench ] || [ -n "$bench" ]; }
  fi
}

out=$(mkdir -p "${TQ_GPU_BUILD:-build/gpu}" && cd "${TQ_GPU_BUILD:-build/gpu}" && pwd)
logs=$out/logs
mkdir -p "$logs"
arch=${TQ_CUDA_ARCH:-90a-real}
python=${PYTHON:-python3}
deps=${TQ_DEPS_INCLUDE:-$PWD/.gpu_deps/include}
PATH=$PATH:/usr/local/cuda/bin  # compute-sanitizer
[ -z "${NVCC:-}" ] || PATH=$PATH:$(dirname "$NVCC")

needs_library() { [[ " python golden $parts_asked bench " == *" $1 "* ]]; }

# ---- Build ----

build_all() {
  local begin=$SECONDS part options=(-DTQ_CUDA_ARCHS="$arch") targets="" warnings
  for part in $all_parts; do
    wanted "$part" || continue
    case $part in
      resources) targets+=" kernel_logs" ;;
      python | golden | torch | hf | vllm | nccl | validate | eval) targets+=" tqkv" ;;
      bench) targets+=" tqkv attend_bench" ;;
      *check) targets+=" backend_test append_test attend_test graph_test latent_test paged_test" ;;
      *) targets+=" ${part}_test" ;;
    esac
  done
  [ -n "$only" ] || targets="gpu_programs kernel_logs"
  [ ! -d "$deps" ] || options+=(-DTQ_HWY_INCLUDE="$deps" -DTQ_XXHASH_INCLUDE="$deps")
  [ -z "${NVCC:-}" ] || options+=(-DCMAKE_CUDA_COMPILER="$NVCC")
  # shellcheck disable=SC2086
  tq_cmake_build "$out" gpu $(printf -- '--target=%s\n' $targets | sort -u) "${options[@]}" || return 1
  warnings=$(grep -hE '^[^ ]+:[0-9]+:.*warning|^[^ ]+\([0-9]+\): warning' "$out/build.log" | sort -u)
  if [ -n "$warnings" ]; then
    echo "$(wc -l <<<"$warnings") compiler warnings, the first:"
    head -n 3 <<<"$warnings"
  fi
  echo "built in $((SECONDS - begin)) s, architecture $arch"
}

# ---- Parts ----

# Prints "checks: P passed, F failed, S skipped" as its last line; anything else counts as a failure.
sanitizer() { # sanitizer tool limit suite-and-arguments...
  local tool=$1 limit=$2 reports=1000 passed=0 failed=0 skipped=0 run name line errors log
  shift 2
  if ! command -v compute-sanitizer >/dev/null; then
    printf 'SKIPPED: compute-sanitizer is not installed\nchecks: 0 passed, 0 failed, 1 skipped\n'
    return
  fi
  for run in "$@"; do
    name=${run%% *}
    log=$logs/$tool-${run// /}.log
    if [ ! -x "$out/${name}_test" ]; then
      echo "SKIPPED $name: $out/${name}_test was not built"
      skipped=$((skipped + 1))
      continue
    fi
    # shellcheck disable=SC2086
    timeout "$limit" compute-sanitizer --tool "$tool" --error-exitcode 9 --print-limit "$reports" \
      "$out/${name}_test" ${run#"$name"} >"$log" 2>&1
    local rc=$?
    if [ "$tool" = racecheck ] && { [ $rc = 0 ] || [ $rc = 9 ]; }; then
      "$python" tests/gpu/racecheck_report.py "$log" "$reports"
      rc=$?
    fi
    line=$(grep -E '^[a-z_]+_test: [0-9]+ passed, 0 failed' "$log" | tail -n 1)
    errors=$(grep -E 'ERROR SUMMARY|RACECHECK SUMMARY' "$log" | tail -n 1 | sed 's/=* *//')
    if [ $rc = 0 ] && [ -n "$line" ] && [ -n "$errors" ] && ! [[ "$line" =~ :\ 0\ passed ]]; then
      passed=$((passed + 1))
    else
      failed=$((failed + 1))
      echo "FAILED $tool $run: exit status $rc (124: ran past $limit s)"
      tail -n 30 "$log"
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
count_of() { sed -nE "s/.*\\b([0-9]+) $1.*/\\1/p" <<<"$2"; } # count_of word line
pytest_part() { # pytest_part file
  local log
  log=$(TQKV_LIBRARY=$out/libtqkv.so.0 limited "$python" -m pytest -q -rs -p no:cacheprovider "$1" 2>&1)
  local rc=$? last p f e s
  echo "$log"
  last=$(grep -E '[0-9]+ (passed|failed|skipped|error)' <<<"$log" | tail -n 1)
  p=$(count_of passed "$last") f=$(count_of failed "$last")
  e=$(count_of 'errors?' "$last") s=$(count_of skipped "$last")
  f=$((${f:-0} + ${e:-0}))
  # 5: all was skipped, with reasons
  [ $rc = 0 ] || [ $f -gt 0 ] || { [ $rc = 5 ] && [ "${s:-0}" -gt 0 ]; } || f=1
  echo "checks: ${p:-0} passed, $f failed, ${s:-0} skipped"
}
# shellcheck disable=SC2086
part() {
  case $1 in
    resources)
      "$python" tests/gpu/check_resources.py --list "$out/kernels.log" ;;
    append | attend | backend | calibration | conformance | faults | graph | growth | latent | layers | \
      limits | modes | move | once | paged | products | state | vectors)
      limited "$out/${1}_test" $quick ;;
    python) pytest_part tests/gpu/test_python_torch.py ;;
    golden) pytest_part tests/gpu/test_golden_torch.py ;;
    torch) TQKV_TEST_DEVICE=cuda XDG_CACHE_HOME=$out/cache pytest_part tests/torch ;;
    hf) TQKV_TEST_DEVICE=cuda pytest_part tests/hf ;;
    vllm)
      if [ -d "${TQKV_VLLM_FILES:-}" ]; then
        TQKV_TEST_DEVICE=cuda PYTHONPATH=$TQKV_VLLM_FILES pytest_part tests/vllm/test_metadata.py
      else
        printf 'SKIPPED: TQKV_VLLM_FILES names no folder\nchecks: 0 passed, 0 failed, 1 skipped\n'
      fi
      ;;
    nccl) pytest_part tests/gpu/test_nccl.py ;;
    memcheck | initcheck | synccheck)
      sanitizer "$1" 150 "backend --small" "append --small" "attend --small" "graph --small" \
        "latent --small" "paged --small" "paged --latent" ;;
    racecheck)
      sanitizer racecheck 150 "append --tiny" "backend --small" "attend --tiny" "paged --tiny" \
        "latent --tiny"
      ;;
    validate)
      TQKV_LIBRARY=$out/libtqkv.so.0 PYTHONPATH=bindings/python limited "$python" -m tqkv.validate \
        ${quick} --device cuda --only rotations,decode --json "$out/validate.json"
      "$python" -c 'import collections, json, sys
verdicts = collections.Counter(row["verdict"] for row in json.load(open(sys.argv[1]))["rows"])
print("checks: %d passed, %d failed, %d skipped" % tuple(verdicts[x] for x in ("pass", "FAIL", "skipped")))' \
        "$out/validate.json"
      ;;
    eval)
      rm -rf "$out/eval"
      TQKV_LIBRARY=$out/libtqkv.so.0 PYTHONPATH=bindings/python limited "$python" -m tqkv.eval release \
        --model constructed --device cuda ${quick:---full} --out "$out/eval"
      "$python" -c 'import json, sys
model = json.load(open(sys.argv[1]))["models"]["constructed"]
holds = [check["holds"] for check in model["controls"] + model["gates"]]
print(f"checks: {sum(holds)} passed, {len(holds) - sum(holds)} failed, 0 skipped")' "$out/eval/report.json"
      ;;
    bench)
      TQKV_LIBRARY=$out/libtqkv.so.0 limited "$python" tests/bench/gpu/bench.py --cases $bench_cases \
        --json "$out/bench.json"
      ;;
  esac
}
start() { # start part : in the background
  local begin=$SECONDS
  {
    if needs_library "$1" && [ ! -f "$out/libtqkv.so.0" ]; then
      printf 'SKIPPED: %s was not built\nchecks: 0 passed, 0 failed, 1 skipped\n' "$out/libtqkv.so.0" \
        >"$logs/$1.log"
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
    printf '%-12s %9d passed %4d failed %4d skipped %5d s   %s\n' "$1" "$p" "$f" "$s" "$seconds" \
      "${about[$1]}"
    grep -E '^ *SKIPPED' "$logs/$1.log" | sort -u | head -n 12 | sed 's/^ */   | /'
    if [ "$f" != 0 ]; then
      echo "   exit status $rc; $logs/$1.log ends:"
      { grep -E '^FAILED' "$logs/$1.log" | head -n 12; tail -n 25 "$logs/$1.log"; } | cut -c1-400 |
        sed 's/^/   | /'
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
  for part in $parts_asked; do
    wanted "$part" && { start "$part"; wait; chosen+=" $part"; }
  done
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
