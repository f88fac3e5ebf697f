# SPDX-License-Identifier: Apache-2.0
"""Matrices for keys: FORMAT.md section 2.5, and their hash of section 6.2. A matrix is float32 [d, d]."""
import struct

import numpy as np
import xxhash

from .encode import sanitise

LARGEST, FURTHEST = 2.0 ** 20, 2.0 ** -8


def product(matrix, x):
    """M x of vectors float32 [..., d]: sums in double from coordinate 0 on."""
    total = np.zeros(x.shape, np.float64)
    for j in range(x.shape[-1]):
        total += matrix[:, j].astype(np.float64) * x[..., j, None].astype(np.float64)
    return total.astype(np.float32)


def turn(matrix, x):
    """Keys [n, d] as step 2 of section 2 codes them: (turned keys, which had numbers replaced [n])."""
    clean, first = sanitise(x)
    turned, again = sanitise(product(matrix, clean))
    return turned, first.any(axis=-1) | again.any(axis=-1)


def inverse(matrix):
    """N. ValueError: there is none."""
    a, b = matrix.astype(np.float64), np.eye(len(matrix))
    for c in range(len(a)):
        best = c + int(np.argmax(np.abs(a[c:, c])))  # the first of equals
        if a[best, c] == 0:
            raise ValueError(f"column {c} has no pivot")
        for side in (a, b):
            side[[c, best]] = side[[best, c]]
        pivot = a[c, c]
        for side in (a, b):
            side[c] = side[c] / pivot
        factors = a[:, c].copy()
        factors[c] = 0
        rows = np.flatnonzero(factors)
        for side in (a, b):
            side[rows] = side[rows] - factors[rows, None] * side[c]
    found = b.astype(np.float32)
    far = np.abs(matrix.astype(np.float64) @ found.astype(np.float64) - np.eye(len(a)))
    if not (np.abs(b) <= LARGEST).all() or not (far <= FURTHEST).all():
        raise ValueError("the inverse is too large, or none in float32")
    return found


def own_hash(matrix):
    return max(1, xxhash.xxh64_intdigest((matrix + np.float32(0)).astype("<f4").tobytes()))


def side_hash(matrix, without):
    """What stands in a record of keys with this matrix; without: what would stand there else."""
    return xxhash.xxh64_intdigest(struct.pack("<Q", own_hash(matrix)), seed=without)
