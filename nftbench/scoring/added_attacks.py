"""What an added attack adds: how much further attackers get with it than with the catalogue alone, on each row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nftbench.scoring.grid import Attacks, Grid
from nftbench.scoring.intervals import Interval, gap_by_seed, mean_by_seed
from nftbench.scoring.points import mean_points


@dataclass(frozen=True)
class Addition:
    """An added attack on one row, beside the attacks of the catalogue that need no more knowledge; in points."""

    defense: str
    catalogue: Interval | None
    """Where the best of the catalogue's attacks end."""
    alone: Interval | None
    """Where the added attack ends by itself; None where a cell of it has no result."""
    adds: Interval | None
    """How much further the best of both end than the best of the catalogue, paired by seed. None on a reference."""


@dataclass(frozen=True)
class AddedAttack:
    """An attack that neither the suite nor nftbench has."""

    attack: str
    counts: bool
    """Whether its knowledge is within the ranking's."""
    additions: tuple[Addition, ...]
    """For the references, which it does not count on, and the defenses that it was run on."""


def added_attacks(grid: Grid, tasks: Mapping[str, Sequence[str]]) -> tuple[AddedAttack, ...]:
    """Each added attack with a record; `tasks` are those with headroom, by reference."""
    within = grid.within(grid.ranking)
    return tuple(
        AddedAttack(attack, attack in within, tuple(_additions(grid, attack, tasks)))
        for attack in sorted(grid.added & grid.attacks.keys())
    )


def _additions(grid: Grid, attack: str, tasks: Mapping[str, Sequence[str]]) -> list[Addition]:
    record = grid.attacks[attack]
    level = frozenset(grid.ranking) | frozenset(record.knowledge)
    catalogue = grid.within(level, record.adaptation) - grid.added
    rows = [
        defense
        for defense, row in sorted(grid.rows.items())
        if attack in grid.attacks_on(defense) and not row.trivial and row.reference in tasks
    ]
    return [_addition(grid, defense, tasks[grid.rows[defense].reference], attack, catalogue) for defense in rows]


def _addition(grid: Grid, defense: str, tasks: Sequence[str], attack: str, catalogue: Attacks) -> Addition:
    alone, others, both = (
        mean_points(grid.best_attacks(defense, tasks, attacks))
        for attacks in (frozenset({attack}), catalogue, catalogue | {attack})
    )
    counts = alone and defense not in grid.references()
    return Addition(defense, mean_by_seed(others), mean_by_seed(alone), gap_by_seed(both, others) if counts else None)
