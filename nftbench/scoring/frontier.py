"""Excess over the trivial frontier: what a row takes from the attacker beyond the best trivial defense that keeps as
much utility.

A suite's ladder names families of trivial defenses, each a sequence of doses from the weakest to the strongest: earlier
stopping, more noise, fewer blocks. On each utility metric a family draws a curve of suppression against retention. The
excess of a row is its height above that curve, at its own retention, for the metric and the family that leave least.

These are functions alone: the leaderboard does not call them yet, because published suites have no ladder of doses.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from nftbench.scoring.intervals import Interval, mean

BySeed = Mapping[int, float]
"""A number for each base seed."""


@dataclass(frozen=True)
class Row:
    """What the excess needs of a row: by seed, the points that it takes and the share of each metric that it keeps."""

    name: str
    suppression: BySeed
    retention: Mapping[str, BySeed]


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


@dataclass(frozen=True)
class Excess:
    """A row's height above the frontier, in points, and the curve that binds it."""

    interval: Interval
    metric: str
    family: str
    by_seed: BySeed
    """Seed by seed at the binding curve; its mean is the interval's value."""


def excess(row: Row, families: Sequence[Family], metrics: Sequence[str]) -> Excess | None:
    """The smallest height of a row above the curves of all families on all metrics.

    An intersection-union test (Berger 1982): the lower end is the lowest of all and p the largest; the upper end is
    the binding curve's. None where there is no curve, or where the row keeps less than some curve reaches.
    """
    found: list[Excess] = []
    for family in (one.without(row.name) for one in families):
        for metric in metrics:
            heights = height(row, family, metric)
            if heights is None:
                return None
            interval = mean([round(heights[seed], 9) for seed in sorted(heights)])
            found.append(Excess(interval, metric, family.name, heights))
    if not found:
        return None
    least = min(found, key=lambda one: one.interval.value)
    ends = [one.interval for one in found]
    together = replace(least.interval, low=min(one.low for one in ends), p=max(one.p for one in ends))
    return replace(least, interval=together)


def height(row: Row, family: Family, metric: str) -> BySeed | None:
    """By seed, the points by which a row lies above one curve; None where it keeps less than the curve reaches.

    The delta method, paired by seed: between the doses j and j + 1 of the curve, with the share w on j and the slope λ,
    it is [S - w S_j - (1 - w) S_j+1] + λ [r - w r_j - (1 - w) r_j+1], whose spread holds the noise of suppression, of
    utility and of the curve. The second bracket is zero for a row that keeps everything.
    """
    seeds = sorted(row.suppression)
    curve = draw(family, metric, seeds)
    kept = statistics.fmean(row.retention[metric][seed] for seed in seeds)
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
        lost = row.retention[metric][seed] - w * near.kept[seed] - (1 - w) * far.kept[seed]
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
    kept = [[dose.retention[metric][seed] for seed in seeds] for dose in family.doses]
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
    return 1 / max(statistics.variance(values) / len(values), 1e-12)
