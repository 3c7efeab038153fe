"""Every attack on a row by itself: what it gains, the recipe that was picked, what it cost, and what became of it."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from nftbench.contract import Cost
from nftbench.records.record import Record
from nftbench.scoring.grid import NONE, Grid, Level, mean_points
from nftbench.scoring.intervals import Interval, average_by_seed, gap_by_seed, mean_by_seed
from nftbench.terms import Adaptation


@dataclass(frozen=True)
class AttackRow:
    """One attack on one row: means over the tasks and base seeds, of the recipe and the costs the middle ones."""

    attack: str
    knowledge: tuple[str, ...] | None
    """None for an attack without a record: what it knows stands in its records."""
    adaptation: Adaptation
    against: tuple[str, ...]
    uses_release: bool
    counts: bool
    """Its knowledge lies within the ranking level, if that is known."""
    cells: int
    failed: int
    """Of these, those without a result."""
    faults: tuple[str, ...]
    """What became of those, as `2 × nonfinite (…)`."""
    attacked: Interval | None
    gain: Interval | None
    gains: Mapping[str, float]
    """By task: means over base seeds."""
    learning_rate: float | None
    """Picked most often over tasks and seeds; None for an attack that has none, or where not training is best."""
    step: float | None
    """Median of the picked ones."""
    steps: float | None
    flops: float | None
    """None where the steps of the attack are not counted in FLOPs."""
    seconds: float | None
    memory: float | None
    """Bytes. Medians over tasks and seeds of all that one task's attacker spends: preparation, sweep and restarts."""
    preparation: float | None
    """The share of `seconds` before the sweep."""


def catalogue(grid: Grid, defense: str, tasks: Sequence[str]) -> tuple[AttackRow, ...]:
    """Every attack that was planned on this row, or for everyone; the strongest of them first."""
    attacks = (grid.on(defense) | (grid.on(grid.rows[defense].reference) & grid.ignoring())) - {NONE}
    counting = grid.within(grid.ranking)
    rows = [_row(grid, defense, attack, tasks, counting) for attack in sorted(attacks)]
    return tuple(sorted(rows, key=lambda row: -row.attacked.value if row.attacked else float("inf")))


def _row(grid: Grid, defense: str, attack: str, tasks: Sequence[str], counting: Level) -> AttackRow:
    units = [(task, seed) for task in tasks for seed in grid.seeds[defense]]
    places = [place for unit in units if (place := grid.place(defense, attack, *unit)) in grid.expected]
    on = [task for task in tasks if any(place.task == task for place in places)]
    known, alone = grid.attacks.get(attack), frozenset({attack})
    scores, zero = (mean_points(grid.picks(defense, on, tried)) for tried in (alone, frozenset({NONE})))
    gains = {task: _gain(grid, defense, task, attack) for task in on}
    faults = Counter(grid.faults[place] for place in places if place in grid.faults)
    found = [grid.records[place] for place in places if place not in grid.faults]
    costs = [record.cost for record in found if record.cost is not None]
    return AttackRow(
        attack=attack,
        knowledge=tuple(known.knowledge) if known else None,
        adaptation=known.adaptation if known else "finetuning",
        against=tuple(known.against) if known else (),
        uses_release=known is None or known.uses_release,
        counts=attack in counting,
        cells=len(places),
        failed=faults.total(),
        faults=tuple(f"{count} × {fault}" for fault, count in sorted(faults.items())),
        attacked=mean_by_seed(scores),
        gain=gap_by_seed(scores, zero),
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
    scores, zero = (grid.scores(defense, task, frozenset({tried})) for tried in (attack, NONE))
    return average_by_seed({seed: scores[seed] - zero[seed] for seed in scores.keys() & zero.keys()})


def counted(cost: Cost) -> bool:
    """Whether what it took was counted in FLOPs; prompting takes no step, and time."""
    return cost.step_flops > 0 or cost.seconds == 0


def total_flops(cost: Cost) -> float:
    """Of preparation, sweep and restarts."""
    return cost.preparation_flops + cost.steps * cost.step_flops


def _preparing(cost: Cost) -> float | None:
    seconds = cost.preparation_seconds + cost.seconds
    return cost.preparation_seconds / seconds if seconds else None


def _picked_rate(records: Sequence[Record]) -> float | None:
    """Between rates that are picked as often the lowest."""
    rates = Counter(record.picked.learning_rate for record in records if record.picked and record.picked.learning_rate)
    return max(sorted(rates), key=rates.__getitem__) if rates else None


def _median(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.median(found) if found else None
