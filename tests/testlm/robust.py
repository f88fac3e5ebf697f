# SPDX-License-Identifier: Apache-2.0
"""Calibrated on one kind of text, judged on the others: is a calibration ever worse than none?

    python3 robust.py [--library build/libtqkv.so] [--jobs 2] [--bits 2,3,4] [--sequences 6] [--turned]
                      [--families scalar,trellis] [--out FILE]

Kinds: held-out text, needle and recall sequences of the test model, and sources and documentation of this
clone (calibrated on alone). Each is calibrated on by itself, 4,096 bytes, scalar and trellis; judged on the
other tasks' sequences: next-byte KL to the exact model over the last 384 of 640 bytes of a text, of 1,281 of
a needle or recall sequence, centres and bands (--turned: and the matrices for keys that are found) against
plain codes of the same bits and rotation seed. Ratios
of means, standard errors by the jackknife. Exit status 1: a ratio is above 1.02 by more than two standard
errors. FILE keeps finished runs.
"""
import argparse
import concurrent.futures
import itertools
import json
import multiprocessing
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

from calibrated import FAMILIES, ROOT, SOURCES, TURNED, Caches, calibrate
from evidence import SCORED, SEEDS, TEXT_BYTES, Runs
from library import find_library
from model import Model, read_safetensors
from rules import jackknife_ratio
from run import compare, default_folder, log_softmax

TASKS = ("text", "needle", "recall")
KINDS = (*TASKS, "sources")
PIECE, PIECES, LONG = 1024, 4, 1281
MOST = 1.02


def texts_of(data, kind):
    if kind == "sources":
        return [np.frombuffer((ROOT / name).read_bytes()[1000:1000 + PIECE], np.uint8) for name in SOURCES]
    return [data[kind][-1 - i][:PIECE] for i in range(PIECES)]


class Judge:
    def __init__(self, folder, library, work, turned):
        os.environ["TQKV_LIBRARY"] = str(library)
        sys.path.insert(0, str(ROOT / "bindings" / "python"))
        import tqkv
        self.tqkv, self.work, self.exact, self.caches = tqkv, work, {}, {}
        self.turned, self.suffix = turned, TURNED if turned else ""
        self.model, self.data = Model(folder), read_safetensors(os.path.join(folder, "eval.safetensors"))

    def prepare(self, kind, family):
        found = calibrate(self.tqkv, self.model, texts_of(self.data, kind), family, self.turned)
        found.save(self.work / f"{kind}-{family}")

    def of_kind(self, kind):
        """Caches of this calibration; plain ones take nothing from it."""
        if kind not in self.caches:
            known = {family + self.suffix: self.tqkv.Calibration.load(self.work / f"{kind}-{family}")
                     for family in FAMILIES if (self.work / f"{kind}-{family}").exists()}
            self.caches[kind] = Caches(self.tqkv, self.model, known)
        return self.caches[kind]

    def __call__(self, task, i, configuration):
        kind, family, bits = configuration
        tokens = self.data[task][i][:TEXT_BYTES + 1 if task == "text" else LONG]
        if (task, i) not in self.exact:
            self.exact[task, i] = log_softmax(self.model.logits(tokens[:-1]))
        caches, kept = self.of_kind(kind or KINDS[0]), (self.suffix or "both") if kind else "plain"
        attention = caches.attention(len(tokens) - 1, family, kept, bits, 0, 0, i % SEEDS)
        quantised = log_softmax(self.model.logits(tokens[:-1], attention))
        attention.close()
        kl = compare(self.exact[task, i], quantised, tokens[1:])[0]
        return float(kl[-SCORED:].mean())


judge = None  # of this process


def begin(*arguments):
    global judge
    judge = Judge(*arguments)


def prepare(kind, family):
    judge.prepare(kind, family)


def do(key):
    return key, judge(*key)


def make_runs(arguments, keys, runs, work):
    context = multiprocessing.get_context("spawn")
    begun = arguments.folder, arguments.library, work, arguments.turned
    families = arguments.families.split(",")
    with concurrent.futures.ProcessPoolExecutor(arguments.jobs, context, begin, begun) as pool:
        for future in [pool.submit(prepare, *pair) for pair in itertools.product(KINDS, families)]:
            future.result()
        missing = [key for key in keys if key not in runs.rows]
        futures = [pool.submit(do, key) for key in missing]
        for done, future in enumerate(concurrent.futures.as_completed(futures), 1):
            runs.keep([future.result()])
            print(f"\r{done} of {len(missing)} runs", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)


def table(rows, families, rates, count):
    """Prints the ratios; how many are too large."""
    worse = 0
    print("| calibrated on | codes | bits | " + " | ".join(f"{task}, KL over plain" for task in TASKS) + " |")
    print("|---|---|---|" + "---|" * len(TASKS))
    for kind, family, bits in itertools.product(KINDS, families, rates):
        cells = []
        for task in TASKS:
            if task == kind:
                cells.append("(its own)")
                continue
            kl = [np.array([rows[task, i, (one, family, bits)] for i in range(count)]) for one in (kind, "")]
            ratio, error = jackknife_ratio(*kl)
            worse += ratio - 2 * error > MOST
            cells.append(f"{ratio:.3f} +- {error:.3f}")
        print(f"| {kind} | {family} | {bits:g} | {' | '.join(cells)} |")
    return worse


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default=default_folder())
    parser.add_argument("--library", default=find_library())
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--bits", default="2,3,4")
    parser.add_argument("--turned", action="store_true", help="with the matrices for keys that are found")
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--sequences", type=int, default=6, choices=range(2, 9), metavar="2 .. 8")
    parser.add_argument("--out", type=Path, help="file of finished runs")
    parser.add_argument("--json", type=Path, help="write the KLs")
    arguments = parser.parse_args()
    if not arguments.library:
        parser.error("no libtqkv.so found in build*/; name one with --library or TQKV_LIBRARY")
    rates = [float(b) for b in arguments.bits.split(",")]
    keys = [(task, i, (kind, family, bits)) for task in TASKS for i in range(arguments.sequences)
            for kind in ("", *KINDS) for family in arguments.families.split(",") for bits in rates
            if kind != task]
    runs = Runs(arguments.out)
    with tempfile.TemporaryDirectory() as work:
        make_runs(arguments, keys, runs, Path(work))
    if arguments.json:
        arguments.json.write_text(json.dumps([[*key, runs.rows[key]] for key in keys]))
    worse = table(runs.rows, arguments.families.split(","), rates, arguments.sequences)
    print(f"\n{worse} ratios above {MOST} by more than two standard errors")
    sys.exit(int(worse > 0))


if __name__ == "__main__":
    main()
