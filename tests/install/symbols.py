#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Library hygiene: symbols.py LIBRARY. Exported symbols = exports.map = functions of tqkv.h; SONAME, NEEDED,
RELRO, NOW, no RPATH, no imports that end the process, no build paths inside. Prints TAP-like lines; uses
readelf and nm.
"""
import os
import re
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# libpthread and libdl are part of libc here; listed for older systems.
NEEDED_ALLOWED = {
    "libc.so.6", "libm.so.6", "libstdc++.so.6", "libgcc_s.so.1", "libpthread.so.0", "libdl.so.2",
    "librt.so.1", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"
}
# Nothing of ours ends the process, prints or runs at exit. (std::terminate is reached by noexcept code of the
# C++ runtime only.)
IMPORTS_REFUSED = {
    "abort", "exit", "_exit", "_Exit", "quick_exit", "atexit", "at_quick_exit", "signal", "sigaction",
    "__assert_fail", "printf", "puts", "fprintf", "vprintf", "vfprintf", "putchar", "fwrite", "fputs",
    "__printf_chk", "__fprintf_chk", "perror", "raise", "system"
}


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def read(name):
    with open(os.path.join(ROOT, name), encoding="utf-8") as file:
        return file.read()


def public_functions(header):
    return set(re.findall(r"^TQ_API [^;(]*?\b(tq_\w+)\(", header, re.M))


def map_symbols(text):
    """{symbol: node}"""
    result = {}
    for node, body in re.findall(r"^(TQ_[\d.]+) \{(.*?)^\}", text, re.M | re.S):
        for name in re.findall(r"^\s*(tq_\w+);", body.split("local:")[0], re.M):
            result[name] = node
    return result


class Report:
    def __init__(self):
        self.bad = False

    def check(self, title, problems):
        problems = [str(p) for p in problems]
        self.bad |= bool(problems)
        print(f"not ok - {title}" if problems else f"ok - {title}")
        for problem in problems[:20]:
            print("    " + problem)


def main():
    library = sys.argv[1]
    cuda = len(sys.argv) > 2 and sys.argv[2] == "--cuda"
    report = Report()
    header = read("include/tqkv.h")
    abi = re.search(r"#define TQ_ABI_VERSION (\d+)", header).group(1)

    declared, mapped = public_functions(header), map_symbols(read("packaging/exports.map"))
    report.check("exports.map lists exactly the functions of tqkv.h",
                 [f"only in tqkv.h: {n}" for n in sorted(declared - set(mapped))] +
                 [f"only in exports.map: {n}" for n in sorted(set(mapped) - declared)])

    exported, others = {}, []
    for line in run("nm", "-D", "--defined-only", library).splitlines():
        kind, name = line.split()[1:3]
        base, _, node = name.partition("@@")
        if kind == "A":
            continue  # the version nodes themselves
        if kind == "T" and base.startswith("tq_"):
            exported[base] = node
        else:
            others.append(line)
    report.check("the library exports exactly that list, in the same nodes",
                 [f"missing: {n}" for n in sorted(set(mapped) - set(exported))] + [
                     f"node of {n}: {exported[n]}, not {mapped.get(n)}"
                     for n in sorted(exported) if exported[n] != mapped.get(n)
                 ])
    report.check("no other symbol is exported (data, C++ names, unique globals)", others)

    imports = {
        line.split()[-1].split("@")[0]
        for line in run("nm", "-D", "--undefined-only", library).splitlines()
    }
    # The static CUDA runtime brings its own.
    report.check("no import that prints or ends the process",
                 sorted(imports & IMPORTS_REFUSED) if not cuda else sorted(imports & {"exit", "puts"}))

    dynamic = run("readelf", "-dW", library)
    soname = re.findall(r"\(SONAME\).*\[(.*)\]", dynamic)
    report.check(f"SONAME is libtqkv.so.{abi}", [] if soname == [f"libtqkv.so.{abi}"] else soname or ["none"])
    report.check("NEEDED is the C and C++ runtime only",
                 sorted(set(re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)) - NEEDED_ALLOWED))
    report.check("no RPATH or RUNPATH", re.findall(r"\((?:RPATH|RUNPATH)\).*", dynamic))
    report.check("no text relocations", re.findall(r"\(TEXTREL\).*", dynamic))
    flags = " ".join(re.findall(r"\(FLAGS(?:_1)?\)(.*)", dynamic))
    report.check("bound at load time (NOW) and never unloaded (NODELETE)",
                 [w for w in ("NOW", "NODELETE") if w not in flags])
    segments = run("readelf", "-lW", library)
    report.check("RELRO segment", [] if "GNU_RELRO" in segments else ["none"])
    stack = re.search(r"GNU_STACK.*", segments)
    report.check(
        "stack is not executable",
        [] if stack and " RWE " not in stack.group(0) else [stack.group(0) if stack else "no GNU_STACK"])
    with open(library, "rb") as file:
        content = file.read()
    report.check("no build path inside", [ROOT] if ROOT.encode() in content else [])
    return 1 if report.bad else 0


if __name__ == "__main__":
    sys.exit(main())
