#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# deb.sh BUILD_DIR: the Debian packages of packaging/deb, built in BUILD_DIR: their contents and control
# files, lintian, and installation, use, removal and purge in a root that holds a minimal Debian, a C compiler
# and pkg-config, nothing else. Prints "ok - ", "not ok - ", "skip - " lines.
#
# The root is made by debootstrap from the mirror that apt uses here, once: an archive of it stays in the
# user's cache. Needs root; without it, or without the mirror, installation and removal are tested in an empty
# root of dpkg's, where nothing can be run.
set -uo pipefail
cd "$(dirname "$0")/../.."
. packaging/deps.sh
build=$1
work=$(mktemp -d)
trap 'rm -rf "$work" "$tq_log"' EXIT
. tests/install/checks.sh
version=$(sed -nE 's/^#define TQ_VERSION_(MAJOR|MINOR|PATCH) ([0-9]+)/\2/p' include/tqkv.h | paste -sd.)
for command in dpkg-deb dpkg-gencontrol; do
  command -v "$command" >/dev/null || { echo "skip - Debian packages: $command is not installed"; exit 0; }
done
arch=$(dpkg --print-architecture) multiarch=$(dpkg-architecture -qDEB_HOST_MULTIARCH)
packages="libtqkv0 libtqkv-dev tqkv-tools"

check "three packages are built" packaging/deb/build.sh "$build" "$work/debs"
[ "$bad" = 0 ] || exit 1
deb() { echo "$work/debs/$1_${version}_$arch.deb"; }
for package in $packages; do
  [ -f "$(deb "$package")" ] || { echo "not ok - $(basename "$(deb "$package")") is missing"; exit 1; }
  dpkg-deb -R "$(deb "$package")" "$work/$package"
done
field() { dpkg-deb -f "$(deb "$1")" "$2"; }
contents() { (cd "$work/$1" && find usr ! -type d | LC_ALL=C sort | xargs); }
docs() { echo "usr/share/doc/$1/changelog.gz usr/share/doc/$1/copyright"; }
lib=usr/lib/$multiarch

check "libtqkv0 holds the library and no link for the linker" same "$(contents libtqkv0)" \
  "$lib/libtqkv.so.0 $lib/libtqkv.so.$version $(docs libtqkv0)"
check "libtqkv-dev holds header, link, CMake and pkg-config files" same "$(contents libtqkv-dev)" \
  "usr/include/tqkv.h $(echo "$lib"/cmake/tqkv/tqkv{Config,ConfigVersion,Targets-release,Targets}.cmake) \
$lib/libtqkv.so $lib/pkgconfig/tqkv.pc $(docs libtqkv-dev)"
check "tqkv-tools holds the program and its manual page" same "$(contents tqkv-tools)" \
  "usr/bin/tqkv $(docs tqkv-tools) usr/share/man/man1/tqkv.1.gz"
check "libtqkv-dev depends on exactly this libtqkv0" \
  same "$(field libtqkv-dev Depends)" "libtqkv0 (= $version)"
tools_depend() { [[ $(field tqkv-tools Depends) == *"libtqkv0 (>= "* ]]; }
check "tqkv-tools depends on libtqkv0, found through its symbols" tools_depend
only_runtimes() { ! field libtqkv0 Depends | tr ',' '\n' | grep -vE '^ *(libc6|libgcc-s1|libstdc\+\+6)\b'; }
check "libtqkv0 depends on the C and C++ runtimes only, on nothing of CUDA" only_runtimes
check "Multi-Arch" same "$(for p in $packages; do field $p Multi-Arch; done | xargs)" "same same foreign"
check "ldconfig trigger" same "$(cat "$work/libtqkv0/DEBIAN/triggers")" "activate-noawait ldconfig"
check "shlibs" same "$(cat "$work/libtqkv0/DEBIAN/shlibs")" "libtqkv 0 libtqkv0 (>= $version)"
symbols_listed() {
  diff <(sed -nE 's/^\s+(tq_\w+);$/\1/p' packaging/exports.map | sort) \
    <(sed -nE 's/^ (tq_\w+)@.*/\1/p' "$work/libtqkv0/DEBIAN/symbols" | sort)
}
check "symbols lists every function" symbols_listed
sums() {
  local package
  for package in $packages; do
    (cd "$work/$package" && md5sum --quiet -c DEBIAN/md5sums &&
      diff <(find usr -type f | sort) <(cut -c35- DEBIAN/md5sums | sort)) || return 1
  done
}
check "md5sums cover every file and hold" sums
permissions() {
  local package
  for package in $packages; do dpkg-deb -c "$(deb "$package")"; done >"$work/list"
  ! grep -vE '^(drwxr-xr-x|-rw-r--r--|lrwxrwxrwx|-rwxr-xr-x) root/root ' "$work/list" &&
    same "$(grep '^-rwx' "$work/list" | awk '{print $6}')" ./usr/bin/tqkv
}
check "everything is root's, with the usual permissions" permissions
library=$work/libtqkv0/$lib/libtqkv.so.$version tool=$work/tqkv-tools/usr/bin/tqkv
stripped() {
  ! readelf -SW "$library" "$tool" | grep -E '\.(symtab|debug|comment)' &&
    ! readelf -dW "$tool" | grep -E 'RPATH|RUNPATH'
}
check "stripped, no run path" stripped
check "the packaged library is as clean as the built one" python3 tests/install/symbols.py "$library"
again() {
  local package
  packaging/deb/build.sh "$build" "$work/again" || return 1
  for package in $packages; do
    cmp "$(deb "$package")" "$work/again/$(basename "$(deb "$package")")" || return 1
  done
}
check "packed again: the same bytes" again
if command -v lintian >/dev/null; then
  check "lintian" lintian --allow-root --fail-on error,warning,info,override --display-info "$work"/debs/*.deb
else
  echo "skip - lintian: not installed"
fi

# ---- a clean root ----
# mirror_of_apt : where apt takes the release of this machine from.
mirror_of_apt() {
  apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Identifier: Packages' 2>/dev/null |
    awk -v suite="$1" '$2 == suite && $3 == "main" { print $1; exit }'
}
# base_root : prints the archive of the root, made if it is not there; fails with a text.
base_root() {
  local suite mirror archive
  suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
  archive=$tq_cache/root-$suite-$arch.tar.gz
  if [ ! -f "$archive" ]; then
    command -v debootstrap >/dev/null || { echo "debootstrap is not installed"; return 1; }
    mirror=$(mirror_of_apt "$suite")
    [ -n "$mirror" ] || { echo "apt names no mirror of $suite"; return 1; }
    mkdir -p "$tq_cache"
    debootstrap --variant=minbase --include=gcc,libc6-dev,pkg-config "$suite" "$work/base" "$mirror" \
      >"$work/debootstrap.log" 2>&1 || {
      echo "debootstrap: $(grep -E '^[EW]:' "$work/debootstrap.log" | tail -n 1)"
      return 1
    }
    rm -rf "$work"/base/var/{cache/apt/archives,lib/apt/lists} "$work"/base/usr/share/{doc,locale}
    mkdir -p "$work/base/var/cache/apt/archives/partial" "$work/base/usr/share/doc"
    tar -C "$work/base" --numeric-owner --one-file-system -czf "$archive.$$" . || return 1
    mv "$archive.$$" "$archive" || return 1
    rm -rf "$work/base"
  fi
  echo "$archive"
}
root=$work/root
files_of_root() {
  (cd "$root" && find . \( -path ./proc -o -path ./sys -o -path ./dev -o -path ./var/lib/dpkg \
    -o -path ./var/cache -o -path ./var/log -o -path ./tmp \) -prune -o ! -type d -print | LC_ALL=C sort)
}
nothing_left() {
  diff "$work/files_before" <(files_of_root) && ! dpkg --root="$root" -l 2>/dev/null | grep tqkv
}

if [ "$(id -u)" != 0 ]; then
  echo "skip - installation in a clean root: needs root"
  exit "$bad"
fi
if ! archive=$(base_root); then
  echo "skip - use in a clean root: $archive"
  mkdir -p "$root/var/lib/dpkg/info" "$root/var/lib/dpkg/updates"
  : >"$root/var/lib/dpkg/status"
  files_of_root >"$work/files_before"
  forced() { dpkg --root="$root" --force-depends "$@"; }
  purged() { forced -P tqkv-tools libtqkv-dev libtqkv0 && nothing_left; }
  check "dpkg installs the packages into an empty root" forced --force-script-chrootless -i "$work"/debs/*.deb
  check "dpkg finds every file as packed" dpkg --root="$root" -V
  check "removed and purged, nothing is left" purged
  exit "$bad"
fi
mkdir "$root"
if ! tar -C "$root" --numeric-owner -xzf "$archive"; then
  echo "not ok - $archive cannot be unpacked; delete it"
  exit 1
fi
files_of_root >"$work/files_before"
mkdir "$root/tmp/job"
cp -r packaging/smoke/. "$work"/debs/*.deb "$root/tmp/job"
inside() {
  env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C HOME=/tmp DEBIAN_FRONTEND=noninteractive \
    chroot "$root" bash -c "cd /tmp/job && $1"
}
fails() { ! inside "$1"; }

check "libtqkv-dev alone is refused" fails "dpkg -i libtqkv-dev_*.deb"
check "the half-installed package goes" inside "dpkg -P libtqkv-dev"
check "all three are installed" inside "dpkg -i ./*.deb"
check "nothing is broken, every file as packed" \
  inside "dpkg --audit && dpkg -V libtqkv0 libtqkv-dev tqkv-tools && apt-get check"
check "the loader's cache knows the library" inside "ldconfig -p | grep -q 'libtqkv.so.0 .*/$multiarch/'"
check "pkg-config says the version" same "$(inside "pkg-config --modversion tqkv")" "$version"
compiled() { # compiled source program, inside
  inside "gcc -std=c99 -Wall -Wextra -pedantic -Werror $1 \$(pkg-config --cflags --libs tqkv) -lm -o $2"
}
c_program() { compiled pkgconfig/main.c main && inside ./main; }
decode_loop() { compiled decode_loop.c loop && inside "./loop | diff decode_loop.txt -"; }
check "C program through pkg-config" c_program
check "the decode loop" decode_loop
said=$(inside "tqkv --version" | grep -oE '[0-9]+\.[0-9]+\.[0-9]+' | head -n 1)
check "the program says the version" same "$said" "$version"
check "tqkv info" inside "tqkv info"
find_package() {
  cmake -S packaging/smoke/cmake -B "$work/consumer" -DCMAKE_PREFIX_PATH="$root/usr" &&
    cmake --build "$work/consumer" && LD_LIBRARY_PATH=$root/$lib "$work/consumer/consumer"
}
check "C++ program through find_package" find_package
check "libtqkv0 does not go while others need it" fails "dpkg -r libtqkv0"
check "libtqkv-dev and tqkv-tools are removed" inside "dpkg -r libtqkv-dev tqkv-tools && ./main"
check "libtqkv0 is removed and purged" inside "dpkg -r libtqkv0 && dpkg -P libtqkv0 libtqkv-dev tqkv-tools"
check "the loader's cache has forgotten it" fails "ldconfig -p | grep tqkv"
check "nothing is left" nothing_left
exit "$bad"
