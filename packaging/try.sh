#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# From a fresh clone to the main job: builds the library and the program tqkv into build/try and evaluates a
# bundled slice of a real KV cache. Root installs missing Debian packages (TQKV_NO_INSTALL=1: only say so).
# Further arguments go to `tqkv eval`.
set -euo pipefail
cd "$(dirname "$0")/.."
. packaging/deps.sh
trap 'rm -f "$tq_log"' EXIT

step() { printf '\n== %s\n' "$*"; }
fail() {
  printf '\ntry.sh: %s\n' "$*" >&2
  exit 1
}

step "1/3 tools and libraries"
# shellcheck disable=SC2086
tq_install_missing $tq_needs_build $tq_needs_tool || fail "install the packages above, then run this again."
echo "$(g++ --version | head -n 1); $(cmake --version | head -n 1)"

step "2/3 build into build/try (a few minutes at the first time)"
start=$SECONDS
tq_cmake_build build/try release -DTQ_BUILD_TOOL=ON -DTQ_CUDA="${TQ_CUDA:-OFF}" ||
  fail "the build failed; see above."
echo "built in $((SECONDS - start)) s"

step "3/3 the main job"
build/try/tqkv info
echo
build/try/tqkv eval tests/data/kv_slice.safetensors "$@" || fail "tqkv eval failed; see above."
cat <<'TEXT'

That was a real model's keys and values, kept at the widths shown, judged against exact attention in float64.
Next: build/try/tqkv eval --help, README.md (Python and C in 20 lines each), tests/run.sh (all tests).
TEXT
