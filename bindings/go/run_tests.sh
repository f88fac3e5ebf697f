#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Tests of the Go package.   run_tests.sh LIBRARY
#
# LIBRARY is libtqkv.so (or .so.0): opened at run time by the first half of the tests, linked through
# pkg-config by the second. Prints "ok - x", "not ok - x: why" and "skip - x: why" lines, and the counts at
# the end; exit status 0 only if something passed and nothing failed. Needs go and a C compiler, no network.
# TQKV_GO_QUICK=1 leaves out the race detector and the strict check of pointers. With a LIBRARY built with
# AddressSanitizer the tests run under it, opened at run time, and nothing else does.
set -uo pipefail
. "$(dirname "$0")/../checks.sh" go "${1-}"
export GOFLAGS=-mod=mod GOPROXY=off GOTOOLCHAIN=local
# run_go_tests name go-test-argument... : every single test and case counts, but not the tests that only hold
# others.
run_go_tests() {
  local name=$1 rc p f s
  shift
  go test -count=1 -v "$@" . >"$scratch/tests" 2>&1
  rc=$?
  sed -nE "s/^ *--- PASS: ([^ ]+) .*/ok - go $name: \1/p" "$scratch/tests" |
    grep -v ': TestContract$' >"$scratch/ok"
  cat "$scratch/ok"
  p=$(wc -l <"$scratch/ok")
  f=$(grep -cE '^ *--- FAIL: ' "$scratch/tests")
  s=$(grep -cE '^ *--- SKIP: ' "$scratch/tests")
  if [ "$f" = 0 ] && { [ "$rc" != 0 ] || [ "$p" = 0 ]; }; then f=1; fi
  passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
  if [ "$s" != 0 ]; then
    grep -A1 -E '^ *--- SKIP: ' "$scratch/tests" | sed -E "s/^ *--- SKIP: /skip - go $name: /"
  fi
  if [ "$f" != 0 ]; then
    echo "not ok - go $name: $f failed, exit status $rc"
    grep -vE '^(=== |ok - | *--- PASS)' "$scratch/tests" | head -n 60 | sed 's/^/    /'
  fi
}
formatted() { [ -z "$(gofmt -l . | tee /dev/stderr)" ]; }
# The files of a tagged module: copied out of the repository, used by another module.
module_by_itself() {
  local copy=$scratch/module user=$scratch/user path
  path=$(sed -n 's/^module //p' go.mod)
  mkdir -p "$copy" "$user"
  cp ./*.go ./*.c ./*.h go.mod "$copy"
  printf '%s\n' "module example" "go 1.24" "require $path v0.0.0" "replace $path => $copy" >"$user/go.mod"
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
if [ -n "$sanitizer" ]; then
  export TQKV_LIBRARY=$library # the sanitizer watches the heap of Go too
  run_go_tests "AddressSanitizer" -asan -exec "env LD_PRELOAD=$sanitizer"
  finish
fi
check "formatted" formatted
check "vet" go vet ./...

export TQKV_LIBRARY=$library
run_go_tests "opened"
example "example decode_loop, opened" go run ./examples/decode_loop
check "the module is complete by itself" module_by_itself
if [ "${TQKV_GO_QUICK:-0}" = 1 ]; then
  skip "race detector, strict pointer check" "TQKV_GO_QUICK=1"
else
  run_go_tests "race detector" -race
  GOEXPERIMENT=cgocheck2 run_go_tests "strict pointer check"
fi
unset TQKV_LIBRARY

pkg_config_module || finish
export PKG_CONFIG_PATH=$scratch/lib LD_LIBRARY_PATH=$scratch/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
# Go keeps what pkg-config said in its build cache and does not see that it changed (golang/go#24544). It does
# see these flags, which name this run's folder and change nothing else.
CGO_LDFLAGS="$(go env CGO_LDFLAGS) -Wl,-rpath-link,$scratch/lib"
export CGO_LDFLAGS
check "vet, linked" go vet -tags tqkv_link ./...
run_go_tests "linked" -tags tqkv_link
example "example decode_loop, linked" go run -tags tqkv_link ./examples/decode_loop
finish
