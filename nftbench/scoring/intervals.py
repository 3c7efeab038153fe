"""Intervals, differences, corrections and ranks: pure functions on a few numbers, one for each base seed.

Intervals are Student's and Welch's. A bootstrap over three seeds would cover 70–80 % where it should cover 95 %.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

CONFIDENCE = 0.95
RANKED_SEEDS, PRELIMINARY_SEEDS = 5, 3
"""Base seeds needed for a rank, and for a preliminary rank; with fewer nothing is judged."""


@dataclass(frozen=True)
class Interval:
    """A mean over `count` base seeds with its 95 % interval; `p` is one-sided, against a true value of zero or less."""

    value: float
    low: float = -math.inf
    high: float = math.inf
    count: int = 1
    p: float = 1.0


def mean(values: Sequence[float]) -> Interval:
    """Student's t interval of a mean: m ± t(n-1) · s / √n (Student 1908)."""
    count = len(values)
    if count < 2:
        return Interval(values[0])
    return student(statistics.fmean(values), math.sqrt(statistics.variance(values) / count), count - 1, count)


def difference(first: Sequence[float], second: Sequence[float]) -> Interval:
    """Mean of `first - second`, paired by seed: the wider of the paired t interval and Welch's (Welch 1947).

    Welch: se² = a + b with a = s₁²/n, b = s₂²/n and df = (a + b)² (n - 1) / (a² + b²). It protects against a few seeds
    that happen to move together.
    """
    count = len(first)
    # Rounded: otherwise one float error, the same at every seed, would pass for a certain difference.
    gaps = [round(one - other, 9) for one, other in zip(first, second, strict=True)]
    paired = mean(gaps)
    if count < 2 or not any(gaps):
        return paired
    a, b = statistics.variance(first) / count, statistics.variance(second) / count
    if a + b == 0:
        return paired
    welch = student(paired.value, math.sqrt(a + b), (a + b) ** 2 * (count - 1) / (a**2 + b**2), count)
    return replace(paired, low=min(paired.low, welch.low), high=max(paired.high, welch.high), p=max(paired.p, welch.p))


def ratio(first: Sequence[float], second: Sequence[float]) -> Interval | None:
    """mean(first) / mean(second), paired by seed, with Fieller's interval (Fieller 1954, section 3).

    It holds every θ at which a paired t test cannot tell the mean of first - θ · second from zero. With a, b the means
    and s the variances and covariance over t² / n, its ends are the roots of
    (b² - s_bb) θ² - 2 (ab - s_ab) θ + a² - s_aa = 0. None where `second` cannot be told from zero, since the interval
    has no ends then. (A mean of quotients would follow the seed whose divisor happens to be nearest to zero.)
    """
    count = len(first)
    below = mean(second)
    if count < 2 or below.low <= 0 <= below.high:
        return None
    from scipy.special import stdtrit

    a, b = statistics.fmean(first), statistics.fmean(second)
    scale = float(stdtrit(count - 1, (1 + CONFIDENCE) / 2)) ** 2 / count
    aa, bb = scale * statistics.variance(first), scale * statistics.variance(second)
    ab = scale * statistics.covariance(first, second)
    middle, lead = a * b - ab, b * b - bb
    reach = math.sqrt(max(0.0, middle * middle - lead * (a * a - aa)))
    above = mean(first if b > 0 else [-value for value in first])
    return Interval(a / b, (middle - reach) / lead, (middle + reach) / lead, count, above.p)


def weakest(differences: Sequence[Interval]) -> Interval:
    """The smallest of several differences: an intersection-union test (Berger 1982).

    A row that is better than the best control is better than each of them. So the lower bound is the lowest and p the
    largest, which keeps the error rate although the best control is chosen on the same data. Excess suppression is the
    smallest A_c - A_d over the controls c, where A is an attacked score; the reference is one of them.
    """
    least = min(differences, key=lambda one: one.value)
    return replace(
        least,
        low=min(one.low for one in differences),
        p=max(one.p for one in differences),
        count=min(one.count for one in differences),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (Holm 1979): the k-th smallest of m is max over j ≤ k of (m - j + 1) · p_j."""
    adjusted, running = [1.0] * len(p_values), 0.0
    for smaller, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        running = max(running, min(1.0, (len(p_values) - smaller) * p_values[index]))
        adjusted[index] = running
    return adjusted


def beats_zero(adjusted_p: float) -> bool:
    """Whether the lower end of the adjusted 95 % interval lies above zero: one-sided p ≤ 2.5 %."""
    return adjusted_p <= (1 - CONFIDENCE) / 2


def shared_ranks(rows: Sequence[Mapping[int, float]]) -> list[int]:
    """Ranks of rows. Each row is its scores by seed, and the best row is first. Rows that do not differ share a rank.

    Two rows differ if the interval of their paired difference does not contain zero. A new rank begins only where every
    row above differs from every row below. So two rows that differ share a rank if both do not differ from a third.
    """
    ranks: list[int] = []
    for index in range(len(rows)):
        apart = all(_told_apart(above, below) for above in rows[:index] for below in rows[index:])
        ranks.append(index + 1 if apart else ranks[-1])
    return ranks


def _told_apart(first: Mapping[int, float], second: Mapping[int, float]) -> bool:
    gap = gap_by_seed(first, second)
    return gap is not None and not gap.low <= 0 <= gap.high


def student(value: float, error: float, freedom: float, count: int) -> Interval:
    """Student's t interval of an estimate with this standard error; p is one-sided, against zero or less."""
    if error == 0:
        return Interval(value, value, value, count, 0.0 if value > 0 else 1.0)
    from scipy.special import stdtr, stdtrit  # two thirds of this module's import time

    reach = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * error
    return Interval(value, value - reach, value + reach, count, float(stdtr(freedom, -value / error)))


def student_quantile(level: float, freedom: float) -> float:
    """The point below which a Student's t variable lies with this probability."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, level))


def gap_by_seed(first: Mapping[int, float], second: Mapping[int, float]) -> Interval | None:
    """`difference` over the seeds that both have; None where they share none."""
    seeds = sorted(first.keys() & second.keys())
    return difference([first[seed] for seed in seeds], [second[seed] for seed in seeds]) if seeds else None


def mean_by_seed(by_seed: Mapping[int, float]) -> Interval | None:
    """`mean` over the seeds; None without any."""
    return mean([by_seed[seed] for seed in sorted(by_seed)]) if by_seed else None


def average_by_seed(by_seed: Mapping[int, float]) -> float | None:
    return statistics.fmean(by_seed.values()) if by_seed else None
