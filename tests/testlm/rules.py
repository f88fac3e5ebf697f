# SPDX-License-Identifier: Apache-2.0
"""Key scale rules `ls` and `unbiased` on the test model, beside exact windows and sinks.

    python3 rules.py [--folder ../shared/testlm] [--library build/libtqkv.so] [--texts 24] [--answers 12]
    [--out FILE]

A run is one sequence through one configuration, both rules alike in all else; sequence i has rotation seed
i mod 3, so the standard errors cover seeds as well as texts. Texts: 640 bytes, KL (nats, exact against
quantised next-byte distribution) averaged over the last 384 positions, so that the longest window leaves
every query more coded tokens than exact ones. The ratio is that of the means, its standard error by the
jackknife over texts. Answers: the recall sequences whole, KL over the asked bytes and their share predicted
(needles are found by every cache here). Centres are the per-head means over four texts of the other half, so
no text is centred by itself.

FILE has one line of JSON a run; runs found there are not made again, so a stopped command goes on.
"""
import argparse
import itertools
import json
import os
import sys
import time
from pathlib import Path

import numpy as np

from library import CacheAttention, Library, find_library
from model import Model, exact_attention, read_safetensors
from run import compare, default_folder, log_softmax

TEXT_BYTES, SCORED, SEEDS = 640, 384, 3
RULES = ("ls", "unbiased")
EXACT = list(itertools.product((0, 32, 128), (0, 4)))  # window, sinks
# task -> bits, exact tokens
GRIDS = {"text": ((2, 3, 4), EXACT), "recall": ((2, ), [(0, 0), (128, 4)])}


def centres_of(model, texts):
    """Per-head means [layers][kv heads, dim] of keys and values."""
    sums = {}

    def collect(layer, q, k, v):
        sums.setdefault(layer, []).append((k.mean(axis=0), v.mean(axis=0)))
        return exact_attention(layer, q, k, v)

    for text in texts:
        model.logits(text, collect)
    sides = [[np.mean([pair[side] for pair in sums[layer]], axis=0, dtype=np.float64) for layer in sums]
             for side in (0, 1)]
    return tuple(np.array(side, np.float32) for side in sides)


class Study:
    def __init__(self, folder, library, path):
        self.model, self.library = Model(folder), library
        self.data = read_safetensors(os.path.join(folder, "eval.safetensors"))
        texts = self.data["text"][:, : 2 * TEXT_BYTES]
        self.centres = [centres_of(self.model, texts[first : first + 4]) for first in (12, 0)]
        self.path, self.rows = path, {}
        if path and path.exists():
            for line in path.read_text().splitlines():
                self.keep(json.loads(line))

    def keep(self, row):
        self.rows[tuple(row[: -1])] = row[-1]

    def run(self, task, count):
        bits, exact_tokens = GRIDS[task]
        grid = list(itertools.product(bits, (False, True), exact_tokens, RULES))
        started = time.time()
        for i in range(count):
            tokens = self.data[task][i][: TEXT_BYTES + 1 if task == "text" else None]
            asked = np.arange(TEXT_BYTES) >= TEXT_BYTES - SCORED
            if task != "text":
                asked = self.data[task + ".asked"][i][1:].astype(bool)
            exact = None
            for width, centred, (window, sinks), rule in grid:
                key = (task, i, width, centred, window, sinks, rule)
                if key in self.rows:
                    continue
                if exact is None:
                    exact = log_softmax(self.model.logits(tokens[:-1]))
                attention = CacheAttention(self.library, self.model, len(tokens) - 1, width, rule, "default",
                                           True, i % SEEDS, self.centres[i // 12] if centred else None, 1,
                                           window, sinks)
                quantised = log_softmax(self.model.logits(tokens[:-1], attention))
                attention.close()
                kl, _, agree, right = compare(exact, quantised, tokens[1:])
                row = [*key, [float(part[asked].mean()) for part in (kl, agree, right)]]
                self.keep(row)
                if self.path:
                    with self.path.open("a") as file:
                        file.write(json.dumps(row) + "\n")
            print(f"{task} {i + 1} of {count}: {time.time() - started:.0f} s", file=sys.stderr, flush=True)

    def figures(self, task, count, *setting):
        """[sequence][KL, top-1, right]"""
        return np.array([self.rows[(task, i, *setting)] for i in range(count)])


def jackknife_ratio(above, below):
    """Ratio of the means and its standard error."""
    n = len(above)
    left_out = (above.sum() - above) / (below.sum() - below)
    error = np.sqrt((n - 1) / n * ((left_out - left_out.mean())**2).sum())
    return above.mean() / below.mean(), error


def text_table(study, count):
    print("| bits | centres | window | sinks | KL `ls` | KL `unbiased` | unbiased / ls |")
    print("|---|---|---|---|---|---|---|")
    for width, centred, (window, sinks) in itertools.product(GRIDS["text"][0], (False, True), EXACT):
        kl = [study.figures("text", count, width, centred, window, sinks, rule)[:, 0] for rule in RULES]
        cells = [f"{side.mean():.5f} +- {side.std(ddof=1) / np.sqrt(count):.5f}" for side in kl]
        ratio, error = jackknife_ratio(kl[1], kl[0])
        print(f"| {width} | {'yes' if centred else 'no'} | {window} | {sinks} | {' | '.join(cells)} | "
              f"{ratio:.3f} +- {error:.3f} |")


def answer_table(study, count):
    print("\n| bits | centres | window | sinks | KL `ls` | KL `unbiased` | % `ls` | % `unbiased` |")
    print("|---|---|---|---|---|---|---|---|")
    for centred, (window, sinks) in itertools.product((False, True), GRIDS["recall"][1]):
        found = [study.figures("recall", count, 2, centred, window, sinks, rule) for rule in RULES]
        kl = [f"{side[:, 0].mean():.5f} +- {side[:, 0].std(ddof=1) / np.sqrt(count):.5f}" for side in found]
        right = [f"{100 * side[:, 2].mean():.1f}" for side in found]
        print(f"| 2 | {'yes' if centred else 'no'} | {window} | {sinks} | {' | '.join(kl + right)} |")


def make_study(kind, doc, **more):
    """(study of this class, arguments) of a command line; more: further options with a default and a help."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default=default_folder())
    parser.add_argument("--library", default=find_library())
    parser.add_argument("--texts", type=int, default=24, help="2 .. 24")
    for name, (default, text) in more.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=text)
    parser.add_argument("--out", type=Path, help="file of finished runs")
    arguments = parser.parse_args()
    if not arguments.library:
        parser.error("no libtqkv.so found in build*/; name one with --library or TQKV_LIBRARY")
    if not 2 <= arguments.texts <= 24:
        parser.error(f"--texts = {arguments.texts}: must be 2 .. 24")
    library = Library(arguments.library)
    print(library.build_info(), file=sys.stderr)
    return kind(arguments.folder, library, arguments.out), arguments


def main():
    study, arguments = make_study(Study, __doc__, answers=(12, "recall sequences, 0 or 2 .. 12"))
    if arguments.answers != 0 and not 2 <= arguments.answers <= 12:
        sys.exit(f"--answers = {arguments.answers}: must be 0 or 2 .. 12")
    study.run("text", arguments.texts)
    text_table(study, arguments.texts)
    if arguments.answers:
        study.run("recall", arguments.answers)
        answer_table(study, arguments.answers)


if __name__ == "__main__":
    main()
