# SPDX-License-Identifier: Apache-2.0
"""latent.safetensors: latent layers (FORMAT.md section 3.9): tiles, what they decode to, and attention in
exact arithmetic on the decoded codes."""
import json

import numpy as np
from encode_cases import gaussian, inputs
from reference import latent, rows
from reference import tqkv_reference as ref
from row_cases import LEVELS

SEED, LAYER, KV_HEAD = 20260914, 2, 1
DEFAULTS = {"latent_family": 1, "rest_family": 1, "latent_rule": 0, "rest_rule": 0, "sketch": 0,
            "centres": False, "seed": SEED, "layer": LAYER, "kv_head": KV_HEAD}
# Dimensions and bits of the latent and of the rest.
TILES = {
    "deepseek_4_8": {"dims": [512, 64], "bits": [4, 8]},
    "deepseek_4_raw": {"dims": [512, 64], "bits": [4, 16]},
    "minicpm_2_4": {"dims": [256, 32], "bits": [2, 4], "latent_rule": 1},
    "small_3_5": {"dims": [64, 32], "bits": [3, 5]},
    "small_5_6": {"dims": [96, 16], "bits": [5, 6], "rest_rule": 3},
    "padded_6_2": {"dims": [40, 20], "bits": [6, 2]},
    "padded_8_3": {"dims": [80, 24], "bits": [8, 3]},
    "raw_4": {"dims": [80, 32], "bits": [16, 4]},
    "prod_levels": {"dims": [64, 32], "bits": [3, 4], "latent_family": rows.LEVELS,
                    "rest_family": rows.PROD},
}
ATTEND_DEFAULTS = {"num_q_heads": 2, "seq_len": 40, "new_tokens": 1, "query_tokens": 1, "softmax_scale": 0.0,
                   "window_tokens": 0, "rollback_tokens": 0, "sink_tokens": 0}
ATTENDS = {
    "attend_deepseek": {"dims": [512, 64], "bits": [4, 8], "num_q_heads": 8, "seq_len": 20,
                        "softmax_scale": 0.07},
    "attend_raw_rest": {"dims": [256, 32], "bits": [3, 16], "num_q_heads": 4},
    "attend_exact": {"dims": [64, 32], "bits": [2, 4], "num_q_heads": 40, "seq_len": 67, "new_tokens": 3,
                     "query_tokens": 3, "window_tokens": 16, "rollback_tokens": 2, "sink_tokens": 4,
                     "centres": True},
    "attend_prefill": {"dims": [40, 20], "bits": [8, 8], "num_q_heads": 4, "seq_len": 35,
                       "new_tokens": 35, "query_tokens": 35, "centres": True},
    "attend_raw": {"dims": [64, 64], "bits": [16, 16], "seq_len": 9},
    "attend_deepseek_exact": {"dims": [512, 64], "bits": [4, 8], "num_q_heads": 16, "seq_len": 45,
                              "new_tokens": 2, "query_tokens": 2, "softmax_scale": 0.07,
                              "window_tokens": 12, "sink_tokens": 3, "centres": True},
}


def part(p, number, kind, centre):
    """One side's configuration; number 0 = latent, 1 = rest."""
    name = ("latent", "rest")[number]
    common = dict(kind=kind, seed=p["seed"], layer=p["layer"], kv_head=p["kv_head"],
                  centre=None if centre is None else tuple(float(c) for c in centre))
    family, bits, dim = p[f"{name}_family"], p["bits"][number], p["dims"][number]
    if family == 1:
        return ref.SideConfig(head_dim=dim, bits=bits, rule=p[f"{name}_rule"] or ref.UNBIASED, **common)
    rule = ref.LS if family == rows.PROD else ref.UNBIASED
    levels = LEVELS[bits] if family == rows.LEVELS else {}
    return rows.RowSide(dim, bits, family=family, rule=rule, sketch=p["sketch"] or 1, **levels, **common)


def config_of(p, centre=None):
    parts = (None, None) if centre is None else np.split(centre, [p["dims"][0]])
    return latent.LatentConfig(part(p, 0, ref.VALUE, parts[0]), part(p, 1, ref.KEY, parts[1]))


def build_tile(p):
    x = inputs(sum(p["dims"]))
    config = config_of(p)
    with np.errstate(over="ignore"):
        sides, nonfinite = latent.encode_latent(x, config)
        decoded, _ = latent.decode_latent(x, config)
    return {"input": x, "decoded": decoded, "nonfinite": nonfinite.astype(np.uint8),
            "tile": np.frombuffer(ref.tile_bytes(*sides), np.uint8)}


def build_attend(number, p):
    d, t, heads, queries = sum(p["dims"]), p["seq_len"], p["num_q_heads"], p["query_tokens"]
    k = gaussian(9000 + 10 * number, t * d).reshape(t, d)
    tensors, centre = {}, None
    if p["centres"]:
        centre = gaussian(9001 + 10 * number, d).astype(np.float32)
        k, tensors["centre"] = k + centre, centre
    k = k.astype(np.float32)
    # Queries that look at some key, so that the softmax is not flat.
    q = gaussian(9002 + 10 * number, queries * heads * d).reshape(queries, heads, d)
    q = (q + 0.4 * k[np.arange(t - queries, t) // 2][:, None]).astype(np.float32)
    keys, values = latent.decode_latent(k, config_of(p, centre))
    exact = ref.exact_token_mask(t, queries, p["window_tokens"], p["sink_tokens"])
    out, lse = ref.attend(q, keys[None], values[None], softmax_scale=p["softmax_scale"] or None, exact=exact,
                          k_exact=k[None], v_exact=k[None, :, :p["dims"][0]])
    return {**tensors, "q": q, "k": k, "out": out, "lse": lse}


def build():
    """-> (tensors, metadata)"""
    tensors, metadata = {}, {}
    for number, (name, fields) in enumerate({**TILES, **ATTENDS}.items()):
        attends = name in ATTENDS
        p = {**DEFAULTS, **(ATTEND_DEFAULTS if attends else {}), **fields}
        if p["latent_family"] == rows.LEVELS:
            p["latent_levels"] = LEVELS[p["bits"][0]]
        metadata[name] = json.dumps(p)
        built = build_attend(number, p) if attends else build_tile(p)
        tensors.update((f"{name}.{key}", array) for key, array in built.items())
    return tensors, metadata
