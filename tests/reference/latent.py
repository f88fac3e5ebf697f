# SPDX-License-Identifier: Apache-2.0
"""Latent layers: FORMAT.md section 3.9. A key is [latent | rest]; the latent is the value."""
import dataclasses

import numpy as np

from . import encode as enc
from .grouped import pack_rows
from .rows import RowSide, decode_rows, encode_rows
from .tile import RAW, raw_bits


@dataclasses.dataclass(frozen=True)
class LatentConfig:
    """Sides: SideConfig (bits 16: raw, of float32 input) or RowSide; the latent of kind VALUE, the rest of
    kind KEY."""
    latent: object
    rest: object


def dim_of(side):
    return side.dim if isinstance(side, RowSide) else side.head_dim


def encode_part(x, side):
    """x float32 [n, d] -> ((rows, scales, bits) as tile_bytes takes them, nonfinite [n])"""
    x = np.ascontiguousarray(x)
    if side.bits == RAW:
        bits, replaced, _ = raw_bits(x)
        return (bits, None, RAW), replaced.any(axis=1)
    if isinstance(side, RowSide):
        words, scales, nonfinite = encode_rows(x, side)
        return (words, scales, side.bits), nonfinite
    encoded = enc.encode(x, side)
    return (pack_rows(encoded.codes, side.bits), encoded.scales, side.bits), encoded.nonfinite


def decode_part(x, side):
    """What the codes of x stand for, float32 [n, d]."""
    x = np.ascontiguousarray(x)
    if side.bits == RAW:
        return raw_bits(x)[0].view(np.float16).astype(enc.F32)
    if isinstance(side, RowSide):
        words, scales, _ = encode_rows(x, side)
        return decode_rows(words, scales, side)
    encoded = enc.encode(x, side)
    return enc.decode(encoded.codes, encoded.scales, side)


def split_key(k, config):
    """k [n, latent + rest] -> (latent, rest)"""
    return np.split(k, [dim_of(config.latent)], axis=-1)


def encode_latent(k, config):
    """-> (key side, value side) as tile_bytes takes them, nonfinite [n]"""
    latent, rest = split_key(k, config)
    value, bad_value = encode_part(latent, config.latent)
    key, bad_key = encode_part(rest, config.rest)
    return (key, value), bad_key | bad_value


def decode_latent(k, config):
    """What the codes of k stand for: keys [n, latent + rest], values [n, latent], float32."""
    latent, rest = split_key(k, config)
    value = decode_part(latent, config.latent)
    return np.concatenate([value, decode_part(rest, config.rest)], axis=1), value
