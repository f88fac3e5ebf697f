# SPDX-License-Identifier: Apache-2.0
"""From vectors to codes and scales and back: FORMAT.md sections 2 and 3. Float32 throughout; arrays are [n,
d] or [n, D]."""
import dataclasses
import functools
import json
from pathlib import Path

import numpy as np

from . import rotation as rot

KEY, VALUE = 0, 1
LS, UNBIASED, NORM, PAPER = 1, 2, 3, 4
# with a codebook of their own
HEAD_DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512, 576)
TABLES_JSON = Path(__file__).resolve().parents[2] / "codebooks" / "tables.json"

VALUE_LIMIT = np.float32(2.0 ** 64)   # section 2, step 1
ZERO_LIMIT = np.float32(2.0 ** -100)  # section 2, step 4
F32 = np.float32


def stored_dim(head_dim):
    return -(-head_dim // 32) * 32


@dataclasses.dataclass(frozen=True)
class Codebook:
    bits: int
    unit: np.float32
    levels: tuple  # L_0 < L_1 < ... on the grid, exact in float32

    @property
    def grid(self):
        return np.array(self.levels, dtype=F32)


@functools.lru_cache(maxsize=None)
def _tables():
    return {(t["head_dim"], t["bits"]): t for t in json.loads(TABLES_JSON.read_text())["tables"]}


@functools.lru_cache(maxsize=None)
def load_codebook(head_dim, bits):
    """head_dim 0 = N(0,1); without a codebook of its own it takes that of its stored dimension."""
    own = (head_dim, bits) in _tables()
    table = _tables()[head_dim if own else stored_dim(head_dim), bits]
    offset = 0.5 if bits >= 4 else 0.0
    unit = float.fromhex(table["unit"])
    assert float(F32(unit)) == unit
    return Codebook(bits, F32(unit), tuple(m + offset for m in table["magnitude"]))


@dataclasses.dataclass(frozen=True)
class SideConfig:
    """All that the codes of one side (keys or values) of one kv head of one layer depend on, besides the
    vectors."""
    head_dim: int
    bits: int
    kind: int = KEY
    rule: int = UNBIASED
    search: bool = True
    rotation: int = rot.HADAMARD
    seed: int = 0
    layer: int = 0
    kv_head: int = 0
    centre: tuple = None   # head_dim floats

    @property
    def dim(self):
        return stored_dim(self.head_dim)

    @property
    def book(self):
        return load_codebook(self.head_dim, self.bits)

    @property
    def base(self):
        return rot.stream_base(self.seed, self.layer, self.kv_head, self.kind)

    @property
    def norm_rot(self):
        return rot.norm_rot_hadamard(self.dim) if self.rotation == rot.HADAMARD else F32(1)

    def rotate(self, x):
        if self.rotation == rot.HADAMARD:
            return rot.rotate_hadamard(x, rot.sign_bits(self.base, self.dim))
        return rot.rotate_dense(x, rot.dense_rotation(self.base, self.dim))

    def unrotate(self, y):
        if self.rotation == rot.HADAMARD:
            return rot.unrotate_hadamard(y, rot.sign_bits(self.base, self.dim))
        return rot.unrotate_dense(y, rot.dense_rotation(self.base, self.dim))

    def levels(self, codes):
        return code_levels(codes, self)


@dataclasses.dataclass
class Encoded:
    codes: np.ndarray      # uint8 [n, D]; 7, 8 bits: the level's two's complement byte
    scales: np.ndarray     # uint16 [n], bfloat16 bits
    nonfinite: np.ndarray  # bool [n], the vector would set the sequence's flag


# ---- bfloat16

def bf16_bits(x):
    """Round to nearest even; x finite float32."""
    u = np.asarray(x, dtype=F32).view(np.uint32)
    return ((u + np.uint32(0x7FFF) + ((u >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(
        np.uint16)


def bf16_to_float(bits):
    return (np.asarray(bits, dtype=np.uint16).astype(np.uint32) << np.uint32(16)).view(F32)


# ---- section 2, steps 1 to 4

def sanitise(x):
    """Step 1: (clean values, which were replaced)."""
    nan = np.isnan(x)
    with np.errstate(invalid="ignore"):
        large = np.abs(x) > VALUE_LIMIT
    clean = np.where(nan, F32(0), np.where(large, np.copysign(VALUE_LIMIT, x), x)).astype(F32)
    return clean, nan | large


def prepare(x, config):
    """Steps 1 to 4: (x' [n, D], e [n] or 0, is_zero [n], nonfinite [n])."""
    assert x.dtype == F32 and x.shape[-1] == config.head_dim
    x, replaced = sanitise(x)
    if config.centre is not None:
        with np.errstate(over="ignore"):
            x, again = sanitise(x - np.array(config.centre, dtype=F32))
        replaced = replaced | again
    padded = np.zeros((len(x), config.dim), dtype=F32)
    padded[:, :config.head_dim] = x
    a = np.max(np.abs(padded), axis=1)  # exact: no arithmetic
    is_zero = a < ZERO_LIMIT
    exponent = ((a.view(np.uint32) >> np.uint32(23)).astype(np.int32)) - 127
    exponent = np.where(is_zero, 0, exponent)
    with np.errstate(under="ignore"):
        padded = padded * power_of_two(-exponent)[:, None]
    padded[is_zero] = 0
    return padded, exponent, is_zero, replaced.any(axis=1)


def power_of_two(exponent):
    return np.ldexp(F32(1), exponent).astype(F32)


def rotated_side(x, config):
    """y of section 2 (before norm_rot and 2^e), with the exponent, the zero rows and the flag."""
    padded, exponent, is_zero, nonfinite = prepare(x, config)
    return config.rotate(padded), exponent, is_zero, nonfinite


# ---- section 3

def search_steps(bits, search, rule):
    if not search or rule == PAPER:
        return (F32(1),)
    if bits <= 4:
        return tuple(F32(w) for w in (1.12, 1.06, 1, 0.94, 0.88))
    return tuple(F32(w) for w in (1.12, 1.09, 1.06, 1.03, 1, 0.97, 0.94, 0.91, 0.88))


def quantise(magnitudes, u, levels):
    """j(i), dot and qq of section 3.1 for |y| [n, D] and u [n]."""
    j = np.zeros(magnitudes.shape, dtype=np.uint8)
    for t in range(1, len(levels)):
        threshold = (levels[t - 1] + levels[t]) / F32(2)  # exact
        j += magnitudes >= (threshold * u)[:, None]
    return (j, *level_sums(magnitudes, levels[j]))


def level_sums(magnitudes, levels):
    """dot and qq for levels [n, D] that are multiples of 1/2."""
    dot = rot.tree_sum(magnitudes * levels)
    doubled = (2 * levels).astype(np.int64)
    qq = (doubled * doubled).sum(axis=1).astype(F32) * F32(0.25)  # an integer sum: any order
    return dot, qq


def encode(x, config):
    """x float32 [n, head_dim] -> Encoded."""
    y, exponent, is_zero, nonfinite = rotated_side(x, config)
    y[is_zero] = 1  # keeps the arithmetic below clean; the result is overwritten
    magnitudes = np.abs(y)
    n2 = rot.tree_sum(y * y)
    rule = config.rule
    if config.bits >= 7:
        largest, limit = np.max(magnitudes, axis=1), F32(2 ** (config.bits - 1) - 1)
        inverse = limit / largest
        level = np.clip(np.rint(y * inverse[:, None]), -limit, limit)
        codes = level.astype(np.int8).view(np.uint8)
        dot, qq = level_sums(magnitudes, np.abs(level))
        paper_scale = largest / limit
    else:
        book = config.book
        rms = np.sqrt(n2 / F32(config.dim))
        best = None
        for w in search_steps(config.bits, config.search, rule):
            j, dot, qq = quantise(magnitudes, (rms * book.unit) * w, book.grid)
            gain = (dot * dot) / qq
            if best is None:
                best = [gain, j, dot, qq]
                continue
            better = gain > best[0]
            best = [
                np.where(better.reshape((-1, ) + (1, ) * (new.ndim - 1)), new, old)
                for new, old in zip((gain, j, dot, qq), best)
            ]
        _, j, dot, qq = best
        codes = j | ((y < 0).astype(np.uint8) << (config.bits - 1))
        paper_scale = rms * book.unit
    scales = stored_scales(config, codes, Fit(dot, qq, n2, paper_scale), exponent)
    codes[is_zero] = 0
    scales[is_zero] = 0
    return Encoded(codes, scales, nonfinite)


@dataclasses.dataclass
class Fit:
    """What section 3.3 makes a scale of, float32 [n]."""
    dot: np.ndarray
    qq: np.ndarray
    n2: np.ndarray
    paper: np.ndarray


def stored_scales(config, codes, fit, exponent):
    """Section 3.3: bfloat16 bits [n]."""
    qq = fit.qq
    if config.head_dim < config.dim and config.rule in (LS, NORM):
        qq = kept_square(codes, config)
    scale = {
        LS: lambda: fit.dot / qq, UNBIASED: lambda: fit.n2 / fit.dot, NORM: lambda: np.sqrt(fit.n2 / qq),
        PAPER: lambda: fit.paper
    }[config.rule]()
    assert scale.dtype == F32
    return bf16_bits((scale * config.norm_rot) * power_of_two(exponent))


def kept_square(codes, config):
    """What takes the place of qq in section 3.3 where D > d."""
    levels, unit = config.levels(codes), F32(1)
    if config.rotation == rot.HADAMARD:
        z = rot.back_transform(levels)
        unit = F32(2.0 ** -rot.split_dim(config.dim)[1])
    else:
        z = config.unrotate(levels)
    z[:, config.head_dim:] = 0
    return rot.tree_sum(z * z) * unit


def code_levels(codes, config):
    """L(c), float32 [n, D]."""
    if config.bits >= 7:
        return codes.view(np.int8).astype(F32)
    half = 1 << (config.bits - 1)
    grid = config.book.grid
    return np.where(codes >= half, F32(-1), F32(1)) * grid[codes & (half - 1)]


def decode(codes, scales, config):
    """Sections 3.3 and 3.4 -> float32 [n, head_dim]."""
    y = bf16_to_float(scales)[:, None] * config.levels(codes)
    x = config.unrotate(y)[:, :config.head_dim]
    return x if config.centre is None else x + np.array(config.centre, dtype=F32)
