"""Intervals, differences and corrections: pure functions on a few numbers, one for each base seed.

Intervals are Student's, and those of differences are paired by seed. A bootstrap over three seeds would cover 70–80 %
where it should cover 95 %.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

CONFIDENCE = 0.95
EXCESS_CONFIDENCE = 0.98
"""Of what is said about an excess. Which curve it is measured from depends on noise that its spread lacks. In
simulations of five seeds 1.5 % ± 0.3 of undefended models had an effect at 95 %, and intervals of ranks held in
93.0 % ± 0.8 of cases. At 98 % it is 0.7 % ± 0.2 and 96.0 % ± 0.6 (tests/calibration/test_null.py draws such boards),
and in other draws 1.1 % ± 0.3 and 97.2 % ± 0.7 (docs/validity.md)."""
RANKED_SEEDS, PRELIMINARY_SEEDS = 5, 3
"""Base seeds needed for a rank, and for a preliminary rank; with fewer nothing is judged."""


@dataclass(frozen=True)
class Interval:
    """A mean over `count` base seeds with its interval; `p` is one-sided, against a true value of zero or less."""

    value: float
    low: float = -math.inf
    high: float = math.inf
    count: int = 1
    p: float = 1.0
    confidence: float = CONFIDENCE


def in_percent(share: Interval) -> Interval:
    """A share of utility in percent, as every table and file shows it."""
    return replace(share, value=100 * share.value, low=100 * share.low, high=100 * share.high)


def mean(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Student's t interval of a mean: m ± t(n-1) · s / √n (Student 1908)."""
    count = len(values)
    if count < 2:
        return Interval(values[0], confidence=confidence)
    error = math.sqrt(statistics.variance(values) / count)
    return student(statistics.fmean(values), error, count - 1, count, confidence)


def difference(first: Sequence[float], second: Sequence[float]) -> Interval:
    """Mean of `first - second` with its t interval, paired by seed."""
    return mean([_apart(one, other) for one, other in zip(first, second, strict=True)])


def _apart(first: float, second: float) -> float:
    """The difference, rounded: one float error, the same at every seed, would pass for a certain difference."""
    return round(first - second, 9)


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
    a, b = statistics.fmean(first), statistics.fmean(second)
    scale = student_quantile((1 + CONFIDENCE) / 2, count - 1) ** 2 / count
    aa, bb = scale * statistics.variance(first), scale * statistics.variance(second)
    ab = scale * statistics.covariance(first, second)
    middle, lead = a * b - ab, b * b - bb
    reach = math.sqrt(max(0.0, middle * middle - lead * (a * a - aa)))
    above = mean(first if b > 0 else [-value for value in first])
    return Interval(a / b, (middle - reach) / lead, (middle + reach) / lead, count, above.p)


def weakest(differences: Sequence[Interval]) -> Interval:
    """The smallest of several differences: an intersection-union test (Berger 1982).

    What is better than the best of several is better than each of them. So the lower bound is the lowest and p the
    largest, which keeps the error rate although the best one is chosen on the same data.
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


def beats_zero(adjusted_p: float, confidence: float = CONFIDENCE) -> bool:
    """Whether the lower end of the adjusted interval lies above zero: one-sided p ≤ 2.5 % for one of 95 %."""
    return adjusted_p <= (1 - confidence) / 2


def student(value: float, error: float, freedom: float, count: int, confidence: float = CONFIDENCE) -> Interval:
    """Student's t interval of an estimate with this standard error; p is one-sided, against zero or less."""
    if error == 0:
        return Interval(value, value, value, count, 0.0 if value > 0 else 1.0, confidence)
    from scipy.special import stdtr  # two thirds of this module's import time

    reach = student_quantile((1 + confidence) / 2, freedom) * error
    return Interval(value, value - reach, value + reach, count, float(stdtr(freedom, -value / error)), confidence)


def p_above(found: Interval, bound: float) -> float:
    """One-sided p of a true value at or below `bound`, from Student's interval of a mean; 1 with one seed."""
    if not math.isfinite(found.low):
        return 1.0
    if found.low == found.value:
        return 0.0 if found.value > bound else 1.0
    from scipy.special import stdtr

    return float(stdtr(found.count - 1, (bound - found.value) / standard_error(found, found.count - 1)))


def standard_error(found: Interval, freedom: float) -> float:
    """The standard error that Student's interval with these degrees of freedom was made from."""
    return (found.value - found.low) / student_quantile((1 + found.confidence) / 2, freedom)


def welch(first: Interval, second: Interval) -> tuple[Interval, float]:
    """first - second of two independent means, with the degrees of freedom of its t interval (Welch 1947).

    For means of n values with standard errors e: e² = e1² + e2², and the degrees of freedom are
    e⁴ / (e1⁴ / (n1 - 1) + e2⁴ / (n2 - 1)). Its `count` is the smaller of the two. With one value on a side there is no
    interval.
    """
    gap, count = round(first.value - second.value, 9) + 0.0, min(first.count, second.count)
    if not (math.isfinite(first.low) and math.isfinite(second.low)) or count < 2:
        return Interval(gap, count=count), 1.0
    squares = [standard_error(one, one.count - 1) ** 2 for one in (first, second)]
    if sum(squares) == 0:
        return student(gap, 0.0, 1.0, count), 1.0
    below = sum(square**2 / (one.count - 1) for square, one in zip(squares, (first, second), strict=True))
    freedom = sum(squares) ** 2 / below
    return student(gap, math.sqrt(sum(squares)), freedom, count), freedom


def student_quantile(level: float, freedom: float) -> float:
    """The point below which a Student's t variable lies with this probability."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, level))


def one_sided_reach(values: Sequence[float], level: float) -> float:
    """How far the one-sided end of Student's interval lies from a mean of two values or more: t(n-1) · s / √n."""
    return student_quantile(level, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))


def differences_by_seed(first: Mapping[int, float], second: Mapping[int, float]) -> dict[int, float]:
    """first - second at each seed that both have, rounded as in `difference`."""
    return {seed: _apart(first[seed], second[seed]) for seed in sorted(first.keys() & second.keys())}


def gap_by_seed(first: Mapping[int, float], second: Mapping[int, float]) -> Interval | None:
    """`difference` over the seeds that both have; None where they share none."""
    return mean_by_seed(differences_by_seed(first, second))


def mean_by_seed(by_seed: Mapping[int, float]) -> Interval | None:
    """`mean` over the seeds; None without any."""
    return mean([by_seed[seed] for seed in sorted(by_seed)]) if by_seed else None


def average_by_seed(by_seed: Mapping[int, float]) -> float | None:
    return statistics.fmean(by_seed.values()) if by_seed else None
