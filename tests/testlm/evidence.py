# SPDX-License-Identifier: Apache-2.0
"""Quality against bytes on the test model: every kind of cache that the library has, and other projects'.

    python3 evidence.py [--library build/libtqkv.so] [--jobs 2] [--out runs.jsonl] [--json evidence.json]
    python3 evidence.py --table [--plot quality.svg] [--goal 0.004]     what evidence.json says, nothing run
    python3 evidence.py --quick                                         two short texts, seconds

Grid: 2, 3 and 4 bits, and half ones in bands; scalar and trellis codes; plain, centred, banded keys, both,
and both of turned keys; window 0 and 128, sinks 0 and 4 (recall: neither, and both). Rivals: KVarN,
Block-GTQ, OSCAR, bit-shift trellis (rivals.py), at the same windows and sinks.

Judged: next-byte KL to the exact model and top-1 agreement over the last 384 of 640 bytes of 24 held-out
texts; KL and the share recalled of the asked bytes of 6 recall sequences cut to 1,281 bytes. Sequence i has
rotation seed i mod 3, so that standard errors cover seeds as well as texts. Calibration: calibrated.py.

Bytes are those of a token and kv head, keys and values, scales included. "with exact": on average over
4,096 tokens, exact tokens in 16 bits counted: beside their codes for this library's caches, instead of them
for rivals.

A run is one sequence through one configuration; FILE of --out keeps finished ones, a line of JSON each, so
that a stopped command goes on. --seconds: start no run after so long. --more: what the file of --json holds
is kept, and not run again.
"""
import argparse
import concurrent.futures
import itertools
import json
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import report
from calibrated import FAMILIES, KINDS, ROOT, TURNED, Caches, calibrate, calibration_texts
from library import find_library
from model import Model, read_safetensors
from run import compare, default_folder, log_softmax

sys.path.insert(0, str(ROOT / "bindings" / "python"))

TEXT_BYTES, SCORED, SEEDS, RECALL_BYTES = 640, 384, 3, 1281
EXACT = tuple(itertools.product((0, 128), (0, 4)))
PIECE = 2  # runs that a process is given at once
MOMENTS = "moments.npz"
STORE = Path(__file__).resolve().parent / "evidence.json"


def grid(bits, exact, names, kinds=(*KINDS, TURNED)):
    """Configurations: (name, kind, bits, window, sinks); a rival's kind and bits are empty."""
    own = [(family, kind, rate, *pair) for pair in exact for rate in bits for family in FAMILIES
           for kind in kinds if rate == int(rate) or kind in ("banded", "both", TURNED)]
    return own + [(name, "", 0, *pair) for pair in exact for name in names]


def keys_of(sequences, configurations):
    """The runs of these: all texts; recall with no exact tokens and with the most."""
    pairs = sorted(c[3:] for c in configurations)
    return [(*sequence, c) for sequence in sequences for c in configurations
            if sequence[0] == "text" or c[3:] in (pairs[0], pairs[-1])]


class Worker:
    """What a process needs: the model, the library, calibrations from files."""

    def __init__(self, folder, library, work, quick, wanted):
        os.environ["TQKV_LIBRARY"] = str(library)
        import tqkv
        self.model = Model(folder)
        self.data = read_safetensors(os.path.join(folder, "eval.safetensors"))
        self.caches = Caches(tqkv, self.model,
                             {what: tqkv.Calibration.load(work / what) for what in wanted if what != MOMENTS})
        self.quick, self.exact = quick, {}
        if MOMENTS in wanted:
            import torch
            import rivals
            torch.set_num_threads(1)
            self.rivals, self.sides = rivals, rivals.read_sides(work / MOMENTS)

    def sequence(self, task, i):
        """(bytes, which predictions count)"""
        if task == "text":
            bytes_, scored = (320, 192) if self.quick else (TEXT_BYTES, SCORED)
            return self.data[task][i][:bytes_ + 1], np.arange(bytes_) >= bytes_ - scored
        return (self.data[task][i][:RECALL_BYTES],
                self.data[task + ".asked"][i][1:RECALL_BYTES].astype(bool))

    def attention(self, configuration, tokens, seed):
        name, kind, bits, window, sinks = configuration
        if kind:
            return self.caches.attention(tokens, name, kind, bits, window, sinks, seed)
        return self.rivals.RivalAttention(name, self.sides, window, sinks)

    def __call__(self, task, i, configuration):
        """[KL, top-1 agreement, right] over what counts."""
        tokens, counted = self.sequence(task, i)
        if (task, i) not in self.exact:
            self.exact[task, i] = log_softmax(self.model.logits(tokens[:-1]))
        attention = self.attention(configuration, len(tokens) - 1, i % SEEDS)
        try:
            quantised = log_softmax(self.model.logits(tokens[:-1], attention))
        finally:
            attention.close()
        kl, _, agree, right = compare(self.exact[task, i], quantised, tokens[1:])
        return [float(f"{part[counted].mean():.5g}") for part in (kl, agree, right)]

    def token_bytes(self, configuration):
        name, kind, bits = configuration[:3]
        if kind:
            return self.caches.token_bytes(name, kind, bits)
        return self.rivals.token_bytes(name, self.model.head_dim)


def short(quick):
    """calibration_texts' arguments."""
    return (384, 1) if quick else ()


worker = None  # of this process


def begin(*arguments):
    global worker
    worker = Worker(*arguments)


def do(keys):
    return [(key, worker(*key)) for key in keys]


def measure_to(folder, library, what, path, quick):
    """A family's calibration, or what rivals may know, into a file."""
    os.environ["TQKV_LIBRARY"] = str(library)
    import tqkv
    model, data = Model(folder), read_safetensors(os.path.join(folder, "eval.safetensors"))
    texts = calibration_texts(data, *short(quick))
    if what == MOMENTS:
        from rivals import collect_moments
        collect_moments(model, texts, path)
    else:
        calibrate(tqkv, model, texts, what.removesuffix(TURNED), what.endswith(TURNED)).save(path)


def build_info(library):
    os.environ["TQKV_LIBRARY"] = str(library)
    import tqkv
    return tqkv.build_info()


class Runs:
    """Finished runs: (task, sequence, configuration) -> figures."""

    def __init__(self, path):
        self.path, self.rows = path, {}
        if path and path.exists():
            for line in path.read_text().splitlines():
                task, i, configuration, figures = json.loads(line)
                self.rows[task, i, tuple(configuration)] = figures

    def take(self, rows):
        """The runs of rows that gather made."""
        for row in rows:
            configuration = tuple(row[field] for field in ("name", "kind", "bits", "window", "sinks"))
            for i, figures in enumerate(zip(row["kl"], row["top1"])):
                self.rows["text", i, configuration] = [*figures, None]
            for i, (kl, right) in enumerate(zip(row.get("recall_kl", ()), row.get("recall", ()))):
                self.rows["recall", i, configuration] = [kl, None, right]

    def keep(self, found):
        self.rows.update(found)
        if self.path:
            with self.path.open("a") as file:
                file.writelines(json.dumps([*key, figures]) + "\n" for key, figures in found)


def run(arguments, configurations, sequences, runs, work):
    """Makes the runs that are missing. Returns bytes by configuration."""
    started, context = time.time(), multiprocessing.get_context("spawn")
    kinds = {configuration[1] for configuration in configurations}
    wanted = [*FAMILIES, *[family + TURNED for family in FAMILIES if TURNED in kinds],
              *[MOMENTS] * ("" in kinds)]
    with concurrent.futures.ProcessPoolExecutor(min(3, arguments.jobs), context) as pool:
        for future in [pool.submit(measure_to, arguments.folder, arguments.library, what, work / what,
                                   arguments.quick) for what in wanted if not (work / what).exists()]:
            future.result()
    print(f"calibrated: {time.time() - started:.0f} s", file=sys.stderr, flush=True)
    begun = (arguments.folder, arguments.library, work, arguments.quick, wanted)
    pieces = []
    for sequence in sequences:
        missing = [key for key in keys_of([sequence], configurations) if key not in runs.rows]
        pieces += [missing[at:at + PIECE] for at in range(0, len(missing), PIECE)]
    with concurrent.futures.ProcessPoolExecutor(arguments.jobs, context, begin, begun) as pool:
        waiting, done, todo = set(), 0, iter(pieces)
        while True:
            while (time.time() - started < arguments.seconds and len(waiting) < arguments.jobs + 2
                   and (piece := next(todo, None))):
                waiting.add(pool.submit(do, piece))
            if not waiting:
                break
            ready, waiting = concurrent.futures.wait(waiting, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in ready:
                runs.keep(future.result())
                done += 1
                print(f"\r{done} of {len(pieces)} pieces: {time.time() - started:.0f} s", end="",
                      file=sys.stderr, flush=True)
    print(file=sys.stderr)
    begin(*begun)
    return {c: worker.token_bytes(c) for c in configurations}


def gather(configurations, sizes, sequences, runs):
    """What evidence.json holds of each configuration that has all its texts."""
    rows = []
    for c in configurations:
        row = {"name": c[0], "kind": c[1], "bits": c[2], "window": c[3], "sinks": c[4], "bytes": sizes[c]}
        for task in ("text", "recall"):
            keys = [(task, i, c) for t, i in sequences if t == task]
            if keys and all(key in runs.rows for key in keys):
                names = ("kl", "top1") if task == "text" else ("recall_kl", None, "recall")
                for at, name in enumerate(names):
                    if name:
                        row[name] = [runs.rows[key][at] for key in keys]
        if "kl" in row:
            rows.append(row)
    return rows


def joined(before, now):
    """Rows of both, each configuration's once."""
    place = lambda row: (row["window"], row["sinks"], row["name"], row["kind"], row["bits"])  # noqa: E731
    new = set(map(place, now))
    return [row for row in before if place(row) not in new] + now


def parse():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default=default_folder())
    parser.add_argument("--library", default=find_library())
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--texts", type=int, default=24, choices=range(2, 25), metavar="2 .. 24")
    parser.add_argument("--recalls", type=int, default=6, choices=range(0, 7), metavar="0 .. 6")
    parser.add_argument("--bits", default="2,2.5,3,3.5,4", help="of these; 2.5 and 3.5 in bands alone")
    parser.add_argument("--kinds", default=",".join((*KINDS, TURNED)), help="of the library's caches")
    parser.add_argument("--exact", action="append", help="window,sinks; again for more; all four")
    parser.add_argument("--no-rivals", action="store_true", help="which need torch")
    parser.add_argument("--rivals", default="", help="of the rivals those whose names begin so: KVarN,OSCAR")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no run after so long")
    parser.add_argument("--calibrations", type=Path, help="folder that keeps them, and where they are taken "
                        "from if they are there")
    parser.add_argument("--out", type=Path, help="file of finished runs")
    parser.add_argument("--json", type=Path, help="write what was found")
    parser.add_argument("--more", action="store_true", help="and keep what the file of --json holds")
    parser.add_argument("--table", action="store_true", help="run nothing: report on --json, or on the "
                        "figures that are kept beside this program")
    parser.add_argument("--short", action="store_true", help="a table of the main rows alone")
    parser.add_argument("--plot", type=Path, help="draw quality against bytes: SVG or PNG")
    parser.add_argument("--goal", type=float, help="print the cheapest configurations of this KL")
    parser.add_argument("--quick", action="store_true", help="two short texts, 3 bits, no exact tokens, no "
                        "rivals but KVarN where torch is")
    arguments = parser.parse_args()
    if arguments.more and not (arguments.json and arguments.json.exists()):
        parser.error("--more: needs a --json FILE that is there")
    if not arguments.table and not arguments.library:
        parser.error("no libtqkv.so found in build*/; name one with --library or TQKV_LIBRARY")
    return arguments


def main():
    arguments = parse()
    if arguments.table:
        found = json.loads((arguments.json or STORE).read_text())
    else:
        bits = (3.0, ) if arguments.quick else tuple(float(b) for b in arguments.bits.split(","))
        exact = [tuple(int(n) for n in pair.split(",")) for pair in arguments.exact or []] or EXACT
        names = ()
        if not arguments.no_rivals and not arguments.quick:
            from rivals import NAMES
            names = [name for name in NAMES if name.startswith(tuple(arguments.rivals.split(",")))]
        texts, recalls = (2, 0) if arguments.quick else (arguments.texts, arguments.recalls)
        configurations = (grid(bits, exact[:1], names, KINDS) if arguments.quick
                          else grid(bits, exact, names, arguments.kinds.split(",")))
        sequences = [("text", i) for i in range(texts)] + [("recall", i) for i in range(recalls)]
        runs, before = Runs(arguments.out), {"rows": []}
        if arguments.more:
            before = json.loads(arguments.json.read_text())
            runs.take(before["rows"])
        with tempfile.TemporaryDirectory() as folder:
            sizes = run(arguments, configurations, sequences, runs, arguments.calibrations or Path(folder))
        missing = sum(key not in runs.rows for key in keys_of(sequences, configurations))
        print(f"{missing} runs are missing", file=sys.stderr)
        found = {"command": f"python3 tests/testlm/evidence.py --texts {texts} --recalls {recalls} --bits "
                 + ",".join(f"{b:g}" for b in bits),
                 "build": build_info(arguments.library),
                 "rows": joined(before["rows"], gather(configurations, sizes, sequences, runs))}
        if arguments.json:
            report.save(found, arguments.json)
    (report.short_table if arguments.short else report.table)(found)
    if arguments.goal is not None:
        report.cheapest(found, arguments.goal)
    if arguments.plot:
        report.plot(found, arguments.plot)


if __name__ == "__main__":
    main()
