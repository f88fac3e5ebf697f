#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# tqkv.h alone, included twice, in every language version with warnings as errors: C99 C11 C17 C++11 C++17
# C++20, gcc and clang.
set -uo pipefail
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/use.c" <<'C'
#include "tqkv.h"
#include "tqkv.h"
int use(void);
int use(void) {
  tq_cache_config config;
  return (int)sizeof(config) + (int)tq_cache_config_init(&config) + TQ_ABI_VERSION;
}
C
cp "$work/use.c" "$work/use.cpp"
bad=0
for pair in gcc:g++ clang:clang++; do
  for std in c99 c11 c17 c++11 c++17 c++20; do
    case $std in c++*) compiler=${pair#*:} file=use.cpp ;; *) compiler=${pair%:*} file=use.c ;; esac
    name="$compiler -std=$std"
    if ! command -v "$compiler" >/dev/null; then
      echo "skip - $name: $compiler is not installed"
      continue
    fi
    extra=()
    # Everything clang knows, less what objects to any C struct with padding or to C-style code in C++.
    [ "${pair%:*}" = clang ] && extra=(-Weverything -Wno-padded -Wno-c++98-compat-pedantic -Wno-old-style-cast
      -Wno-unsafe-buffer-usage -Wno-unknown-warning-option -Wno-declaration-after-statement
      -Wno-missing-prototypes)
    if text=$("$compiler" -std=$std -Wall -Wextra -pedantic -Wstrict-aliasing -Werror "${extra[@]}" \
      -nostdinc++ -Iinclude -fsyntax-only "$work/$file" 2>&1); then
      echo "ok - $name"
    else
      echo "not ok - $name"
      echo "$text" | head -n 12
      bad=1
    fi
  done
done
exit $bad
