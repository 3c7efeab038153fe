"""The test of a defense's claim: what the attackers that it names leave of the defense."""

from __future__ import annotations

from collections.abc import Sequence

from nftbench.records.record import Row
from nftbench.scoring.grid import Attacks, Grid
from nftbench.scoring.intervals import Interval, gap_by_seed
from nftbench.scoring.resistance import attacked_by_row
from nftbench.scoring.scores import ClaimTest


def claimed_attacks(grid: Grid, row: Row) -> Attacks:
    """The attacks that a row's claim is judged against; none without a claim.

    Methods are public, so the attacker may know the method whether the claim grants it or not.
    """
    if row.claim is None:
        return frozenset()
    return grid.within(frozenset(row.claim.knowledge) | {"method"}, row.claim.adaptation)


def claim_test(grid: Grid, defense: str, tasks: Sequence[str], excess: Interval | None) -> ClaimTest:
    """What the attackers in the claim leave of the defense; `excess` is that under the same attackers."""
    row = grid.rows[defense]
    assert row.claim is not None  # or there would be nothing to test
    attacks = claimed_attacks(grid, row)
    attacked = attacked_by_row(grid, [defense, row.reference], tasks, attacks)
    tested = any(
        cell.defense == defense
        and cell.attack in attacks - grid.added
        and cell.task in tasks
        and cell not in grid.faults
        for cell, record in grid.records.items()
        if record.trains and record.uses_release
    )
    return ClaimTest(
        excess=excess,
        suppression=gap_by_seed(attacked.get(row.reference, {}), attacked[defense]),
        tested=tested,
        covered=grid.uses_all(defense, frozenset(row.claim.knowledge), row.claim.adaptation),
    )
