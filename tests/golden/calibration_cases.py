# SPDX-License-Identifier: Apache-2.0
"""calibration.safetensors: what is measured of prompts and chosen, from tests/reference/calibration.py. The
prompts are a formula, which calibration_test.cpp has too: few bits, so that sums are exact in any order."""
import json

import numpy as np
from reference import calibration

# outlier: 0 = 4. Rates that the bands allow; errors from what 2 bits give to what 4 bits reach.
GOALS = {
    "scalar": [dict(key_bits=bits, value_bits=values) for bits, values in ((2, 4), (3, 2), (4, 3))] +
              [dict(key_bits=3, value_bits=3, outlier=20), dict(key_bits=3, value_bits=3, outlier=1)] +
              [dict(max_error=error, outlier=outlier)
               for error, outlier in ((.25, 0), (.5, 0), (2, 0), (12, 20), (100, 20), (300, 20))],
    "trellis": [dict(key_bits=bits, value_bits=2) for bits in (2, 3, 4)] +
               [dict(max_error=error) for error in (.2, .6, 2)],
    "wide": [dict(key_bits=bits, value_bits=3) for bits in (2, 2.5, 3, 3.5, 4)] +
            [dict(max_error=error) for error in (.07, .2, 1)],
    "long": [dict(key_bits=2, value_bits=2), dict(max_error=6), dict(max_error=30)],
}
CASES = {
    "scalar": dict(num_layers=3, num_q_heads=4, num_kv_heads=2, head_dim=72, value_dim=40, io_dtype=1,
                   held_out_tokens=40, tokens=600),
    "trellis": dict(num_layers=2, num_q_heads=2, num_kv_heads=2, head_dim=32, value_dim=32, io_dtype=3,
                    held_out_tokens=128, tokens=256, key_family=5, value_family=5),
    "wide": dict(num_layers=1, num_q_heads=1, num_kv_heads=1, head_dim=256, value_dim=64, io_dtype=2,
                 held_out_tokens=64, tokens=300, key_family=5),
    "long": dict(num_layers=1, num_q_heads=2, num_kv_heads=1, head_dim=8, value_dim=8, io_dtype=1,
                 held_out_tokens=32, tokens=6000),
}


def mixed(z):
    z = (z + np.uint64(0x9E3779B97F4A7C15))
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def rows(layer, side, tokens, heads, dim):
    """side 0 q, 1 k, 2 v. Multiples of 1/32 in -3 .. 3, times a power of two: exact in every type."""
    with np.errstate(over="ignore"):
        number = np.arange(tokens * heads * dim, dtype=np.uint64) + np.uint64((layer * 3 + side) << 32)
        x = (mixed(number) >> np.uint64(57)).astype(np.float64).reshape(tokens, heads, dim) / 32 - 2
    head, c = np.arange(heads)[:, None], np.arange(dim)[None, :]
    x = x + ((c + head) % 3 - 1) * (side > 0)
    power = ((5 * c + 3 * head + layer) % 7 - 3) if side == 0 else ((3 * c + head) % 5 - 2) * (side == 1)
    if layer == 2:  # a head that is alike in all coordinates, and longer: it counts no more than others
        power = np.where(head == 1, 2 if side == 1 else 0, power)
    late = np.where(np.arange(tokens) >= 5000, 2, 0) + (4 if side == 1 and layer == 1 else 0)
    return (x * 2.0**power * 2.0**late[:, None, None]).astype(np.float32)


def build():
    tensors, metadata = {}, {}
    for name, case in CASES.items():
        heads, layers = case["num_kv_heads"], []
        is_trellis = [case.get(family) == 5 for family in ("key_family", "value_family")]
        for layer in range(case["num_layers"]):
            q = rows(layer, 0, case["tokens"], case["num_q_heads"], case["head_dim"])
            k = rows(layer, 1, case["tokens"], heads, case["head_dim"])
            v = rows(layer, 2, case["tokens"], heads, case["value_dim"])
            found = calibration.measure(layer, q, k, v, case["held_out_tokens"], *is_trellis)
            layers.append(found)
            prefix = f"{name}.{layer}."
            tensors[prefix + "key_length"] = np.array([found.key_length], dtype=np.float32)
            tensors[prefix + "key_centre"] = found.key_centre
            tensors[prefix + "value_centre"] = found.value_centre
            tensors[prefix + "order"] = np.array(found.order, dtype=np.uint32)
            tensors[prefix + "widths"] = np.array([sum(b << 4 * j for j, b in enumerate(c.widths))
                                                   for c in found.keys if c.bits == 0], dtype=np.uint32)
            tensors[prefix + "key_errors"] = np.array([c.error for c in found.keys])
            tensors[prefix + "value_errors"] = np.array([c.error for c in found.values])
        metadata[name] = json.dumps(dict(case, goals=[dict(goal, **told(layers, case, goal))
                                                      for goal in GOALS[name]]))
    return tensors, metadata


def told(layers, case, goal):
    outlier = goal.get("outlier", 0) or 4
    chosen = calibration.choose(layers, **dict(goal, outlier=outlier))
    raw_bytes = 2 * (case["head_dim"] + case["value_dim"])
    plain = [calibration.of_bits(layer.keys, int(goal["key_bits"])).error +
             calibration.of_bits(layer.values, goal["value_bits"]).error
             for layer, sides in zip(layers, chosen) if sides] if "key_bits" in goal else [0]
    return dict(
        layers=[[16, [], 16] if sides is None else [sides[0].bits, list(sides[0].widths), sides[1].bits]
                for sides in chosen],
        error=round(sum(s[0].error + s[1].error for s in chosen if s) / len(layers), 12),
        uniform_error=round(sum(plain) / len(layers), 12),
        token_bytes=case["num_kv_heads"] * sum(raw_bytes if s is None else s[0].head_bytes + s[1].head_bytes
                                               for s in chosen))
