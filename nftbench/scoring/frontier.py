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
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from nftbench.scoring.intervals import EXCESS_CONFIDENCE, Interval, mean, one_sided_reach, student_quantile
from nftbench.scoring.rank_intervals import Heights
from nftbench.scoring.scores import Excess
from nftbench.scoring.utility_badge import MARGIN

BySeed = Mapping[int, float]
"""A number for each base seed."""
Gaps = Mapping[str, BySeed]
"""By metric: how much more of it a row keeps than some trivial defense does."""
MEAN = "mean"
"""The name of the mean share over all metrics, where the name of a metric may stand."""
LEVEL = 0.95
"""Of the tests by which a single metric counts beside the mean of all, over all metrics and families together."""


@dataclass(frozen=True)
class Row:
    """What the excess needs of a row: by seed, the points that it takes and the share of each metric that it keeps."""

    name: str
    suppression: BySeed
    retention: Mapping[str, BySeed]

    def kept(self, metric: str) -> BySeed:
        """The share of a metric that is kept, or for `MEAN` the mean share of all."""
        return self._mean if metric == MEAN else self.retention[metric]

    @cached_property
    def _mean(self) -> BySeed:
        return mean_share(self.retention)


def mean_share(retention: Mapping[str, BySeed]) -> BySeed:
    """By seed, the mean share over the metrics, each of which counts for at most 100 % on average over the seeds.

    A metric above 100 % must not pay for one that is lost: a longer training could buy it. What it has beyond 100 % on
    average is taken off at every seed. To cut off each seed by itself would cost a perfect copy twice as much.
    """
    beyond = {metric: max(0.0, statistics.fmean(one.values()) - 1) for metric, one in retention.items()}
    seeds = next(iter(retention.values()), {})
    return {seed: statistics.fmean(one[seed] - beyond[metric] for metric, one in retention.items()) for seed in seeds}


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
class Variation:
    """How much the share of one metric varies between models that differ in their initialisation alone."""

    deviation: float
    """The standard deviation, pooled over the seeds."""
    freedom: int
    """Its degrees of freedom."""

    def reach(self, level: float, seeds: int) -> float:
        """How far the one-sided end of Student's interval lies from a mean over this many seeds."""
        return student_quantile(level, self.freedom) * self.deviation / math.sqrt(seeds)


def excess(row: Row, families: Sequence[Family], metrics: Mapping[str, Variation | None]) -> Excess:
    """The smallest height of a row above the curves of all families.

    Utility is the mean share over the metrics. A metric alone also counts, against a family, where the row keeps less
    of it than that family does at the same mean; see `losses`.

    The mean is precise and misses no damage: what destroys one of seven metrics loses a seventh of it. A single metric
    is not. Under-training hardly lowers some, which yet vary from model to model: three per cent of noise may there be
    worth fourteen points. Of many metrics one is always unlucky, so the smallest height over all would refute defenses
    that cost nothing. But the mean alone would pay whoever destroys just the one metric that a task needs.

    So a loss that may be chance keeps a row from having an effect, and refutes nothing: the lower end counts it, and
    the value and the upper end do not. So does what is lost at single seeds (`losses_by_seed`): a row that destroys
    another metric at each seed loses none of them at all seeds.

    With one seed no noise is known, and only the mean counts. There is no excess where the row keeps less than some
    curve reaches, on the mean or on a metric that counts.
    """
    found: dict[tuple[str, str], list[BySeed]] = {}
    doubtful: list[tuple[str, BySeed]] = []
    level = 1 - (1 - LEVEL) / (len(metrics) * len(families))
    for family in (one.without(row.name) for one in families):
        gaps = gaps_by_metric(row, family, metrics)
        for metric, clear in {MEAN: True, **losses(gaps, metrics, level)}.items():
            above = heights(row, family, metric)
            if not above:
                what = "utility" if metric == MEAN else f"of {metric}"
                return Excess(reason=f"outside the ladder: keeps less {what} than any dose of {family.name}")
            if clear:
                found[metric, family.name] = above
            else:
                doubtful += [(metric, one) for one in above]
        by_turns = losses_by_seed(gaps, metrics, level)
        if by_turns:
            at_worst = _worst(row, family, by_turns, found[MEAN, family.name][0])
            doubtful += [(metric, at_worst) for metric in sorted(set().union(*by_turns.values()))]
    least = min(found, key=lambda curve: (statistics.fmean(found[curve][0].values()), curve))
    extremes = Heights(
        found[least][0],
        lowest=min([*found[least], *(one for _, one in doubtful)], key=lambda one: _interval(one).low),
        highest=max(found[least], key=lambda one: _interval(one).high),
    )
    clearly = smallest([found[least], *(found[curve] for curve in found if curve != least)])
    others = [(metric, _interval(one)) for metric, one in doubtful]
    interval = replace(
        clearly,
        low=min([clearly.low, *(one.low for _, one in others)]),
        p=max([clearly.p, *(one.p for _, one in others)]),
    )
    lowering = {metric for metric, one in others if one.low < clearly.low}
    return Excess(interval, *least, extremes, doubtful=tuple(sorted(lowering)))


def losses(gaps: Gaps, metrics: Mapping[str, Variation | None], level: float) -> dict[str, bool]:
    """The metrics of which a row keeps less than the trivial defense that its mean is measured from.

    A t test, paired by seed and one-sided at `level`, must tell the two shares apart. Shares are compared and not
    heights: on a metric that the doses hardly lower, or have lost already, a curve is steep, and a height is all noise.

    Each metric comes with whether its loss is clear. Of many rows, metrics and families some have three seeds that
    agree by chance, and a t test believes them. A loss is clear if it is larger than the badge of utility allows, or
    larger than chance makes it between undefended models that differ in their initialisation alone.
    """
    found = {}
    for metric, by_seed in gaps.items():
        loss, variation = -statistics.fmean(by_seed.values()), metrics[metric]
        if loss > one_sided_reach(list(by_seed.values()), level):
            chance = variation.reach(level, len(by_seed)) if variation is not None else math.inf
            found[metric] = loss > min(chance, MARGIN)
    return found


def losses_by_seed(gaps: Gaps, metrics: Mapping[str, Variation | None], level: float) -> dict[int, set[str]]:
    """By seed, the metrics of which a row keeps less there than the trivial defense that its mean is measured from.

    The loss must be larger than the badge of utility allows, and than chance makes it between two undefended models at
    `level`. Each seed is judged by itself: corrected for five of them, the test would miss losses of a third, which
    have an effect.
    """
    found = defaultdict[int, set[str]](set)
    for metric, by_seed in gaps.items():
        variation = metrics[metric]
        chance = math.sqrt(2) * variation.reach(level, 1) if variation is not None else 0.0
        for seed, gap in by_seed.items():
            if -gap > max(chance, MARGIN):
                found[seed].add(metric)
    return found


def gaps_by_metric(row: Row, family: Family, metrics: Iterable[str]) -> Gaps:
    """The share of each metric that a row keeps beyond the trivial defense that its mean is measured from.

    That defense lies between two doses of the curve of means. There are no gaps with one seed, which cannot show a
    loss.
    """
    seeds = sorted(row.suppression)
    if len(seeds) < 2:
        return {}
    place = _between(_fitted(family, MEAN, seeds), statistics.fmean(row.kept(MEAN).values()))
    found = {}
    for metric in metrics:
        trivial = _point(_fitted(family, metric, seeds), *place)
        found[metric] = {seed: round(row.retention[metric][seed] - trivial.kept[seed], 9) for seed in seeds}
    return found


def _worst(row: Row, family: Family, lost: Mapping[int, Iterable[str]], on_mean: BySeed) -> BySeed:
    """By seed, the least of a row's height on the mean and those on the metrics that it lost at that seed.

    A metric's height is measured at the share that the row keeps of it at that seed, and not by the delta method around
    the mean of all seeds: what it keeps elsewhere must not pay.
    """
    seeds = sorted(row.suppression)
    curves = {metric: draw(family, metric, seeds) for metric in set().union(*lost.values())}
    worst = dict(on_mean)
    for seed, metrics in lost.items():
        for metric in metrics:
            trivial = _point(curves[metric], *_between(curves[metric], row.retention[metric][seed]))
            worst[seed] = min(worst[seed], round(row.suppression[seed] - trivial.taken[seed], 9))
    return worst


def smallest(curves: Sequence[Sequence[BySeed]]) -> Interval:
    """The interval of a row's least height above several curves; the first has the least.

    Each curve is given by the row's `heights` above it, of which the first is at the row's own place. All are by the
    same seeds.

    Lower end and p are those of an intersection-union test (Berger 1982): the lowest and the largest of all, since a
    row is above every curve only if it is above each, wherever it lies.

    The upper end may not be that of the least: of many curves that are equally high, the one that is estimated lowest
    is too low by chance, and its interval covers the truth in 70 to 90 % of cases. The smallest true height is at most
    that of any one curve, so the upper end of each curve is valid as long as the curve is not chosen for lying low.
    Taken is the median upper end of the curves that a t test, paired by seed, cannot tell from the least. The rest lie
    higher, and their upper ends would say nothing. tests/scoring/test_simulations.py measures that it covers.
    """
    least = curves[0][0]
    intervals = [[_interval(one) for one in each] for each in curves]
    highest = [max(one.high for one in each) for each in intervals]
    near = [
        high
        for (own, *_), high in zip(curves, highest, strict=True)
        if own is least or mean([round(own[seed] - least[seed], 9) for seed in least]).low <= 0
    ]
    return replace(
        intervals[0][0],
        low=min(one.low for each in intervals for one in each),
        high=max(highest[0], statistics.median_high(near)),
        p=max(one.p for each in intervals for one in each),
    )


def _interval(heights: BySeed) -> Interval:
    return mean(list(heights.values()), EXCESS_CONFIDENCE)


def heights(row: Row, family: Family, metric: str) -> list[BySeed]:
    """By seed, the points by which a row lies above one curve; empty where it keeps less than the curve reaches.

    The first is measured at the row's own utility, by the delta method, paired by seed. With the share w on the dose j
    and the slope λ up to dose j + 1 it is [S - w S_j - (1 - w) S_j+1] + λ [r - w r_j - (1 - w) r_j+1], whose spread
    holds the noise of suppression, of utility and of the curve. The second bracket is zero for a row that keeps
    everything.

    Where two doses keep equally much, the curve jumps, and noise alone decides from which of them a row is measured.
    Its spread over the seeds would not show that. So a row that cannot be told from both ends of a jump is measured
    from either end as well.
    """
    seeds = sorted(row.suppression)
    curve = draw(family, metric, seeds)
    own = {seed: row.kept(metric)[seed] for seed in seeds}
    kept = statistics.fmean(own.values())
    j, w = _between(curve, kept)
    end = len(curve) - 1
    if j == end and family.untrained is None and not family.stairs and max(kept, 0) < curve[j].retention:
        return []
    from_ends = [_above(row, curve[at], seeds) for at in _jumps(own, curve, family.stairs)]
    if j == end or family.stairs:
        return [_above(row, curve[j], seeds), *from_ends]
    near, far, trivial = curve[j], curve[j + 1], _point(curve, j, w)
    slope = (far.suppression - near.suppression) / (near.retention - far.retention) if kept < 1 else 0.0
    height = {
        seed: round(row.suppression[seed] - trivial.taken[seed] + slope * (own[seed] - trivial.kept[seed]), 9)
        for seed in seeds
    }
    return [height, *from_ends]


def _above(row: Row, knot: Knot, seeds: Sequence[int]) -> BySeed:
    return {seed: round(row.suppression[seed] - knot.taken[seed], 9) for seed in seeds}


def _jumps(own: BySeed, curve: Sequence[Knot], stairs: bool) -> list[int]:
    """The ends of all jumps of a curve from which a row cannot be told. Of stairs, each step is a jump.

    A row that keeps just what the stronger dose keeps, at every seed, lies on that dose beyond doubt.
    """
    found = set()
    for at in range(len(curve) - 1):
        near, far = curve[at].kept, curve[at + 1].kept
        may_be_far = own != far and _alike(own, far)
        if may_be_far and (stairs or (_alike(own, near) and _alike(near, far))):
            found |= {at, at + 1}
    return sorted(found)


def _alike(first: BySeed, second: BySeed) -> bool:
    """Whether two shares cannot be told apart. One seed cannot say that.

    They are told apart by a t test, paired by seed, at 5 % on each side, or by all seeds alike: models lose much more
    on some grammars than on others, and then the t test misses what every seed shows.
    """
    gaps = [round(first[seed] - second[seed], 9) for seed in first]
    agree = min(gaps) > 0 or max(gaps) < 0
    return len(gaps) > 1 and not agree and abs(statistics.fmean(gaps)) <= one_sided_reach(gaps, LEVEL)


@dataclass(frozen=True)
class Knot:
    """One point of a fitted curve, with what stands for it at each seed."""

    retention: float
    suppression: float
    kept: BySeed
    taken: BySeed


def draw(family: Family, metric: str, seeds: Sequence[int]) -> list[Knot]:
    """The curve of a family: retention falls from knot to knot, and suppression rises.

    A single metric's curve ends at the first dose that keeps nothing of it beyond noise. Stronger doses keep nothing
    either, so the metric cannot say which of them a row should be measured from. The weakest is the fairest.
    """
    knots = _fitted(family, metric, seeds)
    for index, knot in enumerate(knots):
        if metric != MEAN and not _positive(list(knot.kept.values())):
            return [*knots[:index], replace(knot, retention=0.0, kept=dict.fromkeys(seeds, 0.0))]
    return knots


def _positive(values: Sequence[float]) -> bool:
    """Whether a mean lies above zero: by its one-sided lower end, or by itself for one seed."""
    return statistics.fmean(values) > (one_sided_reach(values, LEVEL) if len(values) > 1 else 0)


def _fitted(family: Family, metric: str, seeds: Sequence[int]) -> list[Knot]:
    """One knot for the reference, each dose and the untrained model.

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


def _between(curve: Sequence[Knot], kept: float) -> tuple[int, float]:
    """The knot j from which on a curve keeps as much or less, and the share w on it; the rest is on the next one."""
    share = min(kept, 1.0)
    j = max(index for index, knot in enumerate(curve) if knot.retention >= share)
    if j == len(curve) - 1:
        return j, 1.0
    far = curve[j + 1].retention
    return j, (share - far) / (curve[j].retention - far)


def _point(curve: Sequence[Knot], j: int, w: float) -> Knot:
    """What stands between the knots j and j + 1 of a curve, with the share w on j."""
    near, far = curve[j], curve[min(j + 1, len(curve) - 1)]

    def mixed(one: float, other: float) -> float:
        return w * one + (1 - w) * other

    return Knot(
        mixed(near.retention, far.retention),
        mixed(near.suppression, far.suppression),
        {seed: mixed(near.kept[seed], far.kept[seed]) for seed in near.kept},
        {seed: mixed(near.taken[seed], far.taken[seed]) for seed in near.taken},
    )


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
