# SPDX-License-Identifier: Apache-2.0
"""Trellis sides: FORMAT.md section 3.10, and their words of section 4. Integers are int64."""
import dataclasses
import functools
import json
import math

import numpy as np

from . import encode as enc
from . import rotation as rot
from .tile import coded_positions

CHAIN, STATES = 32, 8
STEPS = (1.18, 1.08, 1, 0.92, 0.84)
NO_PATH = 2 ** 30


@functools.lru_cache(maxsize=None)
def load_book(bits):
    """(unit, the 2^(b+1) levels in rising order)"""
    row, = (t for t in json.loads(enc.TABLES_JSON.read_text())["trellis"] if t["bits"] == bits)
    magnitudes = np.array(row["magnitude"], dtype=enc.F32) + enc.F32(0.5 if bits >= 3 else 0)
    assert len(magnitudes) == 2 ** bits
    return enc.F32(float.fromhex(row["unit"])), np.concatenate([-magnitudes[::-1], magnitudes])


@dataclasses.dataclass(frozen=True)
class TrellisSide(enc.SideConfig):
    def levels(self, codes):
        return load_book(self.bits)[1][indexes(codes, self.kind)]


@functools.lru_cache(maxsize=None)
def chains(dim, kind):
    """Coordinates by chain and position: int [J, 32]."""
    jv = math.gcd(dim // 32, 4)
    at = np.full((dim // 32, CHAIN), -1)
    for coordinate in range(dim):
        if kind == enc.KEY:
            block, pos = divmod(coordinate, 32)
            jb, q = divmod(block, jv)
            t = pos % 16 // 4
            n = pos % 4 + 4 * (pos // 16)
            k = 4 // jv
            chain, position = jb * jv + t // k, t % k * 8 * jv + n * jv + q
        else:
            octet, g = divmod(coordinate, 8)
            j, s = divmod(octet, 4)
            jb, jj = divmod(j, jv)
            chain, position = jb * jv + s % jv, s // jv * 8 * jv + g * jv + jj
        assert at[chain, position] == -1
        at[chain, position] = coordinate
    return at


def cosets(u):
    """u [..., 32] coded bits -> c [..., 32]"""
    before = lambda count: np.roll(u, count, axis=-1)  # noqa: E731
    return before(2) + 2 * (u ^ before(1) ^ before(3))


def indexes(codes, kind):
    """codes uint8 [n, D] -> x int64 [n, D]"""
    at = chains(codes.shape[1], kind)
    by_chain = codes[:, at].astype(np.int64)
    x = np.empty(codes.shape, dtype=np.int64)
    x[:, at] = 4 * (by_chain >> 1) + cosets(by_chain & 1)
    return x


# ---- encoder

def distances(q, levels):
    """(q - 8 L(x))^2 as [..., p, c] for x = 4 p + c"""
    eighths = np.rint(8 * levels.astype(np.float64)).astype(np.int64)
    return ((q[..., None] - eighths) ** 2).reshape(*q.shape, -1, 4)


def walk(costs, positions, metrics):
    """costs [n, 32, 4], metrics [n, 8] -> metrics, and bits of the paths [n, 8, 32], in order"""
    paths = np.zeros((*metrics.shape, 0), dtype=np.int64)
    for r in positions:
        new_metrics, new_paths = [], []
        for s in range(STATES):
            first = s // 2
            c = s // 4 + 2 * ((s ^ (s // 2)) % 2)
            a, b = metrics[:, first] + costs[:, r, c], metrics[:, first + 4] + costs[:, r, c ^ 2]
            new_metrics.append(np.minimum(a, b))
            path = np.where((b < a)[:, None], paths[:, first + 4], paths[:, first])
            new_paths.append(np.concatenate([path, np.full((len(path), 1), s % 2)], axis=1))
        metrics, paths = np.stack(new_metrics, axis=1), np.stack(new_paths, axis=1)
    return metrics, paths


def open_pass(costs):
    """-> error [n], tail [n]"""
    order = [*range(16, 32), *range(16)]
    metrics, paths = walk(costs, order, np.zeros((len(costs), STATES), dtype=np.int64))
    end = metrics.argmin(axis=1)  # the first of equals
    path = paths[np.arange(len(costs)), end]
    # in front of position 0 came 31, 30, 29: the steps 15, 14, 13
    return metrics.min(axis=1), path[:, 15] + 2 * path[:, 14] + 4 * path[:, 13]


def closed_pass(costs, tail):
    """-> u [n, 32]"""
    row = np.arange(len(costs))
    metrics = np.full((len(costs), STATES), NO_PATH)
    metrics[row, tail] = 0
    _, paths = walk(costs, range(CHAIN), metrics)
    return paths[row, tail]


def integers(y, base, w, at):
    """q by chain, [n, J, 32]"""
    factor = enc.F32(8) / (base * w)
    return np.rint(y * factor[:, None])[:, at].astype(np.int64)


def encode(x, config):
    """x float32 [n, head_dim] -> enc.Encoded; codes [n, D]"""
    y, exponent, is_zero, nonfinite = enc.rotated_side(x, config)
    y[is_zero] = 1
    unit, levels = load_book(config.bits)
    n2 = rot.tree_sum(y * y)
    base = np.sqrt(n2 / enc.F32(config.dim)) * unit
    at = chains(config.dim, config.kind)
    count = len(at)
    searched = config.search and config.rule != enc.PAPER
    least = step = tails = None
    for w in (enc.F32(w) for w in (STEPS if searched else (1, ))):
        q = integers(y, base, w, at)
        error, tail = open_pass(distances(q, levels).min(axis=-2).reshape(-1, CHAIN, 4))
        error = error.reshape(-1, count).sum(axis=1).astype(enc.F32) * (w * w)
        tail = tail.reshape(-1, count)
        better = np.full(len(y), True) if least is None else error < least
        least = error if least is None else np.where(better, error, least)
        step = np.full(len(y), w) if step is None else np.where(better, w, step)
        tails = tail if tails is None else np.where(better[:, None], tail, tails)
    q = integers(y, base, step, at)
    distance = distances(q, levels)
    u = closed_pass(distance.min(axis=-2).reshape(-1, CHAIN, 4), tails.reshape(-1)).reshape(q.shape)
    c = cosets(u)
    plain = np.take_along_axis(distance, c[..., None, None], axis=-1)[..., 0].argmin(axis=-1)
    codes = np.empty(y.shape, dtype=np.uint8)
    codes[:, at] = u + 2 * plain
    value = levels[indexes(codes, config.kind)]
    dot = rot.tree_sum(y * value)
    qq = ((2 * value).astype(np.int64) ** 2).sum(axis=1).astype(enc.F32) * enc.F32(0.25)
    scales = enc.stored_scales(config, codes, enc.Fit(dot, qq, n2, base), exponent)
    codes[is_zero] = 0
    scales[is_zero] = 0
    return enc.Encoded(codes, scales, nonfinite)


# ---- words

@functools.lru_cache(maxsize=None)
def nibble_bit(dim, s):
    jv = math.gcd(dim // 32, 4)
    return s % jv * 4 // jv + s // jv


def pack(codes, bits, kind):
    """codes uint8 [32, D] -> uint32 [D * bits] in word order"""
    dim = codes.shape[1]
    octets = codes[coded_positions(dim, kind)].astype(np.uint32)  # [jb, lane, jj, s, n]
    words = np.zeros((bits, *octets.shape[:3]), dtype=np.uint32)
    for q in range(bits):
        for s in range(4):
            for n in range(8):
                words[q] |= (octets[..., s, n] >> np.uint32(q) & np.uint32(1)) << np.uint32(
                    4 * n + nibble_bit(dim, s))
    return words.reshape(-1)


def unpack(words, dim, bits, kind):
    """uint32 [.., D * bits], a tile each -> codes uint8 [.., 32, D]"""
    token, coordinate = coded_positions(dim, kind)
    own = np.asarray(words, dtype=np.uint32).reshape(-1, bits, *token.shape[:3], 1, 1)
    shifts = np.array([[4 * n + nibble_bit(dim, s) for n in range(8)] for s in range(4)], dtype=np.uint32)
    planes = (own >> shifts & np.uint32(1)) << np.arange(bits, dtype=np.uint32).reshape(-1, 1, 1, 1, 1, 1)
    codes = np.zeros((len(own), 32, dim), dtype=np.uint8)
    codes[:, token, coordinate] = planes.sum(axis=1)
    return codes.reshape(*np.shape(words)[:-1], 32, dim)
