"""How much numbers vary between attack seeds and between base seeds, on every task of a finished run.

For each row and task the strongest attack is taken, as the ranking chooses it. Between base seeds everything differs:
grammar, initial weights, order of training. Attack seeds are the restarts of the chosen recipe: only the order of the
fine-tuning data and the attack's own random choices differ. The sampling error is that of the finite test split.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from nftbench.calibration.proof import Finding, Run, only
from nftbench.records.record import Record
from nftbench.scoring.grid import Grid
from nftbench.scoring.points import final, points
from nftbench.scoring.table import UNKNOWN, Table, number


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
    """Between restarts of the picked recipe, on validation: the root mean square over base seeds."""
    sampling: float
    """Of a test score: the root mean square over base seeds."""


def judge(runs: Sequence[Run]) -> Finding:
    """Every row and task of a run.

    Raises:
        NftbenchError: not one run.
    """
    run = only(runs, "spread")
    grid = run.grid()
    spreads = [found for task in run.tasks for row in sorted(grid.rows) if (found := spread(grid, row, task))]
    notes = (run.missing,) if run.missing else ()
    numbers = {"spreads": [asdict(one) for one in spreads]}
    return Finding(
        f"{run.suite.name}-spread", (_by_task(run, spreads), _every(spreads)), numbers, notes=notes, verdict=False
    )


def spread(grid: Grid, row: str, task: str) -> Spread | None:
    """One row on one task; None where no seed has been run to its end."""
    attacks = grid.within(grid.ranking)
    best, reference = (grid.best_finetuning(name, [task], attacks) or {} for name in (row, grid.rows[row].reference))
    records = {seed: record for seed, (record,) in best.items()}
    if not records:
        return None
    ends = {seed: points(final(record)) for seed, record in records.items()}
    gaps = [points(final(reference[seed][0])) - end for seed, end in ends.items() if seed in reference]
    restarts = [found for record in records.values() if (found := _restarts(record)) is not None]
    return Spread(
        task=task,
        row=row,
        attacked=statistics.fmean(ends.values()),
        base_seeds=_deviation(list(ends.values())),
        suppression=_deviation(gaps) if row != grid.rows[row].reference else None,
        attack_seeds=_root_mean_square(restarts) if restarts else None,
        sampling=_root_mean_square([100 * final(record).stderr for record in records.values()]),
    )


def _restarts(record: Record) -> float | None:
    return _deviation(
        [100 * one.score for one in record.restarts if one.score is not None and math.isfinite(one.score)]
    )


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _root_mean_square(values: Sequence[float]) -> float:
    return math.sqrt(statistics.fmean(value**2 for value in values))


# ----------------------------------------------------------------------------------------------------------- showing


def _by_task(run: Run, spreads: Sequence[Spread]) -> Table:
    columns: tuple[Callable[[Spread], float | None], ...] = (
        lambda one: one.base_seeds,
        lambda one: one.suppression,
        lambda one: one.attack_seeds,
        lambda one: one.sampling,
    )
    rows = []
    for task in run.tasks:
        found = [one for one in spreads if one.task == task]
        rows.append((task, f"{len(found)}", *(_middle([of(one) for one in found]) for of in columns)))
    header = ("task", "rows", "between base seeds", "of suppression", "between attack seeds", "sampling error")
    return Table("Standard deviations on each task, points: median over rows (largest)", header, tuple(rows))


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
