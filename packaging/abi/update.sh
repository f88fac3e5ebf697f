#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The ABI of libtqkv.so as libabigail sees it.
#
#   packaging/abi/update.sh            writes the baseline packaging/abi/libtqkv.ARCH.xml
#   packaging/abi/update.sh --check [library...]   compares with it; "ok - ", "not ok - ", "skip - " lines
#
# The functions of tqkv.h are all defined in src/api*.cpp; compiled alone with debug information and linked
# with exports.map it has every exported symbol and the type of every argument, in seconds. Private types
# (what tq_cache points to) are dropped, so that the baseline is small and speaks of the header only. Any
# difference is a failure, additions too: the change that makes it also regenerates the baseline, adds to
# packaging/CHANGELOG.md's ABI line and, if an old program would notice, raises TQ_ABI_VERSION. No
# suppressions: the one for "a member was added at the end" also hides insertions in the middle. A given
# library (without debug information) must export the same symbols. The check also sees that abidiff objects
# to two damaged headers.
set -euo pipefail
cd "$(dirname "$0")/../.."
baseline=packaging/abi/libtqkv.$(uname -m).xml
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

describe() { # describe include-directory out.xml
  local abi
  abi=$(sed -nE 's/^#define TQ_ABI_VERSION ([0-9]+)/\1/p' "$1/tqkv.h")
  ${CXX:-g++} -std=c++17 -g -O0 -fPIC -fvisibility=hidden -fno-eliminate-unused-debug-types \
    -ffile-prefix-map="$PWD=." -ffile-prefix-map="$1=include" -DTQ_BUILDING_LIBRARY -DTQ_CUDA=0 \
    -DTQ_CUDA_ARCHS_BUILT='""' -I"$1" -Isrc -I. src/api*.cpp -shared \
    -Wl,--version-script=packaging/exports.map -Wl,-soname,"libtqkv.so.$abi" -o "$work/libtqkv.so.$abi"
  abidw --headers-dir "$1" --drop-private-types --drop-undefined-syms --exported-interfaces-only \
    --no-show-locs --no-corpus-path --no-comp-dir-path --no-elf-needed --no-write-default-sizes \
    --type-id-style hash --out-file "$2" "$work/libtqkv.so.$abi"
}
if [ "${1:-}" != --check ]; then
  describe include "$baseline"
  echo "$baseline: $(wc -c <"$baseline") bytes, $(grep -c '<function-decl' "$baseline") functions"
  exit 0
fi
shift
for command in abidw abidiff; do
  command -v "$command" >/dev/null && continue
  echo "skip - ABI: $command (abigail-tools) is not installed"
  exit 0
done
[ -f "$baseline" ] || { echo "skip - ABI: there is no $baseline"; exit 0; }
bad=0
check() { # check title command...
  local title=$1 text
  shift
  if text=$("$@" 2>&1); then
    echo "ok - $title"
  else
    printf 'not ok - %s\n%s\n' "$title" "$(head -n 40 <<<"$text")"
    bad=1
  fi
}
symbols() { nm -D --defined-only "$1" | awk '$2 != "A" { print $3 }' | sort; }
complete() {
  diff <(sed -nE 's/^\s+(tq_\w+);$/\1/p' packaging/exports.map | sort) \
    <(sed -nE "s/.*<function-decl name='(tq_\w+)'.*/\1/p" "$baseline" | sort)
}
unchanged() {
  abidiff "$baseline" "$1" && return
  echo "intended? packaging/abi/update.sh writes a new baseline; it belongs to the same change"
  return 1
}
# damaged sed-expression : a header changed by it compiles and abidiff objects.
damaged() {
  rm -rf "$work/include"
  cp -r include "$work/include"
  sed -i -zE "$1" "$work/include/tqkv.h"
  ! cmp -s include/tqkv.h "$work/include/tqkv.h" || { echo "the expression changes nothing"; return 1; }
  describe "$work/include" "$work/damaged.xml" || return 1
  ! abidiff "$baseline" "$work/damaged.xml" >/dev/null
}
check "the baseline has every function of exports.map" complete
check "src/api*.cpp compile alone" describe include "$work/now.xml"
[ "$bad" = 0 ] || exit 1
for library in "$work"/libtqkv.so.*; do symbols "$library" >"$work/symbols"; done
check "no change of symbols, arguments, structs" unchanged "$work/now.xml"
check "a changed type of a field is found" damaged 's/uint64_t rotation_seed;/int64_t rotation_seed;/'
check "two exchanged fields are found" \
  damaged 's/( *int32_t page_size;[^\n]*\n)( *uint64_t rotation_seed;[^\n]*\n)/\2\1/'
for library; do
  check "$library exports the same symbols in the same nodes" diff "$work/symbols" <(symbols "$library")
done
exit $bad
