# SPDX-License-Identifier: Apache-2.0
"""Codebooks retuned on captured vectors: Lloyd-Max on the coordinates that the encoder sees, with its own
choice of step and least-squares scale, put on the int8 grid of tqkv.Codebook.

    book = retune(keys, bits=4, layer=3, kv_head=0)        # keys [n, head_dim], RoPE applied
    cache = tqkv.Cache(.., key_bits=4, key_codebook=book)

Worth it where energy keeps to a few channels: the rotated coordinates are then no longer Gaussian. A codebook
belongs to a cache, so give vectors of all its heads, each rotated by its own signs (pass rotated coordinates
of several heads to `retune_coordinates`).
"""
import numpy as np

from . import paper

# The encoder's steps, FORMAT.md 3.1.
STEPS = (1.12, 1.06, 1, 0.94, 0.88)
FINE_STEPS = (1.12, 1.09, 1.06, 1.03, 1, 0.97, 0.94, 0.91, 0.88)
ROUNDS = 15
FACTORS = 400  # of the grid
LARGEST = 127


def coordinates(vectors, side="key", seed=0, layer=0, kv_head=0):
    """|y| / rms(y) of the rotated vectors, as the encoder sees them. vectors [n, head_dim]; zero vectors are
    left out. -> [n', D], D = head_dim rounded up to 32"""
    vectors = np.asarray(vectors, dtype=np.float64)
    if vectors.ndim != 2 or not np.isfinite(vectors).all():
        raise ValueError(f"vectors: shape {vectors.shape}, must be [n, head_dim] and finite")
    if side not in ("key", "value"):
        raise ValueError(f"side = {side!r}: must be \"key\" or \"value\"")
    y = np.abs(paper.rotate(vectors, seed, layer, kv_head, int(side == "value")))
    rms = np.sqrt(np.mean(y * y, axis=1, keepdims=True))
    return (y / np.where(rms > 0, rms, 1))[rms[:, 0] > 0]


def encode(y, levels, steps):
    """(index of the level of each coordinate, least-squares scale of each row) at the best of the steps."""
    best = None
    for step in steps:
        index = np.searchsorted((levels[1:] + levels[:-1]) / 2 * step, y, side="right")
        chosen = levels[index]
        dot, square = np.sum(y * chosen, axis=1), np.sum(chosen * chosen, axis=1)
        gain = dot * dot / square
        if best is None:
            best = [gain, index, dot / square]
            continue
        better = gain > best[0]
        best = [
            gain * better + best[0] * ~better,
            np.where(better[:, None], index, best[1]),
            np.where(better, dot / square, best[2])
        ]
    return best[1], best[2]


def on_grid(levels, bits):
    """The tqkv.Codebook nearest to these rising magnitudes."""
    import tqkv
    half = 0.5 if bits >= 4 else 0.0
    best = None
    for factor in np.linspace(0.5, 1, FACTORS):
        unit = levels[-1] / ((LARGEST + half) * factor)
        magnitude = np.clip(np.rint(levels / unit - half), 0 if half else 1, LARGEST)
        error = float(np.sum((unit * (magnitude + half) - levels) ** 2))
        if np.all(np.diff(magnitude) > 0) and (best is None or error < best[0]):
            best = error, float(np.float32(unit)), tuple(int(m) for m in magnitude)
    if best is None:
        raise ValueError(f"levels {levels.tolist()} do not fit the grid of a codebook of {bits} bits")
    return tqkv.Codebook(bits, best[1], best[2])


def retune_coordinates(y, bits, head_dim):
    """The codebook for rotated coordinates [n, D] as `coordinates` gives them."""
    if bits not in (2, 3, 4, 5, 6):
        raise ValueError(f"bits = {bits}: must be 2 .. 6")
    if len(y) == 0:
        raise ValueError("vectors: none that is not zero")
    levels = paper.lloyd_max(head_dim, bits)[0][2 ** (bits - 1):]
    steps = STEPS if bits <= 4 else FINE_STEPS
    for _ in range(ROUNDS):
        index, scale = encode(y, levels, steps)
        weight = np.repeat(scale * scale, y.shape[1])
        mass = np.bincount(index.ravel(), weight, len(levels))
        moment = np.bincount(index.ravel(), (scale[:, None] * y).ravel(), len(levels))
        # A level that no coordinate chose stays where it is.
        levels = np.where(mass > 0, moment / np.where(mass > 0, mass, 1), levels)
    return on_grid(levels, bits)


def retune(vectors, bits, side="key", seed=0, layer=0, kv_head=0):
    """A codebook for vectors like these, [n, head_dim], of one head: tqkv.Codebook of `bits` 2 .. 6.

    seed, layer, kv_head   whose signs rotate them: rotation_seed of the cache, numbers in the whole model
    Raises ValueError naming what does not fit.
    """
    return retune_coordinates(coordinates(vectors, side, seed, layer, kv_head), bits, np.shape(vectors)[1])
