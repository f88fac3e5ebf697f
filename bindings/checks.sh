# SPDX-License-Identifier: Apache-2.0
# What the test scripts of the bindings share: . checks.sh LANGUAGE LIBRARY. Goes to the script's folder;
# makes $library absolute and $repository and $scratch known; ok, not_ok, skip, check and example print "ok -
# LANGUAGE x" lines and count; finish prints the counts and exits. bash, sourced.
language=$1 library=${2:?usage: run_tests.sh LIBRARY}
[ -f "$library" ] || { echo "$library: no such file"; exit 2; }
library=$(cd "$(dirname "$library")" && pwd)/$(basename "$library")
cd "$(dirname "$0")" || exit 1
repository=$(cd ../.. && pwd)
passed=0 failed=0 skipped=0
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

finish() {
  echo "$language: $passed passed, $failed failed, $skipped skipped"
  [ "$failed" = 0 ] && [ "$passed" -gt 0 ]
  exit
}
ok() { passed=$((passed + 1)) && echo "ok - $language $1"; }
not_ok() { # name log
  failed=$((failed + 1))
  echo "not ok - $language $1:"
  tail -n 40 "$2" | sed 's/^/    /'
}
skip() {
  skipped=$((skipped + 1))
  echo "skip - $language $1: $2"
}
# check name command... : one check.
check() {
  local name=$1
  shift
  if "$@" >"$scratch/log" 2>&1; then ok "$name"; else not_ok "$name" "$scratch/log"; fi
}
# pkg_config_module: a pkg-config module as an installation has it, around the library in hand, in
# $scratch/lib; false if there is no pkg-config.
pkg_config_module() {
  command -v pkg-config >/dev/null 2>&1 || { skip "linked" "pkg-config is not installed"; return 1; }
  local version
  version=$(sed -nE 's/^#define TQ_VERSION_(MAJOR|MINOR|PATCH) //p' "$repository/include/tqkv.h" | paste -sd.)
  mkdir -p "$scratch/lib"
  ln -s "$library" "$scratch/lib/libtqkv.so"
  ln -s "$library" "$scratch/lib/libtqkv.so.0"
  printf '%s\n' "Name: tqkv" "Description: tqkv" "Version: $version" "Libs: -L$scratch/lib -ltqkv" \
    "Cflags: -I$repository/include" >"$scratch/lib/tqkv.pc"
}
# What a program must preload if the library in hand was built with AddressSanitizer, else nothing: its
# runtime, which looks for that of C++ when it starts.
sanitizer=$(ldd "$library" | sed -nE 's/^\s*lib(asan|stdc\+\+)\.\S* => (\S+) .*/\1 \2/p' | sort |
  cut -d' ' -f2 | paste -sd:)
[[ $sanitizer == *asan* ]] || sanitizer=""
# example name command... : prints what the C program prints.
example() {
  local name=$1
  shift
  if "$@" >"$scratch/out" 2>"$scratch/log" &&
    diff "$repository/packaging/smoke/decode_loop.txt" "$scratch/out" >>"$scratch/log"; then
    ok "$name"
  else
    not_ok "$name" "$scratch/log"
  fi
}
