"""How near attacks come to a secret mask, and what the masks that they guess are worth to them.

mask value recovered = (recovered - unauthorised) / (authorised - unauthorised) in test scores: 0 where fine-tuning
under the guessed mask does as fine-tuning all weights without leave does, 1 where it does as the owner's with the
secret. The ratio is for display; the scores stand beside it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from nftbench.scoring.grid import Grid, mean_points
from nftbench.scoring.intervals import PRELIMINARY_SEEDS, Interval, beats_zero, gap_by_seed, holm, mean_by_seed, ratio

UNAUTHORISED = "full"
"""The attack that trains all weights, as most attacks do under the mask that they guessed."""
Outcome = Literal["measured", "not distinguishable", "worth nothing", "not measured"]
BySeed = Mapping[int, float]


@dataclass(frozen=True)
class RecoveredRow:
    """One attack that guesses, on one row; means over base seeds."""

    defense: str
    attack: str
    knowledge: tuple[str, ...]
    metrics: Mapping[str, Interval]
    """By name, as the referee scores the guess; `density` is the share that the mask marks."""
    chance: Mapping[str, float]
    """What a guess that knows nothing scores."""
    finds: bool | None = None
    """The guess is told from chance: ROC-AUC over all weights above a half, Holm-corrected over rows; None with fewer
    than three seeds."""
    unauthorised: Interval | None = None
    recovered: Interval | None = None
    authorised: Interval | None = None
    """Test scores in points, means over the tasks."""
    gap: Interval | None = None
    """authorised - unauthorised, paired by seed."""
    value: Interval | None = None
    outcome: Outcome = "not measured"
    """`not distinguishable` where the interval of `gap` covers zero, `worth nothing` where it lies below."""


def recovered_table(grid: Grid, tasks: Mapping[str, Sequence[str]]) -> tuple[RecoveredRow, ...]:
    """A row for each defense and attack that guesses its secret; `tasks` are those that count, by reference."""
    found: dict[tuple[str, str], dict[int, list[Mapping[str, float]]]] = {}
    for place, record in sorted(grid.records.items()):
        # the owner knows the secret, so that a guess of theirs says nothing
        if record.recovery and place not in grid.faults and "secret" not in record.knowledge:
            found.setdefault((place.defense, place.attack), {}).setdefault(place.seed, []).append(record.recovery)
    rows = [
        _with_value(grid, _row(grid, defense, attack, by_seed), tasks.get(grid.rows[defense].reference, ()))
        for (defense, attack), by_seed in found.items()
    ]
    p_values = [_p(guesses) for guesses in found.values()]
    adjusted = iter(holm([p for p in p_values if p is not None]))
    return tuple(
        row if p is None else replace(row, finds=beats_zero(next(adjusted)))
        for row, p in zip(rows, p_values, strict=True)
    )


def _row(grid: Grid, defense: str, attack: str, guesses: Mapping[int, Sequence[Mapping[str, float]]]) -> RecoveredRow:
    names = sorted({name for each in guesses.values() for metrics in each for name in metrics})
    means = {name: mean_by_seed(_metric(guesses, name)) for name in names}
    metrics = {name: interval for name, interval in means.items() if interval is not None}
    share = metrics["density"].value if "density" in metrics else None
    chance = {"roc_auc": 0.5, "roc_auc_within": 0.5, "mcc": 0.0}
    if share is not None:  # of guesses cut at the mask's size
        chance |= {"pr_auc": share, "precision": share, "iou": share / (2 - share)}
    return RecoveredRow(
        defense,
        attack,
        tuple(grid.attacks[attack].knowledge),
        metrics,
        {name: value for name, value in chance.items() if name in metrics},
    )


def _metric(guesses: Mapping[int, Sequence[Mapping[str, float]]], name: str) -> dict[int, float]:
    """A metric by seed; the tasks of a release share its guess, or else they are averaged."""
    found = {
        seed: [metrics[name] for metrics in each if math.isfinite(metrics.get(name, math.nan))]
        for seed, each in guesses.items()
    }
    return {seed: statistics.fmean(values) for seed, values in found.items() if values}


def _p(guesses: Mapping[int, Sequence[Mapping[str, float]]]) -> float | None:
    above = mean_by_seed({seed: value - 0.5 for seed, value in _metric(guesses, "roc_auc").items()})
    return above.p if above is not None and above.count >= PRELIMINARY_SEEDS else None


def _with_value(grid: Grid, row: RecoveredRow, tasks: Sequence[str]) -> RecoveredRow:
    owner = frozenset(attack for attack in grid.secret() if grid.attacks[attack].adaptation == "finetuning")
    without, guessed, leave = (
        mean_points(grid.picks(row.defense, tasks, attacks))
        for attacks in (frozenset({UNAUTHORISED}), frozenset({row.attack}), owner)
    )
    gap = gap_by_seed(leave, without)
    scored = replace(
        row,
        unauthorised=mean_by_seed(without),
        recovered=mean_by_seed(guessed),
        authorised=mean_by_seed(leave),
        gap=gap,
    )
    seeds = sorted(without.keys() & guessed.keys() & leave.keys())
    if gap is None or not seeds:
        return scored
    if gap.low <= 0:
        return replace(scored, outcome="worth nothing" if gap.high < 0 else "not distinguishable")
    value = ratio([guessed[s] - without[s] for s in seeds], [leave[s] - without[s] for s in seeds])
    return replace(scored, value=value, outcome="not distinguishable" if value is None else "measured")
