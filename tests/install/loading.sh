#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# loading.sh LIBRARY [--cuda]: compiles and runs dlopen_cycles.c against a built library; with --cuda
# no_driver.c.
set -uo pipefail
library=$(readlink -f "$1")
cd "$(dirname "$0")/../.."
program=dlopen_cycles
[ "${2:-}" = --cuda ] && program=no_driver
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
gcc -std=gnu99 -Wall -Wextra -Werror -Iinclude "tests/install/$program.c" -o "$work/$program" -ldl || exit 1
timeout 300 "$work/$program" "$library"
