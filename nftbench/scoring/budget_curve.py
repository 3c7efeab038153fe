"""The attacker's budget: the best score so far against the FLOPs spent on it, over the whole catalogue.

The attacker has one machine and no foresight. Every attack is run on the release, the cheapest first, with its
preparation, its whole sweep and its restarts. Everything spent is counted, failed attacks included. (An attacker who
knows the one recipe that works pays less: that is the cost to break.) Within an attack all learning rates are trained
side by side, none further than the others; runs of several durations are taken in proportion. Scores are those of the
validation split, which is all that an attacker sees on the way.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from nftbench.contract import Cost, Point
from nftbench.records.record import Record
from nftbench.scoring.grid import NONE, Attacks, Grid
from nftbench.scoring.intervals import Interval, mean
from nftbench.scoring.per_attack import counted, total_flops
from nftbench.scoring.points import in_points

PER_DECADE = 8
"""Points of a curve for each factor of ten in FLOPs."""


@dataclass(frozen=True)
class BudgetCurve:
    """The curve of one row: an attacker who spends `flops[i]` on one task scores at best `scores[i]`, in points."""

    defense: str
    """The row, or the name of an attack that ignores the release."""
    flops: tuple[float, ...]
    scores: tuple[Interval, ...]
    """Means over the tasks within a seed, then over base seeds."""


class Reached(NamedTuple):
    """FLOPs spent so far and the best score so far."""

    flops: float
    score: float


def budget_curves(grid: Grid, tasks: Mapping[str, Sequence[str]]) -> tuple[BudgetCurve, ...]:
    """A curve for each row on which all attacks with the ranking's knowledge have results.

    Training from scratch has a curve of its own for each reference. `tasks` are the tasks with headroom, by reference.
    """
    attacks = grid.within(grid.ranking)
    attacked = [row for row in sorted(grid.rows) if grid.attacks_on(row) - {NONE}]
    ways = {row: _of_row(grid, row, tasks.get(grid.rows[row].reference, ()), attacks) for row in attacked}
    references = sorted(grid.references() & grid.rows.keys())
    for reference in references:
        for alone in sorted(grid.from_scratch() & grid.attacks_on(reference)):
            name = alone if len(references) == 1 else f"{alone} beside {reference}"
            ways[name] = _of_row(grid, reference, tasks.get(reference, ()), frozenset({alone}))
    spent = [point.flops for seeds in ways.values() for units in seeds for way in units for point in way if point.flops]
    if not spent:
        return ()
    first, last = (math.floor(PER_DECADE * math.log10(end)) for end in (min(spent), max(spent)))
    axis = [10 ** (index / PER_DECADE) for index in range(first, last + 2)]
    return tuple(_curve(row, seeds, axis) for row, seeds in ways.items() if seeds)


def _curve(row: str, seeds: Sequence[Sequence[Sequence[Reached]]], axis: Sequence[float]) -> BudgetCurve:
    """Read each seed's tasks at the values of the axis, up to the first value at which all attacks have ended."""
    end = max(way[-1].flops for units in seeds for way in units)
    stops = [flops for index, flops in enumerate(axis) if index == 0 or axis[index - 1] < end]
    columns = [[_read(way, stops) for way in units] for units in seeds]
    by_seed = [[statistics.fmean(values) for values in zip(*units, strict=True)] for units in columns]
    return BudgetCurve(row, tuple(stops), tuple(mean(values) for values in zip(*by_seed, strict=True)))


def _read(way: Sequence[Reached], stops: Iterable[float]) -> list[float]:
    """The score at each of the rising budgets: that of the last point within it. The first point is free."""
    found, index = [], 0
    for stop in stops:
        while index + 1 < len(way) and way[index + 1].flops <= stop:
            index += 1
        found.append(way[index].score)
    return found


def _of_row(grid: Grid, row: str, tasks: Sequence[str], attacks: Attacks) -> list[list[list[Reached]]]:
    """For each seed and task what an attacker reaches, attack after attack; the order of attacks is always the same."""
    tried = grid.candidates(row, tasks, attacks)
    cells = [record for units in tried.values() for unit in units for record in unit]
    rate = _flops_per_second(cells)
    if rate is None:
        return []
    totals: dict[str, list[float]] = {}
    for record in cells:
        totals.setdefault(record.attack, []).append(_total(record, rate))
    order = sorted(totals, key=lambda attack: (statistics.median(totals[attack]), attack))
    found = [
        [way(sorted(unit, key=lambda record: order.index(record.attack)), rate) for unit in tried[seed]]
        for seed in sorted(tried)
    ]
    return found if all(each for units in found for each in units) else []


def _flops_per_second(records: Sequence[Record]) -> float | None:
    """The median of what the row's attacks compute in a second; None where none of them is counted."""
    costs = [record.cost for record in records if record.cost is not None]
    rates = [cost.step_flops * cost.steps / cost.seconds for cost in costs if cost.step_flops and cost.seconds]
    return statistics.median(rates) if rates else None


def _total(record: Record, rate: float) -> float:
    """FLOPs of the whole attack. An attack without counted steps, such as a probe in closed form, is taken to compute
    as many in a second as the others do."""
    cost = record.cost or Cost()
    return total_flops(cost) if counted(cost) else cost.preparation_flops + rate * cost.seconds


def way(records: Sequence[Record], rate: float) -> list[Reached]:
    """What one attacker reaches on one task, attack after attack in this order; scores never fall."""
    best, paid = -math.inf, 0.0
    found: list[Reached] = []
    for record in records:
        total = _total(record, rate)
        for flops, score in _stages(record, total):
            best = score if score > best else best
            if math.isfinite(best):
                found.append(Reached(paid + flops, best))
        paid += total
    return found


def _stages(record: Record, total: float) -> list[tuple[float, float]]:
    """The FLOPs and the score of one attack at each step of the sweep that was evaluated, and after the restarts.

    The FLOPs include the preparation. Points are compared without `max`: a quarter of scoring's time is spent here.
    """
    cost, higher = record.cost or Cost(), record.validation is None or record.validation.higher_is_better
    scale = in_points(1.0, higher)
    longest: dict[float, int] = {}
    best: dict[int, float] = {}
    for point in record.curve:
        step, rate, score = point.step, point.learning_rate, _score(point, scale)
        if step not in best or score > best[step]:
            best[step] = score
        if step > longest.get(rate, 0):
            longest[rate] = step
    restarts = sum([point.step for point in record.restarts])
    sweep = (total - cost.preparation_flops) * (1 - restarts / cost.steps if cost.steps else 0.0)
    ends = longest.values()
    trained = sum(ends)
    stages = []
    for step in sorted(best):
        share = sum([end if end < step else step for end in ends]) / trained if trained else 1.0
        stages.append((cost.preparation_flops + share * sweep, best[step]))
    after = [in_points(record.validation.value, higher)] if record.validation else []
    last = max([-math.inf, *(_score(point, scale) for point in record.restarts), *after])
    return [*stages, (total, last)]


def _score(point: Point, scale: float) -> float:
    """In points, of which the metric has `scale`; minus infinity where there is none."""
    found = point.score
    return scale * found if found is not None and math.isfinite(found) else -math.inf
