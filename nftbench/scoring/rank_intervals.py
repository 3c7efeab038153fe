"""Which ranks a row may truly have: an interval of ranks from pairwise comparisons, corrected for their number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nftbench.scoring.intervals import EXCESS_CONFIDENCE, beats_zero, gap_by_seed, holm


@dataclass(frozen=True)
class Heights:
    """By seed, a row's height above the curve that leaves least, in points."""

    own: Mapping[int, float] = field(default_factory=dict)
    """At the row's own place, by the mean of the utility that it keeps."""
    lowest: Mapping[int, float] = field(default_factory=dict)
    """At the lowest of the places where it may lie. Noise leaves that open where the curve jumps, and where the loss of
    a single metric may be chance."""
    highest: Mapping[int, float] = field(default_factory=dict)
    """At the highest of the places where the curve jumps."""


@dataclass(frozen=True)
class RankInterval:
    """The first and the last rank that the comparisons leave open; 1 is best."""

    first: int
    last: int


def rank_intervals(rows: Sequence[Heights]) -> list[RankInterval]:
    """For each row, `[1 + number better, K - number worse]` of K rows.

    A row is better or worse where t tests, paired by seed, tell the two apart: at their own places, and also the lowest
    of the better one from the highest of the other. Each row's K - 1 comparisons are corrected by Holm's method at 2 %
    in both directions together. So its interval covers its true rank in 95 % of boards, as simulations say: see
    `EXCESS_CONFIDENCE`.
    """
    found = []
    for index, row in enumerate(rows):
        others = [other for at, other in enumerate(rows) if at != index]
        p_above = [_p(other, row) for other in others]
        p_below = [_p(row, other) for other in others]
        adjusted = holm([min(above, below) for above, below in zip(p_above, p_below, strict=True)])
        apart = [beats_zero(p, EXCESS_CONFIDENCE) for p in adjusted]
        better = sum(told and above < below for told, above, below in zip(apart, p_above, p_below, strict=True))
        worse = sum(told and below < above for told, above, below in zip(apart, p_above, p_below, strict=True))
        found.append(RankInterval(1 + better, len(rows) - worse))
    return found


def _p(first: Heights, second: Heights) -> float:
    """One-sided p of `first` not lying above `second`, wherever both lie; 1 where they share no seed."""
    return max(_p_of(first.own, second.own), _p_of(first.lowest, second.highest))


def _p_of(first: Mapping[int, float], second: Mapping[int, float]) -> float:
    gap = gap_by_seed(first, second)
    return gap.p if gap else 1.0
