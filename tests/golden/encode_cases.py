# SPDX-License-Identifier: Apache-2.0
"""encode_d{d}.safetensors: vectors with their codes, scales and words."""
import json

import numpy as np
from reference import tqkv_reference as ref
from reference.encode import HEAD_DIMS

SEED, LAYER, KV_HEAD = 20250424, 3, 1
NUM_VECTORS = 32
DIMS = (*HEAD_DIMS, 40, 72, 100)  # the last with the codebook of their stored dimension
BITS = (2, 3, 4, 5, 6, 8)
SIDES = (("key", ref.KEY), ("value", ref.VALUE))
FLT_MAX = np.finfo(np.float32).max


def uniform(stream, count):
    """float64 in [-1, 1), from the format's own integer stream: NumPy's generators may change their output
    between versions."""
    words = ref.stream_words(ref.stream_base(SEED, stream, 0, 0), 0, count)
    return (words >> np.uint64(11)).astype(np.float64) * 2.0 ** -52 - 1


def gaussian(stream, count):
    """About normal: a sum of 12 uniforms, so that no bit depends on a machine's logarithm."""
    return uniform(stream, 12 * count).reshape(12, count).sum(axis=0) / 2


def key_matrices(stream, heads, d):
    """float32 [heads, d, d]: well conditioned, not orthogonal, with the pivots of an inverse off the
    diagonal."""
    made = 0.3 / np.sqrt(d) * gaussian(stream, heads * d * d).reshape(heads, d, d)
    made[:, np.arange(d), (np.arange(d) + 5) % d] += 2.0 ** (np.arange(d) % 3 - 1)
    return made.astype(np.float32)


def inputs(d):
    """float32 [32, d]; the meaning of the rows stands in README.md."""
    x = gaussian(d, NUM_VECTORS * d).reshape(NUM_VECTORS, d)
    i = np.arange(d)
    # Rows 10-15: a common offset, a slow wave as position rotation makes it, a few channels ten and more
    # times as large.
    x[10:16] += 0.5 + np.cos(np.outer(np.arange(1, 7), i) / 9)
    x[10:16, [3 % d, d // 2, d - 2]] *= 12
    x[13:16, d // 4] = [60, -35, 80]
    x[16] = 0
    x[17, 7] = 1e19
    x[18] = 0.7
    x = x.astype(np.float32)
    x[19] = np.where(i % 3 == 0, -FLT_MAX, FLT_MAX)
    x[20] = x[0] * np.float32(1e-39)
    x[21, [0, d // 3]] = np.nan
    x[22, [1, d - 1]] = [np.inf, -np.inf]
    x[23] = x[1] * np.float32(1e-20)
    x[24] = np.where(i % 2 == 0, 1.5, -1.5)
    x[25] = 0
    x[25, d - 1] = -3
    x[26] = np.float32(2.0 ** -101)
    x[26, 5] = np.float32(-2.0 ** -100)
    x[27] = np.nextafter(np.float32(2.0 ** -100), np.float32(0))
    x[28, 2:5] = [2.0 ** 64, np.nextafter(np.float32(2.0 ** 64), np.float32(np.inf)), -2.0 ** 70]
    x[29] = np.ldexp(np.float32(1) + np.abs(x[2]),
                     (60 - 200 * i // d)).astype(np.float32) * np.where(i % 5 < 2, -1, 1)
    x[30] = np.rint(3 * x[3])
    x[31] = np.where(i == d // 2, np.float32(1e-3), np.float32(-0.0))
    return x.astype(np.float32)


def side(kind, d, bits, **options):
    """Keys by the rule `ls`, values by `unbiased`, the default: so the files have both in every dimension."""
    options.setdefault("rule", ref.LS if kind == ref.KEY else ref.UNBIASED)
    return ref.SideConfig(head_dim=d,
                          bits=bits,
                          kind=kind,
                          seed=SEED,
                          layer=LAYER,
                          kv_head=KV_HEAD,
                          **options)


def add(tensors, prefix, x, config, words=True, decoded=False, nonfinite=False):
    encoded = ref.encode(x, config)
    tensors[prefix + "codes"] = encoded.codes
    tensors[prefix + "scales"] = encoded.scales
    if words:
        tensors[prefix + "words"] = ref.pack_side(encoded.codes, config.bits, config.kind)
    if decoded:
        tensors[prefix + "decoded"] = ref.decode(encoded.codes, encoded.scales, config)
    if nonfinite:
        tensors[prefix + "nonfinite"] = encoded.nonfinite.astype(np.uint8)
    return encoded


def add_raw(tensors, x):
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        half = x.astype(np.float16)
    # Truncation keeps NaN and infinity what they are; the point here is the sixteen bits, not how they came
    # about.
    brain = (x.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    # Values around float16's largest number and its subnormals.
    x = x.copy()
    x[11, :5] = [65504, 65505, -65519.996, 2.0 ** -25, 2.0 ** -25 * 1.5]
    x[12, 4] = -65520
    for name, source, shown in (("f16", half, half.view(np.uint16)), ("bf16", brain, brain), ("f32", x, x)):
        stored, replaced, saturated = ref.raw_bits(source)
        tensors[f"raw.{name}.input"] = shown
        tensors[f"raw.{name}.stored"] = stored
        tensors[f"raw.{name}.nonfinite"] = replaced.any(axis=1).astype(np.uint8)
        tensors[f"raw.{name}.saturated"] = saturated.any(axis=1).astype(np.uint8)
    return tensors["raw.f32.stored"]


def build(d):
    """-> (tensors, metadata)"""
    x = inputs(d)
    tensors = {"input": x}
    encoded = {}
    for name, kind in SIDES:
        for bits in BITS:
            config = side(kind, d, bits)
            encoded[name, bits] = add(tensors,
                                      f"{name}.b{bits}.",
                                      x,
                                      config,
                                      decoded=d == 128 and (kind == ref.KEY or bits == 4))
    tensors["nonfinite"] = encoded["key", 2].nonfinite.astype(np.uint8)
    if d == 128:
        centre = 2 * gaussian(9999, d).astype(np.float32)
        tensors["centre"] = centre
        for bits in BITS:
            for name, options in (("norm", {"rule": ref.NORM}), ("paper", {"rule": ref.PAPER}),
                                  ("nosearch", {"search": False})):
                add(tensors, f"key.b{bits}.{name}.", x, side(ref.KEY, d, bits, **options), words=False)
        for bits in (3, 4):
            config = side(ref.KEY, d, bits, centre=tuple(float(c) for c in centre))
            add(tensors, f"key.b{bits}.centre.", x, config, words=False, decoded=True, nonfinite=True)
    if d == 64:
        for name, kind in SIDES:
            config = side(kind, d, 3, rotation=ref.DENSE)
            tensors[f"{name}.dense.corner"] = ref.dense_rotation(config.base, d)[:8, :8]
            for bits in (3, 4, 8):
                add(tensors,
                    f"{name}.b{bits}.dense.",
                    x,
                    side(kind, d, bits, rotation=ref.DENSE),
                    words=False,
                    decoded=True)
        raw = add_raw(tensors, x)
        full = {(name, bits): (encoded[name, bits].codes, encoded[name, bits].scales, bits)
                for name, bits in encoded}
        partial = {key: (codes[:20], scales[:20], bits) for key, (codes, scales, bits) in full.items()}
        for tile, key, value in (("k4v3", full["key", 4], full["value",
                                                               3]), ("k3v5.n20", partial["key",
                                                                                         3], partial["value",
                                                                                                     5]),
                                 ("k16v4", (raw, None, 16), full["value",
                                                                 4]), ("k8v16", full["key",
                                                                                     8], (raw, None, 16))):
            tensors[f"tile.{tile}"] = np.frombuffer(ref.tile_bytes(key, value), dtype=np.uint8)
    parameters = {
        "head_dim": d, "stored_dim": ref.stored_dim(d), "seed": SEED, "layer": LAYER, "kv_head": KV_HEAD,
        "num_vectors": NUM_VECTORS, "key_rule": "ls", "value_rule": "unbiased", "search": True,
        "rotation": "hadamard"
    }
    return tensors, {"parameters": json.dumps(parameters)}
