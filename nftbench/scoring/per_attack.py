"""Every attack on a row by itself: what it gains, the recipe that was picked, what it cost, and which cells failed."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from nftbench.contract import Cost
from nftbench.records.record import Record
from nftbench.scoring.grid import NONE, Attacks, Grid
from nftbench.scoring.intervals import Interval, average_by_seed, differences_by_seed, gap_by_seed, mean_by_seed
from nftbench.scoring.points import mean_points
from nftbench.terms import Adaptation


@dataclass(frozen=True)
class AttackRow:
    """One attack on one row: scores are means over tasks and base seeds, recipe and costs are medians."""

    attack: str
    knowledge: tuple[str, ...] | None
    """None for an attack without a record, because the knowledge is read from records."""
    adaptation: Adaptation
    against: tuple[str, ...]
    uses_release: bool
    counts: bool
    """True if the attack counts in the ranking: its knowledge is known, and is within the ranking's."""
    cells: int
    failed: int
    """Cells without a result."""
    faults: tuple[str, ...]
    """The reasons why these have none, as in `2 × nonfinite (…)`."""
    attacked: Interval | None
    gain: Interval | None
    gains: Mapping[str, float]
    """By task: means over base seeds."""
    learning_rate: float | None
    """The one picked most often over tasks and seeds; None if the attack has none, or if not training is best."""
    step: float | None
    """Of the picked point."""
    steps: float | None
    flops: float | None
    """None where the steps of the attack are not counted in FLOPs."""
    seconds: float | None
    memory: float | None
    """Bytes. Costs are of everything that the attacker of one task spends: preparation, sweep and restarts."""
    preparation: float | None
    """The share of `seconds` before the sweep."""


def per_attack(grid: Grid, defense: str, tasks: Sequence[str]) -> tuple[AttackRow, ...]:
    """Every attack that was planned on this row, or once for all rows; the strongest first."""
    shared = grid.attacks_on(grid.rows[defense].reference) & grid.ignoring_release()
    counting = grid.within(grid.ranking)
    rows = [
        _row(grid, defense, attack, tasks, counting) for attack in sorted((grid.attacks_on(defense) | shared) - {NONE})
    ]
    return tuple(sorted(rows, key=lambda row: -row.attacked.value if row.attacked else float("inf")))


def _row(grid: Grid, defense: str, attack: str, tasks: Sequence[str], counting: Attacks) -> AttackRow:
    units = [(task, seed) for task in tasks for seed in grid.seeds[defense]]
    cells = [cell for unit in units if (cell := grid.cell(defense, attack, *unit)) in grid.expected]
    planned = [task for task in tasks if any(cell.task == task for cell in cells)]
    known, alone = grid.attacks.get(attack), frozenset({attack})
    scores, unattacked = (
        mean_points(grid.best_attacks(defense, planned, tried)) for tried in (alone, frozenset({NONE}))
    )
    gains = {task: _gain(grid, defense, task, attack) for task in planned}
    faults = Counter(grid.faults[cell] for cell in cells if cell in grid.faults)
    found = [grid.records[cell] for cell in cells if cell not in grid.faults]
    costs = [record.cost for record in found if record.cost is not None]
    return AttackRow(
        attack=attack,
        knowledge=tuple(known.knowledge) if known else None,
        adaptation=known.adaptation if known else "finetuning",
        against=tuple(known.against) if known else (),
        uses_release=known is None or known.uses_release,
        counts=attack in counting,
        cells=len(cells),
        failed=faults.total(),
        faults=tuple(f"{count} × {fault}" for fault, count in sorted(faults.items())),
        attacked=mean_by_seed(scores),
        gain=gap_by_seed(scores, unattacked),
        gains={task: gain for task, gain in gains.items() if gain is not None},
        learning_rate=_picked_rate(found),
        step=_median(record.picked.step for record in found if record.picked),
        steps=_median(cost.preparation_steps + cost.steps for cost in costs),
        flops=_median(map(total_flops, costs)) if all(map(counted, costs)) else None,
        seconds=_median(cost.preparation_seconds + cost.seconds for cost in costs),
        memory=_median(cost.peak_memory_bytes for cost in costs if cost.peak_memory_bytes),
        preparation=_median(share for cost in costs if (share := _preparing(cost)) is not None),
    )


def _gain(grid: Grid, defense: str, task: str, attack: str) -> float | None:
    scores, unattacked = (grid.scores(defense, task, frozenset({tried})) for tried in (attack, NONE))
    return average_by_seed(differences_by_seed(scores, unattacked))


def counted(cost: Cost) -> bool:
    """Whether what it took was counted in FLOPs. Prompting, which takes time and no steps, is not."""
    return cost.step_flops > 0 or cost.seconds == 0


def total_flops(cost: Cost) -> float:
    """Of preparation, sweep and restarts."""
    return cost.preparation_flops + cost.steps * cost.step_flops


def _preparing(cost: Cost) -> float | None:
    seconds = cost.preparation_seconds + cost.seconds
    return cost.preparation_seconds / seconds if seconds else None


def _picked_rate(records: Sequence[Record]) -> float | None:
    """The rate picked most often; of several the lowest."""
    rates = Counter(record.picked.learning_rate for record in records if record.picked and record.picked.learning_rate)
    return max(sorted(rates), key=rates.__getitem__) if rates else None


def _median(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.median(found) if found else None
