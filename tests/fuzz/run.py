#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs the fuzz targets (built by the preset fuzz): replays each corpus, then fuzzes from it for a while.

  tests/fuzz/run.py [target...] [--seconds N [--counted [--within N]]] [--seed N] [--ledger FILE] [--grow]
                    [--jobs N] [--processes N] [--build FOLDER]

Prints "ok - " or "not ok - " for each replay and each search with its executions, which is also a JSON line
of the ledger: commit (with "+" where the tree had changes), target, seed, seconds, executions, edges,
findings.
ledger.jsonl beside this file is that of long runs:

  tests/fuzz/run.py --seconds 3600 --ledger tests/fuzz/ledger.jsonl --grow

--counted: not so many seconds but as many executions as took them once (A_SECOND), so that with a seed the
search is nearly the same on a slow machine and on a fast one (SAME; a few edges differ). --within: the clock
cuts counted searches so that all of them together take no more, each target its part. --processes: so many
search in each target, with seeds from --seed on, and find each other's inputs; the ledger's line is of all.
--grow adds to corpus/TARGET what reaches code that it does not (a small set, by libFuzzer's merge). An input
that ends a target is kept in BUILD/findings with the command that shows it. No corpus, or no execution, is a
failure. Inputs called replay-* are slow ones and are not searched from.
Standard library only.
"""
import argparse
import concurrent.futures
import hashlib
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
MOST_BYTES = {"load": 20480}  # of an input; others 4096
SLOWEST = 30  # seconds that one input may take, on a machine that others use too
A_SECOND = {"calibration": 100, "calls": 80, "config": 500, "import": 400, "load": 150, "safetensors": 4500}
# What else a counted search leaves to nothing but its seed. The clock says when libFuzzer reads its folder
# again; addresses are among the numbers that the target compares, and libFuzzer puts those into inputs.
SAME = ["-reload=0", "-use_cmp=0"]
FIXED_ADDRESSES = ["setarch", "-R"]  # UBSan's cache of vtables has a branch that hangs on where they lie
TIMED_OUT = 70  # libFuzzer's exit status
GROWTH = 40  # inputs that --grow adds to a corpus at most


def fixed_addresses():
    """The command in front of a counted search; nothing where the machine does not allow it."""
    if not shutil.which(FIXED_ADDRESSES[0]):
        return []
    allowed = subprocess.run([*FIXED_ADDRESSES, "true"], stderr=subprocess.DEVNULL).returncode == 0
    return FIXED_ADDRESSES if allowed else []


def targets():
    return sorted(os.listdir(os.path.join(HERE, "corpus")))


def commit():
    def git(*arguments):
        return subprocess.run(("git",) + arguments, cwd=ROOT, capture_output=True, text=True).stdout.strip()

    return (git("rev-parse", "--short=12", "HEAD") or "none") + ("+" if git("status", "--porcelain") else "")


class Target:
    def __init__(self, name, build):
        self.name = name
        self.program = os.path.join(build, "tests", "fuzz", f"fuzz_{name}")
        self.corpus = os.path.join(HERE, "corpus", name)
        self.findings = os.path.join(build, "findings", name)
        os.makedirs(self.findings, exist_ok=True)

    def run(self, *arguments, seconds, before=()):
        """(exit status, text) of the program."""
        command = [*before, self.program, f"-timeout={SLOWEST}",
                   f"-max_len={MOST_BYTES.get(self.name, 4096)}", "-rss_limit_mb=2048",
                   f"-artifact_prefix={self.findings}/", "-print_final_stats=1", *arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              errors="replace", timeout=seconds + 600)
        return done.returncode, done.stdout

    def found(self):
        return sorted(os.listdir(self.findings))

    def report(self, good, what, text):
        """In one piece: targets run side by side."""
        told = [("ok - " if good else "not ok - ") + f"{self.name}: {what}"]
        if not good:
            lines = text.split("\n")
            telling = [line for line in lines if "NEW_FUNC" not in line and
                       re.search(r"ERROR|SUMMARY|runtime error|cpp:\d+", line)]
            told += telling[:12] or lines[-12:]
            told += [f"{self.program} {os.path.join(self.findings, name)}" for name in self.found()]
        print("\n".join(told), flush=True)

    def replay_and_search(self, options, ledger):
        if not self.replay():
            return False
        return options.seconds == 0 or self.search(options, ledger)

    def replay(self):
        """Every input of the corpus, once."""
        inputs = sorted(os.path.join(self.corpus, name) for name in os.listdir(self.corpus))
        if not inputs:
            self.report(False, "no corpus", self.corpus)
            return False
        # Slow ones are known here: they say nothing of a machine that others use too.
        status, text = self.run(f"-timeout={4 * SLOWEST}", *inputs, seconds=4 * SLOWEST * len(inputs))
        ran = len(re.findall(r"^Executed ", text, re.M))
        good = status == 0 and ran == len(inputs)
        self.report(good, f"{ran} inputs of the corpus again", text)
        return good

    def stands(self, name):
        """Whether a finding is one. What was slow runs again, and its processor's seconds count: those on the
        clock are the machine's, which may have stopped the program for others."""
        if not name.startswith(("timeout-", "slow-unit-")):
            return True
        path = os.path.join(self.findings, name)
        command = [self.program, f"-timeout={40 * SLOWEST}", "-report_slow_units=9999", path]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if status != 0 or usage.ru_utime + usage.ru_stime >= SLOWEST / 3:
            return True
        os.remove(path)
        return False

    def in_order(self, work):
        """Moves the inputs to begin with beside the folder of the search, and names them by their names: a
        folder's order is the file system's."""
        inputs = os.path.join(os.path.dirname(work), "inputs")
        os.rename(work, inputs)
        os.mkdir(work)
        with open(inputs + ".txt", "w", encoding="utf-8") as file:
            file.write(",".join(os.path.join(inputs, name) for name in sorted(os.listdir(inputs))))
        return [f"-seed_inputs=@{inputs}.txt"]

    def search_once(self, options, work, seconds, seed):
        """[(exit status, text)] of the processes, and what they found. A stop that was the machine's is not
        theirs."""
        before = self.found()
        bound, prefix = [f"-max_total_time={seconds}"], []
        if options.counted:
            bound += [f"-runs={options.seconds * A_SECOND[self.name]}", *SAME, *self.in_order(work)]
            prefix = fixed_addresses()
        with concurrent.futures.ThreadPoolExecutor(options.processes) as pool:
            runs = list(pool.map(
                lambda at: self.run(*bound, f"-seed={seed + at}", work, seconds=seconds, before=prefix),
                range(options.processes)))
        new = [name for name in self.found() if name not in before]
        found = [name for name in new if self.stands(name)]
        stopped = any(name.startswith("timeout-") for name in new) and not found
        return [(0 if status == TIMED_OUT and stopped else status, text) for status, text in runs], found

    def search(self, options, ledger):
        seed = options.seed
        with tempfile.TemporaryDirectory() as folder:
            work = os.path.join(folder, "corpus")
            shutil.copytree(self.corpus, work, ignore=shutil.ignore_patterns("replay-*"))
            start, runs, found = time.time(), [], []
            end = start + (options.within if options.counted else options.seconds)
            while not found and time.time() < end and all(run[0] == 0 for run in runs):
                left = max(1, round(end - time.time()))
                more, found = self.search_once(options, work, left, seed + len(runs))
                runs += more
                if options.counted:
                    break
            took = time.time() - start
            counts = [re.search(r"number_of_executed_units: *(\d+)", text) for _, text in runs]
            executions = [int(count.group(1)) if count else 0 for count in counts]
            edges = [int(x) for _, text in runs for x in re.findall(r" cov: (\d+)", text)]
            line = {"commit": commit(), "target": self.name, "seed": seed, "seconds": round(took),
                    "executions": sum(executions), "edges": max(edges, default=0), "findings": found}
            if options.processes > 1:
                line["processes"] = options.processes
            with open(ledger, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            good = all(status == 0 for status, _ in runs) and sum(executions) > 0 and not found
            what = f"{line['executions']} executions in {took:.0f} s, seed {seed}, {line['edges']} edges"
            self.report(good, what, "\n".join(text for status, text in runs if status != 0))
            if options.grow and good:
                self.grow(work, folder)
        return good

    def grow(self, work, folder):
        chosen = os.path.join(folder, "chosen")
        shutil.copytree(self.corpus, chosen)
        status, text = self.run("-set_cover_merge=1", chosen, work, seconds=600)
        if status != 0:
            self.report(False, "the corpus does not grow", text)
            return
        new = [name for name in os.listdir(chosen) if not os.path.exists(os.path.join(self.corpus, name))]
        for name in sorted(new, key=lambda name: os.path.getsize(os.path.join(chosen, name)))[:GROWTH]:
            with open(os.path.join(chosen, name), "rb") as file:
                content = file.read()
            with open(os.path.join(self.corpus, hashlib.sha1(content).hexdigest()[:16]), "wb") as file:
                file.write(content)
        print(f"   {self.name}: {min(len(new), GROWTH)} inputs added of {len(new)} that reach more")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("target", nargs="*", choices=[[], *targets()], help="default: all")
    parser.add_argument("--seconds", type=int, default=60, help="of searching in each target; default 60")
    parser.add_argument("--counted", action="store_true", help="executions for seconds, alike everywhere")
    parser.add_argument("--within", type=float, help="seconds for all counted searches; default 60 a second")
    parser.add_argument("--seed", type=int, default=random.randrange(1, 2**31))
    parser.add_argument("--jobs", type=int, default=int(os.environ.get("TQKV_JOBS", os.cpu_count() or 1)),
                        help="targets at once; default: as many as processors")
    parser.add_argument("--processes", type=int, default=1, help="that search in each target; default 1")
    parser.add_argument("--build", default=os.path.join(ROOT, "build", "fuzz"))
    parser.add_argument("--ledger", default=None, help="default: BUILD/ledger.jsonl")
    parser.add_argument("--grow", action="store_true")
    options = parser.parse_args()
    ledger = options.ledger or os.path.join(options.build, "ledger.jsonl")
    chosen = [Target(name, options.build) for name in options.target or targets()]
    # Of each search. Machines stall, so that a second of searching may take many on the clock.
    turns = math.ceil(len(chosen) / options.jobs)
    options.within = (options.within or 60 * options.seconds) / turns
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        good = list(pool.map(lambda target: target.replay_and_search(options, ledger), chosen))
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
