# SPDX-License-Identifier: Apache-2.0
"""What `tqkv calibrate --turn-keys` gains on the test model.

    python3 turned.py [--library build/libtqkv.so] [--tool build/tqkv] [--texts 8] [--bits 3]
                      [--family trellis] [--prompts 10] [--out FILE]

The calibration's texts (calibrated.py: needle and recall sequences, sources; the first --prompts of them)
become captures of 1,024 tokens with their queries; the program calibrates on them, once with key matrices and
once without; judged are held-out texts: next-byte KL to the exact model over the last 384 of 640 bytes, all
tokens coded. Ratios of means, standard errors by the jackknife. FILE keeps finished runs.
"""
import argparse
import itertools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from calibrated import ROOT, TURNED, Caches, calibration_texts, listen
from evidence import SCORED, SEEDS, TEXT_BYTES, Runs
from library import find_library
from model import Model, read_safetensors
from rules import jackknife_ratio
from run import compare, default_folder, log_softmax

for folder in ("tests/cli", "bindings/python"):
    sys.path.insert(0, str(ROOT / folder))


def write_captures(model, texts, folder):
    """Files, one a text."""
    from tool import write_safetensors
    files = []
    for i, text in enumerate(texts):
        tensors = {}

        def hear(layer, *sides, tensors=tensors):
            for name, side in zip(("query", "key", "value"), sides):
                tensors[f"layers.{layer}.{name}"] = side.transpose(1, 0, 2)

        listen(model, [text], hear)
        files.append(write_safetensors(folder / f"{i}.safetensors", tensors, "F32"))
    return files


def calibrate(tool, captures, family, turned, file):
    """What the program says."""
    return subprocess.run([tool, "calibrate", *captures, "--key-family", family, "--value-family", family,
                           "-o", file, "--quiet", *["--turn-keys"] * turned], stdout=subprocess.PIPE,
                          text=True, check=True).stdout


class Judge:
    def __init__(self, tqkv, model, data):
        self.tqkv, self.model, self.data, self.exact = tqkv, model, data, {}

    def __call__(self, file, i, family, kind, bits):
        """KL of a text in a cache of the calibration."""
        tokens = self.data["text"][i][:TEXT_BYTES + 1]
        if i not in self.exact:
            self.exact[i] = log_softmax(self.model.logits(tokens[:-1]))
        with self.tqkv.Calibration.load(file) as found:
            caches = Caches(self.tqkv, self.model, {family: found, family + TURNED: found})
            attention = caches.attention(TEXT_BYTES, family, kind, bits, 0, 0, i % SEEDS)
            quantised = log_softmax(self.model.logits(tokens[:-1], attention))
            attention.close()
        return float(compare(self.exact[i], quantised, tokens[1:])[0][-SCORED:].mean())


def compare_kinds(arguments, judge, captures, folder, runs):
    kinds, kl, said = {"both": False, TURNED: True}, {}, {}
    for kind, turned in kinds.items():
        said[kind] = calibrate(arguments.tool, captures, arguments.family, turned, folder / kind)
    for kind, i in itertools.product(kinds, range(arguments.texts)):
        key = "text", i, (arguments.family, kind, arguments.prompts, arguments.bits)
        if key not in runs.rows:
            runs.keep([(key, judge(folder / kind, i, arguments.family, kind, arguments.bits))])
        kl.setdefault(kind, []).append(runs.rows[key])
    ratio, error = jackknife_ratio(np.array(kl[TURNED]), np.array(kl["both"]))
    print("| codes | bits | KL, centres and bands | and turned keys | ratio | layers turned |")
    print("|---|---|---|---|---|---|")
    print(f"| {arguments.family} | {arguments.bits:g} | {np.mean(kl['both']):.5f} | "
          f"{np.mean(kl[TURNED]):.5f} | {ratio:.3f} +- {error:.3f} | {said[TURNED].count(', turned,')} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default=default_folder())
    parser.add_argument("--library", default=find_library())
    parser.add_argument("--tool", help="the program; beside the library if it is not given")
    parser.add_argument("--texts", type=int, default=8, choices=range(2, 25), metavar="2 .. 24")
    parser.add_argument("--prompts", type=int, default=10, choices=range(1, 11), metavar="1 .. 10")
    parser.add_argument("--bits", type=float, default=3)
    parser.add_argument("--family", default="trellis")
    parser.add_argument("--out", type=Path, help="file of finished runs")
    arguments = parser.parse_args()
    if not arguments.library:
        parser.error("no libtqkv.so found in build*/; name one with --library or TQKV_LIBRARY")
    arguments.tool = arguments.tool or Path(arguments.library).with_name("tqkv")
    os.environ["TQKV_LIBRARY"] = str(arguments.library)
    import tqkv
    model = Model(arguments.folder)
    data = read_safetensors(os.path.join(arguments.folder, "eval.safetensors"))
    with tempfile.TemporaryDirectory() as folder:
        captures = write_captures(model, calibration_texts(data)[:arguments.prompts], Path(folder))
        compare_kinds(arguments, Judge(tqkv, model, data), captures, Path(folder), Runs(arguments.out))


if __name__ == "__main__":
    main()
