#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Keeps README.md and tests/bench/README.md true.

Usage: readme.py BUILD [--update] [--measure[=WORD]], readme.py --gpu-json FILE

Without an option (the test): compiles and runs the C examples of README.md and include/tqkv.h against
BUILD's library, runs the Python example (with a stand-in for torch where there is none), compares every
generated region with what its program prints now, and names the measured regions that are still empty.
--update rewrites the generated regions, --measure runs the commands of the measured regions (that hold WORD)
and puts their output in. --gpu-json FILE keeps what tests/bench/gpu/bench.py --json FILE wrote on a machine
with a GPU, one file for each kind of GPU and set of cases (and --peer), and renews the tables made of them.

Regions:  <!-- generated: PROGRAM --> ... <!-- end -->    output of BUILD/tests/PROGRAM
          <!-- measured: COMMAND --> ... <!-- end -->     output of COMMAND, where $BUILD is the build folder
          <!-- gpu: FOLDER --> ... <!-- end -->           tables of the results in FOLDER
          <!-- gpu-headline: FOLDER --> ... <!-- end -->  one row of each
"""
import glob
import json
import os
import re
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FILES = ("README.md", "tests/bench/README.md")
GPU_BENCH = os.path.join(ROOT, "tests", "bench", "gpu")
sys.path.insert(0, GPU_BENCH)
import table as gpu_table  # noqa: E402

REGION = re.compile(r"<!-- (generated|measured|gpu|gpu-headline): (.*?) -->\n(.*?)<!-- end -->", re.S)

# What the Python example asks of torch, on a machine without it: NumPy arrays take the place of tensors.
TORCH = '''
import types
import numpy
float16 = numpy.float16
cuda = types.SimpleNamespace(is_available=lambda: False)
def randn(*shape, dtype, device):
    assert device == "cpu"
    return numpy.random.default_rng(0).standard_normal(shape).astype(dtype)
'''

PYTHON_PRINTS = "220 tokens, out (1, 32, 128), 4.35 times smaller\n"

# What the header's example leaves out: the buffers, and checks of what it did.
HEADER_PROGRAM = """#include <stdio.h>
#include "tqkv.h"
int main(void) {{
  static float k[8 * 128], v[8 * 128], q[32 * 128], out[32 * 128];
  for (int i = 0; i < 8 * 128; i++) k[i] = v[i] = q[i] = 1;
{example}
  printf("out[0] = %.3f\\n", out[0]);
  return tq_last_error()[0] != 0;
}}
"""


def read(name):
    with open(os.path.join(ROOT, name), encoding="utf-8") as file:
        return file.read()


def write(name, text):
    with open(os.path.join(ROOT, name), "w", encoding="utf-8") as file:
        file.write(text)


def report(title, problem=None):
    print(f"not ok - {title}\n{problem}" if problem else f"ok - {title}")
    return not problem


# ---- examples ----


def example(language):
    match = re.search(rf"<!-- example: {language};.*?-->\n```{language}\n(.*?)```", read("README.md"), re.S)
    return match.group(1) if match else None


def header_example():
    """The indented lines of the header's first comment, as a program."""
    head = read("include/tqkv.h").split(" * Rules that hold for every call")[0]
    lines = re.findall(r"^ \*     (.*)$", head, re.M)
    return HEADER_PROGRAM.format(example="\n".join(lines)) if lines else None


def run_c(source, build):
    """Compiled as C99 and run; it prints an output that looks at values of 1 and 0 alone."""
    if source is None:
        return "there is no example"
    with tempfile.TemporaryDirectory() as work:
        path, program = os.path.join(work, "example.c"), os.path.join(work, "example")
        with open(path, "w", encoding="utf-8") as file:
            file.write(source)
        command = ["gcc", "-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror", "-Iinclude", path]
        command += ["-o", program, f"-L{build}", "-ltqkv", f"-Wl,-rpath,{os.path.abspath(build)}"]
        compiled = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if compiled.returncode:
            return compiled.stderr
        ran = subprocess.run([program], capture_output=True, text=True)
    value = re.fullmatch(r"out\[0\] = ([\d.]+)\n", ran.stdout)
    if ran.returncode or not value or not 0.5 < float(value.group(1)) < 1.5:
        return f"exit status {ran.returncode}, printed {ran.stdout!r} {ran.stderr!r}"
    return None if source.count("\n") <= 40 else f"the example has {source.count(chr(10))} lines"


def importable(module):
    return subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True).returncode == 0


def run_python(build):
    title = "the Python example runs"
    source = example("python")
    if source is None:
        return report(title, "there is no example")
    compile(source, "README.md", "exec")
    has_torch = importable("torch")
    if not has_torch and not importable("numpy"):
        print(f"skip - {title}: {sys.executable} has neither torch nor NumPy; it compiles")
        return True
    with tempfile.TemporaryDirectory() as work:
        if not has_torch:
            with open(os.path.join(work, "torch.py"), "w", encoding="utf-8") as file:
                file.write(TORCH)
        folders = os.pathsep.join([work, os.path.join(ROOT, "bindings", "python")])
        ran = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True,
                             env={**os.environ, "PYTHONPATH": folders, "PYTHONDONTWRITEBYTECODE": "1",
                                  "TQKV_LIBRARY": os.path.join(os.path.abspath(build), "libtqkv.so.0")})
    good = ran.returncode == 0 and ran.stdout == PYTHON_PRINTS
    return report(title + ("" if has_torch else " (NumPy in torch's place)"), None
                  if good else f"exit status {ran.returncode}, printed {ran.stdout!r} {ran.stderr}")


# ---- regions ----


def command_output(command, build):
    ran = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True,
                         env={**os.environ, "BUILD": build})
    if ran.returncode:
        raise SystemExit(f"{command}: exit status {ran.returncode}\n{ran.stderr}")
    return "\n".join(line.rstrip() for line in ran.stdout.strip("\n").split("\n"))


def measured(command, build):
    return f"\n```text\n$ {command.replace('$BUILD', 'build')}\n{command_output(command, build)}\n```\n\n"


def gpu(kind, folder):
    results = []
    for name in sorted(glob.glob(os.path.join(ROOT, folder, "*.json"))):
        with open(name, encoding="utf-8") as file:
            results.append(json.load(file))
    made = gpu_table.headline if kind == "gpu-headline" else gpu_table.markdown
    return f"\n{made(results)}\n" if results else "\nNot measured yet.\n\n"


def renewed(text, kinds, build=None, word=""):
    """The text with its regions of these kinds made anew."""
    def renew(match):
        kind, what, body = match.groups()
        if kind in kinds and word in what:
            if kind == "generated":
                body = command_output(f"{build}/tests/{what}", build) + "\n"
            elif kind == "measured":
                body = measured(what, build)
            else:
                body = gpu(kind, what)
        return f"<!-- {kind}: {what} -->\n{body}<!-- end -->"

    return REGION.sub(renew, text)


def keep_gpu_result(path):
    """Into the folder of results, under the GPU's name, and from there into the tables."""
    with open(path, encoding="utf-8") as file:
        result = json.load(file)
    if result["failed"] or not result["cases"]:
        raise SystemExit(f"{path}: not kept, it holds failures: {result['failed']}")
    cases = re.search(r"--cases (\w+)", result["command"]).group(1)
    only = re.search(r"--only (\w+)", result["command"])  # some of them, beside all
    cases += f"-{only.group(1)}" if only else ""
    folder = os.path.join(GPU_BENCH, "results", "" if cases == "full" else cases)
    os.makedirs(folder, exist_ok=True)
    alone = re.search(r"--peer (\w+)", result["command"])  # one of others, beside those together
    slug = re.sub(r"[^a-z0-9]+", "-", f"{result['gpu']} {alone.group(1) if alone else ''}".lower()).strip("-")
    with open(os.path.join(folder, slug + ".json"), "w", encoding="utf-8") as file:
        file.write(gpu_table.dump(result))
    for name in FILES:
        write(name, renewed(read(name), ("gpu", "gpu-headline")))
    return 0


def check_regions(name, build):
    good = True
    for kind, what, body in REGION.findall(read(name)):
        if kind == "measured":
            if "```" in body:
                report(f"{name}: measured: {what}")
            else:
                print(f"skip - {name}: {what}: not measured yet, run tests/readme.py BUILD --measure")
            continue
        current = REGION.search(renewed(f"<!-- {kind}: {what} -->\n<!-- end -->", (kind,), build)).group(3)
        good &= report(f"{name}: {kind} region {what} is up to date", None
                       if body == current else f"run tests/readme.py BUILD --update; it is now\n{current}")
        if "Not measured yet" in body:
            print(f"skip - {what}: not measured yet, run tests/readme.py --gpu-json FILE, made by bench.py")
    return good


def main():
    if sys.argv[1] == "--gpu-json":
        return keep_gpu_result(sys.argv[2])
    build, update = sys.argv[1], "--update" in sys.argv
    measure = [a.partition("=")[2] for a in sys.argv if a.startswith("--measure")]
    if update or measure:
        for name in FILES:
            text = renewed(read(name), ("generated", "gpu", "gpu-headline") if update else (), build)
            write(name, renewed(text, ("measured",) if measure else (), build, measure[0] if measure else ""))
        return 0
    good = report("README.md: the C example compiles as C99 and runs", run_c(example("c"), build))
    good &= report("include/tqkv.h: its example compiles as C99 and runs", run_c(header_example(), build))
    good &= run_python(build)
    for name in FILES:
        good &= check_regions(name, build)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
