#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Whether the tests notice what is wrong: small faults put into the core one at a time, each of which some
test must see.

    tests/mutation/run.py --changed BASE [--sample N] [--seed S]   mutants of lines changed since a commit
    tests/mutation/run.py --files F... [--sample N] [--seed S]     of whole files
    tests/mutation/run.py --canaries [SUITE...]                    one known fault for each suite

Sources: src/*.cpp, src/*.h and src/format/*.h. A mutant changes one operator, number, condition or statement.
It is built in a tree of its own (build/mutation) and run against PROGRAMS, quickest first, until one fails:
killed. One that does not compile is no mutant. Survivors are shown with their line: each is a gap in the
tests, or code that makes no difference.

The last line counts killed, survived and not viable; exit status 1 if less than 95 % were killed, or a
canary was not seen. On demand: a mutant takes a build, and a change of a header many. Standard library only.
"""
import argparse
import collections
import os
import random
import re
import shutil
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TREE, BUILD = os.path.join(ROOT, "build/mutation/tree"), os.path.join(ROOT, "build/mutation/build")
SOURCES = re.compile(r"src/[^/]+\.(cpp|h)|src/format/[^/]+\.h")
LIMIT_SECONDS = 600  # a mutant that runs longer is seen as well
# Quickest first. unit_tests without its long walks first, then all of it.
PROGRAMS = (("incident_tests", ), ("capi_tests", ), ("oom_tests", ),
            ("unit_tests", "--gtest_filter=-*Random*:*Everywhere*:*EveryBit*:Ranks*"), ("model_tests", ),
            ("unit_tests", ), ("golden_encode_tests", ), ("golden_library_tests", ), ("traffic_tests", ))
# suite: (its program, file, what is replaced, by what). Faults of the kind that the suite is there for.
CANARIES = {
    "unit": ("unit_tests", "src/page_table.cpp", "if (--references_[page] == 0) free_", "if (true) free_"),
    "conformance": ("conformance_tests", "src/cpu/attend_rows.cpp", "merge_weights(row.total, row.split)",
                    "merge_weights(row.split, row.total)"),
    "golden": ("golden_encode_tests", "src/format/encode.h", "if (rule == ScaleRule::kLs) return",
               "if (rule == ScaleRule::kPaper) return"),
    "capi": ("capi_tests", "src/sequences.cpp", "first >= 0 && first <= length", "first <= length"),
    "model": ("model_tests", "src/sequence_table.cpp", "rows_[slot].generation == generation", "true"),
    "incidents": ("incident_tests", "src/sequences.cpp", "count >= 0 && count <= length - first",
                  "count <= length - first"),
    "traffic": ("traffic_tests", "src/sequences.cpp",
                "  scrub_uncleared(stream);  // the sequence's own may be among them\n", ""),
    "oom": ("oom_tests", "src/batch.cpp", "arrays_.owners[slot] = nullptr;", "{ delete new int; }"),
}


def run(command, **options):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)


def read(name, root=ROOT):
    with open(os.path.join(root, name), encoding="utf-8") as file:
        return file.read()


def write(name, text):
    with open(os.path.join(TREE, name), "w", encoding="utf-8") as file:
        file.write(text)


# ---- mutants ----

def code_of(text):
    """The text with comments, strings and preprocessor lines as spaces."""
    blank = lambda match: re.sub(r"[^\n]", " ", match.group(0))
    pattern = r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])\'|^[ \t]*#(?:[^\n]*\\\n)*[^\n]*'
    return re.sub(pattern, blank, text, flags=re.S | re.M)


# In this source every binary operator stands between spaces; lists of template arguments do not.
SWAPS = ((r" <= ", " < "), (r" >= ", " > "), (r" == ", " != "), (r" != ", " == "), (r" < ", " <= "),
         (r" > ", " >= "), (r" && ", " || "), (r" \|\| ", " && "), (r"(?<=[\w)\]]) \+ ", " - "),
         (r"(?<=[\w)\]]) - ", " + "), (r"(?<=[\w)\]]) \* ", " + "), (r" / ", " * "), (r" \+= ", " -= "),
         (r"\+\+", "--"), (r"\bstd::min\b", "std::max"), (r"\bstd::max\b", "std::min"),
         (r"\btrue\b", "false"), (r"\bfalse\b", "true"))


def mutants(name, lines=None):
    """(name, line, offset, end, replacement) of every mutant; lines: of these alone."""
    code = code_of(read(name))
    found = []
    for pattern, by in SWAPS:
        found += [(m.start(), m.end(), by) for m in re.finditer(pattern, code)]
    for m in re.finditer(r"(?<![\w.])(\d+)(?=[\s,;)\]])", code):  # numbers, but in declarations of sizes
        found.append((m.start(), m.end(), str(int(m.group(1)) + 1)))
    for m in re.finditer(r"\bif \(", code):  # conditions
        end = closing(code, m.end() - 1)
        found.append((m.end(), end, "!(" + read(name)[m.end():end] + ")"))
    for m in re.finditer(r"^ +[\w.:>\[\]-]+\([^;{}]*\);$", code, re.M):  # calls whose result nobody takes
        if not re.match(r" +(return|throw|delete|static_assert|assert|using|TQ_HD)\b", m.group(0)):
            found.append((m.start(), m.end(), ";"))
    for start, end, by in sorted(found):
        line = code.count("\n", 0, start) + 1
        if lines is None or line in lines:
            yield name, line, start, end, by


def closing(code, at):
    depth = 0
    for i in range(at, len(code)):
        depth += {"(": 1, ")": -1}.get(code[i], 0)
        if depth == 0:
            return i
    raise ValueError("unbalanced parentheses")


def changed_lines(base):
    """{file: lines} of the sources that differ from the commit."""
    result, name = {}, None
    diff = run(["git", "diff", "-U0", base, "--", "src"], cwd=ROOT, check=True).stdout
    for line in diff.split("\n"):
        if line.startswith("+++ "):
            name = line[6:] if SOURCES.fullmatch(line[6:]) else None
        match = re.match(r"@@ -\S+ \+(\d+)(?:,(\d+))? @@", line)
        if match and name:
            first, count = int(match.group(1)), int(match.group(2) or 1)
            result.setdefault(name, set()).update(range(first, first + count))
    return result


# ---- the tree ----

def prepare(programs):
    names = run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True).stdout.split("\n")
    for name in filter(None, names):
        source, target = os.path.join(ROOT, name), os.path.join(TREE, name)
        if not os.path.isfile(source):
            continue
        if not os.path.exists(target) or open(source, "rb").read() != open(target, "rb").read():
            os.makedirs(os.path.dirname(target), exist_ok=True)
            shutil.copyfile(source, target)
    command = ["cmake", "-S", TREE, "-B", BUILD, "-G", "Ninja", "-DTQ_DEV=ON", "-DTQ_CUDA=OFF",
               "-DTQ_BUILD_TOOL=OFF", "-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_CXX_FLAGS_RELEASE=-O1 -DNDEBUG",
               "-DCMAKE_COMPILE_WARNING_AS_ERROR=OFF"]
    if shutil.which("ccache"):
        command += [f"-DCMAKE_{language}_COMPILER_LAUNCHER=ccache" for language in ("C", "CXX")]
    for step in (command, build_command(programs)):
        done = run(step)
        if done.returncode:
            sys.exit(done.stdout[-3000:] + "\nrun.py: the unchanged sources do not build")
    for program in programs:
        if not passes(program):
            sys.exit(f"run.py: {' '.join(program)} fails on the unchanged sources")


def build_command(programs):
    return ["cmake", "--build", BUILD, "-j", os.environ.get("TQKV_JOBS", "2"), "--target",
            *dict.fromkeys(program[0] for program in programs)]


def passes(program):
    environment = dict(os.environ, TQKV_TEST_QUICK="1")
    try:
        return run([os.path.join(BUILD, "tests", program[0]), *program[1:]], env=environment,
                   timeout=LIMIT_SECONDS).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def judge(name, text, programs):
    """The program that sees it, "" if none does, None if it does not compile."""
    original = read(name, TREE)
    write(name, text)
    try:
        if run(build_command(programs)).returncode:
            return None
        return next((" ".join(program) for program in programs if not passes(program)), "")
    finally:
        write(name, original)


# ---- what can be asked ----

def canaries(chosen):
    chosen = chosen or list(CANARIES)
    unknown = [suite for suite in chosen if suite not in CANARIES]
    if unknown:
        sys.exit(f"run.py: no canary for {', '.join(unknown)}; there are: {', '.join(CANARIES)}")
    prepare([(CANARIES[suite][0], ) for suite in chosen])
    missed = 0
    for suite in chosen:
        program, name, old, new = CANARIES[suite]
        text = read(name)
        if old not in text or old == new:
            sys.exit(f"run.py: the canary of {suite} is not in {name} any more")
        seen = judge(name, text.replace(old, new, 1), [(program, )])
        missed += not seen
        what = "does not compile" if seen is None else "is seen" if seen else "is NOT seen"
        print(f"{'ok' if seen else 'not ok'} - {suite}: {name}: {what}", flush=True)
    print(f"{len(chosen) - missed} canaries seen, {missed} not")
    return 1 if missed else 0


def all_mutants(wanted, arguments):
    chosen = [m for name, lines in sorted(wanted.items()) for m in mutants(name, lines)]
    total = len(chosen)
    if not chosen:
        sys.exit("run.py: there is nothing to change")
    if arguments.sample and arguments.sample < total:
        chosen = random.Random(arguments.seed).sample(chosen, arguments.sample)
    print(f"{total} mutants, {len(chosen)} tried, seed {arguments.seed}", flush=True)
    prepare(PROGRAMS)
    fates, began = collections.Counter(), time.time()
    for at, (name, line, start, end, by) in enumerate(sorted(chosen), 1):
        text = read(name, TREE)  # as it was when all this began
        seen = judge(name, text[:start] + by + text[end:], PROGRAMS)
        fate = "not viable" if seen is None else "killed" if seen else "survived"
        fates[fate] += 1
        shown, new = (" ".join(t.split())[:50] for t in (text[start:end], by))
        print(f"[{at}/{len(chosen)}, {time.time() - began:.0f} s] {name}:{line}: '{shown}' -> '{new}': {fate}"
              f"{' by ' + seen if seen else ''}", flush=True)
    viable = fates["killed"] + fates["survived"]
    print(f"{fates['killed']} killed, {fates['survived']} survived, {fates['not viable']} not viable: "
          f"{100 * fates['killed'] / max(viable, 1):.1f} % of {viable}")
    return 0 if viable and fates["killed"] >= 0.95 * viable else 1


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--changed", metavar="BASE")
    what.add_argument("--files", nargs="+")
    what.add_argument("--canaries", nargs="*", metavar="SUITE")
    parser.add_argument("--sample", type=int, default=0, help="so many, drawn at random; 0 = all")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.canaries is not None:
        return canaries(arguments.canaries)
    if arguments.files:
        wrong = [name for name in arguments.files if not SOURCES.fullmatch(name)]
        if wrong:
            sys.exit(f"run.py: {', '.join(wrong)}: not one of src/*.cpp, src/*.h, src/format/*.h")
        return all_mutants(dict.fromkeys(arguments.files), arguments)
    return all_mutants(changed_lines(arguments.changed), arguments)


if __name__ == "__main__":
    sys.exit(main())
