"""Excess over the trivial frontier: what a row takes from the attacker beyond the best trivial defense that keeps as
much utility.

A suite's ladder names families of trivial defenses, each a sequence of doses from the weakest to the strongest: earlier
stopping, more noise, fewer blocks. A family draws a curve of suppression against the utility that is kept, which is the
mean share over the metrics. The excess of a row is its height above that curve, at its own utility, for the family that
leaves least.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from nftbench.scoring.intervals import Interval, mean, student_quantile
from nftbench.scoring.scores import Excess

BySeed = Mapping[int, float]
"""A number for each base seed."""
MEAN = "mean"
"""The name of the mean share over all metrics, where the name of a metric may stand."""
LEVEL = 0.95
"""Of the upper ends by which a single metric is told from the mean of all."""


@dataclass(frozen=True)
class Row:
    """What the excess needs of a row: by seed, the points that it takes and the share of each metric that it keeps."""

    name: str
    suppression: BySeed
    retention: Mapping[str, BySeed]

    def kept(self, metric: str) -> BySeed:
        """The share of a metric that is kept, or for `MEAN` the mean share of all."""
        if metric != MEAN:
            return self.retention[metric]
        return {seed: statistics.fmean(one[seed] for one in self.retention.values()) for seed in self.suppression}


@dataclass(frozen=True)
class Family:
    """Trivial defenses of one kind, the weakest dose first. Every curve begins in the reference, which is no dose."""

    name: str
    doses: tuple[Row, ...]
    untrained: BySeed | None = None
    """Suppression of a model that was never trained, by seed: where a continuous family ends, with no utility."""
    stairs: bool = False
    """Nothing lies between two doses: the curve is flat up to the next dose."""

    def without(self, row: str) -> Family:
        """The family to judge one of its own doses by."""
        return replace(self, doses=tuple(dose for dose in self.doses if dose.name != row))


def excess(row: Row, families: Sequence[Family], metrics: Sequence[str]) -> Excess:
    """The smallest height of a row above the curves of all families.

    Utility is the mean share over the metrics. A metric alone also counts where it shows, beyond its noise, that the
    row lies lower: where the upper end of its height is below the height by the mean. The upper ends are one-sided at
    95 %, by Bonferroni's correction over metrics and families.

    A metric that under-training hardly lowers, but that varies from model to model, says nothing alone. On such a
    metric half a percent of noise is worth ten points of suppression, and some metric is always unlucky. The smallest
    height over all metrics would then refute defenses that cost nothing. The mean is precise and misses no damage: what
    destroys one of seven metrics loses a seventh of the mean.

    There is no excess where the row keeps less than some curve reaches.
    """
    found: dict[tuple[str, str], BySeed] = {}
    alone: dict[tuple[str, str], BySeed] = {}
    for family in (one.without(row.name) for one in families):
        for metric in (MEAN, *metrics):
            heights = height(row, family, metric)
            if heights is None and metric == MEAN:
                return Excess(reason=f"outside the ladder: keeps less utility than any dose of {family.name}")
            if heights is not None:
                (found if metric == MEAN else alone)[metric, family.name] = {
                    seed: round(heights[seed], 9) for seed in sorted(heights)
                }
    by_mean = min(statistics.fmean(one.values()) for one in found.values())
    found |= {curve: one for curve, one in alone.items() if _most(one, len(alone)) < by_mean}
    least = min(found, key=lambda curve: (statistics.fmean(found[curve].values()), curve))
    return Excess(smallest([found[least], *(found[curve] for curve in found if curve != least)]), *least, found[least])


def _most(heights: BySeed, count: int) -> float:
    """The one-sided upper end of a mean height at 95 %, corrected for `count` such ends; infinite for one seed."""
    values = list(heights.values())
    if len(values) < 2:
        return math.inf
    reach = student_quantile(1 - (1 - LEVEL) / count, len(values) - 1)
    return statistics.fmean(values) + reach * statistics.stdev(values) / math.sqrt(len(values))


def smallest(heights: Sequence[BySeed]) -> Interval:
    """The interval of the least of several heights, each by the same seeds; the first has the least mean.

    Lower end and p are those of an intersection-union test (Berger 1982): the lowest and the largest of all, since a
    row is above every curve only if it is above each.

    The upper end may not be that of the least: of many curves that are equally high, the one that is estimated lowest
    is too low by chance, and its interval covers the truth in 70 to 90 % of cases. The smallest true height is at most
    that of any one curve, so the upper end of each curve is valid as long as the curve is not chosen for lying low.
    Taken is the median upper end of the curves that a t test, paired by seed, cannot tell from the least. The rest lie
    higher, and their upper ends would say nothing. tests/scoring/test_simulations.py measures that it covers.
    """
    least, intervals = heights[0], [mean(list(one.values())) for one in heights]
    near = [
        interval
        for one, interval in zip(heights, intervals, strict=True)
        if one is least or mean([round(one[seed] - least[seed], 9) for seed in least]).low <= 0
    ]
    return replace(
        intervals[0],
        low=min(one.low for one in intervals),
        high=max(intervals[0].high, statistics.median_high(one.high for one in near)),
        p=max(one.p for one in intervals),
    )


def height(row: Row, family: Family, metric: str) -> BySeed | None:
    """By seed, the points by which a row lies above one curve; None where it keeps less than the curve reaches.

    The delta method, paired by seed: between the doses j and j + 1 of the curve, with the share w on j and the slope λ,
    it is [S - w S_j - (1 - w) S_j+1] + λ [r - w r_j - (1 - w) r_j+1], whose spread holds the noise of suppression, of
    utility and of the curve. The second bracket is zero for a row that keeps everything.
    """
    seeds = sorted(row.suppression)
    curve = draw(family, metric, seeds)
    own = row.kept(metric)
    kept = statistics.fmean(own[seed] for seed in seeds)
    share = min(kept, 1.0)
    j = max(index for index, knot in enumerate(curve) if knot.retention >= share)
    if j == len(curve) - 1 or family.stairs:
        if j == len(curve) - 1 and family.untrained is None and not family.stairs and share < curve[j].retention:
            return None
        return {seed: row.suppression[seed] - curve[j].taken[seed] for seed in seeds}
    near, far = curve[j], curve[j + 1]
    gap = near.retention - far.retention
    w, slope = (share - far.retention) / gap, (far.suppression - near.suppression) / gap
    heights = {}
    for seed in seeds:
        taken = row.suppression[seed] - w * near.taken[seed] - (1 - w) * far.taken[seed]
        lost = own[seed] - w * near.kept[seed] - (1 - w) * far.kept[seed]
        heights[seed] = taken + slope * lost * (kept < 1)
    return heights


@dataclass(frozen=True)
class Knot:
    """One point of a fitted curve, with what stands for it at each seed."""

    retention: float
    suppression: float
    kept: BySeed
    taken: BySeed


def draw(family: Family, metric: str, seeds: Sequence[int]) -> list[Knot]:
    """The curve of a family: retention falls from knot to knot, and suppression rises.

    Both are isotonic fits of the doses' means, weighted by the inverse variance of each mean (Barlow et al. 1972,
    section 1.2), and stay between the fixed ends: the reference, and the untrained model where there is one.
    """
    kept = [[shares[seed] for seed in seeds] for shares in (dose.kept(metric) for dose in family.doses)]
    taken = [[dose.suppression[seed] for seed in seeds] for dose in family.doses]
    end = [family.untrained[seed] for seed in seeds] if family.untrained is not None else None
    falling = _isotonic([[-value for value in values] for values in kept], -1.0, 0.0 if end else math.inf)
    rising = _isotonic(taken, 0.0, statistics.fmean(end) if end else math.inf)
    knots = [([1.0] * len(seeds), [0.0] * len(seeds))]
    knots += [([-value for value in shares], points) for shares, points in zip(falling, rising, strict=True)]
    knots += [([0.0] * len(seeds), end)] if end is not None else []
    return [
        Knot(
            statistics.fmean(shares),
            statistics.fmean(points),
            dict(zip(seeds, shares, strict=True)),
            dict(zip(seeds, points, strict=True)),
        )
        for shares, points in knots
    ]


def _isotonic(values: Sequence[Sequence[float]], least: float, most: float) -> list[list[float]]:
    """A non-decreasing fit of means within bounds, by pooling adjacent violators; each mean is given by its values.

    Doses that are pooled are all stood for by their weighted mean at each seed; one beyond a bound by the bound.
    """
    blocks: list[tuple[float, list[float], int]] = []  # weight, values, how many doses
    for each in values:
        blocks.append((_weight(each), list(each), 1))
        while len(blocks) > 1 and statistics.fmean(blocks[-2][1]) > statistics.fmean(blocks[-1][1]):
            (w2, v2, n2), (w1, v1, n1) = blocks.pop(), blocks.pop()
            pooled = [(w1 * one + w2 * other) / (w1 + w2) for one, other in zip(v1, v2, strict=True)]
            blocks.append((w1 + w2, pooled, n1 + n2))
    fitted = []
    for _, pooled, count in blocks:
        bound = min(max(statistics.fmean(pooled), least), most)
        inside = least <= statistics.fmean(pooled) <= most
        fitted += [pooled if inside else [bound] * len(pooled)] * count
    return fitted


def _weight(values: Sequence[float]) -> float:
    """The inverse variance of a mean; one for a single seed, and bounded where all seeds agree."""
    if len(values) < 2:
        return 1.0
    centre = statistics.fmean(values)
    squares = math.fsum((value - centre) ** 2 for value in values)  # statistics.variance takes ten times as long
    return 1 / max(squares / (len(values) - 1) / len(values), 1e-12)
