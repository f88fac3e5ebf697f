# SPDX-License-Identifier: Apache-2.0
"""The oracle of vectors on their own: its codes are a cache's where both exist, its distortion is the
paper's, its sketch is unbiased with the variance that theory gives."""
import numpy as np
import pytest

from . import encode as enc
from . import quantizer as quant
from .test_reference import unit_vectors

# Exact distortion of Lloyd-Max levels of the sphere at d = 128 (quantiser of the paper's Theorem 1, Table 1).
DISTORTION = {1: 0.3609, 2: 0.1160, 3: 0.0340, 4: 0.0093, 5: 0.0025}


def error(x, q):
    back = quant.decode(quant.encode(x, q)[0], q)
    return ((back - x) ** 2).sum(dtype=np.float64) / (x ** 2).sum(dtype=np.float64)


@pytest.mark.parametrize("bits", (2, 3, 4, 5, 6, 8))
def test_codes_are_those_of_a_cache(bits):
    x = unit_vectors(20, 128)
    q = quant.Quantizer(128, bits, seed=5)
    records, _ = quant.encode(x, q)
    cache = enc.encode(x, enc.SideConfig(head_dim=128, bits=bits, seed=5, rule=enc.LS))
    codes = quant.unpack(records[:, :-2], bits, 128)
    assert np.array_equal(codes, cache.codes)
    assert np.array_equal(records[:, -2:].copy().view(np.uint16)[:, 0], cache.scales)


@pytest.mark.parametrize("bits", sorted(DISTORTION))
def test_distortion_of_the_published_quantiser(bits):
    q = quant.Quantizer(128, bits, rule=enc.PAPER)
    assert error(unit_vectors(3000, 128), q) == pytest.approx(DISTORTION[bits], rel=0.02)


@pytest.mark.parametrize("sketch, share", ((quant.ORTHOGONAL, np.pi / 2 - 1), (quant.GAUSSIAN, np.pi / 2)))
def test_sketch_is_unbiased_with_the_variance_of_theory(sketch, share):
    """Error of <y, x^> over many seeds for y near x: its mean vanishes, its variance is share * |r|^2 / D
    across the directions of y (less along r)."""
    d, n, seeds = 64, 40, 60
    x, y = unit_vectors(n, d, 1), unit_vectors(n, d, 2)
    y = ((x + y) / np.linalg.norm(x + y, axis=1, keepdims=True)).astype(np.float32)
    errors = []
    for seed in range(seeds):
        q = quant.Quantizer(d, 3, family=quant.PROD, sketch=sketch, seed=seed)
        back = quant.decode(quant.encode(x, q)[0], q).astype(np.float64)
        errors.append(((back - x) * y).sum(axis=1))
    errors = np.array(errors)
    residual = error(x, quant.Quantizer(d, 2))
    deviation = np.sqrt(share * residual / d)
    assert abs(errors.mean()) < 4 * deviation / np.sqrt(errors.size)
    assert errors.std() == pytest.approx(deviation, rel=0.1)


@pytest.mark.parametrize("dim, padded", ((1, 16), (16, 16), (17, 32), (80, 80), (577, 640), (641, 768),
                                         (3072, 3072), (8192, 8192)))
def test_padding(dim, padded):
    assert quant.padded_dim(dim) == padded
    assert padded <= max(16, 1.2 * dim + 16)


@pytest.mark.parametrize("bits", range(1, 9))
def test_bits_follow_each_other(bits):
    codes = np.random.default_rng(bits).integers(0, 1 << bits, (3, 48), dtype=np.uint8)
    packed = quant.pack(codes, bits)
    whole = [int.from_bytes(row.tobytes(), "little") for row in packed]
    assert all((whole[i] >> (bits * j)) % (1 << bits) == codes[i, j] for i in range(3) for j in range(48))
    assert np.array_equal(quant.unpack(packed, bits, 48), codes)


def test_outliers_have_a_bit_more():
    """Channels of large energy, coded by themselves: the split is worth it there, and costs little where all
    are alike."""
    x = unit_vectors(500, 128)
    split = quant.Quantizer(128, 2, outliers=tuple(range(32)))
    assert split.record_bytes == 32 * 3 // 8 + 96 * 2 // 8 + 4
    loud = x.copy()
    loud[:, :32] *= 6
    assert error(loud, split) < 0.45 * error(loud, quant.Quantizer(128, 2))
    assert error(x, split) < error(x, quant.Quantizer(128, 2))
