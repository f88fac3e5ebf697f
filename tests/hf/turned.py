# SPDX-License-Identifier: Apache-2.0
"""What TurboCache.calibrate(.., turn_keys=True) gains on the test model, as a Transformers model.

    "$(tests/hf/environment.sh)" tests/hf/turned.py [--library build/libtqkv.so] [--texts 8] [--bits 3]
                                                    [--family scalar] [--prompts 5]

Calibrated on needle and recall sequences and sources (tests/testlm/calibrated.py; every second, 1,024 tokens
each). Judged: the last 384 of 640 bytes of held-out texts, next-byte KL to the model with a DynamicCache; the
256 in front of them are a first prompt, which is attended exactly, the others are attended on codes. Ratios
of means, standard errors by the jackknife.
"""
import argparse
import importlib.util
import os
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
for part in ("tests/testlm", "bindings/python"):
    sys.path.insert(0, str(ROOT / part))

from calibrated import calibration_texts  # noqa: E402
from library import find_library  # noqa: E402
from model import read_safetensors  # noqa: E402
from rules import jackknife_ratio  # noqa: E402
from run import default_folder  # noqa: E402

PROMPT, SCORED, SEEDS = 256, 384, 3


def load_model(folder):
    spec = importlib.util.spec_from_file_location("testlm_load", Path(folder) / "load.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load(folder)


def ids(text):
    import torch
    return torch.from_numpy(np.array(text, np.int64))


def log_probabilities(model, text, cache):
    """Of the bytes behind the prompt."""
    import torch
    from tqkv.transformers._calibrate import CACHE
    tokens = ids(text)[None]
    with torch.no_grad():
        for part in (tokens[:, :PROMPT], tokens[:, PROMPT:PROMPT + SCORED]):
            logits = model(input_ids=part, use_cache=True, **{CACHE: cache}).logits
    return logits[0].double().log_softmax(-1)


def measure(folder, texts, bits, prompts, family):
    """{kind: [KL of a text]}, and how many layers were turned."""
    import torch
    from tqkv.transformers import TurboCache
    from transformers import DynamicCache
    torch.set_num_threads(1)
    model, data = load_model(folder), read_safetensors(os.path.join(folder, "eval.safetensors"))
    known = torch.stack([ids(text) for text in calibration_texts(data)[::2][:prompts]])
    options = {"key_bits": bits, "value_bits": int(bits), "code_family": family}
    kinds = {"plain": None, "calibrated": TurboCache.calibrate(model, known, **options),
             "turned": TurboCache.calibrate(model, known, turn_keys=True, **options)}
    plain, found = model.config._attn_implementation, {kind: [] for kind in kinds}
    for i in range(texts):
        text = data["text"][i][:PROMPT + SCORED]
        model.set_attn_implementation(plain)
        exact = log_probabilities(model, text, DynamicCache(config=model.config))
        for kind, calibration in kinds.items():
            cache = TurboCache(model, key_bits=int(bits), value_bits=int(bits), calibration=calibration,
                               code_family=family, rotation_seed=i % SEEDS, num_threads=1)
            coded = log_probabilities(model, text, cache)
            cache.close()
            found[kind].append(float((exact.exp() * (exact - coded)).sum(-1).mean()))
    return found, sum(matrix is not None for matrix in kinds["turned"].key_matrices)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default=default_folder())
    parser.add_argument("--library", default=find_library())
    parser.add_argument("--texts", type=int, default=8, choices=range(2, 25), metavar="2 .. 24")
    parser.add_argument("--bits", type=float, default=3)
    parser.add_argument("--family", default="scalar", choices=("scalar", "trellis"))
    parser.add_argument("--prompts", type=int, default=5, choices=range(1, 6), metavar="1 .. 5")
    arguments = parser.parse_args()
    if not arguments.library:
        parser.error("no libtqkv.so found in build*/; name one with --library or TQKV_LIBRARY")
    os.environ["TQKV_LIBRARY"] = str(arguments.library)
    kl, layers = measure(arguments.folder, arguments.texts, arguments.bits, arguments.prompts,
                         arguments.family)
    print(f"{arguments.family} codes, {arguments.bits:g} bits, {arguments.texts} texts, {layers} layers "
          "turned")
    for kind, rows in kl.items():
        ratio, error = jackknife_ratio(np.array(rows), np.array(kl["calibrated"]))
        print(f"{kind:10s}  KL {np.mean(rows):.5f}, {ratio:.3f} +- {error:.3f} of calibrated")


if __name__ == "__main__":
    main()
