# SPDX-License-Identifier: Apache-2.0
"""The paper's algorithms (arXiv 2504.19874) in NumPy, as its text has them: what the library is compared
with, and what stands in where the library has no such code (1-bit codes, Algorithm 2, group quantisation).

Nothing here is shared with the library: the codebooks are solved again, from the exact density of a
coordinate of a random unit vector, and rotations are QR factors of Gaussian matrices. float64 unless said
otherwise.
"""

import functools
import math

import numpy as np

GRID_POINTS = 1 << 17


@functools.lru_cache(maxsize=None)
def _moments(dim):
    """z, and the integrals of the density and of z times the density from 0 to z, for a coordinate of a
    random unit vector times sqrt(dim); dim 0: N(0,1)."""
    end = min(10.0, math.sqrt(dim)) if dim else 10.0
    z = np.linspace(0, end, GRID_POINTS)
    if dim:
        density = np.maximum(1 - z * z / dim, 0) ** ((dim - 3) / 2)
    else:
        density = np.exp(-z * z / 2)
    step = z[1]
    running = [
        np.concatenate([[0], np.cumsum((f[1:] + f[:-1]) * (step / 2))]) for f in (density, density * z)
    ]
    return z, running[0] / (2 * running[0][-1]), running[1] / (2 * running[0][-1])


@functools.lru_cache(maxsize=None)
def lloyd_max(dim, bits):
    """(2^bits levels of the mean-square optimum for a coordinate of unit variance, its mean squared
    error)."""
    z, mass, moment = _moments(dim)
    count = 2 ** (bits - 1)
    # Start: equal masses of a Gaussian of three times the variance, which is the asymptotic optimum.
    wide = np.array([math.erf(v / math.sqrt(6)) for v in z[::64]])
    edges = np.concatenate([[0], np.interp(np.arange(1, count) / count * wide[-1], wide, z[::64]), [z[-1]]])
    for _ in range(100000):
        cell_mass = np.diff(np.interp(edges, z, mass))
        cell_moment = np.diff(np.interp(edges, z, moment))
        levels = cell_moment / cell_mass
        moved = (levels[1:] + levels[:-1]) / 2 - edges[1:-1]
        if count == 1 or np.abs(moved).max() < 1e-11:
            break
        edges[1:-1] += moved
    return np.concatenate([-levels[::-1], levels]), 1 - 2 * float(np.sum(cell_mass * levels ** 2))


def random_rotation(dim, rng):
    """Orthogonal, uniformly distributed: QR of a Gaussian matrix with the signs of R's diagonal taken out."""
    q, r = np.linalg.qr(rng.standard_normal((dim, dim)))
    return q * np.sign(np.diag(r))


def unit_vectors(count, dim, rng):
    x = rng.standard_normal((count, dim))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


class Mse:
    """Algorithm 1, TurboQuant_mse: the nearest level of each rotated coordinate; the norm beside it."""
    def __init__(self, dim, bits, rng, rotation=None):
        self.rotation = random_rotation(dim, rng) if rotation is None else rotation
        self.levels = lloyd_max(dim, bits)[0] / math.sqrt(dim)
        self.thresholds = (self.levels[1:] + self.levels[:-1]) / 2

    def encode(self, x):
        """x [n, dim] -> (indices [n, dim], norms [n, 1])"""
        norms = np.linalg.norm(x, axis=1, keepdims=True)
        turned = x @ self.rotation.T / np.where(norms > 0, norms, 1)
        return np.searchsorted(self.thresholds, turned).astype(np.uint8), norms

    def decode(self, code):
        indices, norms = code
        return self.levels[indices] @ self.rotation * norms

    def round_trip(self, x):
        return self.decode(self.encode(x))


class Prod:
    """Algorithm 2, TurboQuant_prod: Algorithm 1 at bits - 1, and of its residual the norm and the signs of a
    random sketch S. bits = 1 is the sketch alone.

    orthogonal  S is sqrt(dim) times a rotation instead of Gaussian, as the sketch's own authors build it
    factor      of the sketch term; None: the one that makes inner products unbiased
    """
    def __init__(self, dim, bits, rng, orthogonal=False, factor=None):
        self.base = Mse(dim, bits - 1, rng) if bits > 1 else None
        self.sketch = (random_rotation(dim, rng) * math.sqrt(dim) if orthogonal else rng.standard_normal(
            (dim, dim)))
        # Orthogonal rows: E|s.r| is that of a coordinate of a unit vector, which is sqrt(2/pi) for large dim
        # only; the level of the 1-bit codebook is that mean.
        unbiased = 1 / float(lloyd_max(dim, 1)[0][-1]) if orthogonal else math.sqrt(math.pi / 2)
        self.factor = unbiased if factor is None else factor

    def residual(self, x):
        return x - self.base.round_trip(x) if self.base else x

    def sketched(self, residual):
        """What one unit of `factor` adds: |r| / dim * S^T sign(S r)."""
        signs = np.where(residual @ self.sketch.T > 0, 1.0, -1.0)
        return signs @ self.sketch * (np.linalg.norm(residual, axis=1, keepdims=True) / residual.shape[1])

    def round_trip(self, x):
        residual = self.residual(x)
        return x - residual + self.factor * self.sketched(residual)


def best_sketch_factor(prod, x):
    """The factor of least squared error for these vectors, in closed form: the regression of the residuals on
    their sketches."""
    residual = prod.residual(x)
    sketched = prod.sketched(residual)
    return float(np.sum(residual * sketched) / np.sum(sketched * sketched))


def group_minmax(v, bits, group):
    """Asymmetric min/max codes of `group` consecutive coordinates, scale and zero in float16, as S1, S2 and
    S4 store values; decoded. v [n, dim]."""
    parts = v.reshape(len(v), -1, group)
    low, high = parts.min(axis=2, keepdims=True), parts.max(axis=2, keepdims=True)
    scale = ((high - low) / (2 ** bits - 1)).astype(np.float16).astype(np.float64)
    zero = low.astype(np.float16).astype(np.float64)
    codes = np.clip(np.rint((parts - zero) / np.where(scale > 0, scale, 1)), 0, 2 ** bits - 1)
    return (codes * scale + zero).reshape(v.shape)


def group_bytes(dim, bits, group):
    return dim * bits // 8 + dim // group * 4


def hadamard(x):
    """Orthonormal Walsh-Hadamard transform of the last axis, whose length is a power of two."""
    dim, half = x.shape[-1], 1
    while half < dim:
        pairs = x.reshape(x.shape[:-1] + (dim // (2 * half), 2, half))
        low, high = pairs[..., 0, :], pairs[..., 1, :]
        x = np.stack([low + high, low - high], axis=-2).reshape(x.shape)
        half *= 2
    return x * x.dtype.type(dim ** -0.5)


def sign_stream(seed, layer, kv_head, kind, dim):
    """The signs before the library's Hadamard transform, +1 or -1 [dim]: FORMAT.md 2.1. kind 0 = key, 1 =
    value."""
    mask, gamma = (1 << 64) - 1, 0x9E3779B97F4A7C15

    def mix(z):
        z &= mask
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
        return z ^ (z >> 31)

    base = seed
    for part in (layer, kv_head, kind):
        base = mix(base + gamma * (part + 1))
    words = [mix(base + gamma * (w + 1)) for w in range((dim + 63) // 64)]
    return np.array([1 - 2 * (words[i // 64] >> (i % 64) & 1) for i in range(dim)])


def rotate(x, seed, layer, kv_head, kind):
    """The library's orthonormal Hadamard rotation of x [n, head_dim] -> [n, D]: zeros up to D, a multiple of
    32; signs; the transform of each block of 2^k of D = m 2^k; an orthonormal DCT across the m blocks."""
    dim = -(-x.shape[1] // 32) * 32
    padded = np.zeros((len(x), dim))
    padded[:, :x.shape[1]] = x
    block = dim & -dim
    m = dim // block
    blocks = hadamard((padded * sign_stream(seed, layer, kv_head, kind, dim)).reshape(len(x), m, block))
    rows, columns = np.arange(m)[:, None], np.arange(m)[None, :]
    dct = np.cos(np.pi * (2 * columns + 1) * rows / (2 * m)) * np.where(rows == 0, 1, 2 ** 0.5) / m ** 0.5
    return np.einsum("rc,ncp->nrp", dct, blocks).reshape(len(x), dim)
