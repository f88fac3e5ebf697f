#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The one test command: builds what is needed and runs every suite.
#
#   tests/run.sh [suite...] [^suite...] [--quick | --long] [--list]
#
# Without a suite all run; ^suite leaves one out. --quick shortens the long ones (random walks, sanitizers,
# benches). --long, for a night: random walks ten times as long, sanitizers over everything, every
# configuration and 16 orders of execution on the emulated GPU. Every suite says what it does, how long it
# took and what it skipped and why. The last line is "N passed, N failed, N skipped" over single tests; the
# exit status is 0 only if something ran and nothing failed. Builds lie in build/, with ccache if it is
# installed; TQKV_JOBS limits parallel compilation, TQKV_NO_INSTALL=1 forbids installing Debian packages,
# TQKV_PYTHON names an interpreter that has tests/requirements.txt, TQKV_FUZZ_SECONDS is how long each fuzz
# target searches (6; .ci/run asks for 60): the last suite, so that it can do with 6 after a slow run.
# TQKV_EMULATED names the one program that the suite emulate builds and runs, TQKV_TEST_TARGET what of
# build/test is built: tqkv, the library, does for suites of Python alone.
set -uo pipefail
cd "$(dirname "$0")/.."
. packaging/deps.sh
. tests/suites.sh

all_suites="tidy format header unit conformance golden reference capi contract python validate rust go layout
  model incidents traffic oom state cli models hf metadata eval distributed torch testlm symbols abi install
  deb examples readme bench cuda-compile emulate asan tsan clang-tidy fuzz"
# Run only if they are named: one installs 6 GB, the other builds every suite again with a fault in it.
demanded_suites="vllm canaries"
chosen="" refused=""
limit=1500 # seconds that one program may run
for argument in "$@"; do
  case $argument in
    --quick) export TQKV_TEST_QUICK=1 ;;
    --long) export TQKV_TEST_LONG=1 limit=36000 ;;
    --list)
      for suite in $all_suites $demanded_suites; do "about_${suite//-/_}"; done
      exit 0
      ;;
    -h | --help)
      sed -n '3,15s/^# \{0,1\}//p' tests/run.sh
      exit 0
      ;;
    ^*) refused+=" ${argument#^}" ;;
    *) chosen+=" $argument" ;;
  esac
done
for suite in $chosen $refused; do
  [[ " $(echo $all_suites $demanded_suites) " == *" $suite "* ]] || {
    echo "run.sh: no suite is called '$suite'; there are: $(echo $all_suites), on demand $demanded_suites"
    exit 2
  }
done

if [ -n "${TQKV_TEST_QUICK:-}" ] && [ -n "${TQKV_TEST_LONG:-}" ]; then
  echo "run.sh: --quick and --long exclude each other"
  exit 2
fi

passed=0 failed=0 skipped=0
out=build/results
mkdir -p "$out"
trap 'rm -f "$tq_log"' EXIT

pass() { passed=$((passed + ${1:-1})); }
fail() { # fail text
  failed=$((failed + 1))
  printf '   FAILED %s\n' "$*"
}
skip() { # skip what why
  skipped=$((skipped + 1))
  printf '   SKIPPED %s: %s\n' "$1" "${*:2}"
}
# line name passed failed skipped seconds
line() { printf '   %-52s %6d passed %3d failed %3d skipped %6d s\n' "$@"; }
# The same, added to the totals.
counted() {
  passed=$((passed + $2)) failed=$((failed + $3)) skipped=$((skipped + $4))
  line "$@"
}

# shown log: the part of a log that says why.
shown() { grep -vE '^\[( OK|       OK| RUN|----)|^$' "$1" | tail -n "${2:-40}" | sed 's/^/   | /'; }

# run_gtest name binary argument... : a GoogleTest binary; counts its tests. A crash counts as one failure.
run_gtest() {
  local name=$1 log=$out/${1//[\/ :]/_}.log start=$SECONDS p f s rc
  shift
  timeout "$limit" "$@" --gtest_brief=1 >"$log" 2>&1 </dev/null
  rc=$?
  p=$(sed -nE 's/^\[  PASSED  \] ([0-9]+) tests?\.$/\1/p' "$log" | tail -n 1)
  f=$(sed -nE 's/^\[  FAILED  \] ([0-9]+) tests?, listed below:$/\1/p' "$log" | tail -n 1)
  s=$(sed -nE 's/^\[  SKIPPED \] ([0-9]+) tests?, listed below:$/\1/p' "$log" | tail -n 1)
  : "${p:=0}" "${f:=0}" "${s:=0}"
  if [ "$rc" != 0 ] && [ "$f" = 0 ]; then
    f=1
    echo "exit status $rc" >>"$log"
  elif [ "$rc" = 0 ] && [ "$((p + s))" = 0 ]; then
    f=1
    echo "no test ran" >>"$log"
  fi
  counted "$name" "$p" "$f" "$s" $((SECONDS - start))
  grep -E '^ {4}[0-9]' "$log" | sed 's/^    /   | /' # what a test counted
  [ "$s" = 0 ] || grep -A1 'Skipped$' "$log" | head -n 6 | sed 's/^/   | /'
  [ "$f" = 0 ] || shown "$log"
}

# run_tap name command... : a script that prints "ok - x", "not ok - x", "skip - x: why" lines; counts them.
run_tap() {
  local name=$1 log=$out/${1//[\/ :]/_}.log start=$SECONDS p f s rc
  shift
  timeout "$limit" "$@" >"$log" 2>&1 </dev/null
  rc=$?
  p=$(grep -c '^ok - ' "$log")
  f=$(grep -c '^not ok - ' "$log")
  s=$(grep -c '^skip - ' "$log")
  if [ "$f" = 0 ] && { [ "$rc" != 0 ] || [ "$((p + s))" = 0 ]; }; then
    f=1
    echo "exit status $rc" >>"$log"
  fi
  counted "$name" "$p" "$f" "$s" $((SECONDS - start))
  grep '^skip - ' "$log" | sed 's/^skip - /   SKIPPED /'
  [ "$f" = 0 ] || grep -v '^ok - ' "$log" | tail -n 40 | sed 's/^/   | /'
}

# run_counted name command... : a program whose last line ends in "N passed, N failed, N skipped", as those of
# tests/gpu; what it skipped stands in "SKIPPED " lines.
run_counted() {
  local name=$1 log=$out/${1//[\/ :]/_}.log start=$SECONDS p f s rc
  shift
  timeout "$limit" "$@" >"$log" 2>&1 </dev/null
  rc=$?
  read -r p f s <<<"$(sed -nE '$s/.*: ([0-9]+) passed, ([0-9]+) failed, ([0-9]+) skipped$/\1 \2 \3/p' "$log")"
  : "${p:=0}" "${f:=0}" "${s:=0}"
  if [ "$f" = 0 ] && { [ "$rc" != 0 ] || [ "$p" = 0 ]; }; then
    f=1
    echo "exit status $rc" >>"$log"
  fi
  counted "$name" "$p" "$f" "$s" $((SECONDS - start))
  grep '^SKIPPED' "$log" | sed 's/^/   | /'
  [ "$f" = 0 ] || shown "$log"
}

# together call... : calls of the functions above, one a word, that share nothing: as many at once as there
# are processors, for programs of one thread. What they print comes in the order of the calls.
together() {
  # By the shell's own number: a suite that runs beside others deals out its own programs too.
  local call i=0 p f s files=$out/together.$BASHPID
  for call in "$@"; do
    while [ "$(jobs -rp | wc -l)" -ge "${TQKV_JOBS:-$(nproc)}" ]; do wait -n; done
    (
      passed=0 failed=0 skipped=0
      trap - EXIT
      eval "$call"
      echo "$passed $failed $skipped" >"$files.$i.counts"
    ) >"$files.$i.txt" 2>&1 </dev/null &
    i=$((i + 1))
  done
  wait
  for ((i = 0; i < $#; i++)); do
    cat "$files.$i.txt"
    p=0 f=1 s=0
    read -r p f s <"$files.$i.counts" || echo "   FAILED: it did not come to its end"
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
  done
  rm -f "$files".*
}

# run_shards name binary argument... : a GoogleTest binary, its tests dealt out to as many processes.
run_shards() {
  local n=${TQKV_JOBS:-$(nproc)} i calls=()
  for ((i = 0; i < n; i++)); do
    calls+=("run_gtest '$1, part $((i + 1)) of $n' \
      env GTEST_TOTAL_SHARDS=$n GTEST_SHARD_INDEX=$i ${*:2}")
  done
  together "${calls[@]}"
}

# run_check name command... : one check, passed if the command succeeds.
run_check() {
  local name=$1 log=$out/${1//[\/ :]/_}.log start=$SECONDS
  shift
  if timeout "$limit" "$@" >"$log" 2>&1 </dev/null; then
    counted "$name" 1 0 0 $((SECONDS - start))
  else
    counted "$name" 0 1 0 $((SECONDS - start))
    shown "$log"
  fi
}

# run_pytest name path-or-option... : in the cached environment of tests/requirements.txt, or by the
# interpreter pytest_python.
run_pytest() {
  local name=$1 log=$out/${1//[\/ :]/_}.log start=$SECONDS p f s e rc last
  shift
  [ -n "${pytest_python:-}" ] || need_python ||
    { skip "$name" "no Python environment: $python_trouble"; return; }
  timeout "$limit" "${pytest_python:-$python}" -m pytest -q -p no:cacheprovider -rs "$@" \
    >"$log" 2>&1 </dev/null
  rc=$?
  last=$(grep -E '^[=]* ?[0-9]+ (passed|failed|skipped|error)' "$log" | tail -n 1)
  p=$(sed -nE 's/.*\b([0-9]+) passed.*/\1/p' <<<"$last")
  f=$(sed -nE 's/.*\b([0-9]+) failed.*/\1/p' <<<"$last")
  e=$(sed -nE 's/.*\b([0-9]+) errors?.*/\1/p' <<<"$last")
  s=$(sed -nE 's/.*\b([0-9]+) skipped.*/\1/p' <<<"$last")
  : "${p:=0}" "${f:=0}" "${s:=0}" "${e:=0}"
  f=$((f + e))
  [ "$rc" != 0 ] && [ "$f" = 0 ] && f=1
  counted "$name" "$p" "$f" "$s" $((SECONDS - start))
  [ "$s" = 0 ] || grep '^SKIPPED' "$log" | sed 's/^/   | /'
  [ "$f" = 0 ] || tail -n 40 "$log" | sed 's/^/   | /'
}

python="" python_trouble=""
need_python() {
  [ -n "$python" ] && return 0
  fetched
  [ -n "$python_trouble" ] && return 1
  if python=$(tq_python tests/requirements.txt 2>"$out/python.log"); then return 0; fi
  python=""
  python_trouble=$(tail -n 1 "$out/python.log")
  return 1
}

# need_build name preset [--target=name]... cmake-argument... : builds a preset in build/name once a run;
# false (and one failure, once) if that fails.
declare -A built
need_build() {
  local name=$1 start=$SECONDS
  shift
  if [ -z "${built[$name]:-}" ]; then
    echo "   building build/$name ..."
    if tq_cmake_build "build/$name" "$@" >"$out/build-$name.txt" 2>&1; then
      built[$name]=ok
      echo "   built build/$name in $((SECONDS - start)) s"
    else
      built[$name]=broken
      sed 's/^/   | /' "$out/build-$name.txt"
    fi
  fi
  [ "${built[$name]}" = ok ] && return 0
  fail "not run: build/$name does not build"
  return 1
}

need_command() { # need_command what command : skips with the reason
  command -v "$2" >/dev/null 2>&1 && return 0
  skip "$1" "$2 is not installed"
  return 1
}

# Suites of one thread mostly, which share nothing but what is built and installed before them; those that
# take longest first.
side_by_side="deb install rust python go unit cli hf validate eval torch distributed reference state model
  traffic testlm examples models bench golden capi contract layout incidents oom symbols abi readme"

# take_times: sets processor_seconds to what all programs took that this shell has waited for; unlike seconds,
# hardly more on a loaded machine. Not in $(): that would be a shell of its own.
take_times() {
  local file=$out/times.$BASHPID minutes seconds more_minutes more_seconds
  times >"$file"
  read -r minutes seconds more_minutes more_seconds <<<"$(sed -n '2s/[a-z]/ /g; 2s/\.[0-9]*//gp' "$file")"
  rm -f "$file"
  processor_seconds=$((60 * (minutes + more_minutes) + seconds + more_seconds))
}

run_suite() {
  local suite=$1 p0=$passed f0=$failed s0=$skipped start=$SECONDS before
  take_times
  before=$processor_seconds
  printf '\n== %s\n' "$("about_${suite//-/_}")"
  "suite_${suite//-/_}"
  take_times
  printf -- '-- %s: %d passed, %d failed, %d skipped in %d s, of processors %d s\n' "$suite" \
    $((passed - p0)) $((failed - f0)) $((skipped - s0)) $((SECONDS - start)) \
    $((processor_seconds - before))
}

# Environments and the toolkit come from the network while the first suites compile; fetched waits for them.
fetching=""
fetch() {
  (
    trap - EXIT
    need_python && { command -v nvcc || TQKV_PYTHON=$python packaging/cuda_toolkit.sh; }
    tests/hf/environment.sh
  ) >"$out/fetch.log" 2>&1 </dev/null &
  fetching=$!
}
fetched() {
  # It is unknown if it ended while a suite waited for its own programs.
  [ -z "$fetching" ] || wait "$fetching" 2>/dev/null
  fetching=""
}

# A function, so that bash has read all of this file before the first suite starts.
run_all() {
  local suite group="" last="" calls=() began=$SECONDS
  # shellcheck disable=SC2086
  if ! tq_install_missing $tq_needs_build $tq_needs_tool $tq_needs_tests; then
    fail "missing packages"
    echo "0 passed, 1 failed, 0 skipped"
    exit 1
  fi
  # shellcheck disable=SC2086
  tq_install_missing $tq_needs_lint || echo "(the suites that need them will be skipped)"
  [ -n "$chosen" ] || fetch
  for suite in $all_suites $demanded_suites; do
    [ -n "$chosen" ] && [[ " $chosen " != *" $suite "* ]] && continue
    [ -z "$chosen" ] && [[ " $demanded_suites " == *" $suite "* ]] && continue
    [[ " $refused " == *" $suite "* ]] && continue
    if [[ " $(echo $side_by_side) " == *" $suite "* ]]; then
      group+=" $suite "
    elif [ "$suite" = fuzz ]; then
      last=$suite # it goes by the time that the others took
    else
      run_suite "$suite"
    fi
  done
  group=$(for suite in $side_by_side; do [[ $group != *" $suite "* ]] || echo "$suite"; done)
  if [ "$(wc -w <<<"$group")" -gt 1 ]; then
    printf '\n== side by side: %s\n' "$(echo $group)"
    build_test
    fetched
    need_python
    exec 3>&1
    for suite in $group; do calls+=("run_suite $suite; echo '   done: $suite' >&3"); done
    together "${calls[@]}"
  else
    for suite in $group; do run_suite "$suite"; done
  fi
  [ -z "$last" ] || run_suite "$last"

  printf '\nwhole run: %d s\n' $((SECONDS - began))
  echo "$passed passed, $failed failed, $skipped skipped"
  [ "$failed" = 0 ] && [ "$passed" -gt 0 ]
}
run_all
exit
