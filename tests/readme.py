#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Keeps README.md true: readme.py BUILD [--update] [--measure], readme.py --gpu-json FILE.

Without an option (the test): compiles and runs the C example against BUILD's library, compares every
generated region with what its program prints now, and names the measured regions that are still empty.
--update rewrites the generated regions, --measure runs the commands of the measured regions (those that hold
WORD with --measure=WORD) and puts their output in. --gpu-json FILE keeps what tests/bench/gpu/bench.py --json
FILE wrote on a machine with a GPU, one file for each kind of GPU, and renews the table that is made of them.

Regions:  <!-- generated: PROGRAM --> ... <!-- end -->     output of BUILD/tests/PROGRAM
          <!-- excerpt: FILE: TEXT --> ... <!-- end -->      the function of FILE whose head holds TEXT
          (tests/examples.sh runs those files)
          <!-- measured: COMMAND --> ... <!-- end -->      output of COMMAND, where $BUILD is the build folder
          <!-- gpu: FOLDER --> ... <!-- end -->            tables of the results in FOLDER
"""
import glob
import json
import os
import re
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
README = os.path.join(ROOT, "README.md")
GPU_BENCH = os.path.join(ROOT, "tests", "bench", "gpu")
sys.path.insert(0, GPU_BENCH)
import table as gpu_table  # noqa: E402

REGION = re.compile(r"<!-- (generated|excerpt|measured|gpu): (.*?) -->\n(.*?)<!-- end -->", re.S)


def report(title, problem=None):
    print(f"not ok - {title}\n{problem}" if problem else f"ok - {title}")
    return not problem


def run_example(text, build):
    match = re.search(r"<!-- example.*?-->\n```c\n(.*?)```", text, re.S)
    if not match:
        return "no example in README.md"
    with tempfile.TemporaryDirectory() as work:
        source, program = os.path.join(work, "example.c"), os.path.join(work, "example")
        with open(source, "w", encoding="utf-8") as file:
            file.write(match.group(1))
        compiled = subprocess.run([
            "gcc", "-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror", "-Iinclude", source, "-o", program,
            f"-L{build}", "-ltqkv", f"-Wl,-rpath,{os.path.abspath(build)}"
        ],
                                  cwd=ROOT,
                                  capture_output=True,
                                  text=True)
        if compiled.returncode:
            return compiled.stderr
        ran = subprocess.run([program], capture_output=True, text=True)
        # The last query's first coordinates look at tokens whose value there is 1.
        value = re.fullmatch(r"out\[0\] = ([\d.]+)\n", ran.stdout)
        if ran.returncode or not value or not 0.5 < float(value.group(1)) < 1.5:
            return f"exit status {ran.returncode}, printed {ran.stdout!r} {ran.stderr!r}"
    lines = match.group(1).count("\n")
    return None if lines <= 32 else f"the example has {lines} lines"


def command_output(command, build):
    ran = subprocess.run(command,
                         shell=True,
                         cwd=ROOT,
                         capture_output=True,
                         text=True,
                         env={**os.environ, "BUILD": build})
    if ran.returncode:
        raise SystemExit(f"{command}: exit status {ran.returncode}\n{ran.stderr}")
    return "\n".join(line.rstrip() for line in ran.stdout.strip("\n").split("\n"))


def generated(name, build):
    return command_output(f"{build}/tests/{name}", build) + "\n"


def excerpt(what):
    """From the line that holds the text to the end of what is indented below it, with a closing brace."""
    name, _, text = what.partition(": ")
    with open(os.path.join(ROOT, name), encoding="utf-8") as file:
        lines = file.read().split("\n")
    start = next(i for i, line in enumerate(lines) if text in line)
    margin = len(lines[start]) - len(lines[start].lstrip())
    end = next(i for i in range(start + 1, len(lines))
               if lines[i].strip() and not lines[i][margin:margin + 1].isspace())
    while lines[end - 1].strip() == "":
        end -= 1
    end += lines[end][margin:] == "}"
    language = {".c": "c", ".py": "python", ".rs": "rust", ".go": "go"}[os.path.splitext(name)[1]]
    return f"```{language}\n" + "".join(line[margin:].replace("\t", "    ") + "\n"
                                        for line in lines[start:end]) + "```\n"


def measured(command, build):
    return f"\n```text\n$ {command.replace('$BUILD', 'build')}\n{command_output(command, build)}\n```\n\n"


def gpu(folder):
    results = []
    for name in sorted(glob.glob(os.path.join(ROOT, folder, "*.json"))):
        with open(name, encoding="utf-8") as file:
            results.append(json.load(file))
    return f"\n{gpu_table.markdown(results)}\n" if results else "\nNot measured yet.\n\n"


def keep_gpu_result(path):
    """Into the folder of results, under the GPU's name, and from there into README.md."""
    with open(path, encoding="utf-8") as file:
        result = json.load(file)
    if result["failed"] or not result["cases"]:
        raise SystemExit(f"{path}: not kept, it holds failures: {result['failed']}")
    folder = os.path.join(GPU_BENCH, "results")
    os.makedirs(folder, exist_ok=True)
    slug = re.sub(r"[^a-z0-9]+", "-", result["gpu"].lower()).strip("-")
    with open(os.path.join(folder, slug + ".json"), "w", encoding="utf-8") as file:
        file.write(gpu_table.dump(result))
    with open(README, encoding="utf-8") as file:
        text = file.read()
    text = REGION.sub(
        lambda match: f"<!-- gpu: {match.group(2)} -->\n{gpu(match.group(2))}<!-- end -->"
        if match.group(1) == "gpu" else match.group(0), text)
    with open(README, "w", encoding="utf-8") as file:
        file.write(text)
    return 0


def main():
    if sys.argv[1] == "--gpu-json":
        return keep_gpu_result(sys.argv[2])
    build, update = sys.argv[1], "--update" in sys.argv
    measure = [a.partition("=")[2] for a in sys.argv if a.startswith("--measure")]
    with open(README, encoding="utf-8") as file:
        text = file.read()
    if update or measure:
        def renew(match):
            kind, what, body = match.groups()
            if kind == "generated" and update:
                body = generated(what, build)
            if kind == "excerpt" and update:
                body = excerpt(what)
            if kind == "gpu" and update:
                body = gpu(what)
            if kind == "measured" and measure and measure[0] in what:
                body = measured(what, build)
            return f"<!-- {kind}: {what} -->\n{body}<!-- end -->"
        text = REGION.sub(renew, text)
        with open(README, "w", encoding="utf-8") as file:
            file.write(text)
        return 0
    good = report("the C example compiles as C99 and runs", run_example(text, build))
    for kind, what, body in REGION.findall(text):
        if kind == "generated":
            current = generated(what, build)
            good &= report(
                f"generated region {what} is up to date", None
                if body == current else f"run tests/readme.py BUILD --update; the program says\n{current}")
        elif kind == "excerpt":
            good &= report(
                f"excerpt of {what} is up to date", None if body == excerpt(what) else
                f"run tests/readme.py BUILD --update; it reads\n{excerpt(what)}")
        elif kind == "gpu":
            current = gpu(what)
            good &= report(
                f"tables of {what} are up to date",
                None if body == current else f"run tests/readme.py BUILD --update; they read\n{current}")
            if "| case |" not in body:
                print(
                    f"skip - {what}: not measured yet, run tests/readme.py --gpu-json FILE with what bench.py --json FILE wrote"
                )
        elif "```" in body:
            report(f"measured: {what}")
        else:
            print(f"skip - {what}: not measured yet, run tests/readme.py BUILD --measure")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
