#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Keeps README.md true: readme.py BUILD [--update] [--measure].

Without an option (the test): compiles and runs the C example against BUILD's library, compares every generated region with what its program
prints now, and sees that every measured region holds a measurement and names a command. --update rewrites the generated regions, --measure
runs the commands of the measured regions and puts their output in.

Regions:  <!-- generated: PROGRAM --> ... <!-- end -->     output of BUILD/tests/PROGRAM
          <!-- measured: COMMAND --> ... <!-- end -->      output of COMMAND, where $BUILD is the build folder
"""
import os
import re
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
README = os.path.join(ROOT, "README.md")
REGION = re.compile(r"<!-- (generated|measured): (.*?) -->\n(.*?)<!-- end -->", re.S)


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
        compiled = subprocess.run(["gcc", "-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror", "-Iinclude", source, "-o", program, f"-L{build}", "-ltqkv",
                                   f"-Wl,-rpath,{os.path.abspath(build)}"], cwd=ROOT, capture_output=True, text=True)
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
    ran = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "BUILD": build})
    if ran.returncode:
        raise SystemExit(f"{command}: exit status {ran.returncode}\n{ran.stderr}")
    return "\n".join(line.rstrip() for line in ran.stdout.strip("\n").split("\n"))


def generated(name, build):
    return command_output(f"{build}/tests/{name}", build) + "\n"


def measured(command, build):
    return f"\n```text\n$ {command.replace('$BUILD', 'build')}\n{command_output(command, build)}\n```\n\n"


def main():
    build, update, measure = sys.argv[1], "--update" in sys.argv, "--measure" in sys.argv
    with open(README, encoding="utf-8") as file:
        text = file.read()
    if update or measure:
        def renew(match):
            kind, what, body = match.groups()
            if kind == "generated" and update:
                body = generated(what, build)
            if kind == "measured" and measure:
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
            good &= report(f"generated region {what} is up to date", None if body == current else f"run tests/readme.py BUILD --update; the program says\n{current}")
        else:
            good &= report(f"measured region holds a measurement: {what}", None if "```" in body else "run tests/readme.py BUILD --measure")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
