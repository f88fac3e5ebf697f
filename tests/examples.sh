#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# examples.sh BUILD_DIR: the decode loop in C, Python, Rust and Go, each against an installation of
# BUILD_DIR's library as a user has it, found through its pkg-config file when the program is built, or
# through the loader when it runs. All must print packaging/smoke/decode_loop.txt. And what engines do: a loop
# over rows of many sequences in C, tensors by their addresses in Rust, a server in Go, which check
# themselves. Prints "ok - ", "not ok - ", "skip - " lines.
set -uo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
. tests/install/checks.sh
if ! DESTDIR=$work/stage cmake --install "$1" --prefix /opt/tqkv >"$work/install.log" 2>&1; then
  cat "$work/install.log"
  exit 1
fi
prefix=$work/stage/opt/tqkv
PKG_CONFIG_PATH=$(dirname "$(find "$prefix" -name tqkv.pc)")
LD_LIBRARY_PATH=$(dirname "$PKG_CONFIG_PATH")${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export PKG_CONFIG_PATH LD_LIBRARY_PATH
unset TQKV_LIBRARY
prints() { # prints command... : what it prints is what the C program shall print
  "$@" >"$work/out" || return 1
  diff packaging/smoke/decode_loop.txt "$work/out"
}
c_example() {
  # shellcheck disable=SC2046
  "$1" -std="$2" -Wall -Wextra -pedantic -Werror packaging/smoke/decode_loop.c \
    $(pkg-config --cflags --libs tqkv) -lm -o "$work/decode_loop" && prints "$work/decode_loop"
}
check "C" c_example gcc c99
if command -v clang >/dev/null; then
  check "C, clang" c_example clang c17
else
  echo "skip - C, clang: clang is not installed"
fi
engine_loop() {
  # shellcheck disable=SC2046
  gcc -std=c99 -Wall -Wextra -pedantic -Werror packaging/smoke/engine_loop.c \
    $(pkg-config --cflags --libs tqkv) -o "$work/engine_loop" &&
    same "$("$work/engine_loop")" "4 answers of 20 tokens to one prompt, as alone: 4"
}
check "C, an engine's loop" engine_loop
state_example() { # state_example name: in C11
  # shellcheck disable=SC2046
  gcc -std=c11 -Wall -Wextra -pedantic -Werror "packaging/smoke/$1.c" $(pkg-config --cflags --libs tqkv) \
    -o "$work/$1"
}
# The first run computes and saves, the second loads: the same answer.
twice() {
  local first second
  first=$("$@" "$work/prompt.$RANDOM") && second=$("$@" "$work"/prompt.*) && rm "$work"/prompt.* &&
    same "$(head -n 1 <<<"$first") $(head -n 1 <<<"$second")" "computed and saved loaded" &&
    same "$(tail -n 1 <<<"$second")" "$(tail -n 1 <<<"$first")"
}
python_example() {
  env PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=bindings/python python3 "bindings/python/examples/$1.py" "${@:2}"
}
as_alone="4 requests, preempted: yes, answers as alone: 4"
preempted() { same "$("$@")" "$as_alone"; }
check "C, a prompt cache on disk" eval 'state_example prompt_cache && twice "$work/prompt_cache"'
check "C, preemption to host memory" eval 'state_example preemption && preempted "$work/preemption"'
check "Python, a prompt cache on disk" twice python_example prompt_cache
check "Python, preemption to host memory" preempted python_example preemption
check "Python, prefill in one process, decode in another" \
  same "$(python_example kv_transfer)" "200 tokens of 4 layers moved, the same bits: yes"
check "Python" prints env PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=bindings/python \
  python3 bindings/python/examples/decode_loop.py

cargo_run() { # cargo_run target-suffix option...
  (cd bindings/rust && CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-../../build/rust}$1 \
    cargo run -q --locked -p tqkv "${@:2}" --example decode_loop)
}
rust_ready() {
  (cd bindings/rust && { cargo fetch -q --locked || cargo metadata -q --locked --format-version 1; }) \
    >"$work/log" 2>&1
}
if ! command -v cargo >/dev/null; then
  echo "skip - Rust: cargo is not installed"
elif ! rust_ready; then
  echo "skip - Rust: the crates cannot be fetched: $(grep -v '^ *$' "$work/log" | tail -n 1)"
else
  check "Rust, opened at run time" prints cargo_run ""
  check "Rust, linked" prints cargo_run /link --no-default-features --features link
  raw_pointers() {
    same "$(cd bindings/rust && CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-../../build/rust} \
      cargo run -q --locked -p tqkv --example raw_pointers)" \
      "107 tokens by pointers and strides, the bits of slices: true"
  }
  check "Rust, tensors of another framework by their addresses" raw_pointers
fi

export GOFLAGS=-mod=mod GOPROXY=off GOTOOLCHAIN=local
go_run() { (cd bindings/go && go run "$@" ./examples/decode_loop); }
if ! command -v go >/dev/null; then
  echo "skip - Go: go is not installed"
elif ! (cd bindings/go && go list .) >"$work/log" 2>&1; then
  echo "skip - Go: $(tail -n 1 "$work/log")"
else
  check "Go, opened at run time" prints go_run
  check "Go, a server" sh -c 'cd bindings/go && go test -count=1 ./examples/server'
  # Go keeps what pkg-config said in its build cache and does not see that it changed (golang/go#24544). It
  # does see these flags, which change nothing else.
  CGO_LDFLAGS="$(go env CGO_LDFLAGS) -Wl,-rpath-link,$(dirname "$PKG_CONFIG_PATH")"
  export CGO_LDFLAGS
  check "Go, linked" prints go_run -tags tqkv_link
fi
exit "$bad"
