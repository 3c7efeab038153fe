"""Excess suppression: what a defense takes from the attacker beyond its controls, and the test of its claim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nftbench.records.record import Row
from nftbench.scoring.grid import Attacks, Grid
from nftbench.scoring.intervals import Interval, gap_by_seed, weakest
from nftbench.scoring.resistance import attacked_by_row
from nftbench.scoring.scores import ClaimTest, Excess, Utility


def controls(grid: Grid, defense: str, utilities: Mapping[str, Utility]) -> list[str]:
    """What a row must beat: its reference, and the trivial defenses of that reference that clear the utility bar.

    A control clears the bar by its mean, a defense by its lower bound: the burden of proof is on the defense. A control
    of unknown utility stays in.
    """
    reference = grid.rows[defense].reference
    trivial = [
        name
        for name, row in sorted(grid.rows.items())
        if row.trivial and row.reference == reference and name not in (defense, reference)
    ]
    return [reference] + [
        name for name in trivial if (kept := utilities[name].retention) is None or kept.value >= grid.utility_bar
    ]


def excess(grid: Grid, defense: str, tasks: Sequence[str], over: Sequence[str]) -> Excess:
    """Suppression beyond the strongest of these controls, at the ranking's knowledge."""
    matched = grid.rows[defense].control
    attacked = attacked_by_row(grid, [defense, *over, matched], tasks, grid.within(grid.ranking))
    own = attacked[defense]
    beyond = gap_by_seed(attacked[matched], own) if matched is not None and matched in attacked else None
    gaps = _gaps(attacked, defense, over)
    if not gaps:
        return Excess(controls=tuple(over), beyond_control=beyond)
    strongest = min(gaps, key=lambda name: gaps[name].value)
    reached = attacked[strongest]
    return Excess(
        interval=weakest(list(gaps.values())),
        by_seed={seed: reached[seed] - own[seed] for seed in sorted(own.keys() & reached.keys())},
        controls=tuple(over),
        over=strongest,
        beyond_control=beyond,
    )


def claim_test(grid: Grid, defense: str, tasks: Sequence[str], over: Sequence[str]) -> ClaimTest:
    """The defense's excess suppression of the attackers in its claim, and whether any of them has a result."""
    claim = grid.rows[defense].claim
    if claim is None:
        return ClaimTest()
    attacks = claimed_attacks(grid, grid.rows[defense])
    gaps = _gaps(attacked_by_row(grid, [defense, *over], tasks, attacks), defense, over)
    tested = any(
        cell.defense == defense and cell.attack in attacks and cell.task in tasks and cell not in grid.faults
        for cell, record in grid.records.items()
        if record.trains and record.uses_release
    )
    return ClaimTest(
        excess=weakest(list(gaps.values())) if gaps else None,
        tested=tested,
        covered=grid.uses_all(defense, frozenset(claim.knowledge), claim.adaptation),
    )


def claimed_attacks(grid: Grid, row: Row) -> Attacks:
    """The attacks that a row's claim is judged against; none without a claim.

    Methods are public, so the attacker may know the method whether the claim grants it or not.
    """
    if row.claim is None:
        return frozenset()
    return grid.within(frozenset(row.claim.knowledge) | {"method"}, row.claim.adaptation)


def _gaps(attacked: Mapping[str, Mapping[int, float]], defense: str, over: Sequence[str]) -> dict[str, Interval]:
    """What each control reaches beyond the defense; empty where one of them is not known."""
    gaps = {name: gap_by_seed(attacked.get(name, {}), attacked[defense]) for name in over}
    known = {name: gap for name, gap in gaps.items() if gap is not None}
    return known if len(known) == len(gaps) else {}
