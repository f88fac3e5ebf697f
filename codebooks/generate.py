#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tables.h and tables.json: the levels of the scalar codes (src/format/FORMAT.md, section 3.1), and
those of the trellis codes (trellis.py).

What is quantised is one coordinate of a uniformly random unit vector in d dimensions, times sqrt(d) so that
its variance is 1. Its density is proportional to (1 - z^2/d)^((d-3)/2) on |z| <= sqrt(d), and N(0,1) for d
-> infinity (head_dim 0 here).

Method. Masses and first moments of the cells by Gauss-Legendre quadrature inside each cell: no differences of
large numbers, so even the centroids of the rare outer cells are good to about 1e-13, and nothing is sampled.
The real levels are the Lloyd-Max fixed point, found by Newton's method on the thresholds (the density is
log-concave, hence the fixed point is unique). The grid levels are integers or half-integers times one float
`unit`: for a given unit the best choice of integers is found exactly (shortest path), for given integers the
best unit; many units are tried.

Usage: generate.py           writes both files
       generate.py --check   regenerates and compares; exit status 1 on a difference
"""
import json
import math
import struct
import sys
from pathlib import Path

import numpy as np

import trellis

HEAD_DIMS = (0, 32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512, 576, 1536)  # 0 = N(0,1)
BITS = (1, 2, 3, 4, 5, 6)
MAGNITUDE_MAX = 127      # int8, and the half-integer's integer part
MAGNITUDE_SLOTS = 32     # 2^(6-1)
FACTOR_STEPS = 64        # global factors tried per table
LEADERS = 3              # grids for which the search is repeated at their own best unit
TAIL_END = 10.0          # the mass beyond is below 1e-22
TAIL_PANELS = 6          # of the outermost cell


def gauss(count):
    """Gauss-Legendre nodes and weights on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return (nodes + 1) / 2, weights / 2


NODES, WEIGHTS = gauss(14)
PANEL_NODES, PANEL_WEIGHTS = gauss(4)  # on a quarter of a grid step
HERE = Path(__file__).resolve().parent


class Marginal:
    """The unit-variance marginal: its density, masses and first moments of the cells of the positive half."""

    def __init__(self, head_dim):
        self.head_dim = head_dim
        self.norm = 1 / math.sqrt(2 * math.pi)
        self.end = TAIL_END
        if head_dim:
            assert head_dim % 2 == 0 and head_dim >= 4
            half = math.pi / 2  # integral of cos^(d-2) over [0, pi/2], where z = sqrt(d) sin(theta)
            for n in range(2, head_dim - 1, 2):
                half *= (n - 1) / n
            self.norm = 1 / (2 * half * math.sqrt(head_dim))
            self.end = min(TAIL_END, math.sqrt(head_dim))

    def density(self, z):
        if not self.head_dim:
            return self.norm * np.exp(-0.5 * z * z)
        sine = np.minimum(z / math.sqrt(self.head_dim), 1.0)
        return self.norm * ((1 - sine) * (1 + sine)) ** ((self.head_dim - 3) / 2)

    def cells(self, thresholds):
        """thresholds [..., M-1], without 0 and the end -> masses [..., M], first moments [..., M]."""
        lead = thresholds.shape[:-1]
        last = thresholds[..., -1:] if thresholds.shape[-1] else np.zeros(lead + (1,))
        panels = np.arange(1, TAIL_PANELS + 1) / TAIL_PANELS
        edges = np.concatenate([np.zeros(lead + (1, )), thresholds, last + (self.end - last) * panels],
                               axis=-1)
        width = np.diff(edges, axis=-1)[..., None]
        z = edges[..., :-1, None] + width * NODES
        weight = self.density(z) * (width * WEIGHTS)
        mass, moment = weight.sum(axis=-1), (weight * z).sum(axis=-1)
        inner = thresholds.shape[-1]
        return tuple(np.concatenate([v[..., :inner], v[..., inner:].sum(axis=-1, keepdims=True)], axis=-1)
                     for v in (mass, moment))


def lloyd_max(marginal, bits):
    """Positive levels of the symmetric optimum and its mean squared error."""
    count = 2 ** (bits - 1)
    # Start: the asymptotically optimal compander of a Gaussian, a Gaussian of three times the variance.
    grid = np.linspace(0, min(6.0, marginal.end), 4001)
    compressed = np.array([math.erf(v / math.sqrt(6)) for v in grid])
    thresholds = np.interp(np.arange(1, count) / count, compressed, grid)
    for iteration in range(200):
        mass, moment = marginal.cells(thresholds)
        levels = moment / mass
        residual = (levels[:-1] + levels[1:]) / 2 - thresholds
        if count == 1 or np.max(np.abs(residual)) < 1e-14:
            break
        if iteration < 20:  # plain Lloyd steps, to come into the reach of Newton's method
            thresholds = thresholds + residual
            continue
        density = marginal.density(thresholds)
        below = density * (thresholds - levels[:-1]) / mass[:-1] / 2  # d level_(j-1) / d t_j, halved
        above = density * (levels[1:] - thresholds) / mass[1:] / 2    # d level_j / d t_j, halved
        jacobian = np.diag(below + above - 1)
        # level_(j-1) depends on t_(j-1) through `above`, level_j on t_(j+1) through `below`
        jacobian += np.diag(above[:-1], -1) + np.diag(below[1:], 1)
        thresholds = thresholds - np.linalg.solve(jacobian, residual)
    assert np.all(np.abs(residual) < 1e-12) and np.all(np.diff(levels) > 0)
    return levels, 1 - 2 * float(np.sum(mass * levels * levels))


def grid_mse(marginal, grid, unit):
    """Mean squared error of the levels unit * grid [..., M] with midpoint thresholds, and their best unit."""
    mass, moment = marginal.cells((grid[..., :-1] + grid[..., 1:]) / 2 * unit[..., None])
    dot = 2 * np.sum(moment * grid, axis=-1)
    energy = 2 * np.sum(mass * grid * grid, axis=-1)
    return 1 - 2 * unit * dot + unit * unit * energy, dot / energy


def best_unit(marginal, grid, unit):
    """Least error and its unit for each row of grid [n, M]: the unit that is the best one for its own cells.

    Secant steps, because plain alternation creeps: with many levels the error hardly depends on the common
    factor, and one step covers less than a hundredth of the way (slope near 0).
    """
    before, residual_before = unit, grid_mse(marginal, grid, unit)[1] - unit
    unit = unit * (1 + 1e-3)
    for _ in range(30):
        residual = grid_mse(marginal, grid, unit)[1] - unit
        slope = (residual - residual_before) / np.where(unit == before, 1.0, unit - before)
        # rounding noise only: take the plain step
        slope = np.where((slope > -1e-4) | (slope < -2), -1.0, slope)
        before, residual_before = unit, residual
        unit = unit - np.where(np.abs(residual) < 4e-15 * unit, 0.0, residual / slope)
        if np.max(np.abs(unit - before) / unit) < 1e-11:
            break
    return grid_mse(marginal, grid, unit)[0], unit


def best_grid(marginal, bits, unit):
    """The M grid values of least error for a unit, among all choices: shortest path over the magnitudes.

    The error of a level set is a sum over neighbours (the interval between two levels is split half way),
    plus two end pieces.
    """
    values = grid_values(bits)
    count = len(values)
    # Cumulative moments 0, 1, 2 at all multiples of 1/4 grid step: levels and midpoints are among them.
    edges = np.arange(4 * int(values[-1] + 1) + 1) * (unit / 4)
    width = np.diff(edges)[:, None]
    z = edges[:-1, None] + width * PANEL_NODES
    weight = np.where(z < marginal.end, marginal.density(np.minimum(z, marginal.end)),
                      0) * (width * PANEL_WEIGHTS)
    below = [np.concatenate([[0.0], np.cumsum((weight * z ** p).sum(axis=1))]) for p in range(3)]
    total = [0.5, float(marginal.cells(np.zeros(0))[1][0]), 0.5]

    at = np.rint(4 * values).astype(int)
    middle = (at[:, None] + at[None, :]) // 2
    levels = unit * values
    m0, m1, m2 = (v[at] for v in below)
    c0, c1, c2 = (v[middle] for v in below)
    low, high = levels[:, None], levels[None, :]
    between = (c2 - m2[:, None]) - 2 * low * (c1 - m1[:, None]) + low * low * (c0 - m0[:, None])
    between += (m2[None, :] - c2) - 2 * high * (m1[None, :] - c1) + high * high * (m0[None, :] - c0)
    between[np.tril_indices(count)] = np.inf

    cost = m2 - 2 * levels * m1 + levels * levels * m0
    origins = []
    for _ in range(2 ** (bits - 1) - 1):
        step = cost[:, None] + between
        origins.append(step.argmin(axis=0))
        cost = step[origins[-1], np.arange(count)]
    cost = cost + (total[2] - m2) - 2 * levels * (total[1] - m1) + levels * levels * (total[0] - m0)
    path = [int(cost.argmin())]
    for origin in reversed(origins):
        path.append(int(origin[path[-1]]))
    return values[path[::-1]]


def grid_values(bits):
    """FORMAT.md 3.1: integers 1 .. 127, or from 4 bits on half-integers 1/2 .. 127 + 1/2."""
    return np.arange(0.5, MAGNITUDE_MAX + 1) if bits >= 4 else np.arange(1.0, MAGNITUDE_MAX + 1)


def fit_grid(marginal, bits, levels):
    """Magnitudes and the float32 unit of least error, and that error; among equals (to 1e-12) the largest.

    Factors that leave more than half of the range unused are not tried: twice the integers would do the same.
    """
    tops = grid_values(bits)[-1] * np.linspace(0.5, 1.0, FACTOR_STEPS)
    pending = {(tuple(best_grid(marginal, bits, levels[-1] / top)), levels[-1] / top) for top in tops}
    found = {}  # grid -> (error, unit)
    while pending:
        pending = sorted(dict(sorted(pending)).items())  # one unit for each grid
        errors, units = best_unit(marginal, np.array([p[0] for p in pending]),
                                  np.array([p[1] for p in pending]))
        found.update((p[0], (e, u)) for p, e, u in zip(pending, errors, units))
        leaders = sorted(found, key=lambda grid: (found[grid][0], grid))[:LEADERS]
        again = {(tuple(best_grid(marginal, bits, found[grid][1])), found[grid][1]) for grid in leaders}
        pending = {(grid, unit) for grid, unit in again if grid not in found}
    least = min(error for error, _ in found.values())
    grid = max((g for g in found if found[g][0] < least * (1 + 1e-12)), key=lambda g: g[::-1])
    unit = np.float32(found[grid][1])
    grid = np.array(grid)
    error = float(grid_mse(marginal, grid[None, :], np.array([float(unit)]))[0][0])
    return np.floor(grid).astype(int).tolist(), unit, error


def build_tables():
    tables = []
    for head_dim in HEAD_DIMS:
        marginal = Marginal(head_dim)
        for bits in BITS:
            levels, mse_exact = lloyd_max(marginal, bits)
            magnitude, unit, mse_grid = fit_grid(marginal, bits, levels)
            tables.append({
                "head_dim": head_dim, "bits": bits, "unit": unit, "mse_exact": mse_exact,
                "mse_grid": mse_grid, "magnitude": magnitude, "levels": levels
            })
    return tables


def fnv1a64(data):
    value = 0xCBF29CE484222325
    for byte in data:
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return value


def table_hash(tables):
    data = b""
    for t in tables:
        slots = bytes(t["magnitude"]) + bytes(MAGNITUDE_SLOTS - len(t["magnitude"]))
        data += struct.pack("<iif", t["head_dim"], t["bits"], float(t["unit"])) + slots
    return fnv1a64(data)


def hex_float(value):
    """C99 hexadecimal literal of a float, shortest form, without suffix."""
    mantissa, exponent = float(value).hex().split("p")
    return mantissa.rstrip("0").rstrip(".") + "p" + exponent


HEADER = """\
// SPDX-License-Identifier: Apache-2.0
// GENERATED by codebooks/generate.py, do not edit.
//
// Lloyd-Max levels of one coordinate of a random unit vector in head_dim dimensions, times sqrt(head_dim)
// (unit variance), put on an int8 grid; head_dim 0 is N(0,1). bits <= 3: level j = unit * magnitude[j];
// bits >= 4: level j = unit * (magnitude[j] + 1/2); the negative levels mirror them. Only the first
// 2^(bits-1) magnitudes count, the others are 0. `mse` is the expected squared error of a unit-variance
// coordinate with these levels and thresholds half way between them. Sorted by head_dim, then bits.
//
// kCodebookHash is FNV-1a-64 over, for each table in order and little-endian: head_dim (4 bytes), bits (4),
// the bits of unit (4), magnitude (32). `mse` is left out: no stored byte depends on it.
#pragma once

#include <stdint.h>

namespace tq {
namespace format {

struct CodebookTable {
    int32_t head_dim;
    int32_t bits;
    float unit;
    float mse;
    uint8_t magnitude[32];
};

"""

TRELLIS = """\

// Levels of the trellis codes (FORMAT.md section 3.10), for all dimensions: 2^bits magnitudes. bits 2: level
// j = unit * magnitude[j], else unit * (magnitude[j] + 1/2). `mse` is what random vectors of 128 coordinates
// came to as the levels were trained.
struct TrellisTable {
    int32_t bits;
    float unit;
    float mse;
    uint8_t magnitude[16];
};

constexpr TrellisTable kTrellisTables[] = {
"""


def render_header(tables, trellis_tables):
    lines = [HEADER, f"constexpr int kNumCodebookTables = {len(tables)};\n"]
    lines.append(f"constexpr uint64_t kCodebookHash = 0x{table_hash(tables):016x}ull;\n\n")
    lines.append("constexpr CodebookTable kCodebookTables[] = {\n")
    for t in tables:
        unit, mse = hex_float(t["unit"]), hex_float(np.float32(t["mse_grid"]))
        lead = f"    {{{t['head_dim']}, {t['bits']}, {unit}f, {mse}f, {{"
        text = [str(v) for v in t["magnitude"]]
        body = ", ".join(text)
        if len(lead) + len(body) + 4 > 110:
            body = "\n        " + ", ".join(text[:16]) + ("," if len(text) > 16 else "")
            if len(text) > 16:
                body += "\n        " + ", ".join(text[16:])
        lines.append(lead + body + "}},\n")
    lines.append("};\n" + TRELLIS)
    for t in trellis_tables:
        lead = f"    {{{t['bits']}, {hex_float(t['unit'])}f, {hex_float(np.float32(t['mse']))}f, {{"
        lines.append(lead + ", ".join(str(v) for v in t["magnitude"]) + "}},\n")
    lines.append("};\n\n}  // namespace format\n}  // namespace tq\n")
    return "".join(lines)


def render_json(tables, trellis_tables):
    """Nine digits: more than anyone needs, and not the last ones, which depend on a machine's libm."""
    rows = []
    for t in tables:
        row = {
            "head_dim": t["head_dim"], "bits": t["bits"], "unit": hex_float(t["unit"]),
            "unit_decimal": float(f"{float(t['unit']):.9g}"), "mse_exact": float(f"{t['mse_exact']:.9g}"),
            "mse_grid": float(f"{t['mse_grid']:.9g}"), "magnitude_offset": 0.5 if t["bits"] >= 4 else 0.0,
            "magnitude": t["magnitude"], "levels": [float(f"{v:.9g}") for v in t["levels"]]
        }
        rows.append("  " + json.dumps(row))
    head = {"generated": "by codebooks/generate.py, do not edit", "hash": f"0x{table_hash(tables):016x}"}
    coded = []
    for t in trellis_tables:
        row = {
            "bits": t["bits"], "unit": hex_float(t["unit"]),
            "unit_decimal": float(f"{float(t['unit']):.9g}"), "mse": float(f"{t['mse']:.9g}"),
            "magnitude_offset": t["magnitude_offset"], "magnitude": t["magnitude"]
        }
        coded.append("  " + json.dumps(row))
    return ("{" + json.dumps(head)[1:-1] + ",\n \"tables\": [\n" + ",\n".join(rows) +
            "\n ],\n \"trellis\": [\n" + ",\n".join(coded) + "\n ]}\n")


def main(arguments):
    if arguments not in ([], ["--check"]):
        print(__doc__)
        return 2
    tables = build_tables()
    of_normal = {t["bits"]: t["levels"] for t in tables if t["head_dim"] == 0}
    coded = trellis.build_tables({bits: of_normal[bits + 1] for bits in trellis.BITS})
    status = 0
    texts = {"tables.h": render_header(tables, coded), "tables.json": render_json(tables, coded)}
    for name, text in texts.items():
        path = HERE / name
        if not arguments:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            print(f"{path.name} differs from what generate.py gives")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
