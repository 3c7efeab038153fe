"""What a paper claims beside what was measured: a suite's `claims`, worked out from its records.

Each quantity is a number for each base seed; a claim is one of them, a difference or a ratio of two, paired by seed,
and holds where its whole 95 % interval lies on the claim's side.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from nftbench.records.record import Record
from nftbench.scoring.grid import NONE, Grid, Level, final, kept_share
from nftbench.scoring.intervals import Interval, gap_by_seed, mean_by_seed
from nftbench.suites.schema import PaperClaim, Quantity

Outcome = Literal["holds", "does not hold", "not distinguishable", "measured", "not measured"]
BySeed = Mapping[int, float]


@dataclass(frozen=True)
class ClaimResult:
    """One claim, and what became of it."""

    claim: PaperClaim
    measured: Interval | None
    outcome: Outcome
    """`measured` where the claim names no bound, or one seed allows no interval."""
    planned: int = 0
    """The suite's base seeds; `measured` says on how many of them it rests."""
    reason: str | None = None
    """Why it is not measured."""


def examine(claims: Sequence[PaperClaim], grid: Grid, readings: Sequence[Record]) -> tuple[ClaimResult, ...]:
    """Every claim, beside its measurement."""
    sheet = _Sheet(grid, readings)
    seeds = len({place.seed for place in grid.expected} | {record.seed for record in readings})
    results = []
    for claim in claims:
        measured, reason = _measured(claim, sheet)
        results.append(ClaimResult(claim, measured, _outcome(claim, measured), seeds, reason))
    return tuple(results)


def _measured(claim: PaperClaim, sheet: _Sheet) -> tuple[Interval | None, str | None]:
    """The interval, or why there is none: no seed has all that the claim is about, or a quotient would be by zero."""
    first, other = sheet.read(claim.read), claim.minus or claim.over
    if other is None:
        return mean_by_seed(first), None if first else sheet.lacking(claim.read)
    second = sheet.read(other)
    seeds = first.keys() & second.keys()
    if not seeds:
        lacking = [sheet.lacking(one) for one, found in ((claim.read, first), (other, second)) if not found]
        return None, lacking[0] if lacking else "no seed has both of its numbers"
    if claim.over is None:
        return gap_by_seed(first, second), None
    if zero := sorted(seed for seed in seeds if second[seed] == 0):
        return None, f"a quotient by zero: {claim.over.read} of {', '.join(claim.over.rows)} is 0 at seed {zero[0]}"
    return mean_by_seed({seed: first[seed] / second[seed] for seed in seeds}), None


def _outcome(claim: PaperClaim, measured: Interval | None) -> Outcome:
    if measured is None:
        return "not measured"
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

    def lacking(self, quantity: Quantity) -> str:
        """Why no seed has this quantity."""
        empty = [row for row in quantity.rows if not self.of_row(row, quantity)]
        if not empty:
            return f"no seed has it for all of {', '.join(quantity.rows)}"
        row, grid = empty[0], self.grid
        if "." in quantity.read:
            return self._unread(row, *quantity.read.split(".", 1))
        if row not in grid.rows:
            return f"no records of {row}"
        if quantity.read == "utility":
            return f"no utility of {row} and of {grid.rows[row].reference} at the same seed"
        attacks, tasks = self._attacks(quantity), self._tasks(quantity)
        rows = {row, grid.rows[row].reference} if quantity.read == "kept" else {row}
        faults = [
            f"{place}: {fault}"
            for place, fault in sorted(grid.faults.items())
            if place.defense in rows and place.task in tasks and place.attack in attacks | {NONE}
        ]
        if faults:
            return faults[0] + (f", and {len(faults) - 1} more" if faults[1:] else "")
        if not attacks & grid.on(row):
            return f"not run on {row}: {', '.join(sorted(attacks)) or 'any attack'}"
        if quantity.read == "kept":
            return f"nothing to keep: unattacked {row} scores what {grid.rows[row].reference} does"
        return f"no {quantity.read} of {row}"

    def _unread(self, row: str, yardstick: str, name: str) -> str:
        found = [one for one in self.readings if one.defense == row and one.task.partition("[")[0] == yardstick]
        failed = [one for one in found if one.reading is None]
        if failed:
            return f"{yardstick} of {row}, seed {failed[0].seed}: {failed[0].status}"
        return f"{yardstick} of {row} has no {name}" if found else f"{yardstick} was not read off {row}"

    def of_row(self, row: str, quantity: Quantity) -> BySeed:
        if "." in quantity.read:
            return self.reading(row, *quantity.read.split(".", 1))
        if row not in self.grid.rows:
            return {}
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
        """`score`, `gain`, or the share of the way from the reference's unattacked score that is `kept`; means over
        tasks, of the seeds that have them all."""
        attacks, tasks = self._attacks(quantity), self._tasks(quantity)
        found = [self.on_task(row, task, attacks, quantity.read) for task in tasks]
        seeds = set.intersection(*map(set, found)) if found else set()
        return {seed: statistics.fmean(by_seed[seed] for by_seed in found) for seed in seeds}

    def _attacks(self, quantity: Quantity) -> Level:
        grid = self.grid
        return frozenset(quantity.attacks) or grid.within(grid.ranking) - grid.ignoring() - {NONE}

    def _tasks(self, quantity: Quantity) -> Sequence[str]:
        return quantity.tasks or tuple(task for task in self.grid.tasks if self.role(task) == "ranked")

    def on_task(self, row: str, task: str, attacks: Level, read: str) -> BySeed:
        scores = self.grid.scores(row, task, attacks)
        if read == "score":
            return scores
        alone = self.grid.scores(row, task, frozenset({NONE}))
        if read == "gain":
            return {seed: scores[seed] - alone[seed] for seed in scores.keys() & alone.keys()}
        base = self.grid.scores(self.grid.rows[row].reference, task, frozenset({NONE}))
        seeds = scores.keys() & alone.keys() & base.keys()
        return {s: (scores[s] - base[s]) / (alone[s] - base[s]) for s in seeds if alone[s] != base[s]}

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
