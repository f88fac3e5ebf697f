# SPDX-License-Identifier: Apache-2.0
"""A side of a saved layer (FORMAT.md section 6.2): what its record may say, how many bytes a tile of it has,
and what they hold, by sections 3 and 4 as encode.py, rows.py, grouped.py and trellis.py read them. Codes
come as one row a token, and what a reader may rely on of them is required."""
import dataclasses
import struct

import numpy as np
import xxhash

from . import bands
from . import rotation as rot
from . import trellis
from .encode import KEY, bf16_to_float, stored_dim
from .grouped import decode_grouped, unpack_rows
from .rows import LEVELS, PROD, RowSide, decode_rows
from .tile import RAW, TILE_TOKENS, scale_num_bytes, side_num_bytes, unpack_side

SCALAR, GROUPED, TRELLIS, BANDS, TRELLIS_BANDS = 1, 3, 5, 7, 8
LATENT = 16  # added to the family of both sides of a latent layer
SCALAR_BITS = (1, 2, 3, 4, 5, 6, 8)
HEAD_DIMS = (*range(8, 257, 4), 512, 576)


class Corrupt(Exception):
    pass


def require(right, text):
    if not right:
        raise Corrupt(text)


def in_tiles(side):
    """Whether the codes lie by tiles (section 4), not row by row."""
    return side.family in (SCALAR, TRELLIS) and side.bits > 1 and not side.latent and not side.raw


def wide_numbers(numbers, raw_type):
    return numbers.view("<f2").astype(np.float32) if raw_type == 1 else bf16_to_float(numbers)


@dataclasses.dataclass
class Side:
    dim: int
    family: int
    bits: int
    raw_type: int
    rotation: int
    variant: int  # grouped: group size; prod: sketch; in bands: widths, four bits each
    seed: int
    magnitudes: bytes
    kind: int
    latent: int = 0  # 1: of a latent layer

    @property
    def raw(self):
        return self.bits == RAW and not self.banded

    @property
    def grouped(self):
        return self.family == GROUPED

    @property
    def banded(self):
        return self.family in (BANDS, TRELLIS_BANDS)

    @property
    def widths(self):
        return tuple(self.variant >> 4 * i & 15 for i in range(-(-self.dim // 32)))

    def check_bands(self):
        widths = self.widths
        require(self.kind == KEY and not self.latent and self.dim <= 256 and self.rotation == rot.HADAMARD and
                self.raw_type == 0 and self.bits == sum(widths) and self.variant >> 4 * len(widths) == 0 and
                all(1 <= b <= 6 for b in widths) and list(widths) == sorted(widths, reverse=True),
                "a side in bands")
        books = bands.books_bytes(widths, self.family == TRELLIS_BANDS)
        require(self.magnitudes == struct.pack("<Q24x", xxhash.xxh64_intdigest(books)), "codebooks of bands")

    def check(self):
        require(self.dim in HEAD_DIMS, f"dim {self.dim}")
        if self.raw:
            require((self.family, self.rotation, self.variant, self.seed) == (0, 0, 0, 0) and
                    self.raw_type in (1, 2) and not any(self.magnitudes),
                    "a raw side says more than its type")
            return
        if self.grouped:
            require(self.bits in (2, 3, 4, 8) and self.variant in (16, 32, 64) and
                    (self.raw_type, self.rotation, self.seed) == (0, 0, 0) and not any(self.magnitudes),
                    "a grouped side says more than bits and group")
            return
        if self.family == PROD:
            require(self.bits in (2, 3, 4) and self.variant in (1, 2) and self.raw_type == 0 and
                    self.rotation in (1, 2) and not any(self.magnitudes[1 << (self.bits - 2):28]),
                    "a prod side")
            return
        if self.banded:
            self.check_bands()
            return
        require(self.variant == 0, "a group size without groups")
        if self.family == LEVELS:  # the caller's, of which the file has the hash
            require(self.bits in SCALAR_BITS and self.raw_type == 0 and self.rotation in (1, 2) and
                    not any(self.magnitudes[8:]), "a levels side")
            return
        widths = (2, 3, 4) if self.family == TRELLIS else SCALAR_BITS
        require(self.family in (SCALAR, TRELLIS) and self.bits in widths and self.raw_type == 0 and
                self.rotation in (1, 2), f"family {self.family}, {self.bits} bits, rotation {self.rotation}")
        count = 0 if self.bits == 8 else 1 << (self.bits - (self.family == SCALAR))
        require(not any(self.magnitudes[count:]), "magnitudes behind the last")
        rising = list(self.magnitudes[:count])
        require(all(a < b for a, b in zip(rising, rising[1:])) and all(m <= 127 for m in rising),
                "magnitudes do not rise")

    def levels(self, codes):
        """L(c), float32."""
        if self.family == TRELLIS:
            grid = np.frombuffer(self.magnitudes, np.uint8)[:1 << self.bits].astype(np.float32)
            grid = grid + np.float32(0.5 if self.bits >= 3 else 0)
            return np.concatenate([-grid[::-1], grid])[trellis.indexes(codes, self.kind)]
        if self.bits == 8:
            return codes.view(np.int8).astype(np.float32)
        half = 1 << (self.bits - 1)
        grid = np.frombuffer(self.magnitudes, np.uint8)[:half].astype(np.float32)
        grid = grid + np.float32(0.5 if self.bits >= 4 else 0)
        return np.where(codes >= half, np.float32(-1), np.float32(1)) * grid[codes & (half - 1)]

    @property
    def group(self):
        return self.variant if self.grouped else 0

    @property
    def words_bytes(self):
        """Of a tile, as scales_bytes."""
        if self.banded:
            return 4 * TILE_TOKENS * self.bits
        return side_num_bytes(self.dim, self.bits, self.group)

    @property
    def scales_bytes(self):
        if self.banded:
            return 2 * TILE_TOKENS * len(self.widths)
        return 4 * TILE_TOKENS if self.family == PROD else scale_num_bytes(self.dim, self.bits, self.group)

    # ---- what tiles hold, [tiles, bytes]

    def rows(self, part):
        """[tiles * 32, codes]; raw: numbers as stored; prod: words of codes and signs; in bands: 32 codes of
        each."""
        if self.raw:
            numbers = part.view("<u2").reshape(-1, self.dim)
            require(np.isfinite(wide_numbers(numbers, self.raw_type)).all(), "a raw value is not finite")
            return numbers
        words = part.view("<u4")
        if self.banded:
            tiles = [np.concatenate(bands.unpack(tile, self.widths, self.family == TRELLIS_BANDS), axis=1)
                     for tile in words]
            return np.concatenate(tiles)
        if in_tiles(self):
            unpack = trellis.unpack if self.family == TRELLIS else unpack_side
            codes = unpack(words, stored_dim(self.dim), self.bits, self.kind)
            codes = codes.reshape(-1, codes.shape[-1])
        else:
            words = words.reshape(len(part) * TILE_TOKENS, -1)
            if self.family == PROD:
                return words
            codes, behind = unpack_rows(words, self.dim if self.grouped else stored_dim(self.dim), self.bits)
            require(not self.grouped or not behind.any(), "bits behind a row's codes")
        require(self.bits != 8 or self.family != SCALAR or not (codes == 0x80).any(), "a level of -128")
        return codes

    def scales(self, part):
        """[tiles * 32, ..], stored bits: one, prod two, grouped (scale, zero) of each group; raw None."""
        if self.raw:
            return None
        bits = part.view("<u2").reshape(len(part) * TILE_TOKENS, -1)
        if self.banded:  # those of a band follow each other
            bits = part.view("<u2").reshape(len(part), -1, TILE_TOKENS).transpose(0, 2, 1).reshape(bits.shape)
        if self.grouped:
            pairs = bits.reshape(len(bits), -1, 2)
            require(not (pairs[..., 0] & 0x8000).any() and np.isfinite(pairs.view("<f2")).all(),
                    "a scale or a zero")
            return pairs
        require(not (bits & 0x8000).any() and np.isfinite(bf16_to_float(bits)).all(), "a scale")
        return bits if self.family == PROD or self.banded else bits[:, 0]

    # ---- numbers

    def decoded(self, rows, scales, where, centre, levels):
        """float32 [tokens, d]; where = (layer, kv head); levels: of a side that has the caller's; of one in
        bands the order."""
        if self.raw:
            return wide_numbers(rows, self.raw_type)
        if self.grouped:
            return decode_grouped(rows, scales, self.variant)
        if self.family == PROD:
            factor = np.frombuffer(self.magnitudes[28:], "<f4")[0]
            own = RowSide(self.dim, self.bits, family=PROD, rotation=self.rotation, seed=self.seed,
                          sketch=self.variant, factor=float(factor), layer=where[0], kv_head=where[1],
                          centre=None if centre is None else tuple(float(c) for c in centre))
            return decode_rows(np.ascontiguousarray(rows), np.ascontiguousarray(scales), own)
        if self.banded:
            own = bands.Bands(self.dim, self.widths, levels, self.family == TRELLIS_BANDS, seed=self.seed,
                              layer=where[0], kv_head=where[1],
                              centre=None if centre is None else tuple(float(c) for c in centre))
            codes = np.split(np.ascontiguousarray(rows), len(self.widths), axis=1)
            return bands.decode(codes, list(np.ascontiguousarray(scales.T)), own)
        level = self.own_levels(levels)[rows] if self.family == LEVELS else self.levels(rows)
        y = bf16_to_float(scales)[:, None] * level
        base = rot.stream_base(self.seed, *where, self.kind)
        if self.rotation == rot.HADAMARD:
            x = rot.unrotate_hadamard(y, rot.sign_bits(base, y.shape[1]))
        else:
            x = rot.unrotate_dense(y, rot.dense_rotation(base, y.shape[1]))
        x = x[:, :self.dim]
        return x if centre is None else x + centre

    def own_levels(self, levels):
        levels = np.asarray(levels, "<f4") + np.float32(0)
        require(len(levels) == 1 << self.bits and
                self.magnitudes[:8] == struct.pack("<Q", xxhash.xxh64_intdigest(levels.tobytes())), "levels")
        return levels
