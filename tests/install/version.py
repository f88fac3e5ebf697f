#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""One version number everywhere: version.py BUILD_DIR. tqkv.h against the changelog, every binding's manifest
and constant, what CMake made in BUILD_DIR (project, pkg-config file, CMake package, library), and the Debian
packages' template. TAP-like lines; standard library only.
"""
import ctypes
import os
import re
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
bad = False


def read(*parts):
    with open(os.path.join(ROOT, *parts), encoding="utf-8") as file:
        return file.read()


def check(what, found, expected):
    global bad
    if found == expected:
        print(f"ok - {what}: {found}")
    else:
        bad = True
        print(f"not ok - {what}: {found!r}, not {expected!r}")


def first(pattern, text):
    match = re.search(pattern, text, re.M)
    return match.group(1) if match else None


def check_bindings(version, abi):
    cargo = read("bindings/rust/Cargo.toml")
    check("Rust workspace", first(r'^\[workspace\.package\]\nversion = "(.*)"', cargo), version)
    for crate in ("tqkv-sys", "tqkv", "interop-examples"):
        manifest = read("bindings/rust", crate, "Cargo.toml")
        check(f"Rust crate {crate} takes the workspace's version",
              bool(re.search(r"^version\.workspace = true$", manifest, re.M)), True)
        for name, needed in re.findall(r'^(tqkv(?:-sys)?) = \{ version = "=?([^"]*)"', manifest, re.M):
            check(f"Rust crate {crate} needs {name}", needed, version)
    locked = dict(
        re.findall(r'^name = "(tqkv[\w-]*)"\nversion = "(.*)"', read("bindings/rust/Cargo.lock"), re.M))
    check("Cargo.lock", locked, {name: version for name in ("tqkv", "tqkv-interop-examples", "tqkv-sys")})
    check("Go constant", first(r'^const Version = "(.*)"', read("bindings/go/types.go")), version)
    check("Go's copy of tqkv.h",
          read("bindings/go/tqkv.h").split("#ifndef", 1)[1] == read("include/tqkv.h").split("#ifndef", 1)[1],
          True)
    python = [sys.executable, "-c", "import tqkv; print(tqkv.__version__)"]
    folder = os.path.join(ROOT, "bindings", "python")
    ran = subprocess.run(python,
                         env={**os.environ, "PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"},
                         capture_output=True,
                         text=True)
    check("Python package", ran.stdout.strip() or ran.stderr, version)
    # The wheel's version is read from the header by this expression.
    project = read("bindings/python/pyproject.toml")
    match = re.search(first(r"^regex = '(.*)'", project),
                      read("bindings/python", first(r'^input = "(.*)"', project)))
    check("Python wheel", "{major}.{minor}.{patch}".format(**match.groupdict()) if match else None, version)
    check("Python wheel has no version of its own", first(r'^version = "(.*)"', project), None)
    check(
        "Python library name", f"libtqkv.so.{abi}" in read("bindings/python/CMakeLists.txt") + "".join(
            read("bindings/python/tqkv", name)
            for name in os.listdir(os.path.join(folder, "tqkv")) if name.endswith(".py")), True)


def check_build(build, version, abi):
    check("CMake project", first(r"^CMAKE_PROJECT_VERSION:STATIC=(.*)", read(build, "CMakeCache.txt")),
          version)
    check("pkg-config file", first(r"^Version: (.*)", read(build, "tqkv.pc")), version)
    check("CMake package", first(r'^set\(PACKAGE_VERSION "(.*)"\)', read(build, "tqkvConfigVersion.cmake")),
          version)
    check("library file", os.path.basename(os.path.realpath(os.path.join(ROOT, build, f"libtqkv.so.{abi}"))),
          f"libtqkv.so.{version}")
    library = ctypes.CDLL(os.path.join(ROOT, build, f"libtqkv.so.{abi}"))
    library.tq_version.restype = ctypes.c_char_p
    check("tq_version()", library.tq_version().decode(), version)
    check("tq_abi_version()", str(library.tq_abi_version()), abi)


def main():
    header = read("include/tqkv.h")
    version = ".".join(
        first(rf"^#define TQ_VERSION_{part} (\d+)", header) for part in ("MAJOR", "MINOR", "PATCH"))
    abi = first(r"^#define TQ_ABI_VERSION (\d+)", header)
    check("changelog", first(r"^## (\S+)", read("packaging/CHANGELOG.md")), version)
    check("changelog's ABI line", first(r"^ABI: (\d+)", read("packaging/CHANGELOG.md")), abi)
    check(
        "newest node of exports.map is not newer",
        max(
            tuple(map(int, v.split(".")))
            for v in re.findall(r"^TQ_([\d.]+) \{", read("packaging/exports.map"), re.M))
        <= tuple(map(int,
                     version.split(".")[:2])), True)
    check("README", set(re.findall(r"find_package\(tqkv ([\d.]+)\)", read("README.md"))),
          {version.rpartition(".")[0]})
    check_bindings(version, abi)
    check_build(sys.argv[1], version, abi)
    # build.sh puts version and number of the ABI into the Debian packages; tests/install/deb.sh reads them
    # out of the built ones.
    control = read("packaging/deb/control")
    check("Debian packages have no version of their own",
          re.findall(r"\d+\.\d+\.\d+", control.replace("Standards-Version: 4.6.2", "")), [])
    check("Debian library package", first(r"^Package: (libtqkv\d+)$", control), f"libtqkv{abi}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
