# SPDX-License-Identifier: Apache-2.0
"""Bytes of tiles and pages: FORMAT.md sections 3.5, 4 and 5."""
import functools
import math

import numpy as np

from .encode import KEY, VALUE, sanitise, stored_dim
from .grouped import groups, pack_rows, row_words

TILE_TOKENS = 32
RAW = 16
FLOAT16_MAX = 65504.0


# ---- raw sides, section 3.5

def raw_bits(x):
    """Stored 16-bit values of a raw side, which inputs were replaced, and which finite ones saturated.

    x: float32 or float16 array, or uint16 = bfloat16 bits. Float32 and float16 are stored as float16,
    bfloat16 as itself.
    """
    if x.dtype == np.uint16:
        wide = (x.astype(np.uint32) << np.uint32(16)).view(np.float32)
        clean, replaced = sanitise(wide)
        stored = np.where(replaced, (clean.view(np.uint32) >> np.uint32(16)).astype(np.uint16), x)
        return stored, replaced, np.zeros_like(replaced)
    wide = x.astype(np.float32)
    _, replaced = sanitise(wide)
    with np.errstate(over="ignore", under="ignore"):
        half = np.where(np.isnan(x), x.dtype.type(0), x).astype(np.float16)
    stored = np.where(np.isinf(half), np.copysign(np.float16(FLOAT16_MAX), half), half).view(np.uint16)
    return stored, replaced, np.isfinite(wide) & (np.abs(wide) > FLOAT16_MAX)


def raw_side_bytes(bits):
    """uint16 [32, d] -> bytes."""
    assert bits.shape[0] == TILE_TOKENS
    return np.ascontiguousarray(bits).astype("<u2").tobytes()


# ---- coded sides, section 4

@functools.lru_cache(maxsize=None)
def coded_positions(dim, kind):
    """(token, coordinate) of octet position [jb, lane, jj, s, n], int arrays of that shape."""
    groups = dim // 32
    jv = math.gcd(groups, 4)
    jb, lane, jj, s, n = np.meshgrid(np.arange(groups // jv),
                                     np.arange(32),
                                     np.arange(jv),
                                     np.arange(4),
                                     np.arange(8),
                                     indexing="ij")
    g, t = lane // 4, lane % 4
    pos = np.where(n < 4, 4 * t + n, 16 + 4 * t + (n - 4))
    if kind == KEY:
        e = 4 * jj + s
        return 8 * (e // jv) + g, 32 * (jb * jv + e % jv) + pos
    j = jb * jv + jj
    token = 16 * (pos // 16) + 8 * ((pos % 4) // 2) + 2 * ((pos % 16) // 4) + pos % 2
    return token, 8 * (4 * j + s) + g


@functools.lru_cache(maxsize=None)
def bit_map(bits):
    """Where each bit of a group lies: list of (octet s, position n, code bit, word i, word bit)."""
    places = []
    for s in range(4):
        for n in range(8):
            if bits == 2:
                places += [(s, n, c, s // 2, 4 * n + 2 * (s % 2) + c) for c in range(2)]
            elif bits == 3:
                if s < 3:
                    places += [(s, n, c, s, 4 * n + c) for c in range(3)]
                else:
                    places += [(3, n, c, c, 4 * n + 3) for c in range(3)]
            elif bits == 4:
                places += [(s, n, c, s, 4 * n + c) for c in range(3)]
                places.append((s, n, 3, s, 4 * (2 * n + 1 if n < 4 else 2 * (n - 4)) + 3))
            elif bits in (5, 6):
                places += [(s, n, c, s, 4 * n + c) for c in range(4)]
                places += [(s, n, 4 + q, 4 + q, 8 * (n % 4) + 7 - (2 * s + n // 4)) for q in range(bits - 4)]
            else:
                places += [(s, n, c, 2 * s + n // 4, 8 * (n % 4) + c) for c in range(8)]
    return places


def pack_side(codes, bits, kind):
    """codes uint8 [32, D] -> uint32 [D * bits] in word order."""
    token, coordinate = coded_positions(codes.shape[1], kind)
    octets = codes[token, coordinate].astype(np.uint32)  # [jb, lane, jj, s, n]
    words = np.zeros((bits,) + octets.shape[:3], dtype=np.uint32)
    for s, n, code_bit, word, word_bit in bit_map(bits):
        words[word] |= ((octets[..., s, n] >> np.uint32(code_bit)) & np.uint32(1)) << np.uint32(word_bit)
    return words.reshape(-1)


def unpack_side(words, dim, bits, kind):
    """uint32 [.., D * bits], a tile each -> codes uint8 [.., 32, D]."""
    token, coordinate = coded_positions(dim, kind)
    _, _, code_bit, word, word_bit = np.array(bit_map(bits), dtype=np.uint32).T.reshape(5, -1, 1, 1, 1)
    own = np.asarray(words, dtype=np.uint32).reshape(-1, bits, *token.shape[:3])[:, word.ravel()]
    octets = (own >> word_bit & np.uint32(1)) << code_bit  # the bits of one octet position after another's
    octets = octets.reshape(len(own), 4, 8, bits, *token.shape[:3]).sum(axis=3)
    codes = np.zeros((len(own), TILE_TOKENS, dim), dtype=np.uint8)
    codes[:, token, coordinate] = octets.transpose(0, 3, 4, 5, 1, 2)
    return codes.reshape(*np.shape(words)[:-1], TILE_TOKENS, dim)


# ---- tiles and pages

def side_num_bytes(head_dim, bits, group=0):
    if group and bits != RAW:
        return 128 * row_words(head_dim, bits)
    return 64 * head_dim if bits == RAW else 4 * stored_dim(head_dim) * bits


def scale_num_bytes(head_dim, bits, group=0):
    return 0 if bits == RAW else 128 * len(groups(head_dim, group)) if group else 64


def tile_num_bytes(key_dim, key_bits, value_dim, value_bits, key_group=0, value_group=0):
    sides = (key_dim, key_bits, key_group), (value_dim, value_bits, value_group)
    return sum(side_num_bytes(*side) + scale_num_bytes(*side) for side in sides)


def tile_bytes(key, value):
    """One tile in canonical bytes. A side is (codes [n, D], scales [n], bits), (codes [n, d], pairs [n, G,
    2], bits) if grouped, (words uint32 [n, W], scales, bits) of other sides by rows, or (16-bit values [n,
    d], None, 16) if raw; n <= 32."""
    parts = []
    for kind, (codes, scales, bits) in ((KEY, key), (VALUE, value)):
        full = np.zeros((TILE_TOKENS, codes.shape[1]), dtype=codes.dtype)
        full[:len(codes)] = codes
        if bits == RAW:
            parts.append(raw_side_bytes(full))
        elif codes.dtype == np.uint32:
            parts.append(full.astype("<u4").tobytes())
        elif scales.ndim == 3:
            parts.append(pack_rows(full, bits).tobytes())
        else:
            parts.append(pack_side(full, bits, kind).astype("<u4").tobytes())
    for _, scales, bits in (key, value):
        if bits != RAW:
            full = np.zeros((TILE_TOKENS, *scales.shape[1:]), dtype="<u2")
            full[:len(scales)] = scales
            parts.append(full.tobytes())
    return b"".join(parts)


def page_bytes(heads, tiles_per_page, tile_size):
    """heads: per kv head a list of up to tiles_per_page tiles (bytes); missing tiles are zero."""
    page = bytearray()
    for tiles in heads:
        assert len(tiles) <= tiles_per_page and all(len(t) == tile_size for t in tiles)
        page += b"".join(tiles) + bytes(tile_size * (tiles_per_page - len(tiles)))
    return bytes(page)
