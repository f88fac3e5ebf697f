# SPDX-License-Identifier: Apache-2.0
"""Levels of the trellis codes (src/format/FORMAT.md, section 3.10): 2^b magnitudes for b bits a coordinate.

There is no closed form, so they are trained: random unit vectors of 128 coordinates, coded as the format
says, then each level moves to the mean of what it stands for, a few times over. The vectors come from the
format's own integer stream, and the encoder's decisions are on integers, so that the result is the same
everywhere.
One table serves all dimensions: at 32, 64 and 256 it is within 1 % of one of their own.
"""
import numpy as np

BITS = (2, 3, 4)
DIM, VECTORS, ROUNDS = 128, 1200, 9
STEPS = (1.18, 1.08, 1.0, 0.92, 0.84)
TOPS = 64  # grids tried: the largest level between half of int8 and all of it
CHAIN = 32

# State s = u of the last three coordinates, the newest lowest. Into state s come s >> 1 and (s >> 1) + 4.
STATE = np.arange(8)
FROM = np.stack([STATE >> 1, STATE >> 1 | 4])
COSET = STATE >> 2 | ((STATE ^ STATE >> 1) & 1) << 1
COSET = np.stack([COSET, COSET ^ 2])


def unit_vectors():
    """float64 [VECTORS, DIM] of length sqrt(DIM): Box-Muller on SplitMix64."""
    z = np.arange(1, VECTORS * DIM + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    u = ((z ^ z >> np.uint64(31)) >> np.uint64(11)).astype(np.float64) * 2.0 ** -53
    radius, angle = np.sqrt(-2 * np.log(1 - u[0::2])), 2 * np.pi * u[1::2]
    y = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)]).reshape(VECTORS, DIM)
    return y * np.sqrt(DIM / np.sum(y * y, axis=1, keepdims=True))


def run(cost, order, metric):
    """Viterbi over the positions of `order`: (metrics [n, 8], histories [n, 8], newest bit lowest)."""
    history = np.zeros(metric.shape, np.uint32)
    for r in order:
        k = cost[:, r]
        first, second = metric[:, FROM[0]] + k[:, COSET[0]], metric[:, FROM[1]] + k[:, COSET[1]]
        later = second < first
        metric = np.where(later, second, first)
        history = np.where(later, history[:, FROM[1]], history[:, FROM[0]]) << np.uint32(1)
        history |= (STATE & 1).astype(np.uint32)
    return metric, history


def encode(y, levels, unit):
    """y [n, DIM] of mean square 1 -> index of the level of each coordinate."""
    eighths = np.rint(8 * levels).astype(np.int32)
    best = None
    for step in STEPS:
        q = np.rint(y * (8 / (unit * step))).astype(np.int32).reshape(-1, CHAIN)
        distance = np.abs(q[..., None] - eighths).reshape(len(q), CHAIN, -1, 4)
        cost = distance.min(axis=2) ** 2
        metric, history = run(cost, [(r + 16) % CHAIN for r in range(CHAIN)], np.zeros((len(q), 8), np.int32))
        last = metric.argmin(axis=1)
        state = history[np.arange(len(q)), last] >> np.uint32(16) & np.uint32(7)
        error = metric.min(axis=1).reshape(len(y), -1).sum(axis=1) * (step * step)
        found = error, q.reshape(len(y), -1, CHAIN), state.reshape(len(y), -1)
        if best is None:
            best = found
        else:
            better = error < best[0]
            best = [np.where(better.reshape((-1, ) + (1, ) * (new.ndim - 1)), new, old)
                    for new, old in zip(found, best)]
    q, state = best[1].reshape(-1, CHAIN), best[2].reshape(-1)
    row = np.arange(len(q))
    distance = np.abs(q[..., None] - eighths).reshape(len(q), CHAIN, -1, 4)
    start = np.full((len(q), 8), 1 << 30, np.int32)
    start[row, state] = 0
    _, history = run(distance.min(axis=2) ** 2, range(CHAIN), start)
    u = history[row, state][:, None] >> np.arange(CHAIN - 1, -1, -1, dtype=np.uint32) & np.uint32(1)
    coset = np.roll(u, 2, axis=1) | (u ^ np.roll(u, 1, axis=1) ^ np.roll(u, 3, axis=1)) << np.uint32(1)
    own = np.take_along_axis(distance, coset[..., None, None].astype(np.int64), axis=3)
    nearest = own[..., 0].argmin(axis=2)
    return (nearest * 4 + coset).reshape(y.shape)


def mirrored(half):
    return np.concatenate([-half[::-1], half])


def statistics(y, levels, unit):
    """levels: in units of `unit`. (mean square error, new half of the levels, how often each is taken)."""
    index = encode(y, levels, unit)
    value = levels[index]
    scale = np.sum(y * value, axis=1, keepdims=True) / np.sum(value * value, axis=1, keepdims=True)
    error = np.mean(np.sum((y - scale * value) ** 2, axis=1)) / DIM
    half = len(levels) // 2
    magnitude = np.where(index < half, half - 1 - index, index - half).ravel()
    signed = np.where(index < half, -1, 1)
    weight = np.bincount(magnitude, np.broadcast_to(scale * scale, y.shape).ravel(), half)
    mean = np.bincount(magnitude, (y * signed * scale).ravel(), half) / weight
    return error, mean * np.mean(scale), weight


def on_grid(half, weight, offset):
    """Integers, or half-integers, and the unit whose multiples are nearest to the levels."""
    best = None
    for top in (127 + offset) * np.linspace(0.5, 1, TOPS):
        unit = half[-1] / top
        grid = np.maximum(np.rint(half / unit - offset), 0 if offset else 1)
        error = np.sum(weight * (half - unit * (grid + offset)) ** 2)
        if grid[-1] <= 127 and np.all(np.diff(grid) > 0) and (best is None or error < best[0]):
            best = error, grid.astype(int), np.float32(unit)
    return best[1:]


def build_tables(start):
    """start[b] = the first half of the levels of width b."""
    y = unit_vectors()
    tables = []
    for bits in BITS:
        half = np.array(start[bits])
        for _ in range(ROUNDS):
            unit = half[-1] / 127
            _, half, weight = statistics(y, mirrored(half) / unit, unit)
        offset = 0.5 if bits >= 3 else 0.0
        magnitude, unit = on_grid(half, weight, offset)
        error, _, _ = statistics(y, mirrored(magnitude + offset), float(unit))
        tables.append({"bits": bits, "unit": unit, "mse": error, "magnitude": magnitude.tolist(),
                       "magnitude_offset": offset, "levels": half})
    return tables
