#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""clang-tidy over library and program, as lines of TAP.

    tests/clang_tidy.py BUILD [--all] [--jobs N]

BUILD holds compile_commands.json. What a source was judged by is its text after the preprocessor, comments
kept, its options, .clang-tidy and the version of clang-tidy: a source that was clean and is the same in all
of them is not read again, but with --all. The clean ones are remembered in the user's cache, by digest.
The analyzer looks at paths as far as its mode "shallow" does, which takes less time; with --all, deep.
Standard library only.
"""
import argparse
import concurrent.futures
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# simd.cpp includes itself once for every instruction set; its parts are seen by the compilers only.
SOURCES = re.compile(r"src/([^/]+|cpu/[^/]+|cpu/kernels/(?!simd)[^/]+|cli/[^/]+)\.cpp")
SHALLOW = ["--extra-arg=" + word for word in "-Xclang -analyzer-config -Xclang mode=shallow".split()]
CACHE = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "tqkv", "clang-tidy")


def run(command, **options):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, **options)


def digest_of(entry, rules):
    """Of all that clang-tidy's answer depends on; None if the preprocessor fails."""
    words = [word for word in shlex.split(entry["command"]) if not word.endswith("ccache")]
    words = words[1:words.index("-o")]
    text = run(["clang++", *words, "-E", "-CC", entry["file"]], cwd=entry["directory"])
    if text.returncode:
        return None
    # Where the clone lies makes no difference.
    return hashlib.sha256(rules + "\0".join(words).encode().replace(ROOT.encode(), b"") +
                          text.stdout.replace(ROOT.encode(), b"")).hexdigest()


def tidied(entry, build, rules, every):
    """(whether it is clean, what is told)."""
    name = os.path.relpath(entry["file"], ROOT)
    digest = digest_of(entry, rules)
    kept = digest and os.path.join(CACHE, digest)
    if kept and os.path.exists(kept) and not every:
        return True, f"ok - {name} (as it was when it was clean)"
    done = run(["clang-tidy", "-p", build, "--quiet", "--warnings-as-errors=*", *([] if every else SHALLOW),
                entry["file"]], text=True)
    if done.returncode:
        return False, f"not ok - {name}\n{done.stdout}"
    if kept:
        os.makedirs(CACHE, exist_ok=True)
        with open(kept, "w", encoding="utf-8"):
            pass
    return True, f"ok - {name}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("build")
    parser.add_argument("--all", action="store_true", help="those too that were clean as they are; deep")
    parser.add_argument("--jobs", type=int, default=int(os.environ.get("TQKV_JOBS", os.cpu_count() or 1)))
    options = parser.parse_args()
    with open(os.path.join(options.build, "compile_commands.json"), encoding="utf-8") as file:
        entries = {os.path.relpath(entry["file"], ROOT): entry for entry in reversed(json.load(file))}
    chosen = [entries[name] for name in sorted(entries) if SOURCES.fullmatch(name)]
    if not chosen:
        sys.exit("clang_tidy.py: no source is in compile_commands.json")
    with open(os.path.join(ROOT, ".clang-tidy"), "rb") as file:
        rules = file.read() + run(["clang-tidy", "--version"], check=True).stdout
    if not options.all:
        rules += " ".join(SHALLOW).encode()
    good = True
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        for clean, told in pool.map(lambda entry: tidied(entry, options.build, rules, options.all), chosen):
            good &= clean
            print(told, flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
