#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""That the register of incidents (README.md beside this file) says the truth: every row names tests or a
reason why it cannot occur, and every named test is there and is run.

check.py [--self-test]: prints "ok - ..." or "not ok - ..." lines. Standard library only.
"""
import json
import os
import re
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
REGISTER = "tests/incidents/README.md"


def read(name):
    with open(os.path.join(ROOT, name), encoding="utf-8") as file:
        return file.read()


def exists(name):
    return os.path.isfile(os.path.join(ROOT, name))


def rows(text):
    """(first cell, last cell, number of cells) of every row of every table, heads left out."""
    for line in text.split("\n"):
        if line.startswith("|") and not re.match(r"\|[-| ]+\|$|\| Incident \|", line):
            cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
            yield cells[0], cells[-1], len(cells)


def missing(file, test):
    """Why the test is not there, or is not run; None if all is well."""
    if not exists(file):
        return "there is no such file"
    text, name = read(file), re.escape(test)
    if file.endswith(".cpp"):
        suite, _, case = test.partition(".")
        if not re.search(rf"^TEST(_F|_P)?\(\s*{re.escape(suite)},\s*{re.escape(case)}\)", text, re.M):
            return "no such GoogleTest in it"
        relative = file[len("tests/"):]
        return None if relative in read("tests/CMakeLists.txt") else "tests/CMakeLists.txt does not build it"
    if file.endswith(".c"):
        if not re.search(rf"^void {name}\(void\) \{{", text, re.M):
            return "no such topic in it"
        return None if re.search(rf"\b{name}\b", read("tests/capi/main.c")) else "main.c does not run it"
    if file.endswith((".cu", ".cuh")):
        if not re.search(rf"^[\w:<>]+(<[^>]*>)? {name}\(", text, re.M):
            return "no such function in it"
        folder = os.path.join(ROOT, "tests/gpu")
        all_text = "".join(read("tests/gpu/" + n) for n in os.listdir(folder) if n.endswith((".cu", ".cuh")))
        called = test == "main" or len(re.findall(rf"\b{name}\(", all_text)) > 1
        return None if called else "nobody calls it"
    patterns = {".py": rf"^(def {name}\(|{name} = )", ".rs": rf"#\[test\]\s*(#\[.*\]\s*)*fn {name}\(",
                ".go": rf"^func {name}\(", ".sh": rf"^\s+{name}\)|\b{name}\b.*\)$"}
    suffix = os.path.splitext(file)[1]
    if suffix == ".json":
        return None if any(case["name"] == test for case in json.loads(text)["cases"]) else "no such case"
    if suffix not in patterns:
        return "a kind of file that holds no tests"
    return None if re.search(patterns[suffix], text, re.M) else "no such test in it"


def problems(text):
    named = set()
    for incident, here, cells in rows(text):
        if cells != 3:
            yield f"{incident}: {cells} cells, not 3"
        tests = re.findall(r"`([\w./-]+)::([\w.]+)`", here)
        named.update(tests)
        if not tests and not here.startswith("Cannot "):
            yield f"{incident}: neither a test nor a reason why it cannot occur"
    for file, test in sorted(named):
        why = missing(file, test)
        if why:
            yield f"{file}::{test}: {why}"


def report(title, found):
    print(f"not ok - {title}" if found else f"ok - {title}")
    for problem in found:
        print("    " + problem)
    return not found


def self_test():
    """Every kind of fault is found in a register that is right but for it."""
    faults = ["nothing is said", "`tests/unit/copy_test.cpp::Copy.NoSuchTest`",
              "`tests/unit/no_such_file.cpp::Copy.Test`", "`tests/capi/move.c::test_nothing`",
              "`tests/gpu/attend_test.cu::nothing`", "`tests/cli/test_errors.py::test_nothing`",
              "`bindings/go/api_test.go::TestNothing`", "`tests/contract/cases.json::nothing`",
              "`bindings/rust/tqkv/tests/api.rs::config`", "`tests/gpu/run.sh::nothing`"]
    good = report("a right row passes", list(problems("| a | b | `tests/capi/move.c::test_remove` |")))
    for fault in faults:
        found = list(problems(f"| a | b | {fault} |"))
        good &= report(f"objects to {fault}", [] if found else ["it does not"])
    return 0 if good else 1


def main():
    if "--self-test" in sys.argv:
        return self_test()
    text = read(REGISTER)
    count = len(list(rows(text)))
    named = len(set(re.findall(r"`[\w./-]+::[\w.]+`", text)))
    good = report(f"{count} incidents, {named} tests named", list(problems(text)))
    good &= report("a register that is not empty", [] if count > 40 else [f"{count} rows"])
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
