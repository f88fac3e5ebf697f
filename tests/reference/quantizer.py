# SPDX-License-Identifier: Apache-2.0
"""Vectors on their own: records, FORMAT.md section 8. An independent reading of the text; float32 as in
encode.py. Inner products are float64 products with what a record decodes to."""
import dataclasses
import functools
import struct

import numpy as np
import xxhash

from . import encode as enc
from . import grouped
from . import rotation as rot

SCALAR, PROD, GROUPED, LEVELS = 1, 2, 3, 4
ORTHOGONAL, GAUSSIAN = 1, 2
UNBIASED, LEAST_ERROR = 1, 2
SKETCH_KINDS = (2, 3)  # of the rounds of an orthogonal sketch; a Gaussian one has the first
F32 = np.float32


def padded_dim(dim):
    """Section 8.1."""
    return min(m << k for m in (1, 3, 5, 7, 9) for k in range(4, 14) if m << k >= dim)


@dataclasses.dataclass(frozen=True)
class Part(enc.SideConfig):
    """One part: what section 2 and 3 need; kv_head is its number."""
    own_book: enc.Codebook = None

    @property
    def dim(self):
        return padded_dim(self.head_dim)

    @property
    def book(self):
        if self.own_book is not None:
            return self.own_book
        known = (self.head_dim, self.bits) in enc._tables()
        return enc.load_codebook(self.head_dim if known else 0, self.bits)


@dataclasses.dataclass(frozen=True)
class Quantizer:
    dim: int
    bits: int
    family: int = SCALAR
    rule: int = 0              # 0: LS; by levels PAPER
    search: bool = True
    rotation: int = rot.HADAMARD
    seed: int = 0
    group: int = 32
    sketch: int = ORTHOGONAL
    sketch_rule: int = UNBIASED
    factor: float = 0.0        # 0: by sketch_rule
    outliers: tuple = ()
    levels: tuple = ()         # 2^bits, and boundaries 2^bits - 1
    boundaries: tuple = ()
    unit: float = 1.0
    book: enc.Codebook = None

    @property
    def has_levels(self):
        return bool(self.levels)

    @functools.cached_property
    def parts(self):
        """[(channels, Part)]"""
        rule = self.rule or (enc.PAPER if self.has_levels else enc.LS)
        common = dict(rule=rule, search=self.search, rotation=self.rotation, seed=self.seed)
        if self.outliers:
            others = np.array([i for i in range(self.dim) if i not in self.outliers])
            return [(np.array(self.outliers), Part(len(self.outliers), self.bits + 1, kv_head=0, **common)),
                    (others, Part(len(others), self.bits, kv_head=1, **common))]
        bits = self.bits - 1 if self.family == PROD else self.bits
        return [(np.arange(self.dim), Part(self.dim, bits, own_book=self.book, **common))]

    @property
    def num_groups(self):
        return -(-self.dim // self.group)

    @property
    def record_bytes(self):
        if self.family == GROUPED:
            return -(-self.dim * self.bits // 8) + 4 * self.num_groups
        side = 4 if self.has_levels else 2
        total = sum(part.dim * part.bits // 8 + side for _, part in self.parts)
        return total + (self.parts[0][1].dim // 8 + 2 if self.family == PROD else 0)

    @property
    def fingerprint(self):
        """Section 8.6."""
        is_grouped, is_prod = self.family == GROUPED, self.family == PROD
        factor = np.array(self.sketch_factor if is_prod else 0, dtype=F32).view(np.uint32)
        first_bits = self.bits if is_grouped else self.parts[0][1].bits
        numbers = [self.family, self.dim, first_bits, 0 if is_grouped else self.rotation,
                   self.group if is_grouped else 0, self.sketch if is_prod else 0, int(factor),
                   len(self.outliers), 0 if is_grouped else self.seed, *self.outliers]
        if self.has_levels:
            numbers += [int(x) for x in (np.array(self.levels, dtype=F32) + F32(0)).view(np.uint32)]
        elif not is_grouped:
            for _, part in self.parts:
                if part.bits <= 6:
                    numbers += [int(magnitude) for magnitude in part.book.grid]
        return xxhash.xxh64_intdigest(struct.pack(f"<{len(numbers)}Q", *numbers))

    # ---- the sketch, section 8.3

    @property
    def sketch_bases(self):
        return [rot.stream_base(self.seed, 0, 0, kind) for kind in SKETCH_KINDS]

    @property
    def sketch_factor(self):
        if self.factor:
            return F32(self.factor)
        dim = self.parts[0][1].dim
        if self.sketch_rule == LEAST_ERROR:
            over = 1 if self.sketch == ORTHOGONAL else 1 + 2 / np.pi
            return F32(np.sqrt(2 / np.pi) / over)
        if self.sketch == GAUSSIAN:
            return F32(np.sqrt(np.pi / 2))
        product = 1.0
        for i in range(1, dim // 2):
            product = product * ((2 * i + 1) / (2 * i))
        return F32((np.pi / 2) / np.sqrt(dim) * product)

    def apply_sketch(self, r):
        dim = self.parts[0][1].dim
        if self.sketch == GAUSSIAN:
            return rot.rotate_dense(r, gaussian(self.sketch_bases[0], dim))
        for base in self.sketch_bases:
            r = rot.rotate_hadamard(r, rot.sign_bits(base, dim)) * rot.norm_rot_hadamard(dim)
        return r

    def apply_sketch_inverse(self, s):
        dim = self.parts[0][1].dim
        if self.sketch == GAUSSIAN:
            return rot.unrotate_dense(s, gaussian(self.sketch_bases[0], dim))
        for base in reversed(self.sketch_bases):
            s = rot.unrotate_hadamard(s, rot.sign_bits(base, dim))
        return s


@functools.lru_cache(maxsize=4)
def gaussian(base, dim):
    return rot.normal_stream(base, dim * dim).astype(F32).reshape(dim, dim)


# ---- bits of section 8.2

def pack(codes, bits):
    """uint8 [n, count] -> uint8 [n, ceil(count bits / 8)]"""
    planes = (codes[..., None] >> np.arange(bits, dtype=np.uint8)) & 1
    return np.packbits(planes.reshape(len(codes), -1), axis=1, bitorder="little")


def unpack(packed, bits, count):
    planes = np.unpackbits(packed, axis=1, bitorder="little")[:, :count * bits].reshape(-1, count, bits)
    return (planes << np.arange(bits, dtype=np.uint8)).sum(axis=2).astype(np.uint8)


def _bytes(array):
    return np.ascontiguousarray(array).reshape(len(array), -1).view(np.uint8)


# ---- encode

def _by_levels(x, quantizer, part):
    """Section 8.5 -> (codes, float32 scales, nonfinite)."""
    y, exponent, is_zero, nonfinite = enc.rotated_side(x, part)
    y[is_zero] = 1
    n2 = rot.tree_sum(y * y)
    u = np.sqrt(n2) * F32(quantizer.unit)
    level, boundaries = F32(quantizer.levels), F32(quantizer.boundaries)
    codes = np.zeros(y.shape, dtype=np.uint8)
    for boundary in boundaries:
        codes += y >= (boundary * u)[:, None]
    chosen = level[codes]
    dot, qq = rot.tree_sum(y * chosen), rot.tree_sum(chosen * chosen)
    if part.head_dim < part.dim and part.rule in (enc.LS, enc.NORM):
        qq = _kept_square(chosen, part)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = {enc.LS: lambda: dot / qq, enc.UNBIASED: lambda: n2 / dot,
                 enc.NORM: lambda: np.sqrt(n2 / qq), enc.PAPER: lambda: u}[part.rule]()
    if part.rule != enc.PAPER:
        scale = np.where((dot > 0) & (qq > 0), scale, F32(0))
    scale = (scale * part.norm_rot) * enc.power_of_two(exponent)
    codes[is_zero] = 0
    return codes, np.where(is_zero, F32(0), scale).astype(F32), nonfinite


def _kept_square(levels, part):
    z, unit = rot.back_transform(levels), F32(2.0 ** -rot.split_dim(part.dim)[1])
    if part.rotation == rot.DENSE:
        z, unit = part.unrotate(levels), F32(1)
    z[:, part.head_dim:] = 0
    return rot.tree_sum(z * z) * unit


def _level_values(codes, quantizer, part):
    if quantizer.has_levels:
        return F32(quantizer.levels)[codes]
    if part.bits == 7:
        codes = ((codes ^ 0x40) - np.uint8(0x40)).astype(np.uint8)  # the sign, from bit 6 on
    return enc.code_levels(codes, part)


def encode(x, quantizer):
    """x float32 [n, dim] -> (records uint8 [n, record_bytes], nonfinite [n])"""
    if quantizer.family == GROUPED:
        return _encode_grouped(x, quantizer)
    fields, scales, nonfinite = [], [], np.zeros(len(x), dtype=bool)
    for channels, part in quantizer.parts:
        own = np.ascontiguousarray(x[:, channels])
        if quantizer.has_levels:
            codes, scale, replaced = _by_levels(own, quantizer, part)
        else:
            encoded = enc.encode(own, part)
            codes, scale, replaced = encoded.codes, encoded.scales, encoded.nonfinite
            if part.bits == 7:
                codes = codes & 0x7F
        nonfinite |= replaced
        fields.append(pack(codes, part.bits))
        scales.append(_bytes(scale))
    if quantizer.family == PROD:
        part = quantizer.parts[0][1]
        y, exponent, is_zero, _ = enc.rotated_side(x, part)
        stored = scale if quantizer.has_levels else enc.bf16_to_float(scale)
        t = stored * enc.power_of_two(-exponent)
        r = y * part.norm_rot - t[:, None] * _level_values(codes, quantizer, part)
        signs = (quantizer.apply_sketch(r) < 0).astype(np.uint8)
        norms = enc.bf16_bits(np.sqrt(rot.tree_sum(r * r)) * enc.power_of_two(exponent))
        signs[is_zero], norms[is_zero] = 0, 0
        fields.append(pack(signs, 1))
        scales.append(_bytes(norms))
    return np.concatenate(fields + scales, axis=1), nonfinite


def _encode_grouped(x, quantizer):
    encoded = grouped.encode_grouped(x, quantizer.bits, quantizer.group)
    scales, zeros = (np.ascontiguousarray(encoded.pairs[..., i]) for i in (0, 1))
    return np.concatenate([pack(encoded.codes, quantizer.bits), _bytes(scales), _bytes(zeros)],
                          axis=1), encoded.nonfinite


# ---- decode

def decode(records, quantizer):
    """records uint8 [n, record_bytes] -> float32 [n, dim]"""
    at = 0

    def take(count, kind=None):
        nonlocal at
        at += count
        field = np.ascontiguousarray(records[:, at - count:at])
        return field if kind is None else field.view(kind)

    if quantizer.family == GROUPED:
        codes = unpack(take(-(-quantizer.dim * quantizer.bits // 8)), quantizer.bits, quantizer.dim)
        pairs = np.stack([take(2 * quantizer.num_groups, np.uint16) for _ in range(2)], axis=2)
        return grouped.decode_grouped(codes, pairs, quantizer.group)
    codes = [unpack(take(part.dim * part.bits // 8), part.bits, part.dim) for _, part in quantizer.parts]
    if quantizer.family == PROD:
        dim = quantizer.parts[0][1].dim
        signs = unpack(take(dim // 8), 1, dim)
    x = np.zeros((len(records), quantizer.dim), dtype=F32)
    for (channels, part), own in zip(quantizer.parts, codes):
        scale = take(4, F32)[:, 0] if quantizer.has_levels else enc.bf16_to_float(take(2, np.uint16)[:, 0])
        y = scale[:, None] * _level_values(own, quantizer, part)
        if quantizer.family == PROD:
            norm = enc.bf16_to_float(take(2, np.uint16)[:, 0])
            divisor = F32(dim) if quantizer.sketch == GAUSSIAN else np.sqrt(F32(dim))
            g = (quantizer.sketch_factor / divisor) * norm
            y = y + g[:, None] * quantizer.apply_sketch_inverse(1 - 2 * signs.astype(F32))
        x[:, channels] = part.unrotate(y)[:, :part.head_dim]
    return x
