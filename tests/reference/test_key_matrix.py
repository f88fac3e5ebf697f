# SPDX-License-Identifier: Apache-2.0
"""Key matrices of the oracle: what they are in exact arithmetic, what is refused, and their hash."""
from fractions import Fraction

import numpy as np
import pytest

from . import key_matrix


def some_matrix(d, seed=1):
    return (np.random.default_rng(seed).standard_normal((d, d)) / np.sqrt(d) + np.eye(d)).astype(np.float32)


def test_products_are_sums_in_order_rounded_once():
    matrix = np.array([[1, 1, 1], [0, 2, -0.0], [2.0**20, 1, -2.0**20]], np.float32)
    x = np.array([2.0**60, 1, -2.0**60], np.float32)
    # The first sum has lost the 1 when the last number comes; a sum of floats from the other end would not.
    assert key_matrix.product(matrix, x).tolist() == [0, 2, 2.0**81]
    small, factor = np.float32(2.0**-24), np.float32(1 + 2.0**-23)
    found = key_matrix.product(np.array([[factor, small]], np.float32).repeat(2, 0),
                               np.array([1, small], np.float32))
    exact = Fraction(float(factor)) + Fraction(float(small))**2
    assert Fraction(float(found[0])) == Fraction(float(np.float32(float(exact))))


@pytest.mark.parametrize("d", (8, 40, 128))
def test_inverses_are_those_of_linear_algebra(d):
    matrix = some_matrix(d)
    found, wanted = key_matrix.inverse(matrix), np.linalg.inv(matrix.astype(np.float64))
    assert np.abs(found - wanted).max() <= 1e-6 * np.abs(wanted).max()
    x = np.random.default_rng(2).standard_normal((5, d)).astype(np.float32)
    back = key_matrix.product(found, key_matrix.turn(matrix, x)[0])
    assert np.abs(back - x).max() <= 1e-4


def test_inverses_of_permutations_are_exact():
    order = np.random.default_rng(3).permutation(32)
    matrix = np.zeros((32, 32), np.float32)
    matrix[np.arange(32), order] = -8
    found = key_matrix.inverse(matrix)
    assert np.array_equal(found, matrix.T / 64)


@pytest.mark.parametrize("wrong", (np.zeros((4, 4)), np.ones((4, 4)), 2.0**-21 * np.eye(4),
                                   np.diag([1, 1, 1, 2.0**-24])))
def test_what_has_no_inverse_is_refused(wrong):
    with pytest.raises(ValueError):
        key_matrix.inverse(wrong.astype(np.float32))


def test_large_numbers_are_cut_and_noticed_before_and_after():
    matrix = np.diag([1, 1024, 1, 1]).astype(np.float32)
    x = np.ones((4, 4), np.float32)
    x[1, 0], x[2, 1], x[3, 3] = np.nan, 2.0**60, -np.inf
    turned, replaced = key_matrix.turn(matrix, x)
    assert replaced.tolist() == [False, True, True, True]
    assert turned[:, 0].tolist() == [1, 0, 1, 1] and turned[2, 1] == 2.0**64 and turned[3, 3] == -2.0**64


def test_hashes_know_every_number_but_the_sign_of_zero():
    matrix = some_matrix(8)
    matrix[2, 3] = 0
    own = key_matrix.side_hash(matrix, 7)
    other = matrix.copy()
    other[2, 3] = -0.0
    assert key_matrix.side_hash(other, 7) == own != key_matrix.side_hash(matrix, 8)
    other[2, 3] = 1
    assert key_matrix.side_hash(other, 7) != own and key_matrix.side_hash(matrix.T.copy(), 7) != own
