# SPDX-License-Identifier: Apache-2.0
"""Keys in bands: FORMAT.md section 3.11, and their words and scales of section 4."""
import dataclasses
import functools

import numpy as np

from . import encode as enc
from . import rotation as rot
from . import tile, trellis


class BandSide(enc.SideConfig):
    """One band: `index` says which sign bits of the head's stream are its own."""
    index = 0

    @property
    def book(self):
        return enc.load_codebook(32, self.bits)

    def signs(self):
        return rot.sign_bits(self.base, 32 * (self.index + 1))[32 * self.index:]

    def rotate(self, x):
        return rot.rotate_hadamard(x, self.signs())

    def unrotate(self, y):
        return rot.unrotate_hadamard(y, self.signs())


class TrellisBand(BandSide):
    levels = trellis.TrellisSide.levels


@dataclasses.dataclass(frozen=True)
class Bands:
    """All that a kv head's keys depend on. order: the coordinate at each place; None = as they are."""
    head_dim: int
    bits: tuple
    order: tuple = None
    trellis: bool = False
    rule: int = enc.UNBIASED
    search: bool = True
    seed: int = 0
    layer: int = 0
    kv_head: int = 0
    centre: tuple = None

    @functools.cached_property
    def places(self):
        order = np.arange(self.head_dim) if self.order is None else np.array(self.order)
        assert np.array_equal(np.sort(order), np.arange(self.head_dim))
        assert len(self.bits) == -(-self.head_dim // 32)
        assert list(self.bits) == sorted(self.bits, reverse=True)
        return order

    @functools.cached_property
    def parts(self):
        """[(coordinates, side)]"""
        found = []
        for index, bits in enumerate(self.bits):
            own = self.places[32 * index:32 * (index + 1)]
            kind = TrellisBand if is_trellis(bits, self.trellis) else BandSide
            centre = None if self.centre is None else tuple(np.array(self.centre, dtype=enc.F32)[own])
            side = kind(len(own), bits, kind=enc.KEY, rule=self.rule, search=self.search, seed=self.seed,
                        layer=self.layer, kv_head=self.kv_head, centre=centre)
            object.__setattr__(side, "index", index)
            found.append((own, side))
        return found


def encode(x, side):
    """x float32 [n, head_dim] -> ([codes [n, 32] of each band], [scales [n] of each], nonfinite [n])"""
    codes, scales, nonfinite = [], [], np.zeros(len(x), dtype=bool)
    for own, band in side.parts:
        coder = trellis if isinstance(band, TrellisBand) else enc
        encoded = coder.encode(np.ascontiguousarray(x[:, own]), band)
        codes.append(encoded.codes)
        scales.append(encoded.scales)
        nonfinite |= encoded.nonfinite
    return codes, scales, nonfinite


def decode(codes, scales, side):
    """-> float32 [n, head_dim]"""
    x = np.empty((len(codes[0]), side.head_dim), dtype=enc.F32)
    for (own, band), band_codes, band_scales in zip(side.parts, codes, scales):
        x[:, own] = enc.decode(band_codes, band_scales, band)
    return x


def words(codes, side):
    """codes of 32 tokens -> uint32 [32 * sum of widths]"""
    found = []
    for (_, band), own in zip(side.parts, codes):
        if isinstance(band, TrellisBand):
            found.append(trellis.pack(own, band.bits, enc.KEY))
        elif band.bits == 1:
            shifts = np.arange(32, dtype=np.uint32)
            found.append((own.astype(np.uint32) << shifts).sum(axis=1, dtype=np.uint32))
        else:
            found.append(tile.pack_side(own, band.bits, enc.KEY))
    return np.concatenate(found)


def is_trellis(bits, side_trellis):
    return side_trellis and bits in (2, 3, 4)


def unpack(tile_words, widths, side_trellis):
    """uint32 [32 * sum of widths] of one tile -> [codes uint8 [32, 32] of each band]"""
    found, at = [], 0
    for bits in widths:
        own, at = tile_words[at:at + 32 * bits], at + 32 * bits
        if is_trellis(bits, side_trellis):
            found.append(trellis.unpack(own, 32, bits, enc.KEY))
        elif bits == 1:
            found.append((own[:, None] >> np.arange(32, dtype=np.uint32) & np.uint32(1)).astype(np.uint8))
        else:
            found.append(tile.unpack_side(own, 32, bits, enc.KEY))
    return found


def books_bytes(widths, side_trellis):
    """Magnitudes of the bands' codebooks as a side of a record has them, 32 bytes each."""
    found = b""
    for bits in widths:
        if is_trellis(bits, side_trellis):
            magnitudes = np.floor(trellis.load_book(bits)[1][1 << bits:])
        else:
            magnitudes = np.floor(enc.load_codebook(32, bits).grid)
        found += magnitudes.astype(np.uint8).tobytes().ljust(32, b"\0")
    return found
