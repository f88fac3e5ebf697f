#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Tests of the Rust crates.   run_tests.sh LIBRARY
#
# LIBRARY is libtqkv.so (or .so.0): opened at run time by the first half of the tests, linked through
# pkg-config by the second. Prints "ok - x", "not ok - x: why" and "skip - x: why" lines, and the counts at
# the end; exit status 0 only if something passed and nothing failed. Compiles into build/rust of the
# repository, or CARGO_TARGET_DIR. Crates come from the registry that cargo is set up for; without one the
# tests are skipped. TQKV_RUST_QUICK=1 leaves out packaging, interop and Miri. With a LIBRARY built with
# AddressSanitizer the tests run under it, opened at run time, and nothing else does.
set -uo pipefail
. "$(dirname "$0")/../checks.sh" rust "${1-}"
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$repository/build/rust}
export RUST_BACKTRACE=0 CARGO_TERM_COLOR=never
# run_cargo_tests name cargo-argument... : every single test counts.
run_cargo_tests() {
  local name=$1 rc p f s
  shift
  cargo test --locked --no-fail-fast "$@" >"$scratch/tests" 2>&1
  rc=$?
  sed -nE -e "s/^test (.*) - compile fail \.\.\. ok$/ok - rust $name: \1 does not compile/p" \
    -e "s/^test (.*) - compile \.\.\. ok$/ok - rust $name: \1 compiles/p" \
    -e "/ - compile( fail)? \.\.\. /!s/^test (.*) \.\.\. ok$/ok - rust $name: \1/p" \
    -e "s/^ok - contract /ok - rust $name: contract /p" "$scratch/tests" >"$scratch/ok"
  cat "$scratch/ok"
  p=$(wc -l <"$scratch/ok")
  f=$(grep -cE '^test .* \.\.\. FAILED$|^not ok - ' "$scratch/tests")
  s=$(grep -cE '^test .* \.\.\. ignored' "$scratch/tests")
  if [ "$f" = 0 ] && { [ "$rc" != 0 ] || [ "$p" = 0 ]; }; then f=1; fi
  passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
  if [ "$f" != 0 ]; then
    echo "not ok - rust $name: $f failed, exit status $rc"
    grep -E '^not ok - |^test .*FAILED|panicked at|^error' -A3 "$scratch/tests" | head -n 60 | sed 's/^/    /'
  fi
}
packaged() { # crate file... : the list of files, and a build of the package by itself
  local crate=$1
  shift
  cargo package -q --list --allow-dirty -p "$crate" |
    grep -vE '^(\.cargo_vcs_info\.json|Cargo\.(toml|toml\.orig|lock))$' | sort |
    diff - <(printf '%s\n' "$@" | sort)
}

if ! command -v cargo >/dev/null 2>&1; then
  skip everything "cargo is not installed"
  finish
fi
if ! cargo fetch --locked >"$scratch/log" 2>&1; then
  cargo metadata --locked --format-version 1 >/dev/null 2>"$scratch/log" || {
    if grep -qiE 'lock file .* needs to be updated|--locked' "$scratch/log"; then
      not_ok "Cargo.lock is up to date" "$scratch/log"
      finish
    fi
    skip everything "the crates cannot be fetched: $(grep -v '^ *$' "$scratch/log" | tail -n 1)"
    finish
  }
fi
if [ -n "$sanitizer" ]; then
  host=$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
  # The sanitizer watches the heap of Rust too; cargo and the compilers run without it.
  export TQKV_LIBRARY=$library "CARGO_TARGET_${host}_RUNNER=env LD_PRELOAD=$sanitizer"
  run_cargo_tests "AddressSanitizer" -p tqkv
  finish
fi
if cargo fmt --version >/dev/null 2>&1; then
  check "formatted" cargo fmt --all --check
else
  skip formatted "rustfmt is not installed"
fi
if cargo clippy --version >/dev/null 2>&1; then
  check "clippy, library opened at run time" cargo clippy -q --locked --all-targets -- -D warnings
else
  skip clippy "clippy is not installed"
fi
RUSTDOCFLAGS="-D warnings" check "documentation" cargo doc -q --locked --no-deps

export TQKV_LIBRARY=$library
run_cargo_tests "opened"
example "example decode_loop, opened" cargo run -q --locked -p tqkv --example decode_loop
unset TQKV_LIBRARY

link="--no-default-features --features tqkv/link -p tqkv"
if pkg_config_module; then
  export CARGO_TARGET_DIR=$CARGO_TARGET_DIR/link
  # shellcheck disable=SC2086
  if PKG_CONFIG_PATH=/nonexistent PKG_CONFIG_LIBDIR=/nonexistent cargo build -q --locked $link \
    >"$scratch/built" 2>&1; then
    echo "it built" >>"$scratch/built"
    not_ok "linking without the library fails" "$scratch/built"
  else
    check "linking without the library fails and says what helps" grep 'TQKV_LIB_DIR' "$scratch/built"
  fi
  export PKG_CONFIG_PATH=$scratch/lib LD_LIBRARY_PATH=$scratch/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  # shellcheck disable=SC2086
  run_cargo_tests "linked" $link
  # shellcheck disable=SC2086
  example "example decode_loop, linked" cargo run -q --locked $link --example decode_loop
  check "both features at once" cargo clippy -q --locked -p tqkv --features link -- -D warnings
  CARGO_TARGET_DIR=${CARGO_TARGET_DIR%/link}
fi

if [ "${TQKV_RUST_QUICK:-0}" = 1 ]; then
  skip "packaging, interop, Miri" "TQKV_RUST_QUICK=1"
  finish
fi
# Miri cannot call a library: it runs what is Rust alone.
if cargo +nightly miri --version >/dev/null 2>&1; then
  check "Miri over what is Rust alone" env "CARGO_TARGET_DIR=$CARGO_TARGET_DIR/miri" \
    cargo +nightly miri test -q --locked -p tqkv --lib
else
  skip Miri "rustup component add --toolchain nightly miri rust-src"
fi
check "files in the package tqkv-sys" packaged tqkv-sys LICENSE README.md build.rs \
  src/{bindings,lib,load,table}.rs
check "files in the package tqkv" packaged tqkv LICENSE README.md examples/{decode_loop,raw_pointers}.rs \
  src/{attend,cache,calibration,config,error,figures,geometry,layer,lib,library,paged,paged_step,pages}.rs \
  src/{quantizer,quantizer_raw,sequence,state,state_file,state_io,tensor,travel,types}.rs
# In a folder of its own: cargo keeps what it once unpacked for a folder, by version alone.
check "the packages build by themselves" env "CARGO_TARGET_DIR=$scratch/package" \
  cargo package -q --locked --allow-dirty -p tqkv-sys -p tqkv
check "interop with cudarc compiles" cargo clippy -q --locked -p tqkv-interop-examples -- -D warnings
TQKV_LIBRARY=$library cargo run -q --locked -p tqkv-interop-examples >"$scratch/log" 2>&1
case $? in
  0) ok "interop with cudarc: GPU and CPU agree" ;;
  2) skip "interop with cudarc" "$(tail -n 1 "$scratch/log")" ;;
  *) not_ok "interop with cudarc" "$scratch/log" ;;
esac
finish
