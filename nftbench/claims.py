"""What a paper claims beside what was measured: a suite's `claims`, worked out from its records.

Each quantity is a number for each base seed; a claim is one of them, a difference or a ratio of two, paired by seed,
and holds where its whole 95 % interval lies on the claim's side.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from nftbench.grid import NONE, Grid, final, kept_share, points
from nftbench.statistics import Interval, difference, mean
from nftbench.suite import PaperClaim, Quantity
from nftbench.types import Record

Outcome = Literal["holds", "does not hold", "not distinguishable", "measured", "not measured"]
BySeed = Mapping[int, float]


@dataclass(frozen=True)
class ClaimResult:
    """One claim, and what became of it."""

    claim: PaperClaim
    measured: Interval | None
    outcome: Outcome
    """`measured` where the claim names no bound, or one seed allows no interval."""


def examine(claims: Sequence[PaperClaim], grid: Grid, readings: Sequence[Record]) -> tuple[ClaimResult, ...]:
    """Every claim, beside its measurement."""
    return tuple(_examined(claim, _Sheet(grid, readings)) for claim in claims)


def _examined(claim: PaperClaim, sheet: _Sheet) -> ClaimResult:
    first = sheet.read(claim.read)
    second = claim.minus or claim.over
    other = sheet.read(second) if second is not None else dict.fromkeys(first, 0.0)
    seeds = sorted(first.keys() & other.keys())
    if not seeds:
        return ClaimResult(claim, None, "not measured")
    if claim.over is not None:
        if any(other[seed] == 0 for seed in seeds):
            return ClaimResult(claim, None, "not measured")
        measured = mean([first[seed] / other[seed] for seed in seeds])
    elif claim.minus is not None:
        measured = difference([first[seed] for seed in seeds], [other[seed] for seed in seeds])
    else:
        measured = mean([first[seed] for seed in seeds])
    return ClaimResult(claim, measured, _outcome(claim, measured))


def _outcome(claim: PaperClaim, measured: Interval) -> Outcome:
    if measured.count < 2 or (claim.above is None and claim.below is None):
        return "measured"
    low, high = measured.low, measured.high
    if claim.above is not None:
        holds, fails = low > claim.above, high < claim.above
    else:
        assert claim.below is not None
        holds, fails = high < claim.below, low > claim.below
    return "holds" if holds else "does not hold" if fails else "not distinguishable"


@dataclass(frozen=True)
class _Sheet:
    """The numbers that claims are about, by base seed."""

    grid: Grid
    readings: Sequence[Record]

    def read(self, quantity: Quantity) -> BySeed:
        """The mean over the quantity's rows, of the seeds that all of them have."""
        rows = [self.of_row(row, quantity) for row in quantity.rows]
        seeds = set.intersection(*(set(found) for found in rows))
        return {seed: statistics.fmean(found[seed] for found in rows) for seed in seeds}

    def of_row(self, row: str, quantity: Quantity) -> BySeed:
        if row not in self.grid.rows and "." not in quantity.read:
            return {}
        if "." in quantity.read:
            return self.reading(row, *quantity.read.split(".", 1))
        if quantity.read == "utility":
            return self.utility(row, quantity.tasks or self.grid.metrics)
        return self.attacked(row, quantity)

    def reading(self, row: str, yardstick: str, name: str) -> BySeed:
        """A value of a yardstick, whatever its parameters."""
        return {
            record.seed: record.reading.values[name]
            for record in self.readings
            if record.defense == row and record.task.partition("[")[0] == yardstick
            if record.reading is not None and name in record.reading.values
        }

    def attacked(self, row: str, quantity: Quantity) -> BySeed:
        """`score`, `gain`, or the share of the way from the reference's unattacked score that is `kept`."""
        grid, reference = self.grid, self.grid.rows[row].reference
        attacks = frozenset(quantity.attacks) or grid.within(grid.ranking) - grid.scratch() - {NONE}
        tasks = quantity.tasks or tuple(task for task in grid.tasks if self.role(task) == "ranked")
        found = {task: self.picked(row, task, attacks) for task in tasks}
        unattacked = {task: self.picked(row, task, frozenset({NONE})) for task in tasks}
        zero = {task: self.picked(reference, task, frozenset({NONE})) for task in tasks}
        seeds = set.intersection(*(set(found[task]) for task in tasks)) if tasks else set()
        if quantity.read == "score":
            return {seed: statistics.fmean(found[task][seed] for task in tasks) for seed in seeds}
        seeds = seeds.intersection(*(set(unattacked[task]) for task in tasks))
        if quantity.read == "gain":
            return {
                seed: statistics.fmean(found[task][seed] - unattacked[task][seed] for task in tasks) for seed in seeds
            }
        seeds = {
            seed
            for seed in seeds.intersection(*(set(zero[task]) for task in tasks))
            if all(unattacked[task][seed] != zero[task][seed] for task in tasks)
        }
        return {
            seed: statistics.fmean(
                (found[task][seed] - zero[task][seed]) / (unattacked[task][seed] - zero[task][seed]) for task in tasks
            )
            for seed in seeds
        }

    def picked(self, row: str, task: str, attacks: frozenset[str]) -> BySeed:
        """The picked attack's test score on one task."""
        picks = self.grid.picks(row, [task], attacks & {place.attack for place in self.grid.expected}) or {}
        return {seed: points(final(record)) for seed, (record,) in picks.items()}

    def role(self, task: str) -> str:
        return next((record.role for record in self.grid.records.values() if record.task == task), "ranked")

    def utility(self, row: str, metrics: Sequence[str]) -> BySeed:
        """The share of the reference's utility that is kept, in percent; the mean over metrics."""
        own, theirs = (
            self.grid.picks(one, metrics, frozenset({NONE})) or {} for one in (row, self.grid.rows[row].reference)
        )
        return {
            seed: statistics.fmean(
                100 * kept_share(final(mine), final(other)) for mine, other in zip(own[seed], theirs[seed], strict=True)
            )
            for seed in own.keys() & theirs.keys()
        }
