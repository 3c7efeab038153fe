"""Attacks that prepare on public text, beside an attacker who ignores the release and trains on as much of that text.

What the second reaches the text alone is worth; only what the first reaches beyond it comes from the release.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from nftbench.scoring.grid import Grid, Picks, mean_points
from nftbench.scoring.intervals import Interval, gap_by_seed, mean_by_seed


@dataclass(frozen=True)
class HealedRow:
    """One row under one such attack; test scores in points, means over tasks and base seeds."""

    defense: str
    attack: str
    steps: float
    """Optimizer steps on text, the same for both."""
    healed: Interval | None
    control: str
    afresh: Interval | None
    beyond: Interval | None
    """healed - afresh, paired by seed."""


def healing_table(grid: Grid, defense: str, tasks: Sequence[str]) -> tuple[HealedRow, ...]:
    """Each pair of an attack on this row and a control that has the same knowledge and took as many steps before its
    sweep; none where the suite has no such control."""
    rows = []
    for control in sorted(attack for attack in grid.ignoring() - grid.secret() if grid.attacks[attack].knowledge):
        theirs = grid.picks(defense, tasks, frozenset({control})) or {}
        for attack in sorted(grid.on(defense) & grid.attacks.keys()):
            record = grid.attacks[attack]
            alike = set(record.knowledge) == set(grid.attacks[control].knowledge)
            mine = grid.picks(defense, tasks, frozenset({attack})) if alike and record.uses_release else None
            if mine and theirs and (steps := _steps(mine)) == _steps(theirs) > 0:
                healed, afresh = mean_points(mine), mean_points(theirs)
                rows.append(
                    HealedRow(
                        defense,
                        attack,
                        steps,
                        mean_by_seed(healed),
                        control,
                        mean_by_seed(afresh),
                        gap_by_seed(healed, afresh),
                    )
                )
    return tuple(rows)


def _steps(picks: Picks) -> float:
    """The median of the steps before the sweep."""
    taken = [record.cost.preparation_steps for picked in picks.values() for record in picked if record.cost]
    return statistics.median(taken) if taken else 0
