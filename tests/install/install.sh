#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# install.sh BUILD_DIR: stages `cmake --install` of a finished build, moves the tree, and builds the three
# consumers of packaging/smoke against it: C through pkg-config, C++ through find_package, C through dlopen.
# Then a second build from a copy of the sources elsewhere, with an absolute libdir: its pkg-config file must
# hold whole paths, and its library must be the same bytes.
set -uo pipefail
cd "$(dirname "$0")/../.."
build=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
. tests/install/checks.sh
version=$(sed -nE 's/^#define TQ_VERSION_(MAJOR|MINOR|PATCH) ([0-9]+)/\2/p' include/tqkv.h | paste -sd.)

if ! DESTDIR=$work/stage cmake --install "$build" --prefix /usr/local >"$work/install.log" 2>&1; then
  cat "$work/install.log"
  echo "not ok - cmake --install"
  exit 1
fi
mv "$work/stage/usr/local" "$work/moved"
libdir=$(dirname "$(find "$work/moved" -name "libtqkv.so.$version")")
first_library=$libdir/libtqkv.so.$version
export PKG_CONFIG_PATH=$libdir/pkgconfig

expected="bin/tqkv include/tqkv.h libtqkv.so libtqkv.so.0 libtqkv.so.$version tqkv.pc tqkvConfig.cmake
  tqkvConfigVersion.cmake tqkvTargets.cmake LICENSE THIRD_PARTY.md"
present() {
  local name found
  for name in $expected; do
    [ -n "$(find "$work/moved" -path "*/$name")" ] || { echo "missing: $name"; return 1; }
  done
  found=$(find "$work/moved" -name '*.a' -o -name 'gtest*' -o -name '*_test*')
  [ -z "$found" ] || { echo "of the tests: $found"; return 1; }
}
check "all files are installed, nothing of the tests" present
check "one version number: pkg-config" same "$(pkg-config --modversion tqkv)" "$version"
variable() { pkg-config --variable="$1" tqkv; }
check "pkg-config finds a moved prefix" same "$(readlink -f "$(variable includedir)")" \
  "$(readlink -f "$work/moved/include")"
check "pkg-config variables abi_version, cuda_enabled" same \
  "$(variable abi_version) $(variable cuda_enabled)" "0 0"
no_build_path() { ! grep -rlF "$PWD" "$work/moved"; }
check "no file holds the build path" no_build_path
tool_runs() {
  local tool=$work/moved/bin/tqkv
  "$tool" info && same "$("$tool" --version | grep -oE '[0-9]+\.[0-9]+\.[0-9]+' | head -n 1)" "$version"
}
check "the installed program finds its library and says the version" tool_runs

c_program() {
  # shellcheck disable=SC2046
  gcc -std=c99 -Wall -Wextra -pedantic -Werror packaging/smoke/pkgconfig/main.c \
    $(pkg-config --cflags --libs tqkv) -lm -o "$work/c_program" && LD_LIBRARY_PATH=$libdir "$work/c_program"
}
check "C program through pkg-config" c_program
cxx_program() {
  cmake -S packaging/smoke/cmake -B "$work/consumer" -DCMAKE_PREFIX_PATH="$work/moved" &&
    cmake --build "$work/consumer" && "$work/consumer/consumer"
}
check "C++ program through find_package" cxx_program
find_version() { # find_version version expected-status
  mkdir -p "$work/find"
  printf '%s\n' "cmake_minimum_required(VERSION 3.24)" "project(x LANGUAGES NONE)" \
    "find_package(tqkv $1 REQUIRED)" >"$work/find/CMakeLists.txt"
  rm -rf "$work/find/b"
  cmake -S "$work/find" -B "$work/find/b" -DCMAKE_PREFIX_PATH="$work/moved" >"$work/find.log" 2>&1
  same "$?" "$2"
}
check "find_package accepts ${version%.*}" find_version "${version%.*}" 0
check "find_package refuses another minor version" find_version 0.9 1
dlopen_program() {
  gcc -std=gnu99 -Wall -Wextra -Werror -I"$work/moved/include" packaging/smoke/dlopen/main.c -lm \
    -o "$work/dlopen_program" && "$work/dlopen_program" "$libdir/libtqkv.so.0"
}
check "C program through dlopen" dlopen_program
dlopen_missing() {
  local text
  text=$("$work/dlopen_program" /nowhere/libtqkv.so.0 2>&1)
  same "$?" 2 && [[ $text == */nowhere/libtqkv.so.0* ]]
}
check "a missing library is named" dlopen_missing

# A second build: other folder, absolute libdir.
mkdir "$work/elsewhere"
cp -r CMakeLists.txt LICENSE include src cuda codebooks packaging "$work/elsewhere/"
second_build() {
  local generator=()
  command -v ninja >/dev/null && generator=(-G Ninja)
  cmake -S "$work/elsewhere" -B "$work/elsewhere/b" "${generator[@]}" -DCMAKE_BUILD_TYPE=Release \
    -DTQ_CUDA=OFF -DTQ_BUILD_TOOL=OFF -DCMAKE_INSTALL_PREFIX="$work/abs" \
    -DCMAKE_INSTALL_LIBDIR="$work/abs-lib" &&
    cmake --build "$work/elsewhere/b" -j "${TQKV_JOBS:-$(nproc)}" && cmake --install "$work/elsewhere/b"
}
check "a second build elsewhere, with an absolute libdir" second_build
export PKG_CONFIG_PATH=$work/abs-lib/pkgconfig
check "its pkg-config file holds whole paths" same "$(pkg-config --libs --cflags tqkv | xargs)" \
  "-I$work/abs/include -L$work/abs-lib -ltqkv"
libdir=$work/abs-lib
check "C program through that pkg-config file" c_program
check "both builds are the same bytes" cmp "$first_library" "$work/abs-lib/libtqkv.so.$version"
exit $bad
