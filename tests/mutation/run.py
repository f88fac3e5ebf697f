#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Whether the tests notice what is wrong: small faults put into the core one at a time, each of which some
test must see.

    tests/mutation/run.py --changed BASE [--only REGEX] [--sample N] [--seed S] [--jobs N] [--minutes M]
    tests/mutation/run.py --files F... ...          mutants of lines changed since a commit, or of whole files
    tests/mutation/canaries.py [SUITE...]           one known fault for each suite of tests/run.sh

Sources: src/*.cpp, src/*.h and src/format/*.h. A mutant changes one operator, number, condition or statement.
What includes it is compiled again and linked with the objects of the unchanged sources (build/mutation), one
program of PROGRAMS after the other, quickest first, until one fails: killed. One that does not compile is no
mutant. Survivors are shown with their line: each is a gap in the tests, or code that makes no difference;
those of equivalent.txt, with their reasons, are counted apart. --minutes ends early and says how far it came.

The last line counts killed, survived, equivalent and not viable; exit status 1 if less than 95 % were killed.
Standard library only.
"""
import argparse
import collections
import concurrent.futures
import json
import os
import queue
import random
import re
import shlex
import shutil
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.join(ROOT, "build/mutation")
SOURCES = re.compile(r"src/[^/]+\.(cpp|h)|src/format/[^/]+\.h")
LIMIT_SECONDS = 120  # a mutant that runs longer is seen as well; programs take 10 at most
# Quickest first. unit_tests without its long walks first, then all of it but the work list of cuda/, which
# no source here reaches.
PROGRAMS = (("run_contract", os.path.join(ROOT, "tests/contract/cases.json")), ("oom_tests", ),
            ("golden_encode_tests", ), ("golden_library_tests", ), ("capi_tests", ), ("incident_tests", ),
            ("unit_tests", "--gtest_filter=-*Random*:*Every*:*Mended*:Reencode*:CudaSchedule*"),
            ("traffic_tests", ), ("model_tests", ), ("unit_tests", "--gtest_filter=-CudaSchedule*"),
            ("conformance_tests", "--gtest_filter=*/avx2:Store.*:Merge*:Backend.*:Operands.*"))
def run(command, **options):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)


def read(name):
    with open(os.path.join(ROOT, name), encoding="utf-8") as file:
        return file.read()


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
    """{file: lines} of the sources that differ from the commit, or by a diff -U0 in a file."""
    result, name = {}, None
    if os.path.isfile(base):
        with open(base, encoding="utf-8") as file:
            diff = file.read()
    else:
        diff = run(["git", "diff", "-U0", base, "--", "src"], cwd=ROOT, check=True).stdout
    for line in diff.split("\n"):
        if line.startswith("+++ "):
            name = line[6:] if SOURCES.fullmatch(line[6:]) else None
        match = re.match(r"@@ -\S+ \+(\d+)(?:,(\d+))? @@", line)
        if match and name:
            first, count = int(match.group(1)), int(match.group(2) or 1)
            result.setdefault(name, set()).update(range(first, first + count))
    return result


# ---- the unchanged programs ----

class Base:
    """Objects and programs of the unchanged sources, and how each is made."""

    def __init__(self, jobs, programs=PROGRAMS):
        command = ["cmake", "-S", ROOT, "-B", BUILD, "-G", "Ninja", "-DTQ_DEV=ON", "-DTQ_CUDA=OFF",
                   "-DTQ_BUILD_TOOL=OFF", "-DCMAKE_BUILD_TYPE=Release",
                   "-DCMAKE_CXX_FLAGS_RELEASE=-O1 -DNDEBUG", "-DCMAKE_COMPILE_WARNING_AS_ERROR=OFF"]
        if shutil.which("ccache"):
            command += [f"-DCMAKE_{language}_COMPILER_LAUNCHER=ccache" for language in ("C", "CXX")]
        names = list(dict.fromkeys(program[0] for program in programs))
        for step in (command, ["cmake", "--build", BUILD, "-j", str(jobs), "--target", *names]):
            done = run(step)
            if done.returncode:
                sys.exit(done.stdout[-3000:] + "\nrun.py: the unchanged sources do not build")
        self.compiles = {}  # object: (command, source)
        with open(os.path.join(BUILD, "compile_commands.json"), encoding="utf-8") as file:
            for each in json.load(file):
                words = [word for word in shlex.split(each["command"]) if not word.endswith("ccache")]
                self.compiles[words[words.index("-o") + 1]] = words, each["file"]
        self.links = {name: self.link_of(name) for name in names}
        self.links["libtqkv.so"] = self.link_of("tqkv")
        self.dependents = collections.defaultdict(set)  # source or header: objects
        made = None
        for line in run(["ninja", "-C", BUILD, "-t", "deps"], check=True).stdout.split("\n"):
            if line.startswith("    "):
                path = os.path.relpath(os.path.join(BUILD, line.strip()), ROOT)
                self.dependents[path].add(made)
            elif ": #deps" in line:
                made = line.split(":")[0]
        for program in programs:
            if not passes([os.path.join(BUILD, "tests", program[0]), *program[1:]]):
                sys.exit(f"run.py: {' '.join(program)} fails on the unchanged sources")

    @staticmethod
    def link_of(target):
        last = [line for line in run(["ninja", "-C", BUILD, "-t", "commands", target],
                                     check=True).stdout.split("\n") if " -o " in line and ".o " in line][-1]
        return [word for word in shlex.split(last) if word not in (":", "&&")]


def passes(command, **more):
    try:
        return run(command, timeout=LIMIT_SECONDS,
                   env=dict(os.environ, TQKV_TEST_QUICK="1", **more)).returncode == 0
    except subprocess.TimeoutExpired:
        return False


class Bench:
    """A folder where one mutant at a time is made and tried."""

    def __init__(self, base, number):
        self.base, self.folder = base, os.path.join(BUILD, f"bench{number}")
        shutil.rmtree(self.folder, ignore_errors=True)
        for folder, _, names in os.walk(os.path.join(ROOT, "src")):  # sources find their neighbours here
            here = os.path.join(self.folder, os.path.relpath(folder, ROOT))
            os.makedirs(here)
            for name in names:
                os.symlink(os.path.join(folder, name), os.path.join(here, name))

    def judge(self, name, text, programs=PROGRAMS):
        """The program that sees it, "" if none does, None if it does not compile."""
        path, made = os.path.join(self.folder, name), {}
        os.remove(path)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        try:
            for program in programs:
                if programs is PROGRAMS and program[0] == "conformance_tests" and "/format/" not in name:
                    continue  # the backend alone: no core in it
                library = program[0] == "capi_tests"  # the only one that does not hold the objects
                target = self.link("libtqkv.so" if library else program[0], name, made)
                if target is None:
                    return None
                binary = os.path.join(BUILD, "tests", program[0]) if library else target
                if not passes([binary, *program[1:]], **({"LD_PRELOAD": target} if library else {})):
                    return program[0]
            return ""
        finally:
            os.remove(path)
            os.symlink(os.path.join(ROOT, name), path)

    def link(self, target, name, made):
        """The program or library with the mutant in it; None if something does not compile."""
        words = self.base.links[target]
        for word in words:
            if word in self.base.dependents[name] and word not in made:
                made[word] = self.compile(word, len(made))
                if made[word] is None:
                    return None
        output = os.path.join(self.folder, "program")
        at = words.index("-o")
        words = [made.get(word, word) for word in words[:at]] + ["-o", output] + \
                [made.get(word, word) for word in words[at + 2:]]
        return output if run(words, cwd=BUILD).returncode == 0 else None

    def compile(self, made, number):
        words, source = self.base.compiles[made]
        inside = os.path.join(ROOT, "src") + os.sep
        if source.startswith(inside):
            source = os.path.join(self.folder, os.path.relpath(source, ROOT))
        output = os.path.join(self.folder, f"{number}.o")
        words = [word.replace(f"-I{ROOT}/src", f"-I{self.folder}/src") for word in words]
        words = words[:words.index("-o")] + ["-o", output, "-c", source]
        return output if run(words, cwd=BUILD).returncode == 0 else None


# ---- what can be asked ----

def equivalents():
    """{(file, text of the line, what is replaced, by what)} of equivalent.txt."""
    with open(os.path.join(os.path.dirname(__file__), "equivalent.txt"), encoding="utf-8") as file:
        lines = [line.rstrip("\n") for line in file]
    return {tuple(part.strip() for part in line.split(" | ")[:3]) for line in lines if " | " in line}


def all_mutants(wanted, arguments):
    chosen = [m for name, lines in sorted(wanted.items()) for m in mutants(name, lines)]
    total, began, known = len(chosen), time.time(), equivalents()
    if not chosen:
        sys.exit("run.py: there is nothing to change")
    random.Random(arguments.seed).shuffle(chosen)
    chosen = chosen[arguments.skip:][:arguments.sample or total]
    print(f"{total} mutants, {len(chosen)} chosen, seed {arguments.seed}", flush=True)
    base = Base(arguments.jobs)
    print(f"unchanged: built and passed in {time.time() - began:.0f} s", flush=True)
    benches, fates = queue.SimpleQueue(), collections.Counter()
    for number in range(arguments.jobs):
        benches.put(Bench(base, number))

    def fate_of(mutant):
        if arguments.minutes and time.time() - began > 60 * arguments.minutes:
            return None
        name, line, start, end, by = mutant
        bench, text = benches.get(), read(name)
        try:
            seen = bench.judge(name, text[:start] + by + text[end:])
        finally:
            benches.put(bench)
        old, new = (" ".join(t.split())[:50] for t in (text[start:end], by))
        key = name, " ".join(text.split("\n")[line - 1].split()), f"{old} -> {new}"
        fate = "not viable" if seen is None else "killed" if seen else \
            "equivalent" if key in known else "survived"
        return fate, f"{' | '.join(key)}: line {line}: {fate}{' by ' + seen if seen else ''}"

    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        for at, told in enumerate(pool.map(fate_of, chosen), 1):
            if told:
                fates[told[0]] += 1
                print(f"[{at}/{len(chosen)}, {time.time() - began:.0f} s] {told[1]}", flush=True)
    viable = fates["killed"] + fates["survived"]
    print(f"{sum(fates.values())} of {total} mutants tried: {fates['killed']} killed, {fates['survived']} "
          f"survived, {fates['equivalent']} equivalent, {fates['not viable']} not viable: "
          f"{100 * fates['killed'] / max(viable, 1):.1f} % of {viable}")
    return 0 if viable and fates["killed"] >= 0.95 * viable else 1


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--changed", metavar="BASE", help="a commit, or a file that holds a diff -U0")
    what.add_argument("--files", nargs="+")
    parser.add_argument("--only", metavar="REGEX", default="", help="of --changed: files that match")
    parser.add_argument("--sample", type=int, default=0, help="so many, drawn at random; 0 = all")
    parser.add_argument("--skip", type=int, default=0, help="of the order that the seed gives, so many first")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=int(os.environ.get("TQKV_JOBS", os.cpu_count() or 1)))
    parser.add_argument("--minutes", type=float, default=0, help="no new mutant after so many; 0 = no limit")
    arguments = parser.parse_args()
    if arguments.files:
        wrong = [name for name in arguments.files if not SOURCES.fullmatch(name)]
        if wrong:
            sys.exit(f"run.py: {', '.join(wrong)}: not one of src/*.cpp, src/*.h, src/format/*.h")
        return all_mutants(dict.fromkeys(arguments.files), arguments)
    wanted = changed_lines(arguments.changed)
    return all_mutants({name: wanted[name] for name in wanted if re.search(arguments.only, name)}, arguments)


if __name__ == "__main__":
    sys.exit(main())
