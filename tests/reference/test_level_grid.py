# SPDX-License-Identifier: Apache-2.0
"""Where the 2^-16 of tests/gpu/conformance_cases.cuh for values at levels of the caller's comes from.

CUDA attends with levels on a grid of 16 bits (cuda/code/row_tables.h), whose largest is 32,512. A level is
off by up to half a step, the same for every token that has it, so that a mean over many tokens is off by the
mean over the codes, in parts of what coordinates spread by.
"""
from math import erf

import numpy as np

from .rotation import mix

GATE = 2.0 ** -16
BITS = (2, 3, 4, 5, 6, 8)  # of value sides in modes.cuh


def mode_levels(bits):
    """ModeLevels of modes.cuh, in parts of the spread of a coordinate; and how often each is taken."""
    places = [0.1 + 0.8 * (mix(77 + i) >> 40) / 2 ** 24 for i in range(1 << bits)]
    levels = 6 / (1 << bits) * (np.arange(1 << bits) - 0.5 * (1 << bits) + np.array(places))
    below = [0.5 + 0.5 * erf(b / 2 ** 0.5) for b in (levels[1:] + levels[:-1]) / 2]
    return levels, np.diff([0, *below, 1])


def test_gate_is_the_mean_error_of_the_grid():
    means = []
    for bits in BITS:
        levels, share = mode_levels(bits)
        step = np.abs(levels).max() / 32512
        means.append(abs((share * (np.rint(levels / step) * step - levels)).sum()))
    print(*(f"{bits} bits: {mean:.2e}" for bits, mean in zip(BITS, means)))
    assert GATE / 2 < max(means) <= GATE
