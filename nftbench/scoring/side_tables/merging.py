"""Merging: how much of an update's gain is kept when it is merged with others, compared with its control.

kept = (merged - base) / (standalone - base), on the task's test split. It is 1 if the merged update gains as much as
the update alone, and 0 if the base model scores as well without it. Suppression does not include merging.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from nftbench.records.record import Row
from nftbench.scoring.grid import NONE, Grid
from nftbench.scoring.intervals import PRELIMINARY_SEEDS, Interval, gap_by_seed, mean_by_seed
from nftbench.scoring.side_tables.protocol import Position, SideTable, SuiteEvidence
from nftbench.scoring.table import UNKNOWN, Table, interval
from nftbench.scoring.utility_badge import Badge, MetricUtility, badge
from nftbench.terms import OF_UPDATES, Verdict


@dataclass(frozen=True)
class MergingRow:
    """One row under one merging attack; scores in points, None where records are missing or failed."""

    defense: str
    attack: str
    task: str
    base: Interval | None
    standalone: Interval | None
    merged: Interval | None
    kept: Interval | None
    control: str | None
    """The matched control that the defense names; None where it names none, and then nothing is judged."""
    control_kept: Interval | None
    beyond: Interval | None
    """`kept` minus the control's `kept`, paired by seed. It is below 0 if the defense withstands merging."""
    verdict: Verdict | None


@dataclass(frozen=True)
class Merging(SideTable):
    """A line for every row, attack and task on which merging or rescaling was tried."""

    name: ClassVar[str] = "merging"
    position: ClassVar[Position] = "after the flags"

    rows: tuple[MergingRow, ...]

    @classmethod
    def of(cls, evidence: SuiteEvidence) -> Merging:
        grid = evidence.grid
        merging = {attack for attack, record in grid.attacks.items() if record.adaptation in OF_UPDATES}
        tried = {(cell.defense, cell.task, cell.attack) for cell in grid.expected if cell.attack in merging}
        return cls(tuple(_row(evidence, defense, attack, task) for defense, task, attack in sorted(tried)))

    @classmethod
    def judges(cls, row: Row) -> bool:
        return row.claim is not None and row.claim.adaptation == "merging"

    def verdicts(self) -> Mapping[str, Sequence[Verdict]]:
        found: dict[str, list[Verdict]] = {}
        for row in self.rows:
            if row.verdict is not None:
                found.setdefault(row.defense, []).append(row.verdict)
        return found

    def tables(self) -> tuple[Table, ...]:
        rows = tuple(
            (
                one.defense,
                one.attack,
                one.task,
                interval(one.base),
                interval(one.standalone),
                interval(one.merged),
                interval(one.kept, 100),
                interval(one.control_kept, 100),
                interval(one.beyond, 100),
                one.verdict or UNKNOWN,
            )
            for one in self.rows
        )
        header = (
            "defense",
            "attack",
            "task",
            "base",
            "standalone",
            "merged",
            "kept %",
            "control keeps %",
            "less",
            "claim",
        )
        return (Table("Merging", header, rows),)

    def content(self) -> Any:
        return self.rows


def _row(evidence: SuiteEvidence, defense: str, attack: str, task: str) -> MergingRow:
    grid, row = evidence.grid, evidence.grid.rows[defense]
    base = grid.scores(row.reference, task, frozenset({NONE}))
    standalone, merged = (grid.scores(defense, task, frozenset({each})) for each in (NONE, attack))
    kept = _kept(grid, defense, attack, task)
    control_kept = _kept(grid, row.control, attack, task) if row.control is not None else {}
    beyond = gap_by_seed(kept, control_kept)
    return MergingRow(
        defense=defense,
        attack=attack,
        task=task,
        base=mean_by_seed(base),
        standalone=mean_by_seed(standalone),
        merged=mean_by_seed(merged),
        kept=mean_by_seed(kept),
        control=row.control,
        control_kept=mean_by_seed(control_kept),
        beyond=beyond,
        verdict=_verdict(evidence, defense, beyond, _worth(grid, defense, task))
        if _claimed(grid, defense, attack)
        else None,
    )


def _claimed(grid: Grid, defense: str, attack: str) -> bool:
    """Whether the claim is about this attack: rescaling alone merges nothing."""
    row = grid.rows[defense]
    return row.claim is not None and row.control is not None and grid.attacks[attack].adaptation == "merging"


def _kept(grid: Grid, defense: str, attack: str, task: str) -> dict[int, float]:
    """The share that is kept, by seed. A seed at which the update is worth nothing has none."""
    if defense not in grid.rows:
        return {}
    base = grid.scores(grid.rows[defense].reference, task, frozenset({NONE}))
    standalone, merged = (grid.scores(defense, task, frozenset({each})) for each in (NONE, attack))
    return {
        seed: (merged[seed] - base[seed]) / (standalone[seed] - base[seed])
        for seed in sorted(base.keys() & standalone.keys() & merged.keys())
        if standalone[seed] > base[seed]
    }


def _worth(grid: Grid, defense: str, task: str) -> Badge:
    """Whether the update alone gains what its control gains. One that gains next to nothing has nothing to keep."""
    row = grid.rows[defense]
    base, own, control = (
        grid.scores(name, task, frozenset({NONE})) if name is not None else {}
        for name in (row.reference, defense, row.control)
    )
    return badge([MetricUtility(own, {seed: (control[seed],) for seed in control.keys() & base.keys()}, base)])


def _verdict(evidence: SuiteEvidence, defense: str, beyond: Interval | None, worth: Badge) -> Verdict:
    """The claim holds if the whole interval is below 0: merging keeps less of the update than of its control.

    It holds at a cost unless the update alone is shown to be worth as much as its control.
    """
    least = max(PRELIMINARY_SEEDS, len(evidence.grid.seeds[defense]))
    if defense in evidence.unjudged or beyond is None or beyond.count < least:
        return "untested"
    if beyond.high >= 0:
        return "refuted"
    if defense in evidence.misleading:
        return "untested"
    return "holds" if worth == "keeps" else "holds at a cost"
