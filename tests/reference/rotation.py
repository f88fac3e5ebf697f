# SPDX-License-Identifier: Apache-2.0
"""Sign stream, Hadamard and dense rotations, summation tree: FORMAT.md sections 2 (step 5) and 2.1 to 2.4."""
import functools
from decimal import Decimal, localcontext

import numpy as np

HADAMARD, DENSE = 1, 2
GOLDEN_GAMMA = 0x9E3779B97F4A7C15
MASK64 = (1 << 64) - 1


def split_dim(dim):
    """dim = m * 2^k, m odd."""
    k = (dim & -dim).bit_length() - 1
    return dim >> k, k


def tree_sum(values):
    """Section 2.4 over the last axis, in the type of `values`."""
    m, k = split_dim(values.shape[-1])
    half = 1 << k
    total = values[..., :half]
    for r in range(1, m):
        total = total + values[..., r * half:(r + 1) * half]
    while half > 1:
        half //= 2
        total = total[..., :half] + total[..., half:]
    return total[..., 0]


# ---- section 2.1

def mix(z):
    """SplitMix64's output function on a Python int or an array of uint64."""
    if isinstance(z, np.ndarray):
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK64
    return z ^ (z >> 31)


def stream_base(seed, layer, kv_head, kind):
    z = seed & MASK64
    for part in (layer, kv_head, kind):
        z = mix((z + GOLDEN_GAMMA * (part + 1)) & MASK64)
    return z


def stream_words(base, first, count):
    w = np.arange(first + 1, first + count + 1, dtype=np.uint64)
    return mix(np.uint64(base) + np.uint64(GOLDEN_GAMMA) * w)


def sign_bits(base, dim):
    """uint8 [dim], 1 = minus."""
    words = stream_words(base, 0, (dim + 63) // 64)
    i = np.arange(dim)
    return ((words[i // 64] >> (i % 64).astype(np.uint64)) & np.uint64(1)).astype(np.uint8)


# ---- section 2.2

def _decimal_cos(x):
    total, term, n = Decimal(1), Decimal(1), 0
    while abs(term) > Decimal(10) ** -60:
        n += 2
        term = -term * x * x / (n * (n - 1))
        total += term
    return total


@functools.lru_cache(maxsize=None)
def dct_factor(m):
    """O of section 2.2, float32 [m, m]; from 60 decimal digits, so that rounding happens once and exact zeros
    are zeros."""
    pi = Decimal(
        "3.14159265358979323846264338327950288419716939937510582097494459230781640628620899862803482534211706798"
    )
    factor = np.zeros((m, m), dtype=np.float32)
    with localcontext() as context:
        context.prec = 70
        for r in range(m):
            for c in range(m):
                exact = (Decimal(1 if r == 0 else 2) / m).sqrt() * _decimal_cos(pi * ((2 * c + 1) * r) /
                                                                                (2 * m))
                factor[r, c] = 0 if abs(exact) < Decimal(10) ** -50 else _round_once(exact)
    return factor


def _round_once(exact):
    """Nearest float32 of a Decimal. Via double, which is safe unless the double lies exactly half way between
    two floats."""
    near = float(exact)
    single = np.float32(near)
    other = np.nextafter(single, np.float32(np.inf if near > float(single) else -np.inf))
    assert float(single) == near or abs(near - float(single)) != abs(near - float(other))
    return single


# ---- section 2 step 5 and section 3.4, hadamard

def _butterflies(x):
    """Walsh-Hadamard transform of the last axis, without normalisation."""
    n = x.shape[-1]
    h = 1
    while h < n:
        pairs = x.reshape(x.shape[:-1] + (n // (2 * h), 2, h))
        low, high = pairs[..., 0, :], pairs[..., 1, :]
        x = np.stack([low + high, low - high], axis=-2).reshape(x.shape)
        h *= 2
    return x


def _across(blocks, factor):
    """out[r] = ((factor[r][0] * block 0 + factor[r][1] * block 1) + ...) for blocks [..., m, n]."""
    m = blocks.shape[-2]
    if m == 1:
        return blocks
    rows = []
    for r in range(m):
        total = factor[r, 0] * blocks[..., 0, :]
        for c in range(1, m):
            total = total + factor[r, c] * blocks[..., c, :]
        rows.append(total)
    return np.stack(rows, axis=-2)


def norm_rot_hadamard(dim):
    return np.float32(2.0 ** (-split_dim(dim)[1] / 2))


def _flip(x, signs):
    return np.where(signs.astype(bool), -x, x)


def rotate_hadamard(x, signs):
    """float32 [..., D] -> y of step 5, without norm_rot."""
    assert x.dtype == np.float32
    m, k = split_dim(x.shape[-1])
    blocks = _flip(x, signs).reshape(x.shape[:-1] + (m, 1 << k))
    return _across(_butterflies(blocks), dct_factor(m)).reshape(x.shape)


def back_transform(y):
    """Section 3.4 without norm_rot and signs."""
    assert y.dtype == np.float32
    m, k = split_dim(y.shape[-1])
    blocks = _across(y.reshape(y.shape[:-1] + (m, 1 << k)), dct_factor(m).T)
    return _butterflies(blocks).reshape(y.shape)


def unrotate_hadamard(y, signs):
    """Section 3.4: orthonormal inverse, norm_rot included."""
    return _flip(back_transform(y) * norm_rot_hadamard(y.shape[-1]), signs)


# ---- section 2.3

def _ln(q):
    t, p = np.frexp(q)
    small = t < 0.70710678118654752
    t = np.where(small, 2 * t, t)
    p = np.where(small, p - 1, p).astype(np.float64)
    s = (t - 1) / (t + 1)
    s2 = s * s
    r = np.full_like(s, 1.0 / 25)
    for c in range(23, 0, -2):
        r = r * s2 + 1.0 / c
    return p * 0.693147180559945309 + (2 * s) * r


def normal_stream(base, count):
    """The first `count` normal numbers of the stream, float64."""
    numbers, first = np.zeros(0), 0
    while len(numbers) < count:
        words = stream_words(base, first, 2 * count + 64)
        first += len(words)
        u = (words >> np.uint64(11)).astype(np.float64) * 2.0 ** -53 * 2 - 1
        u1, u2 = u[0::2], u[1::2]
        q = u1 * u1 + u2 * u2
        keep = (q < 1) & (q != 0)
        u1, u2, q = u1[keep], u2[keep], q[keep]
        f = np.sqrt(-2 * _ln(q) / q)
        numbers = np.concatenate([numbers, np.stack([u1 * f, u2 * f], axis=-1).reshape(-1)])
    return numbers[:count]


@functools.lru_cache(maxsize=16)
def dense_rotation(base, dim):
    """R, float32 [dim, dim]. Slow for large dim: the order of modified Gram-Schmidt leaves nothing to
    vectorise over rows."""
    a = normal_stream(base, dim * dim).reshape(dim, dim).copy()
    for i in range(dim):
        for _ in range(2):
            for j in range(i):
                c = tree_sum(a[i] * a[j])
                a[i] = a[i] - c * a[j]
        a[i] = a[i] / np.sqrt(tree_sum(a[i] * a[i]))
    return a.astype(np.float32)


def rotate_dense(x, matrix):
    assert x.dtype == np.float32
    return tree_sum(matrix * x[..., None, :])


def unrotate_dense(y, matrix):
    assert y.dtype == np.float32
    return tree_sum(np.ascontiguousarray(matrix.T) * y[..., None, :])
