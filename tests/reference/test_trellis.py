# SPDX-License-Identifier: Apache-2.0
"""Trellis codes of the oracle: what section 3.10 says of paths, and the distortion that it promises."""
import numpy as np
import pytest

from . import encode as enc
from . import trellis


def test_chains_hold_every_coordinate_once():
    for dim in (32, 64, 96, 128, 160, 192, 256, 576):
        for kind in (enc.KEY, enc.VALUE):
            at = trellis.chains(dim, kind)
            assert at.shape == (dim // 32, 32) and np.array_equal(np.sort(at, axis=None), np.arange(dim))


@pytest.mark.parametrize("bits", (2, 3, 4))
def test_a_closed_path_is_the_best_of_its_tail(bits):
    """No path that differs in a few bits, or is random, costs less."""
    random = np.random.default_rng(bits)
    unit, levels = trellis.load_book(bits)
    q = np.rint(random.standard_normal((40, 32)) * 8 / float(unit)).astype(np.int64)
    costs = trellis.distances(q, levels).min(axis=-2)
    _, tail = trellis.open_pass(costs)
    u = trellis.closed_pass(costs, tail)

    def price(bits_of):
        return np.take_along_axis(costs, trellis.cosets(bits_of)[..., None], axis=2).sum(axis=(1, 2))

    assert np.array_equal(u[:, 31] + 2 * u[:, 30] + 4 * u[:, 29], tail)
    best = price(u)
    for flips in range(200):
        other = u.copy() if flips < 150 else random.integers(0, 2, u.shape)
        other[:, 29:] = u[:, 29:]  # the same tail
        for place in random.integers(0, 29, 1 + flips % 5):
            other[:, place] ^= 1
        assert (price(other) >= best).all()


@pytest.mark.parametrize("bits, wanted", ((2, .0842), (3, .0218), (4, .0055)))
def test_distortion(bits, wanted):
    x = np.random.default_rng(1).standard_normal((400, 128)).astype(np.float32)
    for kind in (enc.KEY, enc.VALUE):
        side = trellis.TrellisSide(128, bits, kind=kind, rule=enc.LS, seed=3)
        encoded = trellis.encode(x, side)
        y = enc.decode(encoded.codes, encoded.scales, side)
        error = (((x - y) ** 2).sum(axis=1) / (x ** 2).sum(axis=1)).mean()
        assert error == pytest.approx(wanted, rel=.03)  # 400 vectors: the mean's own deviation is .5 %
