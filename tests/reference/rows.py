# SPDX-License-Identifier: Apache-2.0
"""Sides of tiles by rows that are rotated: prod keys, levels, scalar codes of one bit (FORMAT.md sections
3.7, 3.8 and 4). What is said there of section 8 is quantizer.py's; here are the stored dimension, the streams
and the scale of a tile."""
import dataclasses
import functools

import numpy as np

from . import encode as enc
from . import quantizer as vectors
from . import rotation as rot

PROD, LEVELS = vectors.PROD, vectors.LEVELS


class TilePart(vectors.Part):
    @property
    def dim(self):
        return enc.stored_dim(self.head_dim)

    @property
    def book(self):
        return enc.load_codebook(self.head_dim, self.bits)


@dataclasses.dataclass(frozen=True)
class RowSide(vectors.Quantizer):
    """As SideConfig: `dim` is head_dim."""
    kind: int = enc.KEY
    layer: int = 0
    kv_head: int = 0
    centre: tuple = None

    @functools.cached_property
    def parts(self):
        bits = self.bits - 1 if self.family == PROD else self.bits
        part = TilePart(self.dim, bits, kind=self.kind, rule=self.rule or enc.UNBIASED, search=self.search,
                        rotation=self.rotation, seed=self.seed, layer=self.layer, kv_head=self.kv_head,
                        centre=self.centre)
        return [(np.arange(self.dim), part)]

    @property
    def sketch_bases(self):
        return [rot.stream_base(self.seed, self.layer, self.kv_head, kind) for kind in vectors.SKETCH_KINDS]

    @property
    def row_bytes(self):
        return enc.stored_dim(self.dim) * self.bits // 8


def encode_rows(x, side):
    """x float32 [n, dim] -> (rows uint32 [n, W], scales uint16 [n, 1 or 2], nonfinite [n])"""
    records, nonfinite = vectors.encode(x, side)
    rows = np.ascontiguousarray(records[:, :side.row_bytes]).view("<u4")
    scales = np.ascontiguousarray(records[:, side.row_bytes:])
    if side.family == LEVELS:
        return rows, enc.bf16_bits(scales.view("<f4")), nonfinite
    return rows, scales.view("<u2"), nonfinite


def decode_rows(rows, scales, side):
    """-> float32 [n, dim]"""
    wide = enc.bf16_to_float(scales).astype("<f4") if side.family == LEVELS else scales
    parts = [np.ascontiguousarray(part).view(np.uint8).reshape(len(rows), -1) for part in (rows, wide)]
    x = vectors.decode(np.concatenate(parts, axis=1), side)
    return x if side.centre is None else x + np.array(side.centre, dtype=enc.F32)
