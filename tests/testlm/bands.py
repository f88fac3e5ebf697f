# SPDX-License-Identifier: Apache-2.0
"""What calibrated key bands save on the test model, beside centres and trellis codes.

    python3 bands.py [--folder ../shared/testlm] [--library build/libtqkv.so] [--texts 24] [--out FILE]
    [--exact 0,0 --exact 128,4] [--bits 2,3,4] [--goal 0.02]

Calibrated (tq_calibration) on text of another kind than the judged one: needle and recall sequences of the
model's own tasks, and sources and documentation of this clone. Judged as in rules.py: next-byte KL to the
exact model over the last 384 of 640 bytes of held-out texts, text i with rotation seed i mod 3; standard
errors over texts. Bytes are those of a token and kv head. Centres and bands come from the same calibration.

--goal: the cheapest of the measured configurations whose KL is at most this.
"""
import argparse
import json
import os
import sys
import time
from pathlib import Path

import numpy as np

from library import find_library
from model import Model, exact_attention, read_safetensors
from run import compare, default_folder, log_softmax

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bindings" / "python"))

TEXT_BYTES, SCORED, SEEDS = 640, 384, 3
PIECE = 1024  # bytes of a calibration text
SOURCES = ("src/batch.cpp", "src/page_table.cpp", "bindings/python/README.md", "tests/bench/README.md")
FAMILIES = ("scalar", "trellis")
KINDS = ("plain", "centred", "banded", "both")


def calibration_texts(data):
    texts = [data[task][i][:PIECE] for task in ("needle", "recall") for i in range(3)]
    for name in SOURCES:
        texts.append(np.frombuffer((ROOT / name).read_bytes()[1000:1000 + PIECE], np.uint8))
    return texts


def calibrate(tqkv, model, texts, family):
    found = tqkv.Calibration(model.layers, model.q_heads, model.kv_heads, model.head_dim, key_family=family,
                             value_family=family)

    def collect(layer, q, k, v):
        found.feed(layer, *(np.ascontiguousarray(side, np.float32) for side in (q, k, v)))
        return exact_attention(layer, q, k, v)

    for text in texts:
        model.logits(text, collect)
    return found


class CacheAttention:
    """One sequence in a fresh cache; call with (layer, q, k, v), each layer once."""

    def __init__(self, tqkv, model, tokens, layers, bits, family, seed, window, sinks, calibration):
        fields = {"layers": layers} if layers else {"num_layers": model.layers, "key_bits": bits}
        self.cache = tqkv.Cache(num_q_heads=model.q_heads, num_kv_heads=model.kv_heads,
                                head_dim=model.head_dim, value_bits=bits, code_family=family,
                                rotation_seed=seed, max_tokens=tokens, num_threads=1, window_tokens=window,
                                sink_tokens=sinks, **fields)
        if calibration is not None:
            calibration.set_centres(self.cache)
        self.step = self.cache.batch()
        self.step.plan([self.cache.sequence()], new_tokens=[tokens])

    def __call__(self, layer, q, k, v):
        q, k, v = (np.ascontiguousarray(side, np.float32) for side in (q, k, v))
        self.step.append(layer, k, v)
        return np.asarray(self.step.attend(layer, q))


class Study:
    def __init__(self, tqkv, folder, path):
        self.tqkv, self.model = tqkv, Model(folder)
        self.data = read_safetensors(os.path.join(folder, "eval.safetensors"))
        self.path, self.rows, self.calibrations = path, {}, {}
        if path and path.exists():
            for line in path.read_text().splitlines():
                row = json.loads(line)
                self.rows[tuple(row[:-1])] = row[-1]

    def calibration(self, family):
        if family not in self.calibrations:
            self.calibrations[family] = calibrate(self.tqkv, self.model, calibration_texts(self.data), family)
        return self.calibrations[family]

    def chosen(self, bits, family):
        return self.calibration(family).choose(key_bits=bits, value_bits=int(bits))

    def token_bytes(self, bits, family, kind):
        heads = self.model.layers * self.model.kv_heads
        if kind in ("banded", "both") or bits != int(bits):
            return self.chosen(bits, family).token_bytes / heads
        return 2 * (self.model.head_dim // 8 * int(bits) + 2)

    def run(self, grid, count):
        started = time.time()
        for i in range(count):
            tokens = self.data["text"][i][:TEXT_BYTES + 1]
            exact = None
            for bits, family, kind, window, sinks in grid:
                key = (i, bits, family, kind, window, sinks)
                if key in self.rows:
                    continue
                if exact is None:
                    exact = log_softmax(self.model.logits(tokens[:-1]))
                layers = self.chosen(bits, family).layers if kind in ("banded", "both") else None
                attention = CacheAttention(self.tqkv, self.model, len(tokens) - 1, layers, int(bits), family,
                                           i % SEEDS, window, sinks,
                                           self.calibration(family) if kind in ("centred", "both") else None)
                quantised = log_softmax(self.model.logits(tokens[:-1], attention))
                attention.cache.close()
                kl, _, agree, _ = compare(exact, quantised, tokens[1:])
                self.rows[key] = [float(part[-SCORED:].mean()) for part in (kl, agree)]
                if self.path:
                    with self.path.open("a") as file:
                        file.write(json.dumps([*key, self.rows[key]]) + "\n")
            print(f"text {i + 1} of {count}: {time.time() - started:.0f} s", file=sys.stderr, flush=True)

    def table(self, grid, count):
        print("| bits | codes | keys | bytes | window | sinks | KL | top-1 |")
        print("|---|---|---|---|---|---|---|---|")
        lines = []
        for bits, family, kind, window, sinks in grid:
            found = np.array([self.rows[(i, bits, family, kind, window, sinks)] for i in range(count)])
            kl, error = found[:, 0].mean(), found[:, 0].std(ddof=1) / np.sqrt(count)
            size = self.token_bytes(bits, family, kind)
            lines.append((size, kl, f"{bits:g} bits, {family}, {kind}, window {window}, sinks {sinks}"))
            print(f"| {bits:g} | {family} | {kind} | {size:.1f} | {window} | {sinks} | "
                  f"{kl:.5f} +- {error:.5f} | {found[:, 1].mean():.4f} |")
        return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default=default_folder())
    parser.add_argument("--library", default=find_library())
    parser.add_argument("--texts", type=int, default=24, choices=range(2, 25), metavar="2 .. 24")
    parser.add_argument("--bits", default="2,3,4", help="of these; 2.5 and 3.5 in bands alone")
    parser.add_argument("--exact", action="append", help="window,sinks; again for more; 0,0")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--goal", type=float, help="print the cheapest configuration of this KL")
    parser.add_argument("--out", type=Path, help="file of finished runs")
    arguments = parser.parse_args()
    if not arguments.library:
        parser.error("no libtqkv.so found in build*/; name one with --library or TQKV_LIBRARY")
    os.environ["TQKV_LIBRARY"] = str(arguments.library)
    import tqkv
    print(tqkv.build_info(), file=sys.stderr)
    study = Study(tqkv, arguments.folder, arguments.out)
    exact = [tuple(int(n) for n in pair.split(",")) for pair in arguments.exact or ["0,0"]]
    rates = [float(bits) for bits in arguments.bits.split(",")]
    grid = [(bits, family, kind, window, sinks) for window, sinks in exact for bits in rates
            for family in FAMILIES for kind in arguments.kinds.split(",")
            if bits == int(bits) or kind in ("banded", "both")]
    study.run(grid, arguments.texts)
    lines = study.table(grid, arguments.texts)
    if arguments.goal is not None:
        reached = sorted(line for line in lines if line[1] <= arguments.goal)
        answer = "none of these reaches it"
        if reached:
            answer = f"{reached[0][2]}: {reached[0][0]:.1f} bytes, KL {reached[0][1]:.5f}"
        print(f"\nKL {arguments.goal:g}: {answer}")


if __name__ == "__main__":
    main()
