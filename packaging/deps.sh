# SPDX-License-Identifier: Apache-2.0
# What tqkv needs to be built and tested, and how to get it; sourced by packaging/try.sh and tests/run.sh.
# bash.
#
# Needs are tested by what they give (a command, a header), not by package names, so that any distribution
# will do; only the cure is Debian's. Root installs what is missing unless TQKV_NO_INSTALL=1; anyone else is
# told the command. Python packages go into a virtual environment in the user's cache, never into the system
# or the clone.

tq_cache=${XDG_CACHE_HOME:-$HOME/.cache}/tqkv

# probe -> Debian package. header probes run the C++ preprocessor.
tq_needs_build='cmd:g++=g++ cmd:cmake=cmake cmd:ninja|make=ninja-build header:hwy/highway.h=libhwy-dev
  header:xxhash.h=libxxhash-dev'
tq_needs_tool='header:CLI/CLI.hpp=libcli11-dev header:nlohmann/json.hpp=nlohmann-json3-dev'
tq_needs_tests='header:gtest/gtest.h=libgtest-dev header:benchmark/benchmark.h=libbenchmark-dev
  cmd:pkg-config=pkg-config cmd:python3=python3 py:ensurepip=python3-venv'
tq_needs_lint='cmd:clang++=clang cmd:clang-format=clang-format cmd:clang-tidy=clang-tidy cmd:readelf=binutils
  fuzzer:clang++=libclang-rt-14-dev cmd:abidw=abigail-tools cmd:dpkg-gencontrol=dpkg-dev
  cmd:lintian=lintian cmd:debootstrap=debootstrap cmd:ccache=ccache'

tq_has() { # tq_has probe
  local kind=${1%%:*} what=${1#*:} name
  case $kind in
    cmd) for name in ${what//|/ }; do command -v "$name" >/dev/null 2>&1 && return 0; done; return 1 ;;
    header)
      command -v g++ >/dev/null 2>&1 && echo "#include <$what>" | g++ -std=c++17 -E -x c++ - >/dev/null 2>&1
      ;;
    fuzzer)
      echo 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }' |
        "$what" -fsanitize=fuzzer,address -x c++ - -o /dev/null >/dev/null 2>&1
      ;;
    py) command -v python3 >/dev/null 2>&1 && python3 -c "import $what" >/dev/null 2>&1 ;;
  esac
}

# tq_missing need... : prints the Debian packages that would supply what is not there.
tq_missing() {
  local need
  for need in $*; do tq_has "${need%=*}" || echo "${need#*=}"; done | sort -u | xargs
}

# tq_install_missing need... : true if everything is there afterwards. Says what it installs or lacks.
tq_install_missing() {
  local packages
  packages=$(tq_missing "$@")
  [ -z "$packages" ] && return 0
  if [ "${TQKV_NO_INSTALL:-0}" != 1 ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "Installing Debian packages: $packages"
    # shellcheck disable=SC2086
    {
      apt-get update -qq &&
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages
    } >"$tq_log" 2>&1 || tail -n 15 "$tq_log"
    packages=$(tq_missing "$@")
    [ -z "$packages" ] && return 0
  fi
  echo "Missing: $packages. On Debian 12: sudo apt-get install $packages"
  return 1
}

tq_log=$(mktemp "${TMPDIR:-/tmp}/tqkv-install.XXXXXX")

# tq_python requirements.txt : prints an interpreter that has the listed packages; fails with a text.
# TQKV_PYTHON overrides it.
tq_python() {
  if [ -n "${TQKV_PYTHON:-}" ]; then
    echo "$TQKV_PYTHON"
    return
  fi
  local venv=$tq_cache/venv stamp
  stamp=$(sha256sum "$1" | cut -c1-16)
  if [ ! -f "$venv/$stamp" ]; then
    mkdir -p "$tq_cache"
    {
      python3 -m venv --clear "$venv" &&
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$1"
    } >"$tq_log" 2>&1 || {
      echo "Python packages of $1 could not be installed into $venv:" >&2
      tail -n 5 "$tq_log" >&2
      return 1
    }
    touch "$venv/$stamp"
  fi
  echo "$venv/bin/python"
}

# tq_cmake_build dir preset [--target=name]... cmake-argument... : configures a preset of CMakePresets.json in
# a folder and builds; the log is shown when it fails.
tq_cmake_build() {
  local dir=$1 preset=$2 log=$1/build.log options=() targets=()
  shift 2
  while [[ ${1:-} == --target=* ]]; do
    targets+=(--target "${1#--target=}")
    shift
  done
  mkdir -p "$dir"
  if [ -f "$dir/Makefile" ] || ! command -v ninja >/dev/null 2>&1; then options=(-G "Unix Makefiles"); fi
  if command -v ccache >/dev/null 2>&1; then
    # Another clone of the same sources finds what this one compiled.
    export CCACHE_BASEDIR=$PWD CCACHE_NOHASHDIR=1
    options+=(-DCMAKE_{CXX,C,CUDA}_COMPILER_LAUNCHER=ccache)
  fi
  if ! {
    cmake --preset "$preset" -B "$dir" "${options[@]}" "$@" &&
      cmake --build "$dir" "${targets[@]}" -j "${TQKV_JOBS:-$(nproc)}"
  } >"$log" 2>&1; then
    grep -nE 'error|Error|FAILED' "$log" | head -n 20
    echo "... the whole log is $log, its end:"
    tail -n 25 "$log"
    return 1
  fi
}
