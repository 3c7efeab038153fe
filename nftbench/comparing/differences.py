"""The difference of two samples with its test: paired by base seed where seeds have weights or grammars in common."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from nftbench.comparing.samples import Sample
from nftbench.scoring.intervals import (
    PRELIMINARY_SEEDS,
    RANKED_SEEDS,
    Interval,
    difference,
    standard_error,
    student_quantile,
    welch,
)

POWER = 0.8
"""The chance with which the smallest detectable drop is found."""


@dataclass(frozen=True)
class Difference:
    """NEW less BASE, in the units of the metric."""

    interval: Interval
    freedom: float
    """Degrees of freedom of its t test."""
    paired: bool
    """Seed by seed; see `between`."""
    tested: bool = True
    """Whether the t test holds; see `Sample.curved`."""

    @property
    def seeds(self) -> int:
        """Base seeds; where they are not paired, those of the side that has fewer."""
        return self.interval.count

    @property
    def p(self) -> float:
        """Two-sided, against no difference; 1 where there is no test."""
        if not self.tested or not math.isfinite(self.interval.low):
            return 1.0
        below = self.interval.p
        # Without spread `p` is 0 or 1 and says nothing of a drop.
        if self.interval.low == self.interval.high:
            return 1.0 if self.interval.value == 0 else 0.0
        return min(1.0, 2 * min(below, 1 - below))

    def detectable(self, level: float) -> float:
        """The smallest true drop that a two-sided test at this level finds with 80 % power.

        (t(1 - level/2) + t(0.8)) · standard error, with quantiles of Student's t: the usual approximation of the
        noncentral t. Infinite with one seed, and without a test.
        """
        if not self.tested or not math.isfinite(self.interval.low):
            return math.inf
        error = standard_error(self.interval, self.freedom)
        return (student_quantile(1 - level / 2, self.freedom) + student_quantile(POWER, self.freedom)) * error


def between(
    base: Sample, new: Sample, bases: Mapping[int, str], news: Mapping[int, str], *, same_grammars: bool = False
) -> Difference:
    """NEW less BASE.

    Paired where the base weights agree at every seed that both sides have, unless that leaves fewer than three seeds
    and there are more to compare unpaired. Also paired where only the grammars agree, on five seeds or more and if no
    seed of the smaller side is left out: what a grammar does to both sides cancels. A paired test is right whether or
    not seeds have anything in common, but without it it sees less. Else by Welch's test (Welch 1947) on the means over
    seeds. A curved sample is paired where it is the same on both sides, and else has no test.

    Args:
        bases: by seed, the hash of BASE's base weights.
        news: the same for NEW.
        same_grammars: whether a base seed has the same grammar on both sides.
    """
    shared = sorted(base.by_seed.keys() & new.by_seed.keys())
    same = bool(shared) and all(seed in bases and bases[seed] == news.get(seed) for seed in shared)
    fewest = min(base.mean.count, new.mean.count)
    paired = (same and len(shared) >= min(PRELIMINARY_SEEDS, fewest)) or (
        same_grammars and len(shared) == fewest >= RANKED_SEEDS
    )
    if base.curved:
        paired = paired and base.by_seed == new.by_seed
    if paired:
        gap = difference([new.by_seed[seed] for seed in shared], [base.by_seed[seed] for seed in shared])
        return Difference(gap, len(shared) - 1, paired=True)
    gap, freedom = welch(new.mean, base.mean)
    return Difference(gap, freedom, paired=False, tested=not base.curved)
