# SPDX-License-Identifier: Apache-2.0
"""Statistics of paired runs. Standard library only; what is drawn is drawn by a seed."""
import math
import random
from typing import List, NamedTuple, Sequence, Tuple


class Paired(NamedTuple):
    """Of pairs (baseline, other) of scores, in points (hundredths)."""

    pairs: int
    baseline: float
    other: float
    delta: float                  # other - baseline
    interval: Tuple[float, float]  # 95 % of the delta
    worse: int                    # pairs in which the other scored less
    better: int
    p: float                      # McNemar, exact, two-sided


def mcnemar(worse: int, better: int) -> float:
    """The exact two-sided probability of a split as uneven as this, if either side were as likely."""
    n, k = worse + better, min(worse, better)
    if n == 0:
        return 1.0
    return min(1.0, 2.0 * sum(math.comb(n, i) for i in range(k + 1)) / 2.0**n)


def bootstrap(differences: Sequence[float], seed: int = 0, draws: int = 2000) -> Tuple[float, float]:
    """95 % interval of the mean of paired differences, by resampling pairs. Exact for constant ones."""
    n, generator = len(differences), random.Random(seed)
    if n == 0:
        return math.nan, math.nan
    if min(differences) == max(differences):
        return differences[0], differences[0]
    means = sorted(sum(generator.choices(differences, k=n)) / n for _ in range(draws))
    return means[int(0.025 * draws)], means[min(draws - 1, int(0.975 * draws))]


def newcombe(both: int, worse: int, better: int, neither: int) -> Tuple[float, float]:
    """95 % interval of the difference of two paired proportions (other - baseline): Newcombe's method 10, of
    Wilson intervals. Unlike a bootstrap it has a width when no pair differs."""
    n = both + worse + better + neither
    first, second = (both + worse) / n, (both + better) / n
    (low1, high1), (low2, high2) = wilson(both + worse, n), wilson(both + better, n)
    product = (both + worse) * (better + neither) * (both + better) * (worse + neither)
    phi = 0.0
    if product > 0:
        cross = both * neither - worse * better
        phi = (max(cross - n / 2, 0.0) if cross > 0 else cross) / math.sqrt(product)
    theta = second - first

    def part(a, b):
        return math.sqrt(max(0.0, a * a - 2.0 * phi * a * b + b * b))
    return (theta - part(second - low2, high1 - first), theta + part(high2 - second, first - low1))


def wilson(right: int, n: int, z: float = 1.959964) -> Tuple[float, float]:
    share, root = right / n, z * z / n
    middle = (share + root / 2) / (1 + root)
    width = math.sqrt(share * (1 - share) * root + root * root / 4) / (1 + root)
    return max(0.0, middle - width), min(1.0, middle + width)


def compare(baseline: Sequence[float], other: Sequence[float], seed: int = 0) -> Paired:
    """Scores 0 .. 1 of the same questions. Right-or-wrong scores get Newcombe's interval, others the
    bootstrap's."""
    if len(baseline) != len(other) or not baseline:
        raise ValueError(f"{len(baseline)} and {len(other)} scores: must be as many, and some")
    differences = [b - a for a, b in zip(baseline, other)]
    worse, better = sum(d < 0 for d in differences), sum(d > 0 for d in differences)
    n = len(differences)
    if all(score in (0, 1) for score in (*baseline, *other)):
        both = sum(a + b == 2 for a, b in zip(baseline, other))
        interval = newcombe(both, worse, better, n - both - worse - better)
    else:
        interval = bootstrap(differences, seed)
    mean = [100.0 * sum(scores) / n for scores in (baseline, other)]
    return Paired(n, mean[0], mean[1], mean[1] - mean[0], (100.0 * interval[0], 100.0 * interval[1]), worse,
                  better, mcnemar(worse, better))


def quantile(values: List[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
