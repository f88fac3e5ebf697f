# SPDX-License-Identifier: Apache-2.0
"""Grouped sides: FORMAT.md sections 3.6 and 4. Float32 throughout; vectors are [n, d], pairs [n, G, 2]."""
import dataclasses

import numpy as np

from .encode import F32, sanitise

FLOAT16_MAX = F32(65504)


@dataclasses.dataclass
class Grouped:
    codes: np.ndarray      # uint8 [n, d]
    pairs: np.ndarray      # uint16 [n, G, 2], float16 bits: scale, zero
    nonfinite: np.ndarray  # bool [n], the vector would set the sequence's flag
    saturated: np.ndarray  # likewise


def half(x):
    """float16 bits, and which did not fit."""
    large = np.abs(x) > FLOAT16_MAX
    with np.errstate(under="ignore"):
        kept = np.where(large, np.copysign(FLOAT16_MAX, x), x).astype(np.float16)
    return kept.view(np.uint16), large


def groups(dim, group):
    return [slice(first, min(first + group, dim)) for first in range(0, dim, group)]


def encode_grouped(x, bits, group):
    """x float32 [n, d] -> Grouped."""
    assert x.dtype == F32
    x, replaced = sanitise(x)
    top, parts = F32(2**bits - 1), groups(x.shape[1], group)
    codes = np.zeros(x.shape, np.uint8)
    pairs = np.zeros((len(x), len(parts), 2), np.uint16)
    saturated = np.zeros(len(x), bool)
    for i, part in enumerate(parts):
        own = x[:, part]
        # the first of equals: -0 or +0
        low = own[np.arange(len(x)), np.argmin(own, axis=1)]
        with np.errstate(under="ignore"):
            step = (own.max(axis=1) - low) / top
        (scale, large), (zero, large_zero) = half(step), half(low)
        pairs[:, i, 0], pairs[:, i, 1] = scale, zero
        saturated |= large | large_zero
        s, z = (pairs[:, i, j].view(np.float16).astype(F32)[:, None] for j in (0, 1))
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            c = np.rint((own - z) / s)
        codes[:, part] = np.where(s > 0, np.clip(np.nan_to_num(c, nan=0), F32(0), top), 0).astype(np.uint8)
    return Grouped(codes, pairs, replaced.any(axis=1), saturated)


def decode_grouped(codes, pairs, group):
    """-> float32 [n, d]"""
    wide = np.repeat(np.ascontiguousarray(pairs).view(np.float16).astype(F32), group, axis=1)
    wide = wide[:, :codes.shape[1]]
    return wide[..., 0] * codes.astype(F32) + wide[..., 1]


# ---- section 4

def row_words(dim, bits):
    return -(-dim * bits // 32)


def pack_rows(codes, bits):
    """codes uint8 [n, d] -> uint32 [n, W]"""
    planes = (codes[:, :, None] >> np.arange(bits, dtype=np.uint8)) & 1
    row = np.zeros((len(codes), 32 * row_words(codes.shape[1], bits)), np.uint8)
    row[:, :codes.shape[1] * bits] = planes.reshape(len(codes), -1)
    return np.packbits(row, axis=1, bitorder="little").view("<u4")


def unpack_rows(words, dim, bits):
    """uint32 [n, W] -> codes uint8 [n, d], and what is behind the last code (bits)."""
    row = np.unpackbits(np.ascontiguousarray(words).astype("<u4").view(np.uint8), axis=1, bitorder="little")
    planes = row[:, :dim * bits].reshape(len(row), dim, bits)
    codes = (planes << np.arange(bits, dtype=np.uint8)).sum(axis=2).astype(np.uint8)
    return codes, row[:, dim * bits:]
