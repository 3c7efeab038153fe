"""Attacks that prepare on public text, compared with training from scratch on the same amount of that text.

An attacker who ignores the release needs only the text. So the difference is what the release contributes.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from nftbench.scoring.grid import Grid
from nftbench.scoring.intervals import Interval, gap_by_seed, mean_by_seed
from nftbench.scoring.points import BestAttacks, mean_points
from nftbench.scoring.side_tables.protocol import Position, SideTable, SuiteEvidence
from nftbench.scoring.table import Table, interval


@dataclass(frozen=True)
class TextRow:
    """One row under one attack that prepares on text; test scores in points, means over tasks and base seeds."""

    defense: str
    attack: str
    steps: float
    """Optimizer steps on text, the same for both."""
    from_release: Interval | None
    control: str
    """The attack that trains from scratch on the same text."""
    from_scratch: Interval | None
    beyond: Interval | None
    """from_release - from_scratch, paired by seed."""


@dataclass(frozen=True)
class TextControl(SideTable):
    """A line for each row, attack and control; no line where the suite has no such control."""

    name: ClassVar[str] = "healed"
    position: ClassVar[Position] = "after the details"

    rows: tuple[TextRow, ...]

    @classmethod
    def of(cls, evidence: SuiteEvidence) -> TextControl:
        grid = evidence.grid
        return cls(
            tuple(
                row
                for defense in sorted(grid.rows)
                for row in _rows(grid, defense, evidence.tasks[grid.rows[defense].reference])
            )
        )

    def tables(self) -> tuple[Table, ...]:
        rows = tuple(
            (
                one.defense,
                one.attack,
                f"{one.steps:g}",
                interval(one.from_release),
                one.control,
                interval(one.from_scratch),
                interval(one.beyond),
            )
            for one in self.rows
        )
        header = ("defense", "attack", "steps on text", "healed", "control", "afresh", "beyond the text")
        return (Table("Healed beside afresh, given the same text", header, rows),)

    def content(self) -> Any:
        return [
            {
                "defense": one.defense,
                "attack": one.attack,
                "steps": one.steps,
                "healed": one.from_release,
                "control": one.control,
                "afresh": one.from_scratch,
                "beyond": one.beyond,
            }
            for one in self.rows
        ]


def _rows(grid: Grid, defense: str, tasks: Sequence[str]) -> Iterator[TextRow]:
    """Each pair of an attack and a control that know the same and took as many steps before their sweeps."""
    controls = grid.ignoring_release() - grid.by_owner() - grid.from_scratch()
    for control in sorted(controls):
        scratch = grid.best_attacks(defense, tasks, frozenset({control})) or {}
        for attack in sorted(grid.attacks_on(defense) & grid.attacks.keys()):
            record = grid.attacks[attack]
            if not record.uses_release or set(record.knowledge) != set(grid.attacks[control].knowledge):
                continue
            release = grid.best_attacks(defense, tasks, frozenset({attack})) or {}
            if release and scratch and (steps := _steps(release)) == _steps(scratch) > 0:
                reached, floor = mean_points(release), mean_points(scratch)
                gap = gap_by_seed(reached, floor)
                yield TextRow(defense, attack, steps, mean_by_seed(reached), control, mean_by_seed(floor), gap)


def _steps(best: BestAttacks) -> float:
    """The median number of steps before the sweep."""
    taken = [record.cost.preparation_steps for records in best.values() for record in records if record.cost]
    return statistics.median(taken) if taken else 0
