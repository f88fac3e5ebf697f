#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Tests of the Go package.   run_tests.sh LIBRARY
#
# LIBRARY is libtqkv.so (or .so.0): opened at run time by the first half of the tests, linked through pkg-config by the second. Prints "ok - x", "not ok - x: why"
# and "skip - x: why" lines, and the counts at the end; exit status 0 only if something passed and nothing failed. Needs go and a C compiler, no network.
# TQKV_GO_QUICK=1 leaves out the race detector and the strict check of pointers.
set -uo pipefail
library=${1:?usage: run_tests.sh LIBRARY}
[ -f "$library" ] || { echo "$library: no such file"; exit 2; }
library=$(cd "$(dirname "$library")" && pwd)/$(basename "$library")
cd "$(dirname "$0")" || exit 1
repository=$(cd ../.. && pwd)
export GOFLAGS=-mod=mod GOPROXY=off GOTOOLCHAIN=local
passed=0 failed=0 skipped=0
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

finish() {
  echo "go: $passed passed, $failed failed, $skipped skipped"
  [ "$failed" = 0 ] && [ "$passed" -gt 0 ]
  exit
}
ok() { passed=$((passed + 1)) && echo "ok - go $1"; }
not_ok() { # name log
  failed=$((failed + 1))
  echo "not ok - go $1:"
  tail -n 40 "$2" | sed 's/^/    /'
}
skip() {
  skipped=$((skipped + 1))
  echo "skip - go $1: $2"
}
check() {
  local name=$1
  shift
  if "$@" >"$scratch/log" 2>&1; then ok "$name"; else not_ok "$name" "$scratch/log"; fi
}
# run_go_tests name go-test-argument... : every single test and case counts, but not the tests that only hold others.
run_go_tests() {
  local name=$1 rc p f s
  shift
  go test -count=1 -v "$@" . >"$scratch/tests" 2>&1
  rc=$?
  sed -nE "s/^ *--- PASS: ([^ ]+) .*/ok - go $name: \1/p" "$scratch/tests" | grep -v ': TestContract$' >"$scratch/ok"
  cat "$scratch/ok"
  p=$(wc -l <"$scratch/ok")
  f=$(grep -cE '^ *--- FAIL: ' "$scratch/tests")
  s=$(grep -cE '^ *--- SKIP: ' "$scratch/tests")
  if [ "$f" = 0 ] && { [ "$rc" != 0 ] || [ "$p" = 0 ]; }; then f=1; fi
  passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
  if [ "$s" != 0 ]; then grep -A1 -E '^ *--- SKIP: ' "$scratch/tests" | sed -E "s/^ *--- SKIP: /skip - go $name: /"; fi
  if [ "$f" != 0 ]; then
    echo "not ok - go $name: $f failed, exit status $rc"
    grep -vE '^(=== |ok - | *--- PASS)' "$scratch/tests" | head -n 60 | sed 's/^/    /'
  fi
}
example() {
  local name=$1
  shift
  if go run "$@" ./examples/decode_loop >"$scratch/out" 2>"$scratch/log" && diff "$repository/packaging/smoke/decode_loop.txt" "$scratch/out" >>"$scratch/log"; then
    ok "$name"
  else
    not_ok "$name" "$scratch/log"
  fi
}
formatted() { [ -z "$(gofmt -l . | tee /dev/stderr)" ]; }
# The files of a tagged module: copied out of the repository, used by another module.
module_by_itself() {
  local copy=$scratch/module user=$scratch/user path
  path=$(sed -n 's/^module //p' go.mod)
  mkdir -p "$copy" "$user"
  cp ./*.go ./*.c ./*.h go.mod "$copy"
  printf 'module example\n\ngo 1.24\n\nrequire %s v0.0.0\n\nreplace %s => %s\n' "$path" "$path" "$copy" >"$user/go.mod"
  cp examples/decode_loop/main.go "$user"
  (cd "$user" && go run .) | diff "$repository/packaging/smoke/decode_loop.txt" -
}

if ! command -v go >/dev/null 2>&1; then
  skip everything "go is not installed"
  finish
fi
if ! command -v "$(go env CC)" >/dev/null 2>&1 || [ "$(go env CGO_ENABLED)" != 1 ]; then
  skip everything "cgo needs a C compiler"
  finish
fi
if ! go list . >"$scratch/log" 2>&1; then
  skip everything "$(tail -n 1 "$scratch/log")"
  finish
fi
check "formatted" formatted
check "vet" go vet ./...

export TQKV_LIBRARY=$library
run_go_tests "opened"
example "example decode_loop, opened"
check "the module is complete by itself" module_by_itself
if [ "${TQKV_GO_QUICK:-0}" = 1 ]; then
  skip "race detector, strict pointer check" "TQKV_GO_QUICK=1"
else
  run_go_tests "race detector" -race
  GOEXPERIMENT=cgocheck2 run_go_tests "strict pointer check"
fi
unset TQKV_LIBRARY

# Linked: a pkg-config module as an installation has it, around the library in hand.
if ! command -v pkg-config >/dev/null 2>&1; then
  skip "linked" "pkg-config is not installed"
  finish
fi
mkdir -p "$scratch/lib"
ln -s "$library" "$scratch/lib/libtqkv.so"
ln -s "$library" "$scratch/lib/libtqkv.so.0"
version=$(sed -nE 's/^const Version = "(.*)"/\1/p' types.go)
printf 'Name: tqkv\nDescription: tqkv\nVersion: %s\nLibs: -L%s -ltqkv\nCflags: -I%s\n' "$version" "$scratch/lib" "$repository/include" >"$scratch/lib/tqkv.pc"
export PKG_CONFIG_PATH=$scratch/lib LD_LIBRARY_PATH=$scratch/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
check "vet, linked" go vet -tags tqkv_link ./...
run_go_tests "linked" -tags tqkv_link
example "example decode_loop, linked" -tags tqkv_link
finish
