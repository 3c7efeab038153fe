"""Whether a row keeps the reference's utility: a test of non-inferiority on each metric, shown as a badge."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from nftbench.scoring.intervals import one_sided_reach

Badge = Literal["keeps", "cannot tell", "loses"]
MARGIN = 0.10
"""The share of the reference's utility above the floor that a row may lose and still keep utility. At ten per cent five
seeds clear 42 % of perfect copies in `standard` and 70 % in `small-null`, and eight seeds 90 % there."""
LEVEL = 0.95
"""Of the two one-sided tests."""


@dataclass(frozen=True)
class MetricUtility:
    """One metric by seed, in points where higher is better: the row's, the reference's, and the floor."""

    row: Mapping[int, float]
    reference: Mapping[int, Sequence[float]]
    """Of the reference's initialisations; their mean is what must be kept, for one draw is noise for all rows."""
    floor: Mapping[int, float]


def badge(metrics: Sequence[MetricUtility]) -> Badge:
    """`keeps` where the lower end lies above zero on every metric, `loses` where the upper end lies below on some.

    By seed the test is of U - (1 - margin) · U_reference - margin · floor; ratios never enter it (Wellek 2010, ch. 1).
    With one seed nothing can be told.
    """
    ends = [_ends(metric) for metric in metrics]
    if any(high < 0 for _, high in ends):
        return "loses"
    return "keeps" if ends and all(low > 0 for low, _ in ends) else "cannot tell"


def _ends(metric: MetricUtility) -> tuple[float, float]:
    seeds = sorted(metric.row.keys() & metric.reference.keys())
    beyond = [
        metric.row[seed] - (1 - MARGIN) * statistics.fmean(metric.reference[seed]) - MARGIN * metric.floor[seed]
        for seed in seeds
    ]
    if len(beyond) < 2:
        return float("-inf"), float("inf")
    middle, reach = statistics.fmean(beyond), one_sided_reach(beyond, LEVEL)
    return middle - reach, middle + reach
