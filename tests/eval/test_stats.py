# SPDX-License-Identifier: Apache-2.0
"""Statistics against closed forms, and intervals against how often they hold the truth."""
import math
import random

import pytest

from tqkv.eval import _stats as stats


def test_mcnemar_is_the_binomial_tail():
    assert stats.mcnemar(0, 0) == stats.mcnemar(3, 3) == 1.0
    assert stats.mcnemar(5, 0) == stats.mcnemar(0, 5) == 2 / 32
    assert stats.mcnemar(29, 0) == pytest.approx(2.0**-28)
    assert stats.mcnemar(7, 2) == pytest.approx(2 * (1 + 9 + 36) / 512)


def test_wilson_has_its_defining_ends():
    """Ends are where the normal test of the share just gives 1.96."""
    for right, n in ((3, 10), (10, 10), (0, 7), (81, 263)):
        for end in stats.wilson(right, n):
            if 1e-9 < end < 1 - 1e-9:
                assert abs(right / n - end) / math.sqrt(end * (1 - end) / n) == pytest.approx(1.959964)


@pytest.mark.parametrize("shares", ((0.6, 0.2, 0.1, 0.1), (0.9, 0.06, 0.02, 0.02)))
def test_paired_intervals_hold_the_truth(shares):
    """95 % intended; of 400 runs, three standard deviations of the count are 13."""
    generator, held = random.Random(5), 0
    for _ in range(400):
        kinds = generator.choices(((1, 1), (1, 0), (0, 1), (0, 0)), shares, k=80)
        result = stats.compare(*zip(*kinds))
        held += result.interval[0] <= 100 * (shares[2] - shares[1]) <= result.interval[1]
        assert result.interval[0] <= result.delta <= result.interval[1]
    assert held >= 380 - 13


def test_the_bootstrap_holds_the_truth_and_follows_its_seed():
    generator, held = random.Random(6), 0
    for run in range(200):
        differences = [generator.gauss(0.3, 1.0) for _ in range(60)]
        low, high = stats.bootstrap(differences, run, 400)
        held += low <= 0.3 <= high
    assert held >= 190 - 10
    first, again, other = (stats.bootstrap(differences, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert stats.bootstrap([0.0] * 9) == (0.0, 0.0)


def test_no_difference_has_a_width_and_counts_are_right():
    same = stats.compare([1, 1, 0, 1], [1, 1, 0, 1])
    assert same.delta == 0 and same.p == 1 and same.interval[0] < 0 < same.interval[1]
    other = stats.compare([1, 1, 0, 1], [0, 1, 1, 0])
    assert (other.worse, other.better, other.baseline, other.other) == (2, 1, 75.0, 50.0)
    for arguments in (([], []), ([1], [1, 0])):
        with pytest.raises(ValueError, match="must be as many"):
            stats.compare(*arguments)
