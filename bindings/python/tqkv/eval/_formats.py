# SPDX-License-Identifier: Apache-2.0
"""Stored formats of other projects as quantise-dequantise, written anew from their descriptions, and tqkv's
own through the library. Every one maps keys and values [heads][tokens][dim] to what it would read back.

What all of them can do besides (last and first tokens exact) is left to the judge, the same for all. Bits
count everything that is stored for a token: codes, scales, zeros, norms; scales over 128 tokens and more at
their share, one scale over all tokens and matrices fixed by a seed or calibration at nothing.
"""
import math
from functools import lru_cache
from typing import Any, Callable, NamedTuple, Tuple

import torch

from . import _bitshift

GROUP, TILE, HALF = 32, 128, 16


class Format(NamedTuple):
    name: str
    source: str
    bits: Callable[[int], Tuple[float, float]]  # of a key's and a value's number, at a head size
    key: Callable[[torch.Tensor, Any], torch.Tensor]    # x, and Side
    value: Callable[[torch.Tensor, Any], torch.Tensor]


class Side(NamedTuple):
    """What a codec may know beside the numbers: from calibration on other text."""

    layer: int
    queries: torch.Tensor  # [heads][rows][dim] of calibration, those of a key's head together
    keys: torch.Tensor     # [heads][rows][dim] of calibration


# ---- grids


def half(x):
    return x.half().float()


def minmax(x, bits, dim=-1):
    """Least and greatest number to 2^bits even steps; scale and zero in float16."""
    low, high = x.amin(dim, keepdim=True), x.amax(dim, keepdim=True)
    scale, low = half((high - low) / (2**bits - 1)), half(low)
    codes = ((x - low) / scale.clamp(min=1e-8)).round().clamp(0, 2**bits - 1)
    return codes * scale + low


def by_groups(function, size):
    """The function on groups of the last dimension."""
    return lambda x: function(x.unflatten(-1, (-1, size))).flatten(-2)


def e4m3(x, scale):
    return (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale


def fp8(x, dims):
    return e4m3(x, x.abs().amax(dims, keepdim=True).clamp(min=1e-12) / 448)


def e2m1(x):
    levels = x.new_tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    middles = (levels[1:] + levels[:-1]) / 2
    return levels[torch.bucketize(x.abs().contiguous(), middles)] * x.sign()


def nvfp4(x):
    """Blocks of 16: e2m1 numbers, an e4m3 scale, over one float32 scale of the tensor."""
    whole = x.abs().amax().clamp(min=1e-12) / (448 * 6)
    blocks = x.unflatten(-1, (-1, 16))
    scale = (blocks.abs().amax(-1, keepdim=True) / 6 / whole).clamp(max=448)
    scale = scale.to(torch.float8_e4m3fn).float() * whole
    return (e2m1(blocks / scale.clamp(min=1e-20)) * scale).flatten(-2)


def q8_0(x):
    scale = half(x.abs().amax(-1, keepdim=True) / 127)
    return (x / scale.clamp(min=1e-8)).round().clamp(-127, 127) * scale


def q4_0(x):
    """The number of greatest magnitude becomes -8."""
    most = x.gather(-1, x.abs().argmax(-1, keepdim=True))
    scale = half(most / -8)
    safe = torch.where(scale == 0, torch.ones_like(scale), scale)
    return (torch.floor(x / safe + 8.5).clamp(0, 15) - 8) * scale


# ---- rotations


@lru_cache(maxsize=None)
def hadamard(dim, block=0):
    """Sylvester's, orthonormal, in blocks; 0: the largest power of two that divides dim."""
    block = block or dim & -dim
    h = torch.ones(1, 1)
    while h.shape[0] < block:
        h = torch.cat((torch.cat((h, h), 1), torch.cat((h, -h), 1)))
    return torch.block_diag(*[h / math.sqrt(block)] * (dim // block))


@lru_cache(maxsize=None)
def qr(dim, seed):
    generator = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))
    return (q * r.diagonal().sign()).float()


def rotated(matrix, function):
    """matrix: [dim][dim], or a function of dim."""
    def apply(x):
        m = (matrix(x.shape[-1]) if callable(matrix) else matrix).to(x.device)
        return function(x @ m) @ m.transpose(-1, -2)
    return apply


# ---- codebooks


@lru_cache(maxsize=None)
def lloyd_max(bits):
    """Levels [2^bits] of N(0, 1): every level the mean of its cell."""
    def phi(t):
        return torch.exp(-t * t / 2) / math.sqrt(2 * math.pi)
    n = 2**bits
    levels = math.sqrt(2) * torch.special.erfinv(2 * (torch.arange(n, dtype=torch.float64) + 0.5) / n - 1)
    edge = torch.tensor([math.inf], dtype=torch.float64)
    for _ in range(4000):
        cuts = torch.cat((-edge, (levels[1:] + levels[:-1]) / 2, edge))
        mass = torch.special.ndtr(cuts).diff()
        levels = -phi(cuts).diff() / mass
    return levels.float()


def turboquant(x, bits, rotation):
    """TurboQuant_mse: norm in float16, rotated direction to Lloyd-Max levels of N(0, 1 / dim)."""
    if bits == 0:
        return torch.zeros_like(x)
    norm, dim = half(x.norm(dim=-1, keepdim=True)), x.shape[-1]
    levels = lloyd_max(bits).to(x.device) / math.sqrt(dim)
    turned = x / norm.clamp(min=1e-8) @ rotation.to(x.device)
    nearest = torch.bucketize(turned.contiguous(), (levels[1:] + levels[:-1]) / 2)
    return levels[nearest] @ rotation.T.to(x.device) * norm


def prod(x, bits, seed, alpha):
    """TurboQuant_prod: bits - 1 of TurboQuant_mse, then the signs of a Gaussian sketch of what is left, read
    back as alpha / dim * S^T signs * norm of what is left."""
    dim = x.shape[-1]
    norm = half(x.norm(dim=-1, keepdim=True)).clamp(min=1e-8)
    first = turboquant(x / norm, bits - 1, qr(dim, seed))
    left = x / norm - first
    generator = torch.Generator().manual_seed(seed + 1000)
    sketch = torch.randn(dim, dim, generator=generator).to(x.device)
    signs = torch.where(left @ sketch.T > 0, 1.0, -1.0)
    return (first + alpha / dim * half(left.norm(dim=-1, keepdim=True)) * (signs @ sketch)) * norm


# ---- whole formats


def kivi_keys(bits):
    """By channel, over groups of 32 tokens; what does not fill a group is one of its own."""
    def apply(x):
        parts = [minmax(part, bits, dim=-2) for part in x.split(GROUP, dim=-2)]
        return torch.cat(parts, -2)
    return apply


def kvarn(bits, rounds=16):
    """Tiles of 128 tokens after a Hadamard rotation: rows and columns in turn scaled to unit variance, then
    min/max by row. A row keeps scale and zero, a column of a tile its scale."""
    def excess(x, dim):
        """Logarithm of the root mean square; 0 of what is zero."""
        mean = x.square().mean(dim, keepdim=True)
        return torch.where(mean > 1e-12, mean, torch.ones_like(mean)).log() / 2

    def tile(x):
        rows, columns = x.new_zeros(x.shape[:-1] + (1,)), x.new_zeros(x.shape[:-2] + (1, x.shape[-1]))
        for _ in range(rounds):
            rows = rows + excess(x * torch.exp(-rows - columns), -1)
            columns = columns + excess(x * torch.exp(-rows - columns), -2)
        columns = half(columns.exp()).clamp(min=1e-4)
        return minmax(x / columns, bits) * columns
    return rotated(hadamard, lambda x: torch.cat([tile(part) for part in x.split(TILE, dim=-2)], -2))


def oscar_keys(bits):
    """The basis in which queries (of calibration) are uncorrelated, then Hadamard; min/max by token."""
    def apply(x, side):
        spread = side.queries.transpose(-1, -2) @ side.queries
        basis = torch.linalg.eigh(spread.double())[1].float() @ hadamard(x.shape[-1]).to(x.device)
        return minmax(x @ basis, bits) @ basis.transpose(-1, -2)
    return apply


def block_gtq_bits(energy, mean_bits, most=6):
    """[blocks] whole bits, mean_bits on average: each next bit goes where it takes most distortion."""
    gain = energy.new_tensor([1.0, 0.3634, 0.1175, 0.03454, 0.0095, 0.0025, 0.00066])
    bits = torch.zeros(len(energy), dtype=torch.long)
    for _ in range(int(mean_bits * len(energy))):
        win = energy * (gain[bits] - gain[(bits + 1).clamp(max=most)])
        bits[int(torch.where(bits < most, win, torch.full_like(win, -1.0)).argmax())] += 1
    return bits


def block_gtq_keys(mean_bits):
    """Rotary pairs get bits by their energy in queries and keys; pairs with as many bits are one
    TurboQuant_mse vector."""
    def apply(x, side):
        out, dim = torch.zeros_like(x), x.shape[-1]
        for head in range(x.shape[0]):
            energy = side.queries[head].square().mean(0) * side.keys[head].square().mean(0)
            bits = block_gtq_bits((energy[:dim // 2] + energy[dim // 2:]).cpu(), mean_bits)
            for width in bits.unique().tolist():
                pairs = (bits == width).nonzero()[:, 0]
                at = torch.cat((pairs, pairs + dim // 2)).to(x.device)
                out[head][:, at] = turboquant(x[head][:, at], width, qr(len(at), 42 + 7 * side.layer))
        return out
    return apply


def _plain(function):
    return lambda x, side: function(x)


def _both(name, source, bits, function):
    return Format(name, source, lambda d: (bits(d), bits(d)), _plain(function), _plain(function))


def _mse(bits):
    return lambda x, side: turboquant(x, bits, qr(x.shape[-1], 42 + 7 * side.layer))


def _prod(bits, alpha):
    return lambda x, side: prod(x, bits, 42 + 7 * side.layer, alpha)


def _bit_shift(bits):
    def apply(x, side):
        turn = _bitshift.signs(x.shape[-1], 42 + 7 * side.layer)[:, None] * hadamard(x.shape[-1])
        return rotated(turn, lambda y: _bitshift.code(y, bits))(x)
    return apply


def _groups(bits, size=GROUP):
    return _plain(by_groups(lambda x: minmax(x, bits), size))


UNBIASED = math.sqrt(math.pi / 2)
LEAST_ERROR = math.sqrt(2 / math.pi) / (1 + 2 / math.pi)


def rivals():
    """All that are compared, but tqkv's own."""
    found = [
        _both("FP8 e4m3, a tensor", "vLLM fp8", lambda d: 8, lambda x: fp8(x, (0, 1, 2))),
        _both("FP8 e4m3, a head", "vLLM fp8", lambda d: 8, lambda x: fp8(x, (1, 2))),
        _both("NVFP4, blocks of 16", "NVFP4", lambda d: 4.5, nvfp4),
        _both("q8_0", "llama.cpp", lambda d: 8.5, by_groups(q8_0, 32)),
        _both("q4_0", "llama.cpp", lambda d: 4.5, by_groups(q4_0, 32)),
        _both("q8_0 + Hadamard", "llama.cpp", lambda d: 8.5, rotated(hadamard, by_groups(q8_0, 32))),
        _both("q4_0 + Hadamard", "llama.cpp", lambda d: 4.5, rotated(hadamard, by_groups(q4_0, 32))),
        Format("SAW-INT4", "keys by blocks of 16, then a token", lambda d: (4 + 32 / d,) * 2,
               _plain(rotated(lambda d: hadamard(d, 16), lambda x: minmax(x, 4))),
               _plain(lambda x: minmax(x, 4)))]
    for bits in (2, 4):
        found.append(Format(f"KIVI {bits}", "per-channel keys, per-token values",
                            lambda d, b=bits: (b + 1, b + 1), _plain(kivi_keys(bits)), _groups(bits)))
    for key, value in ((4, 4), (4, 2), (3, 3), (2, 2)):
        found.append(Format(f"KVarN k{key}v{value}", "variance-normalised tiles",
                            lambda d, k=key, v=value: tuple(b + 16 / TILE + 32 / d for b in (k, v)),
                            _plain(kvarn(key)), _plain(kvarn(value))))
    for bits in (2, 3, 4):
        found.append(Format(f"OSCAR {bits}", "query covariance, Hadamard",
                            lambda d, b=bits: (b + 32 / d, b + 32 / d), oscar_keys(bits),
                            _plain(rotated(hadamard, lambda x, b=bits: minmax(x, b)))))
    for key, value in ((4, 4), (3, 3), (3, 2), (2, 2)):  # norms: one of each width there, at most 4 here
        found.append(Format(f"Block-GTQ k{key}v{value}", "bits by rotary pair",
                            lambda d, k=key, v=value: (k + 4 * HALF / d, v + HALF / d), block_gtq_keys(key),
                            _mse(value)))
    for bits in (2, 3):
        found.append(Format(f"buun TCQ {bits}", "bit-shift trellis of 512 levels, corrected norm",
                            lambda d, b=bits: (_bitshift.stored_bits(d, b), ) * 2, _bit_shift(bits),
                            _bit_shift(bits)))
    found += [
        Format("S1 k6v6", "Taleef7, a byte a code", lambda d: (8 + HALF / d, 8 + 1), _mse(6), _groups(6)),
        Format("S2 k3v3", "turboquant-plus, sketch of least error",
               lambda d: (3 + 2 * HALF / d, 3 + 2), _prod(3, LEAST_ERROR), _groups(3, 16)),
        Format("S3 4", "turboquant_impl", lambda d: (4 + HALF / d,) * 2, _mse(4), _mse(4)),
        Format("S3 2", "turboquant_impl", lambda d: (2 + HALF / d,) * 2, _mse(2), _mse(2)),
        Format("S4 k3v2", "0xSero, unbiased sketch", lambda d: (3 + 2 * HALF / d, 2 + 1),
               _prod(3, UNBIASED), _groups(2))]
    return found
