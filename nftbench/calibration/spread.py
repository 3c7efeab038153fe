"""How much what reaches the ranking varies between attack seeds and between base seeds, in a finished run.

The ranking takes the best of all attacks, and of each attack the best of its runs: the sweep's own and the restarts,
which differ in the order of the fine-tuning data and the attack's own random choices. So its spread between attack
seeds is that of a maximum, which is smaller than that of a run. It is simulated: the runs of each attack are drawn from
a normal distribution with the mean and the spread of those that were made, as many as were made.

Between base seeds everything differs: grammar, initial weights, order of training. The sampling error is that of the
finite test split.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from nftbench.calibration.proof import Finding, Run, only
from nftbench.contract import Point
from nftbench.records.record import Record
from nftbench.scoring.grid import Grid
from nftbench.scoring.points import final, in_points, mean_points
from nftbench.scoring.table import UNKNOWN, Table, number

DRAWS = 2000
"""Repetitions that are simulated."""
TOGETHER = "all tasks"
"""The mean over tasks, which is what ranks."""


@dataclass(frozen=True)
class Spread:
    """Standard deviations of one row's attacked score on one task, in points; None for fewer than two numbers."""

    task: str
    row: str
    attacked: float
    """The mean over base seeds."""
    base_seeds: float | None
    suppression: float | None
    """Between base seeds, of the paired difference from the reference."""
    attack_seeds: float | None
    """Between repetitions of all attacks, of the best of all their runs, on validation: the root mean square over base
    seeds."""
    sampling: float | None
    """Of a test score: the root mean square over base seeds."""


def judge(runs: Sequence[Run]) -> Finding:
    """Every row and task of a run.

    Raises:
        NftbenchError: not one run.
    """
    run = only(runs, "spread")
    grid = run.grid()
    parts = [*({task: (task,) for task in run.tasks}.items()), (TOGETHER, run.tasks)]
    spreads = [found for name, tasks in parts for row in sorted(grid.rows) if (found := spread(grid, row, name, tasks))]
    notes = (run.missing,) if run.missing else ()
    numbers = {"spreads": [asdict(one) for one in spreads]}
    return Finding(
        f"{run.suite.name}-spread", (_by_task(spreads), _every(spreads)), numbers, notes=notes, verdict=False
    )


def spread(grid: Grid, row: str, name: str, tasks: Sequence[str]) -> Spread | None:
    """One row on one task, or on the mean of several; None where no seed has been run to its end."""
    attacks = grid.within(grid.ranking)
    best, reference = (grid.best_finetuning(one, tasks, attacks) or {} for one in (row, grid.rows[row].reference))
    if not best:
        return None
    ends, before = mean_points(best), mean_points(reference)
    candidates = grid.candidates(row, tasks, attacks)
    repeated = [_error([best_of_runs(records) for records in candidates[seed]]) for seed in best]
    sampled = [_error([100 * final(record).stderr for record in records]) for records in best.values()]
    return Spread(
        task=name,
        row=row,
        attacked=statistics.fmean(ends.values()),
        base_seeds=_deviation(list(ends.values())),
        suppression=_deviation([before[seed] - end for seed, end in ends.items() if seed in before])
        if row != grid.rows[row].reference
        else None,
        attack_seeds=_root_mean_square(repeated),
        sampling=_root_mean_square(sampled),
    )


def best_of_runs(records: Sequence[Record]) -> float | None:
    """Standard deviation of the best of all runs of these attacks, in points; None where none was run again.

    The attacks of one row, task and seed. The score of the sweep's own run is that of its best point, which was chosen
    among others and is a little too high.
    """
    import numpy as np

    ordered = sorted(records, key=lambda record: record.attack)  # draws depend on the order, and sets have none
    runs = [found for record in ordered if record.trains and (found := _runs(record))]
    if not any(len(scores) > 1 for scores in runs):
        return None
    draw = np.random.default_rng(0)
    best = [
        draw.normal(statistics.fmean(scores), _deviation(scores) or 0.0, (DRAWS, len(scores))).max(1) for scores in runs
    ]
    return float(np.max(best, axis=0).std(ddof=1))


def _runs(record: Record) -> list[float]:
    """The score of the sweep's best run and of each restart, in points where higher is better."""
    swept, again = (
        [score for one in made if (score := _points(record, one)) is not None]
        for made in (record.curve, record.restarts)
    )
    return [*([max(swept)] if swept else []), *again]


def _points(record: Record, point: Point) -> float | None:
    assert record.validation is not None
    if point.score is None or not math.isfinite(point.score):
        return None
    return in_points(point.score, record.validation.higher_is_better)


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _error(deviations: Sequence[float | None]) -> float | None:
    """Of the mean of independent numbers; None where one is unknown."""
    known = [value for value in deviations if value is not None]
    return math.hypot(*known) / len(known) if len(known) == len(deviations) else None


def _root_mean_square(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.sqrt(statistics.fmean(value**2 for value in known)) if known else None


# ----------------------------------------------------------------------------------------------------------- showing


def _by_task(spreads: Sequence[Spread]) -> Table:
    columns: tuple[Callable[[Spread], float | None], ...] = (
        lambda one: one.base_seeds,
        lambda one: one.suppression,
        lambda one: one.attack_seeds,
        lambda one: one.sampling,
    )
    rows = []
    for task in dict.fromkeys(one.task for one in spreads):
        found = [one for one in spreads if one.task == task]
        rows.append((task, f"{len(found)}", *(_middle([of(one) for one in found]) for of in columns)))
    header = ("task", "rows", "between base seeds", "of suppression", "between attack seeds", "sampling error")
    return Table(
        "Standard deviations on each task and on their mean, points: median over rows (largest)", header, tuple(rows)
    )


def _middle(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.median(known):.2f} ({max(known):.2f})" if known else UNKNOWN


def _every(spreads: Sequence[Spread]) -> Table:
    rows = []
    for one in spreads:
        deviations = (one.base_seeds, one.suppression, one.attack_seeds, one.sampling)
        rows.append((one.task, one.row, number(one.attacked), *(number(value, digits=2) for value in deviations)))
    header = (
        "task",
        "row",
        "attacked",
        "between base seeds",
        "of suppression",
        "between attack seeds",
        "sampling error",
    )
    return Table("Each row on each task, points", header, tuple(rows))
