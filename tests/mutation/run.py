#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Whether the tests notice what is wrong: small faults in the core, one active at a time, each of which some
test must see.

    tests/mutation/run.py [--changed BASE] [--only REGEX] [--sample N] [--seed S] [--jobs N] [--minutes M]
                          [--most SECONDS] [--json FILE] [--again FILE]
    tests/mutation/canaries.py [SUITE...]           one known fault for each suite of tests/run.sh

Sources: src/*.cpp, src/*.h and src/format/*.h; --changed: their lines changed since a commit, or named by a
diff -U0 in a file. mutants.py says what a mutant is, schemata.py how one build holds all of them and how each
is judged by the tests that reach it. Survivors and mutants that no test reaches are shown with their lines:
each is a gap in the tests, or makes no difference to a caller. Those of equivalent.txt, with their reasons,
are counted apart, and so are places that are constant when the compiler runs. --again tries those that a
report of an earlier run (--json) says nothing has killed: whether new tests do. On a machine without time:
--most 5, then --again without it.

The last lines count all of them, and give the killed among the killed, survived and not reached, with the
95 % interval (Wilson) of a sample; exit status 1 if that is less than 95 %. Needs libclang (requirements.txt
here).
"""
import argparse
import collections
import concurrent.futures
import json
import math
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
    """{(file, text of the line, "old -> new")} of equivalent.txt."""
    with open(os.path.join(os.path.dirname(__file__), "equivalent.txt"), encoding="utf-8") as file:
        lines = [line.rstrip("\n") for line in file]
    return {tuple(part.strip() for part in line.split(" | ")[:3]) for line in lines if " | " in line}


def interval(part, whole):
    """95 % of a share, by Wilson."""
    z, share = 1.96, part / whole
    middle = share + z * z / (2 * whole)
    wide = z * math.sqrt(share * (1 - share) / whole + (z / (2 * whole))**2)
    return tuple(100 * (middle + sign * wide) / (1 + z * z / whole) for sign in (-1, 1))


class Campaign:
    def __init__(self, options):
        self.options, self.began = options, time.time()
        wanted = changed_lines(options.changed) if options.changed else all_sources()
        names = [name for name in sorted(wanted) if re.search(options.only, name)]
        self.all = [m for name in names for m in mutants.mutants_of(name, wanted[name])]
        if not self.all:
            sys.exit("run.py: there is nothing to change")
        self.lines = {}
        for name in names:
            with open(os.path.join(ROOT, name), encoding="utf-8") as file:
                self.lines[name] = file.read().split("\n")
        constant = sum(m.compile_time for m in self.all)
        oracle = sum(m.oracle for m in self.all)
        self.say(f"{len(self.all)} mutants; not tried: {constant} in constant expressions, {oracle} in "
                 "audit()")

    def say(self, text):
        print(f"[{time.time() - self.began:.0f} s] {text}", flush=True)

    def prepare(self, pool):
        self.made = schemata.Schemata(self.all, self.options.jobs, self.say)
        self.made.build()
        self.say(f"built; {len(self.made.refused)} do not compile")
        self.tests = self.made.survey(pool)
        whole = sum(test.seconds for test in self.tests)
        self.say(f"{len(self.tests)} tests passed without a mutant, {whole:.0f} s of the processor")

    def key(self, mutant):
        return mutant.key(self.lines[mutant.name][mutant.line - 1])

    def judge(self, number):
        if self.options.minutes and time.time() - self.began > 60 * self.options.minutes:
            return None
        fate, by = self.made.judge(number, self.tests, self.options.most)
        if fate in ("survived", "not reached") and self.key(self.all[number]) in self.known:
            fate = "equivalent"
        return number, fate, by

    def run(self):
        self.known, fates = equivalents(), collections.Counter()
        with concurrent.futures.ThreadPoolExecutor(self.options.jobs) as pool:
            self.prepare(pool)
            chosen = [number for number, m in enumerate(self.all)
                      if not m.compile_time and not m.oracle and number not in self.made.refused]
            able = len(chosen)
            if self.options.again:
                with open(self.options.again, encoding="utf-8") as file:
                    left = {each["mutant"] for each in json.load(file)["mutants"]
                            if each["fate"] in ("survived", "not reached")}
                chosen = [number for number in chosen if " | ".join(self.key(self.all[number])) in left]
            random.Random(self.options.seed).shuffle(chosen)
            chosen = chosen[:self.options.sample or able]
            results = []
            for at, told in enumerate(pool.map(self.judge, chosen), 1):
                if told is None:
                    continue
                number, fate, by = told
                mutant, key = self.all[number], " | ".join(self.key(self.all[number]))
                fates[fate] += 1
                results.append({"file": mutant.name, "line": mutant.line, "mutant": key, "fate": fate,
                                "by": by})
                if at % 50 == 0:  # for who looks at a run that goes on
                    self.save({}, results)
                if fate in ("survived", "not reached"):
                    self.say(f"{at}/{len(chosen)} {key} | line {mutant.line}: {fate}")
                elif at % 100 == 0:
                    counts = ", ".join(f"{fates[f]} {f}" for f in FATES if fates[f])
                    self.say(f"{at}/{len(chosen)}: {counts}")
        return self.report(fates, results, able)

    def save(self, summary, results):
        path = self.options.json or os.path.join(schemata.BUILD, "report.json")
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"summary": summary, "mutants": results}, file, indent=1)

    def report(self, fates, results, able):
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
                   "tests": len(self.tests), "seconds": round(time.time() - self.began)}
        self.save(summary, results)
        print(json.dumps(summary))
        sample = f", 95 % interval {low:.1f} .. {high:.1f} %" if len(results) < able else ""
        print(f"{len(results)} of {able} mutants tried: {fates['killed']} killed, {fates['timeout']} ran out "
              f"of time (killed), {fates['survived']} survived, {fates['not reached']} not reached, "
              f"{fates['equivalent']} equivalent: {share:.1f} % of {judged}{sample}")
        return 0 if share >= 95 else 1


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
    parser.add_argument("--again", metavar="FILE", help="only what an earlier report has left")
    return Campaign(parser.parse_args()).run()


if __name__ == "__main__":
    sys.exit(main())
