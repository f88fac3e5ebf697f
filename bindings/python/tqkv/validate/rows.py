# SPDX-License-Identifier: Apache-2.0
"""Rows of the table: a claim, what its source says, what is measured, and the verdict.

Two kinds of claims. Those that tqkv stands for PASS or FAIL, and one FAIL fails the command. Those of others
are CONFIRMED or REFUTED, and neither does. SKIPPED rows say what they would need.

Tolerances are derived, never chosen to fit. A mean of n samples is compared within 4 standard errors, which
the sample itself gives (one wrong alarm in 16,000 rows; none at a seed that passed, everything is
deterministic), plus what is known of rounding, as the row says. A printed figure is compared at its printed
precision: half a unit of its last digit.
"""

import dataclasses
import math
from typing import Any, Dict, List

import numpy as np

PASS, FAIL, CONFIRMED, REFUTED, SKIPPED = "pass", "FAIL", "confirmed", "refuted", "skipped"
VERDICTS = (PASS, FAIL, CONFIRMED, REFUTED, SKIPPED)
ERRORS = 4.0  # standard errors
UPPER_BOUND = math.sqrt(3) * math.pi / 2  # Theorem 1: D_mse <= UPPER_BOUND * 4^-b

# What was measured.
LIBRARY, NUMPY, COUNTED = "library", "NumPy", "counted"
PAPER = "arXiv 2504.19874"
OURS = "tqkv"


@dataclasses.dataclass(frozen=True)
class Row:
    section: str
    claim: str
    source: str  # who says it
    says: str  # what
    measured: str  # what we find
    verdict: str  # one of VERDICTS
    subject: str  # what was measured: the library, an algorithm in NumPy, or bytes counted
    tolerance: str = ""
    note: str = ""
    figures: Dict[str, Any] = dataclasses.field(default_factory=dict)


class Table:
    """Collects rows. `figures` of a row are its numbers, for JSON and plots."""
    def __init__(self):
        self.rows: List[Row] = []
        self.section = ""

    def ours(self, ok, claim, measured, *, says="the same", source=OURS, subject=LIBRARY, **more):
        """A claim that tqkv stands for, whoever made it first."""
        self._add(PASS if ok else FAIL, claim, source, says, measured, subject, more)

    def theirs(self, holds, claim, measured, *, source, says, subject=NUMPY, **more):
        self._add(CONFIRMED if holds else REFUTED, claim, source, says, measured, subject, more)

    def skip(self, claim, why, *, source=OURS, says="", subject=LIBRARY, **more):
        self._add(SKIPPED, claim, source, says, why, subject, more)

    def _add(self, verdict, claim, source, says, measured, subject, more):
        self.rows.append(Row(self.section, claim, source, says, measured, verdict, subject, **more))

    def counts(self):
        return {verdict: sum(row.verdict == verdict for row in self.rows) for verdict in VERDICTS}


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean and its standard error."""

    mean: float
    error: float

    @classmethod
    def of(cls, samples):
        samples = np.asarray(samples, dtype=np.float64)
        return cls(float(samples.mean()), float(samples.std(ddof=1) / math.sqrt(len(samples))))

    @property
    def tolerance(self):
        return ERRORS * self.error

    def agrees(self, value, allowance=0.0):
        return abs(self.mean - value) <= self.tolerance + allowance

    def below(self, bound):
        return self.mean - self.tolerance <= bound

    def text(self, digits=4):
        return f"{self.mean:.{digits}f} \u00b1 {self.error:.{digits}f}"

    def times(self, factor):
        return Estimate(self.mean * factor, self.error * abs(factor))


def half_unit(printed):
    """Half a unit of the last digit of a number as it was printed: "0.117" -> 0.0005."""
    decimals = len(printed.split(".")[1]) if "." in printed else 0
    return 0.5 * 10.0 ** -decimals


def as_printed(value, printed, tolerance=0.0):
    """Is `value`, known to within `tolerance`, what was printed?"""
    return abs(value - float(printed)) <= half_unit(printed) * (1 + 1e-9) + tolerance
