#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Whether the tests notice what is wrong: small faults in the core, one active at a time, each of which some
test must see.

    tests/mutation/run.py [--changed BASE] [--only REGEX] [--sample N] [--seed S] [--jobs N] [--minutes M]
                          [--most SECONDS] [--json FILE] [--resume FILE | --again FILE] [--build | --built]
                          [--sanitize | --memcheck] [--ledger FILE]
    tests/mutation/canaries.py [SUITE...]           one known fault for each suite of tests/run.sh

Sources: src/*.cpp, src/*.h and src/format/*.h; --changed: their lines changed since a commit, or named by a
diff -U0 in a file. mutants.py says what a mutant is, schemata.py how one build holds all of them and how each
is judged by the tests that reach it. Survivors and mutants that no test reaches are shown with their lines:
each is a gap in the tests, or makes no difference to a caller. Those of equivalent.txt, with their reasons,
are counted apart, and so are places that are constant when the compiler runs. --resume takes over what a
report of an earlier run (--json) has judged and goes on; --again takes over what it saw killed, and tries
the others, as far as there is time: whether new tests do it. On a machine without time: --most 5, then
--again without it, then --again --sanitize, which sees what reads or writes past an end, or --again
--memcheck --most .5, which sees most of that without a build of its own.

The last lines count all of them, and give the killed among the killed, survived and not reached, with the
95 % interval (Wilson) of a sample; exit status 1 if that is less than 95 %. --ledger adds a line of these
counts with the commit ("+": changed since) and the options to a file. Needs libclang (requirements.txt here)
when sources have changed. On a machine with more processors and no libclang: --build here, and bring
build/mutation/held there; where there is no compiler either, build/mutation/made with its programs too, and
run it there with --built.
"""
import argparse
import collections
import concurrent.futures
import hashlib
import json
import math
import multiprocessing
import os
import random
import re
import subprocess
import sys
import time

import mutants
import schemata

ROOT = mutants.ROOT
FATES = ("killed", "timeout", "survived", "not reached", "equivalent", "refused")


def changed_lines(base):
    """{file: lines} of the sources that differ from the commit, or by a diff -U0 in a file."""
    result, name = {}, None
    if os.path.isfile(base):
        with open(base, encoding="utf-8") as file:
            diff = file.read()
    else:
        diff = subprocess.run(["git", "diff", "-U0", base, "--", "src"], cwd=ROOT, check=True,
                              capture_output=True, text=True).stdout
    for line in diff.split("\n"):
        if line.startswith("+++ "):
            name = line[6:] if mutants.SOURCES.fullmatch(line[6:]) else None
        match = re.match(r"@@ -\S+ \+(\d+)(?:,(\d+))? @@", line)
        if match and name:
            first, count = int(match.group(1)), int(match.group(2) or 1)
            result.setdefault(name, set()).update(range(first, first + count))
    return result


def all_sources():
    names = [os.path.relpath(os.path.join(folder, name), ROOT)
             for folder in (os.path.join(ROOT, "src"), os.path.join(ROOT, "src/format"))
             for name in os.listdir(folder)]
    return {name: None for name in names if mutants.SOURCES.fullmatch(name)}


def equivalents():
    """"file | text of the line | old -> new" of each line of equivalent.txt; " #2" may follow."""
    with open(os.path.join(os.path.dirname(__file__), "equivalent.txt"), encoding="utf-8") as file:
        lines = [line.rstrip("\n") for line in file]
    return {line.rsplit(" | ", 1)[0] for line in lines if " | " in line}


def interval(part, whole):
    """95 % of a share, by Wilson."""
    z, share = 1.96, part / whole
    middle = share + z * z / (2 * whole)
    wide = z * math.sqrt(share * (1 - share) / whole + (z / (2 * whole))**2)
    return tuple(100 * (middle + sign * wide) / (1 + z * z / whole) for sign in (-1, 1))


def digest_of(names):
    digest = hashlib.sha256()
    for name in names:
        with open(os.path.join(ROOT, name), "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()


def names_of(every):
    """Of each mutant "file | line of the source | old -> new", and " #2" for a second one."""
    names, lines, met = [], {}, collections.Counter()
    for mutant in every:
        if mutant.name not in lines:
            with open(os.path.join(ROOT, mutant.name), encoding="utf-8") as file:
                lines[mutant.name] = file.read().split("\n")
        name = " | ".join(mutant.key(lines[mutant.name][mutant.line - 1]))
        met[name] += 1
        names.append(name if met[name] == 1 else f"{name} #{met[name]}")
    return names


def commit():
    git = lambda *words: subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout
    return git("rev-parse", "--short=12", "HEAD").strip() + "+" * bool(git("status", "--porcelain"))


def killed_by(report):
    return report["fate"] in ("killed", "timeout")


class Campaign:
    def __init__(self, options):
        self.options, self.began, self.known = options, time.time(), equivalents()
        self.told = {}  # by mutant, of an earlier report
        if options.memcheck and not options.again:
            sys.exit("run.py: --memcheck takes half a minute for a second of tests: with --again alone")
        self.until = self.began + 60 * options.minutes if options.minutes else math.inf
        self.wanted = changed_lines(options.changed) if options.changed else all_sources()
        self.digest = digest_of([*sorted(all_sources()), "tests/mutation/mutants.py"])
        self.made = schemata.Schemata.held(options, self.say, self.digest)
        if not self.made and options.built:
            sys.exit("run.py: there is no build of these sources")
        if not self.made:
            every = [m for name in sorted(all_sources()) for m in mutants.mutants_of(name)]
            self.made = schemata.Schemata(options, self.say, every, names_of(every))
        self.names = self.made.names
        self.all = self.made.mutants
        constant = sum(m.compile_time for m in self.all)
        oracle = sum(m.oracle for m in self.all)
        self.say(f"{len(self.all)} mutants; not tried: {constant} in constant expressions, {oracle} in "
                 "audit()")

    def say(self, text):
        print(f"[{time.time() - self.began:.0f} s] {text}", flush=True)

    def prepare(self, pool):
        if not self.options.built:
            self.made.build(self.digest)
            self.say(f"built; {len(self.made.refused)} do not compile")
        self.tests = self.made.survey(pool)
        whole = sum(test.seconds for test in self.tests)
        self.say(f"{len(self.tests)} tests passed without a mutant, {whole:.0f} s of the processor")

    def chosen(self):
        """Numbers of the mutants that are to be judged, at random; what earlier reports say of others."""
        able = [number for number, m in enumerate(self.all)
                if not m.compile_time and not m.oracle and number not in self.made.refused and
                re.search(self.options.only, m.name) and m.name in self.wanted and
                (self.wanted[m.name] is None or m.line in self.wanted[m.name])]
        earlier = {}
        if self.options.again or self.options.resume:
            with open(self.options.again or self.options.resume, encoding="utf-8") as file:
                told = json.load(file)["mutants"]
            self.told = {each["mutant"]: each for each in told}
            earlier = {each["mutant"]: each for each in told if self.options.resume or killed_by(each)}
            for each in told:
                self.made.learn(each["file"], each["by"])
        random.Random(self.options.seed).shuffle(able)
        whole = len(able)
        able = able[:self.options.sample or whole]
        taken = [dict(earlier[self.names[number]]) for number in able if self.names[number] in earlier]
        for each in taken:
            each["fate"] = self.fate_of(each["mutant"], each["fate"])
        return [number for number in able if self.names[number] not in earlier], taken, whole

    def fate_of(self, name, fate):
        known = {name, re.sub(r" #\d+$", "", name)} & self.known
        return "equivalent" if known and fate in ("survived", "not reached") else fate

    def judge(self, number):
        mutant, name = self.all[number], self.names[number]
        most = self.options.most
        if self.fate_of(name, "survived") == "equivalent":
            most = 2  # all tests would say the same
        told = self.made.judge(number, self.tests, most, self.until)
        if told is None:  # no time: what an earlier report says of it stays
            return self.told.get(name)
        fate, by = told
        fate = self.fate_of(name, fate)
        return {"file": mutant.name, "line": mutant.line, "mutant": name, "fate": fate, "by": by}

    def run(self):
        with concurrent.futures.ThreadPoolExecutor(self.options.jobs) as pool:
            self.prepare(pool)
        if self.options.build:
            return 0
        chosen, results, able = self.chosen()
        if len(chosen) + len(results) == 0:
            sys.exit("run.py: there is nothing to change")
        self.say(f"{len(chosen)} to be judged, {len(results)} are by an earlier run")
        global judging
        judging = self.judge  # processes that are forked now know it: a thread each would wait for the others
        with multiprocessing.get_context("fork").Pool(self.options.jobs) as pool:
            for at, told in enumerate(pool.imap_unordered(judge, chosen), 1):
                if told is None:
                    continue
                results.append(told)
                if at % 50 == 0:  # for who looks at a run that goes on
                    self.save({}, results)
                if told["fate"] in ("survived", "not reached"):
                    self.say(f"{at}/{len(chosen)} {told['mutant']} | line {told['line']}: {told['fate']}")
                elif at % 100 == 0:
                    fates = collections.Counter(each["fate"] for each in results)
                    counts = ", ".join(f"{fates[fate]} {fate}" for fate in FATES if fates[fate])
                    self.say(f"{at}/{len(chosen)}: {counts}")
        return self.report(results, able)

    def save(self, summary, results):
        path = self.options.json or os.path.join(schemata.BUILD, "report.json")
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"summary": summary, "mutants": results}, file, indent=1)

    def report(self, results, able):
        fates = collections.Counter(each["fate"] for each in results)
        killed = fates["killed"] + fates["timeout"]
        judged = killed + fates["survived"] + fates["not reached"]
        if not judged:
            sys.exit("run.py: no mutant was judged")
        share, (low, high) = 100 * killed / judged, interval(killed, judged)
        summary = {"mutants": len(self.all), "constant": sum(m.compile_time for m in self.all),
                   "audit": sum(m.oracle for m in self.all), "refused": len(self.made.refused),
                   "tried": len(results), "of": able,
                   **{fate: fates[fate] for fate in FATES[:-1]}, "percent": round(share, 2),
                   "interval": [round(low, 2), round(high, 2)], "seed": self.options.seed,
                   "tests": len(self.tests), "tests left out": len(self.made.left_out),
                   "sanitize": self.options.sanitize, "memcheck": self.options.memcheck,
                   "seconds": round(time.time() - self.began)}
        self.save(summary, results)
        print(json.dumps(summary))
        if self.options.ledger:
            line = {"commit": commit(), "only": self.options.only, "most": self.options.most, **summary}
            with open(self.options.ledger, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        sample = f", 95 % interval {low:.1f} .. {high:.1f} %" if len(results) < able else ""
        print(f"{len(results)} of {able} mutants tried: {fates['killed']} killed, {fates['timeout']} ran out "
              f"of time (killed), {fates['survived']} survived, {fates['not reached']} not reached, "
              f"{fates['equivalent']} equivalent: {share:.1f} % of {judged}{sample}")
        return 0 if share >= 95 and not self.made.left_out else 1


judging = None


def judge(number):
    return judging(number)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--changed", metavar="BASE",
                        help="a commit, or a file that holds a diff -U0; default: every line")
    parser.add_argument("--only", metavar="REGEX", default="", help="files that match")
    parser.add_argument("--sample", type=int, default=0, help="so many, drawn at random; 0 = all")
    parser.add_argument("--seed", type=int, default=1, help="of the draw and of the order")
    parser.add_argument("--jobs", type=int, default=int(os.environ.get("TQKV_JOBS", os.cpu_count() or 1)))
    parser.add_argument("--minutes", type=float, default=0, help="no new mutant after so many; 0 = no limit")
    parser.add_argument("--most", type=float, default=0, metavar="SECONDS",
                        help="of the processor for a mutant's tests, the quickest first; 0 = all of them")
    parser.add_argument("--json", help="default: build/mutation/report.json")
    parser.add_argument("--ledger", metavar="FILE", help="a line of the counts is added to it")
    earlier = parser.add_mutually_exclusive_group()
    earlier.add_argument("--resume", metavar="FILE", help="what an earlier report has not judged")
    earlier.add_argument("--again", metavar="FILE", help="what an earlier report has not seen killed")
    watch = parser.add_mutually_exclusive_group()
    watch.add_argument("--sanitize", action="store_true", help="a build with AddressSanitizer and UBSan")
    watch.add_argument("--memcheck", action="store_true", help="programs run under valgrind; with --again")
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--build", action="store_true", help="and survey; judge nothing")
    part.add_argument("--built", action="store_true",
                      help="build nothing: build/mutation is there, made by an earlier run or brought here")
    return Campaign(parser.parse_args()).run()


if __name__ == "__main__":
    sys.exit(main())
