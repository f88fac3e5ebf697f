#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds the Debian packages libtqkv0, libtqkv-dev and tqkv-tools.   packaging/deb/build.sh BUILD_DIR OUT_DIR
#                                                                    [cmake-argument...]
#
# The library is built in BUILD_DIR for prefix /usr with Debian's hardening flags, without CUDA unless
# -DTQ_CUDA=ON is given; the components of packaging/cmake/Install.cmake become the packages, through Debian's
# own tools (dpkg-shlibdeps, dpkg-gencontrol, dpkg-deb). No debhelper, so that nothing of Debian lies in the
# root of the sources. The version and the changelog are those of tqkv.h and packaging/CHANGELOG.md. The same
# sources and SOURCE_DATE_EPOCH (by default the last commit's time) give the same bytes.
set -euo pipefail
usage="usage: build.sh BUILD_DIR OUT_DIR [cmake-argument...]"
build=${1:?$usage} out=${2:?$usage}
shift 2
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$(dirname "$0")/../.."
. packaging/deps.sh
umask 022
work=$(mktemp -d)
trap 'rm -rf "$work" "$tq_log"' EXIT

version=$(sed -nE 's/^#define TQ_VERSION_(MAJOR|MINOR|PATCH) ([0-9]+)/\2/p' include/tqkv.h | paste -sd.)
abi=$(sed -nE 's/^#define TQ_ABI_VERSION ([0-9]+)/\1/p' include/tqkv.h)
runtime=libtqkv$abi
last_commit=$(git log -1 --format=%ct 2>/dev/null || stat -c %Y include/tqkv.h)
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$last_commit}
multiarch=$(dpkg-architecture -qDEB_HOST_MULTIARCH)

# No -g: there is no package of debug symbols. No -O2: the release flags decide.
flags() {
  DEB_BUILD_MAINT_OPTIONS='hardening=+bindnow reproducible=-fixfilepath' DEB_CXXFLAGS_MAINT_STRIP="-g -O2" \
    dpkg-buildflags --get "$1"
}
tq_cmake_build "$build" release -DTQ_BUILD_TOOL=ON -DTQ_CUDA=OFF -DCMAKE_INSTALL_PREFIX=/usr \
  -DCMAKE_INSTALL_LIBDIR="lib/$multiarch" -DCMAKE_SKIP_INSTALL_RPATH=ON \
  -DCMAKE_CXX_FLAGS="$(flags CXXFLAGS) $(flags CPPFLAGS)" -DCMAKE_EXE_LINKER_FLAGS="$(flags LDFLAGS)" \
  -DCMAKE_SHARED_LINKER_FLAGS="$(flags LDFLAGS)" "$@"

# Debian's changelog out of ours: a heading opens an entry, a line at the margin an item of it; items are
# folded.
mkdir "$work/debian"
renames="s/^Package: libtqkv0$/Package: $runtime/; s/libtqkv0 (=/$runtime (=/"
sed "$renames" packaging/deb/control >"$work/debian/control"
maintainer=$(sed -n 's/^Maintainer: //p' packaging/deb/control)
date=$(LC_ALL=C date -u -R -d "@$SOURCE_DATE_EPOCH")
awk -v end=" -- $maintainer  $date" '
  function item(  n, i, words, row) {
    n = split(text, words, " ")
    row = "  *"
    for (i = 1; i <= n; i++) {
      if (length(row " " words[i]) > 78) { print row; row = "   " }
      row = row " " words[i]
    }
    if (n) print row
    text = ""
  }
  /^## / {
    item()
    if (open) print "\n" end "\n"
    open = 1
    print "tqkv (" $2 ") unstable; urgency=medium\n"
    next
  }
  !open { next }
  !/^  / { item() }
  { sub(/^- /, ""); text = text " " $0 }
  END { item(); print "\n" end }' packaging/CHANGELOG.md >"$work/debian/changelog"

stage() { # stage package component
  local root=$work/debian/$1 doc overrides=packaging/deb/$1.lintian-overrides
  DESTDIR=$root cmake --install "$build" --component "$2" >/dev/null
  rm -rf "$root/usr/share/doc"
  doc=$root/usr/share/doc/$1
  mkdir -p "$root/DEBIAN" "$doc"
  install -m 644 packaging/deb/copyright "$doc/copyright"
  gzip -9n <"$work/debian/changelog" >"$doc/changelog.gz"
  if [ -f "$overrides" ]; then install -Dm 644 "$overrides" "$root/usr/share/lintian/overrides/$1"; fi
}
stage "$runtime" Runtime
stage libtqkv-dev Development
stage tqkv-tools Tool

library=$work/debian/$runtime/usr/lib/$multiarch/libtqkv.so.$version
chmod 644 "$library"
strip --remove-section=.comment --remove-section=.note --strip-unneeded "$library"
strip --remove-section=.comment --remove-section=.note "$work/debian/tqkv-tools/usr/bin/tqkv"
echo "activate-noawait ldconfig" >"$work/debian/$runtime/DEBIAN/triggers"
echo "libtqkv $abi $runtime (>= $version)" >"$work/debian/$runtime/DEBIAN/shlibs"
# A node of exports.map is closed with the release that it is named after.
{
  echo "libtqkv.so.$abi $runtime #MINVER#"
  echo "* Build-Depends-Package: libtqkv-dev"
  sed -nE 's/^TQ_([0-9]+\.[0-9]+) \{$/ (symver)TQ_\1 \1.0/p' packaging/exports.map
} >"$work/symbols"
man=$work/debian/tqkv-tools/usr/share/man/man1
mkdir -p "$man"
gzip -9n <packaging/deb/tqkv.1 >"$man/tqkv.1.gz"

cd "$work"
cuda=""
# The driver is opened at run time, if there is one; nothing of CUDA is depended upon.
pc=$work/debian/libtqkv-dev/usr/lib/$multiarch/pkgconfig/tqkv.pc
if grep -q '^cuda_enabled=1' "$pc"; then cuda="libcuda1"; fi
for package in "$runtime" libtqkv-dev tqkv-tools; do
  root=debian/$package
  echo "cuda:Suggests=$cuda" >"$root.substvars"
  case $package in
    "$runtime")
      dpkg-gensymbols -c4 -p"$package" -P"$root" -v"$version" -I"$work/symbols" -O"$root/DEBIAN/symbols"
      dpkg-shlibdeps --warnings=0 -T"$root.substvars" "$library"
      ;;
    tqkv-tools)
      dpkg-shlibdeps --warnings=0 -T"$root.substvars" -S"debian/$runtime" \
        -l"debian/$runtime/usr/lib/$multiarch" "$root/usr/bin/tqkv"
      ;;
  esac
  (cd "$root" && find usr -type f -print0 | LC_ALL=C sort -z | xargs -0 md5sum >DEBIAN/md5sums)
  if ! dpkg-gencontrol -p"$package" -P"$root" -T"$root.substvars" 2>"$work/gencontrol.log"; then
    cat "$work/gencontrol.log" >&2
    exit 1
  fi
  find "$root" -newermt "@$SOURCE_DATE_EPOCH" -exec touch --no-dereference -d "@$SOURCE_DATE_EPOCH" {} +
  dpkg-deb --root-owner-group -b "$root" "$out" >/dev/null
done
