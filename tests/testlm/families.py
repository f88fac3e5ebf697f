# SPDX-License-Identifier: Apache-2.0
"""Trellis codes beside scalar ones of the same bytes on the test model, with and without centres, windows and
sinks.

    python3 families.py [--folder ../shared/testlm] [--library build/libtqkv.so] [--texts 24] [--out FILE]

As rules.py: a run is one text of 640 bytes through one configuration, both families alike in all else; text
i has rotation seed i mod 3; KL (nats) is averaged over the last 384 positions; ratios have their standard
error by the jackknife over texts. All else has its default. FILE keeps finished runs, so that a stopped
command goes on.
"""
import itertools
import json
import sys
import time

import numpy as np

from library import FAMILIES, CacheAttention
from rules import SCORED, SEEDS, TEXT_BYTES, Study, jackknife_ratio, make_study
from run import compare, log_softmax

GRID = list(itertools.product((2, 3, 4), (False, True), ((0, 0), (128, 4))))  # bits, centres, (window, sinks)


class FamilyStudy(Study):
    def run(self, count):
        started = time.time()
        for i in range(count):
            tokens = self.data["text"][i][: TEXT_BYTES + 1]
            exact = None
            for (bits, centred, (window, sinks)), family in itertools.product(GRID, FAMILIES):
                key = (i, bits, centred, window, sinks, family)
                if key in self.rows:
                    continue
                if exact is None:
                    exact = log_softmax(self.model.logits(tokens[:-1]))
                attention = CacheAttention(self.library, self.model, TEXT_BYTES, bits, "default", "default",
                                           True, i % SEEDS, self.centres[i // 12] if centred else None, 1,
                                           window, sinks, family)
                quantised = log_softmax(self.model.logits(tokens[:-1], attention))
                attention.close()
                kl, _, agree, _ = compare(exact, quantised, tokens[1:])
                row = [*key, [float(part[-SCORED:].mean()) for part in (kl, agree)]]
                self.keep(row)
                if self.path:
                    with self.path.open("a") as file:
                        file.write(json.dumps(row) + "\n")
            print(f"text {i + 1} of {count}: {time.time() - started:.0f} s", file=sys.stderr, flush=True)

    def table(self, count):
        print("| bits | centres | window | sinks | KL scalar | KL trellis | trellis / scalar | top-1 scalar "
              "| top-1 trellis |")
        print("|---|---|---|---|---|---|---|---|---|")
        for bits, centred, (window, sinks) in GRID:
            found = [[self.rows[i, bits, centred, window, sinks, family] for i in range(count)]
                     for family in FAMILIES]
            kl, top = np.array(found).transpose(2, 0, 1)
            cells = [f"{side.mean():.5f} +- {side.std(ddof=1) / np.sqrt(count):.5f}" for side in kl]
            ratio, error = jackknife_ratio(kl[1], kl[0])
            print(f"| {bits} | {'yes' if centred else 'no'} | {window} | {sinks} | {' | '.join(cells)} | "
                  f"{ratio:.3f} +- {error:.3f} | {' | '.join(f'{side.mean():.4f}' for side in top)} |")


def main():
    study, arguments = make_study(FamilyStudy, __doc__)
    study.run(arguments.texts)
    study.table(arguments.texts)


if __name__ == "__main__":
    main()
