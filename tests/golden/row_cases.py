# SPDX-License-Identifier: Apache-2.0
"""rows.safetensors: tiles with sides of the families beside scalar, with keys in bands and with keys that a
matrix turns (FORMAT.md sections 2.5, 3.6 to 3.11 and 4), what they decode to."""
import json

import numpy as np
from encode_cases import gaussian, inputs, key_matrices
from reference import bands, key_matrix, rows, trellis
from reference import tqkv_reference as ref

SCALAR, GROUPED, TRELLIS = 1, 3, 5
SEED, LAYER, KV_HEAD = 20260411, 2, 1
# Of nobody's design: neither symmetric nor half way between boundaries.
LEVELS = {3: {"levels": (-0.3, -0.2, -0.11, -0.02, 0.05, 0.12, 0.19, 0.28),
              "boundaries": (-0.25, -0.15, -0.06, 0.0, 0.08, 0.16, 0.22), "unit": 0.75}}

# Each width and group size of grouped sides, last groups of 16 and of 48; prod of each width, both sketches
# and rules of the scale, a padded dimension; scalar codes of one bit; levels; trellis of each width, order of
# the chains and rule. Bands of every width, of both families, with and without an order, a short last one.
# Key matrices in front of each family, with and without a centre; one whose pivots are all ties.
CASES = {
    "grouped_d32": {"head_dim": 32, "family": [3, 3], "bits": [2, 8], "group_size": 16},
    "grouped_d80": {"head_dim": 80, "family": [3, 3], "bits": [3, 4], "group_size": 64},
    "grouped_d112": {"head_dim": 112, "family": [3, 3], "bits": [4, 3], "group_size": 32},
    "grouped_d128": {"head_dim": 128, "family": [3, 3], "bits": [8, 2], "group_size": 64},
    "prod_d32": {"head_dim": 32, "family": [2, 3], "bits": [2, 2], "group_size": 16},
    "prod_d80": {"head_dim": 80, "family": [2, 4], "bits": [3, 3], "sketch_rule": 2, "key_rule": 2},
    "prod_d128": {"head_dim": 128, "family": [2, 4], "bits": [4, 3], "value_rule": 4},
    "gaussian_d64": {"head_dim": 64, "family": [2, 3], "bits": [3, 8], "group_size": 32, "sketch": 2,
                     "sketch_factor": 0.75},
    "scalar_d72": {"head_dim": 72, "family": [1, 1], "bits": [1, 1], "key_rule": 1},
    "levels_d80": {"head_dim": 80, "family": [4, 4], "bits": [3, 3], "key_rule": 1, "value_rule": 3},
    "trellis_d32": {"head_dim": 32, "family": [5, 5], "bits": [2, 4], "key_rule": 1},
    "trellis_d64": {"head_dim": 64, "family": [5, 5], "bits": [3, 2]},
    "trellis_d80": {"head_dim": 80, "family": [5, 5], "bits": [3, 3], "key_rule": 1, "value_rule": 3},
    "trellis_d100": {"head_dim": 100, "family": [5, 5], "bits": [4, 4], "key_rule": 3, "value_rule": 1},
    "trellis_d128": {"head_dim": 128, "family": [5, 5], "bits": [2, 3], "value_rule": 4},
    "trellis_d192": {"head_dim": 192, "family": [5, 1], "bits": [4, 3]},
    "trellis_d256": {"head_dim": 256, "family": [1, 5], "bits": [2, 4]},
    "bands_d32": {"head_dim": 32, "family": [1, 1], "bits": [0, 3], "band_bits": [2]},
    "bands_d80": {"head_dim": 80, "family": [1, 5], "bits": [0, 2], "band_bits": [6, 5, 1], "order_step": 33,
                  "key_rule": 1},
    "bands_d128": {"head_dim": 128, "family": [1, 1], "bits": [0, 3], "band_bits": [4, 3, 3, 2],
                   "order_step": 51},
    "trellis_bands_d128": {"head_dim": 128, "family": [5, 5], "bits": [0, 3], "band_bits": [5, 4, 2, 1],
                           "order_step": 5},
    "trellis_bands_d256": {"head_dim": 256, "family": [5, 1], "bits": [0, 2],
                           "band_bits": [4, 3, 3, 3, 2, 2, 2, 1], "order_step": 77, "key_rule": 4},
    "matrix_d40": {"head_dim": 40, "family": [1, 1], "bits": [8, 4], "matrix": "gaussian"},
    "matrix_d80": {"head_dim": 80, "family": [1, 1], "bits": [3, 4], "matrix": "gaussian", "centre": True},
    "matrix_prod_d32": {"head_dim": 32, "family": [2, 5], "bits": [3, 3], "matrix": "hadamard"},
    "matrix_trellis_d64": {"head_dim": 64, "family": [5, 1], "bits": [4, 2], "matrix": "gaussian"},
    "matrix_bands_d96": {"head_dim": 96, "family": [5, 1], "bits": [0, 3], "band_bits": [5, 3, 1],
                         "order_step": 35, "matrix": "gaussian", "centre": True},
}


def band_order(p):
    """The coordinate at each place; None: as they are."""
    step, d = p["order_step"], p["head_dim"]
    return tuple((7 + step * i) % d for i in range(d)) if step else None


def given_matrix(p):
    """float32 [d, d], or None."""
    d = p["head_dim"]
    if p["matrix"] == "hadamard":  # of entries +-1/4
        made = np.ones((1, 1), np.float32)
        while len(made) < d:
            made = np.block([[made, made], [made, -made]])
        return made / np.float32(4)
    return key_matrices(1000 + d, 1, d)[0] if p["matrix"] else None


def given_centre(p):
    return (2 * gaussian(2000 + p["head_dim"], p["head_dim"])).astype(np.float32) if p["centre"] else None


def turned_rows(x, p, matrix, centre):
    """side_rows of keys that the matrix turns."""
    turned, replaced = key_matrix.turn(matrix, x)
    if centre is not None:
        centre = tuple(float(c) for c in key_matrix.turn(matrix, centre)[0])
    words, scales, decoded, nonfinite, saturated = side_rows(turned, p, ref.KEY, centre)
    return (words, scales, key_matrix.product(key_matrix.inverse(matrix), decoded), replaced | nonfinite,
            saturated)


def band_rows(x, p, centre):
    side = bands.Bands(p["head_dim"], tuple(p["band_bits"]), band_order(p), p["family"][0] == TRELLIS,
                       rule=p["key_rule"] or ref.UNBIASED, seed=SEED, layer=LAYER, kv_head=KV_HEAD,
                       centre=centre)
    codes, scales, nonfinite = bands.encode(x, side)
    # Words and scales as rows, which they are not: those of all 32 tokens are there.
    return (bands.words(codes, side).reshape(32, -1), np.stack(scales).reshape(32, -1),
            bands.decode(codes, scales, side), nonfinite, np.zeros_like(nonfinite))


def side_rows(x, p, kind, centre=None):
    """-> codes or words, scales, decoded, nonfinite, saturated"""
    family, bits = p["family"][kind], p["bits"][kind]
    if kind == ref.KEY and p["band_bits"]:
        return band_rows(x, p, centre)
    if family == GROUPED:
        encoded = ref.encode_grouped(x, bits, p["group_size"])
        decoded = ref.decode_grouped(encoded.codes, encoded.pairs, p["group_size"])
        return encoded.codes, encoded.pairs, decoded, encoded.nonfinite, encoded.saturated
    rule = p["value_rule" if kind else "key_rule"] or (ref.LS if family == rows.PROD else ref.UNBIASED)
    if family == TRELLIS or (family == SCALAR and bits > 1):
        fields = dict(kind=kind, rule=rule, seed=SEED, layer=LAYER, kv_head=KV_HEAD, centre=centre)
        coder = trellis if family == TRELLIS else ref
        side = (trellis.TrellisSide if family == TRELLIS else ref.SideConfig)(p["head_dim"], bits, **fields)
        encoded = coder.encode(x, side)
        codes = encoded.codes
        if family == TRELLIS:  # as rows of words, which they are not: all 32 are there
            words = trellis.pack(codes, bits, kind)
            assert np.array_equal(trellis.unpack(words, codes.shape[1], bits, kind), codes)
            codes = words.reshape(32, -1)
        return (codes, encoded.scales, ref.decode(encoded.codes, encoded.scales, side), encoded.nonfinite,
                np.zeros_like(encoded.nonfinite))
    levels = LEVELS[bits] if family == rows.LEVELS else {}
    side = rows.RowSide(p["head_dim"], bits, family=family, kind=kind, rule=rule, seed=SEED, layer=LAYER,
                        kv_head=KV_HEAD, sketch=p["sketch"] or 1, sketch_rule=p["sketch_rule"] or 1,
                        factor=p["sketch_factor"], centre=centre, **levels)
    words, scales, nonfinite = rows.encode_rows(x, side)
    return words, scales, rows.decode_rows(words, scales, side), nonfinite, np.zeros_like(nonfinite)


def build():
    """-> (tensors, metadata)"""
    tensors, metadata = {}, {}
    for name, fields in CASES.items():
        p = {"group_size": 0, "sketch": 0, "sketch_rule": 0, "sketch_factor": 0.0, "key_rule": 0,
             "value_rule": 0, "band_bits": [], "order_step": 0, "matrix": "", "centre": False, "seed": SEED,
             "layer": LAYER, "kv_head": KV_HEAD, **fields}
        d, x = p["head_dim"], inputs(p["head_dim"])
        # float16 at its largest number, and steps that are subnormal there or vanish
        x[11, :4] = [65504, 65505, -65505, -70000]
        x[12] = np.linspace(0, 2.0 ** -22, d, dtype=np.float32)
        x[13] = np.linspace(0, 2.0 ** -26, d, dtype=np.float32)
        sides, matrix, centre = [], given_matrix(p), given_centre(p)
        if matrix is not None:
            tensors[f"{name}.matrix"] = matrix
        if centre is not None:
            tensors[f"{name}.key_centre"] = centre
        with np.errstate(over="ignore"):
            for kind, side in ((ref.KEY, "key"), (ref.VALUE, "value")):
                if kind == ref.KEY and matrix is not None:
                    words, scales, decoded, nonfinite, saturated = turned_rows(x, p, matrix, centre)
                    tensors[f"{name}.key.nonfinite"] = nonfinite.astype(np.uint8)
                else:
                    words, scales, decoded, nonfinite, saturated = side_rows(x, p, kind)
                tensors[f"{name}.{side}.decoded"] = decoded
                sides.append((words, scales, p["bits"][kind]))
        tensors[f"{name}.input"] = x
        tensors[f"{name}.nonfinite"] = nonfinite.astype(np.uint8)
        tensors[f"{name}.saturated"] = saturated.astype(np.uint8)
        tensors[f"{name}.tile"] = np.frombuffer(ref.tile_bytes(*sides), np.uint8)
        used = {f"{side}_levels": LEVELS[bits] for side, family, bits in zip(
            ("key", "value"), p["family"], p["bits"]) if family == rows.LEVELS}
        if order := band_order(p):
            used["band_order"] = order
        metadata[name] = json.dumps({**p, **used})
    return tensors, metadata
