"""Claims of papers compared with measurements: a suite's `claims`, computed from its records.

A quantity is one number for each base seed. A claim is about one quantity, or about the difference or ratio of two,
paired by seed. It holds if the whole 95 % interval is on the claimed side of its bound.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from nftbench.errors import shortened
from nftbench.records.record import Record
from nftbench.records.spec import Spec
from nftbench.scoring.frontier import mean_share
from nftbench.scoring.grid import NONE, Attacks, Grid, called
from nftbench.scoring.intervals import Interval, differences_by_seed, gap_by_seed, mean_by_seed
from nftbench.scoring.side_tables.protocol import Position, SideTable, SuiteEvidence
from nftbench.scoring.side_tables.utility_guard import Guard
from nftbench.scoring.table import UNKNOWN, Table, precise
from nftbench.scoring.utility import reached, scales, shares, usable
from nftbench.suites.schema import PaperClaim, Quantity

ClaimStatus = Literal["holds", "does not hold", "not distinguishable", "measured", "not measured"]
BySeed = Mapping[int, float]


@dataclass(frozen=True)
class ClaimResult:
    """One claim and its measurement."""

    claim: PaperClaim
    measured: Interval | None
    outcome: ClaimStatus
    """`measured` where the claim names no bound, or one seed allows no interval."""
    planned: int = 0
    """The suite's base seeds; `measured.count` says how many of them were used."""
    reason: str | None = None
    """Why it is not measured."""


@dataclass(frozen=True)
class PaperClaims(SideTable):
    """A line for each claim."""

    name: ClassVar[str] = "claims"
    position: ClassVar[Position] = "first"
    guide: ClassVar[str] = """\
- **Claims**: what a paper says, and the measurement over as many base seeds as stand beside it. A claim *holds* where
  the whole interval lies on its side of the bound, *does not hold* where it lies on the other, and is *not
  distinguishable* between; without a bound or with one seed it is *measured*. Nothing is corrected for their number.
"""

    rows: tuple[ClaimResult, ...]

    @classmethod
    def of(cls, evidence: SuiteEvidence) -> PaperClaims:
        return cls(examine(evidence.paper_claims, evidence.grid, evidence.readings))

    def tables(self) -> tuple[Table, ...]:
        rows = tuple(
            (
                one.claim.says,
                one.claim.paper or UNKNOWN,
                precise(one.measured),
                _seeds(one),
                bound(one.claim),
                f"{one.outcome}: {one.reason}" if one.reason else one.outcome,
            )
            for one in self.rows
        )
        return (Table("Claims", ("claim", "the paper", "measured", "seeds", "holds if", "outcome"), rows),)

    def content(self) -> Any:
        return self.rows


def bound(claim: PaperClaim) -> str:
    """`above 0`."""
    if claim.above is None and claim.below is None:
        return UNKNOWN
    return f"above {claim.above:g}" if claim.above is not None else f"below {claim.below:g}"


def _seeds(one: ClaimResult) -> str:
    """`3`, or `2 of 3` where one seed lacks a number."""
    count = one.measured.count if one.measured else 0
    return f"{count}" if count == one.planned else f"{count} of {one.planned}"


def examine(claims: Sequence[PaperClaim], grid: Grid, readings: Sequence[Record]) -> tuple[ClaimResult, ...]:
    """Every claim with its measurement."""
    numbers = _Numbers(grid, readings)
    seeds = len({cell.seed for cell in grid.expected} | {record.seed for record in readings})
    results = []
    for claim in claims:
        measured, reason = _measured(claim, numbers)
        results.append(ClaimResult(claim, measured, _outcome(claim, measured), seeds, reason))
    return tuple(results)


def _measured(claim: PaperClaim, numbers: _Numbers) -> tuple[Interval | None, str | None]:
    """The interval; or None and why: no seed has all the numbers, or a quotient would be by zero."""
    first, other = numbers.read(claim.read), claim.minus or claim.over
    if other is None:
        return mean_by_seed(first), None if first else numbers.lacking(claim.read)
    second = numbers.read(other)
    seeds = first.keys() & second.keys()
    if not seeds:
        lacking = [numbers.lacking(one) for one, found in ((claim.read, first), (other, second)) if not found]
        return None, lacking[0] if lacking else "no seed has both of its numbers"
    if claim.over is None:
        return gap_by_seed(first, second), None
    if zero := sorted(seed for seed in seeds if second[seed] == 0):
        return None, f"a quotient by zero: {claim.over.read} of {', '.join(claim.over.rows)} is 0 at seed {zero[0]}"
    return mean_by_seed({seed: first[seed] / second[seed] for seed in seeds}), None


def _outcome(claim: PaperClaim, measured: Interval | None) -> ClaimStatus:
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
class _Numbers:
    """The numbers that claims are about, by base seed."""

    grid: Grid
    readings: Sequence[Record]

    def read(self, quantity: Quantity) -> BySeed:
        """The mean over the quantity's rows, at the seeds that all of them have."""
        rows = [self.of_row(row, quantity) for row in quantity.rows]
        seeds = set.intersection(*(set(found) for found in rows))
        return {seed: statistics.fmean(found[seed] for found in rows) for seed in seeds}

    def of_row(self, row: str, quantity: Quantity) -> BySeed:
        if "." in quantity.read:
            return self.reading(row, *quantity.read.split(".", 1))
        if row not in self.grid.rows:
            return {}
        if quantity.read == "utility":
            return self.utility(row, quantity.tasks)
        return self.attacked(row, quantity)

    def reading(self, row: str, yardstick: str, name: str) -> BySeed:
        """A value of a yardstick, whatever its parameters."""
        return {
            record.seed: record.reading.values[name]
            for record in self.readings
            if record.defense == row and Spec.parse(record.task).name == yardstick
            if record.reading is not None and name in record.reading.values
        }

    def utility(self, row: str, named: Sequence[str]) -> BySeed:
        """The share of the reference's utility that is kept, in percent: the leaderboard's mean, or that over the named
        metrics.

        A metric of which the reference knows nothing has no share.
        """
        known = usable(scales(self.grid, self.grid.rows[row].reference))
        if not known.keys() >= set(named):
            return {}
        chosen = {metric: known[metric] for metric in named} if named else known
        kept = {metric: own for metric, own in shares(reached(self.grid, row, chosen), chosen).items() if own}
        return {seed: 100 * share for seed, share in mean_share(kept).items()}

    def attacked(self, row: str, quantity: Quantity) -> BySeed:
        """The quantity after the best attack; means over tasks, at the seeds that have them all."""
        attacks, tasks = self._attacks(quantity), self._tasks(quantity)
        found = [self.on_task(row, task, attacks, quantity.read) for task in tasks]
        seeds = set.intersection(*map(set, found)) if found else set()
        return {seed: statistics.fmean(by_seed[seed] for by_seed in found) for seed in seeds}

    def on_task(self, row: str, task: str, attacks: Attacks, read: str) -> BySeed:
        """By seed, `read` on one task after the best attack.

        `score` is the score in points, and `gain` that minus the unattacked score. `kept` is the part of the release's
        lead over its reference that is left after the attack, and `utility_after` the share of its utility.
        """
        if read == "utility_after":
            return self.utility_after(row, task, attacks)
        scores = self.grid.scores(row, task, attacks)
        if read == "score":
            return scores
        alone = self.grid.scores(row, task, frozenset({NONE}))
        if read == "gain":
            return differences_by_seed(scores, alone)
        base = self.grid.scores(self.grid.rows[row].reference, task, frozenset({NONE}))
        seeds = scores.keys() & alone.keys() & base.keys()
        return {s: (scores[s] - base[s]) / (alone[s] - base[s]) for s in seeds if alone[s] != base[s]}

    def utility_after(self, row: str, task: str, attacks: Attacks) -> BySeed:
        """By seed: percent of the release's own utility that the best attack leaves.

        A release that knows nothing has no share, and neither has a model after which some metric was not measured.
        """
        guard = Guard(self.grid, row, usable(scales(self.grid, self.grid.rows[row].reference)))
        best = self.grid.best_attacks(row, [task], attacks) or {}
        kept = {
            seed: guard.kept(record)
            for seed, (record,) in best.items()
            if any(by_seed.get(seed, 0.0) > 0 for by_seed in guard.release.values())
            if guard.release.keys() <= (record.attacked_utility or {}).keys()
        }
        return {seed: 100 * share for seed, share in kept.items() if share is not None}

    def _attacks(self, quantity: Quantity) -> Attacks:
        grid = self.grid
        return frozenset(quantity.attacks) or grid.within(grid.ranking) - grid.ignoring_release() - {NONE}

    def _tasks(self, quantity: Quantity) -> Sequence[str]:
        return quantity.tasks or tuple(task for task in self.grid.tasks if self._role(task) == "ranked")

    def _role(self, task: str) -> str:
        return next((record.role for record in self.grid.records.values() if record.task == task), "ranked")

    # ------------------------------------------------------------------------------------------ why there is no number

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
            reference = grid.rows[row].reference
            return f"{row} and {called(reference)} share no seed with utility, or the latter knows nothing of a metric"
        if faults := self._faults(row, quantity):
            return shortened(faults, 1)
        attacks = self._attacks(quantity)
        if not attacks & grid.attacks_on(row):
            return f"not run on {row}: {', '.join(sorted(attacks)) or 'any attack'}"
        if quantity.read == "kept":
            return f"nothing to keep: unattacked {row} scores what {called(grid.rows[row].reference)} does"
        return f"no {quantity.read} of {row}"

    def _faults(self, row: str, quantity: Quantity) -> list[str]:
        rows = {row, self.grid.rows[row].reference} if quantity.read == "kept" else {row}
        attacks, tasks = self._attacks(quantity) | {NONE}, self._tasks(quantity)
        return [
            f"{cell}: {fault}"
            for cell, fault in sorted(self.grid.faults.items())
            if cell.defense in rows and cell.task in tasks and cell.attack in attacks
        ]

    def _unread(self, row: str, yardstick: str, name: str) -> str:
        found = [one for one in self.readings if one.defense == row and Spec.parse(one.task).name == yardstick]
        failed = [one for one in found if one.reading is None]
        if failed:
            return f"{yardstick} of {row}, seed {failed[0].seed}: {failed[0].status}"
        return f"{yardstick} of {row} has no {name}" if found else f"{yardstick} was not read off {row}"
