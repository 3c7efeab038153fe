"""Records become the table of merging: what a released update keeps of its task once merged, beside its control's.

kept = (merged - base) / (standalone - base), on the task's test split: 1 where merging leaves an update all that it was
worth, 0 where the base is as good. Merging has this table of its own and is no part of a suppression.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from nftbench.grid import NONE, Grid, final, points
from nftbench.statistics import Interval, gap_by_seed, mean_by_seed
from nftbench.types import OF_UPDATES

SEEDS = 3
"""Base seeds without which nothing can be told apart."""


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
    """The matched control that the defense names; None for one that names none, and then nothing is judged."""
    control_kept: Interval | None
    beyond: Interval | None
    """kept less the control's, paired by seed: a defense wants it below 0."""
    verdict: Literal["holds", "refuted", "untested"] | None


def merging_table(grid: Grid) -> tuple[MergingRow, ...]:
    """Every row, attack and task of the grid on which merging or rescaling was tried."""
    merging = {attack for attack, record in grid.attacks.items() if record.adaptation in OF_UPDATES}
    tried = {(place.defense, place.attack, place.task) for place in grid.expected if place.attack in merging}
    return tuple(_row(grid, *place) for place in sorted(tried, key=lambda place: (place[0], place[2], place[1])))


def _row(grid: Grid, defense: str, attack: str, task: str) -> MergingRow:
    row = grid.rows[defense]
    scores = [_points(grid, row.reference, NONE, task), _points(grid, defense, NONE, task)]
    scores.append(_points(grid, defense, attack, task))
    kept = _kept(grid, defense, attack, task)
    control_kept = _kept(grid, row.control, attack, task) if row.control is not None else {}
    beyond = gap_by_seed(kept, control_kept)
    base, standalone, merged = (mean_by_seed(by_seed) for by_seed in scores)
    return MergingRow(
        defense=defense,
        attack=attack,
        task=task,
        base=base,
        standalone=standalone,
        merged=merged,
        kept=mean_by_seed(kept),
        control=row.control,
        control_kept=mean_by_seed(control_kept),
        beyond=beyond,
        verdict=_verdict(grid, defense, beyond) if _claimed(grid, defense, attack) else None,
    )


def _claimed(grid: Grid, defense: str, attack: str) -> bool:
    """Whether the claim is about this attack: a scale alone merges nothing."""
    row = grid.rows[defense]
    return row.claim is not None and row.control is not None and grid.attacks[attack].adaptation == "merging"


def _kept(grid: Grid, defense: str, attack: str, task: str) -> dict[int, float]:
    """The share that is kept, by seed; a seed at which the update is worth nothing has none."""
    if defense not in grid.rows:
        return {}
    base = _points(grid, grid.rows[defense].reference, NONE, task)
    standalone, merged = (_points(grid, defense, each, task) for each in (NONE, attack))
    return {
        seed: (merged[seed] - base[seed]) / (standalone[seed] - base[seed])
        for seed in sorted(base.keys() & standalone.keys() & merged.keys())
        if standalone[seed] > base[seed]
    }


def _points(grid: Grid, defense: str, attack: str, task: str) -> Mapping[int, float]:
    """Test scores by seed; none at all where a cell failed, for that may have been the telling one."""
    picks = grid.picks(defense, [task], frozenset({attack})) or {} if defense in grid.rows else {}
    return {seed: points(final(record)) for seed, (record,) in picks.items()}


def _verdict(grid: Grid, defense: str, beyond: Interval | None) -> Literal["holds", "refuted", "untested"]:
    """Merging keeps less of the update than of its control: the whole interval has to lie below 0."""
    if beyond is None or beyond.count < max(SEEDS, len(grid.seeds[defense])):
        return "untested"
    return "holds" if beyond.high < 0 else "refuted"
