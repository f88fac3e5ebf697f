# SPDX-License-Identifier: Apache-2.0
"""Keys in bands of the oracle: each band is a vector of its own, in its own place, of its own width."""
import numpy as np
import pytest

from . import bands

# Mean squared error of vectors of 32, rule unbiased, with search.
WANTED = {1: .557, 2: .1195, 3: .0278, 4: .00645, 5: .00154, 6: .000386}


@pytest.mark.parametrize("widths", ((6, 5, 4, 3), (3, 2, 2, 1)))
def test_each_band_has_the_error_of_its_width(widths):
    random = np.random.default_rng(5)
    x = random.standard_normal((1500, 128)).astype(np.float32)
    order = tuple(int(i) for i in random.permutation(128))
    side = bands.Bands(128, widths, order, seed=3, layer=1, kv_head=2)
    codes, scales, _ = bands.encode(x, side)
    y = bands.decode(codes, scales, side)
    for index, bits in enumerate(widths):
        own = np.array(order[32 * index:32 * (index + 1)])
        error = ((x - y)[:, own] ** 2).sum() / (x[:, own] ** 2).sum()
        assert error == pytest.approx(WANTED[bits], rel=.06)


@pytest.mark.parametrize("trellis", (False, True))
def test_words_hold_the_codes(trellis):
    side = bands.Bands(104, (5, 3, 2, 1), trellis=trellis)
    x = np.random.default_rng(6).standard_normal((32, 104)).astype(np.float32)
    codes, _, _ = bands.encode(x, side)
    words = bands.words(codes, side)
    assert words.shape == (32 * 11,)
    for own, back in zip(codes, bands.unpack(words, side.bits, trellis)):
        assert np.array_equal(own, back)


def test_a_band_follows_from_its_own_coordinates_alone():
    side = bands.Bands(96, (4, 3, 2), tuple(range(95, -1, -1)), centre=tuple(float(i) for i in range(96)))
    x = np.random.default_rng(7).standard_normal((4, 96)).astype(np.float32)
    codes, scales, _ = bands.encode(x, side)
    x[:, :32] = 1e6  # the last band's
    again, scales_again, _ = bands.encode(x, side)
    for i in (0, 1):
        assert np.array_equal(codes[i], again[i]) and np.array_equal(scales[i], scales_again[i])
    assert not np.array_equal(scales[2], scales_again[2])


def test_values_that_are_not_finite_are_noticed_in_any_band():
    side = bands.Bands(64, (2, 1))
    x = np.ones((3, 64), dtype=np.float32)
    x[1, 63], x[2, 0] = np.nan, -np.inf
    assert bands.encode(x, side)[2].tolist() == [False, True, True]
