# SPDX-License-Identifier: Apache-2.0
"""quantizer.safetensors: vectors on their own and their records (FORMAT.md section 8), from the oracle."""
import json

import numpy as np
from encode_cases import SEED, inputs
from reference import encode, quantizer

# Levels and boundaries of nobody's design: not symmetric, not half way.
LEVELS = {1: ((-0.11, 0.09), (0.01,)),
          2: ((-0.16, -0.05, 0.04, 0.15), (-0.1, 0.0, 0.11)),
          3: ((-0.3, -0.2, -0.11, -0.02, 0.05, 0.12, 0.19, 0.28),
              (-0.25, -0.15, -0.06, 0.0, 0.08, 0.16, 0.22))}


def by_levels(code_bits, **fields):
    levels, boundaries = LEVELS[code_bits]
    return dict(levels=levels, boundaries=boundaries, **fields)


def cases():
    """{name: (d, fields of Quantizer, with decoded vectors)}"""
    found = {}
    for d in (33, 128):
        for bits in range(1, 9):
            found[f"d{d}.scalar{bits}"] = (d, dict(bits=bits), bits in (1, 7))
    for d, bits in ((80, 4), (641, 3), (2000, 2)):
        found[f"d{d}.scalar{bits}"] = (d, dict(bits=bits), False)
    for bits in (2, 3, 4):
        found[f"d80.prod{bits}"] = (80, dict(bits=bits, family=quantizer.PROD), bits == 3)
        found[f"d33.gaussian{bits}"] = (33, dict(bits=bits, family=quantizer.PROD,
                                                 sketch=quantizer.GAUSSIAN), bits == 2)
    found["d80.prod3.least_error"] = (80, dict(bits=3, family=quantizer.PROD,
                                               sketch_rule=quantizer.LEAST_ERROR), True)
    found["d80.prod3.levels"] = (80, by_levels(2, bits=3, family=quantizer.PROD, factor=0.75), True)
    for bits in (2, 3, 4, 8):
        for group in (16, 32, 64):
            found[f"d33.grouped{bits}.{group}"] = (33, dict(bits=bits, family=quantizer.GROUPED,
                                                            group=group), group == 32)
    for rule, name in ((0, ""), (encode.LS, ".ls"), (encode.UNBIASED, ".unbiased"), (encode.NORM, ".norm")):
        fields = by_levels(2, bits=2, family=quantizer.LEVELS, rule=rule)
        found[f"d33.levels2{name}"] = (33, fields, rule == 0)
    found["d48.levels3.unit"] = (48, by_levels(3, bits=3, family=quantizer.LEVELS, unit=1.5), False)
    found["d128.levels1"] = (128, by_levels(1, bits=1, family=quantizer.LEVELS), False)
    found["d128.outliers2"] = (128, dict(bits=2, outliers=tuple(range(1, 128, 4))), True)
    found["d48.outliers3"] = (48, dict(bits=3, outliers=(0, 7, 8, 47)), False)
    for rule, name in ((encode.UNBIASED, "unbiased"), (encode.NORM, "norm"), (encode.PAPER, "paper")):
        found[f"d80.scalar3.{name}"] = (80, dict(bits=3, rule=rule), False)
    found["d80.scalar5.nosearch"] = (80, dict(bits=5, search=False), False)
    found["d48.scalar4.dense"] = (48, dict(bits=4, rotation=2), True)
    found["d33.scalar3.dense"] = (33, dict(bits=3, rotation=2), False)
    return found


def build():
    tensors, metadata = {}, {}
    for name, (d, fields, decoded) in cases().items():
        q = quantizer.Quantizer(d, seed=SEED + d, **fields)
        x = inputs(d)
        tensors.setdefault(f"d{d}.input", x)
        with np.errstate(over="ignore"):
            records, nonfinite = quantizer.encode(x, q)
            tensors[f"{name}.records"] = records
            tensors.setdefault(f"d{d}.nonfinite", nonfinite.astype(np.uint8))
            if decoded:
                tensors[f"{name}.decoded"] = quantizer.decode(records, q)
        scalar = {key: getattr(q, key)
                  for key in ("dim", "bits", "family", "rule", "search", "rotation", "seed", "group",
                              "sketch", "sketch_rule", "factor", "unit")}
        arrays = {key: list(getattr(q, key)) for key in ("outliers", "levels", "boundaries")}
        metadata[name] = json.dumps(dict(scalar, **arrays, fingerprint=f"{q.fingerprint:016x}",
                                         sketch_factor=float(q.sketch_factor)))
    return tensors, metadata
