"""Mask recovery: how well attacks guess a secret mask, and how useful the guessed masks are to them.

mask value recovered = (recovered - unauthorised) / (authorised - unauthorised), in test scores. It is 0 if fine-tuning
under the guessed mask scores no better than fine-tuning all weights. It is 1 if it scores as well as the owner's
fine-tuning with the secret. The table also shows the scores themselves.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from nftbench.scoring.grid import Attacks, Grid, knowledge_name
from nftbench.scoring.intervals import PRELIMINARY_SEEDS, Interval, beats_zero, gap_by_seed, holm, mean_by_seed, ratio
from nftbench.scoring.points import mean_points
from nftbench.scoring.side_tables.protocol import Position, SideTable, SuiteEvidence
from nftbench.scoring.table import UNKNOWN, Table, interval

ValueStatus = Literal["measured", "not distinguishable", "worth nothing", "not measured"]
Guesses = Mapping[int, Sequence[Mapping[str, float]]]
"""By seed: the accuracy of each guess, by measure."""
METRICS = {
    "roc_auc": "ROC-AUC",
    "roc_auc_within": "within tensors",
    "pr_auc": "PR-AUC",
    "pr_auc_within": "within tensors",
    "iou": "IoU",
    "precision": "precision",
    "mcc": "MCC",
}
CHANCE_VARIES = ("pr_auc", "iou", "precision")
"""Metrics whose value for a random guess depends on the mask's size. The table shows this value beside them."""


@dataclass(frozen=True)
class MaskRow:
    """One attack that guesses, on one row; means over base seeds."""

    defense: str
    attack: str
    knowledge: tuple[str, ...]
    metrics: Mapping[str, Interval]
    """By name, as the referee scores the guess; `density` is the share of weights that the mask marks."""
    chance: Mapping[str, float]
    """What a guess that knows nothing scores."""
    finds: bool | None = None
    """The guess is better than chance: ROC-AUC over all weights above a half, Holm-corrected over rows. None with
    fewer than three seeds."""
    unauthorised: Interval | None = None
    recovered: Interval | None = None
    authorised: Interval | None = None
    """Test scores in points, means over the tasks."""
    gap: Interval | None = None
    """authorised - unauthorised, paired by seed."""
    value: Interval | None = None
    outcome: ValueStatus = "not measured"
    """`not distinguishable` if the interval of `gap` contains zero, `worth nothing` if it is below zero."""


@dataclass(frozen=True)
class MaskValue(SideTable):
    """A line for each defense and attack that guesses its secret."""

    name: ClassVar[str] = "recovered"
    position: ClassVar[Position] = "after the details"
    guide: ClassVar[str] = """\
- **Recovery of secrets**: how near a guess comes to the secret mask, in round brackets what knowing nothing scores;
  *above chance* is about ROC-AUC over all weights, Holm-corrected. **mask value recovered** is (recovered -
  unauthorised) / (authorised - unauthorised) with Fieller's interval, *not distinguishable* where that of the gap
  covers zero.
"""

    rows: tuple[MaskRow, ...]

    @classmethod
    def of(cls, evidence: SuiteEvidence) -> MaskValue:
        grid = evidence.grid
        guesses = _guesses(grid)
        rows = [
            _with_value(
                grid, _row(grid, defense, attack, by_seed), evidence.tasks.get(grid.rows[defense].reference, ())
            )
            for (defense, attack), by_seed in guesses.items()
        ]
        p_values = [_p(by_seed) for by_seed in guesses.values()]
        adjusted = iter(holm([p for p in p_values if p is not None]))
        return cls(
            tuple(
                row if p is None else replace(row, finds=beats_zero(next(adjusted)))
                for row, p in zip(rows, p_values, strict=True)
            )
        )

    def tables(self) -> tuple[Table, ...]:
        guesses = tuple(
            (
                one.defense,
                one.attack,
                knowledge_name(one.knowledge),
                *(_against_chance(one, name) for name in METRICS),
                UNKNOWN if one.finds is None else "yes" if one.finds else "no",
            )
            for one in self.rows
        )
        values = tuple(
            (
                one.defense,
                one.attack,
                interval(one.unauthorised),
                interval(one.recovered),
                interval(one.authorised),
                interval(one.gap),
                interval(one.value, 100) if one.value is not None else one.outcome,
            )
            for one in self.rows
        )
        worth = ("defense", "attack", "unauthorised", "recovered", "authorised", "gap", "mask value recovered, %")
        return (
            Table("Recovery of secrets", ("defense", "attack", "knows", *METRICS.values(), "above chance"), guesses),
            Table("What the guessed masks are worth", worth, values),
        )

    def content(self) -> Any:
        return self.rows


def _against_chance(row: MaskRow, name: str) -> str:
    """`0.861 [0.812, 0.910] (0.538)`: in round brackets what a guess that knows nothing scores, where that varies."""
    if name not in row.metrics:
        return UNKNOWN
    chance = row.chance.get(name)
    found = interval(row.metrics[name], digits=3)
    return f"{found} ({chance:.3f})" if name in CHANCE_VARIES and chance else found


def _guesses(grid: Grid) -> dict[tuple[str, str], dict[int, list[Mapping[str, float]]]]:
    """By defense and attack, then by seed. The owner's own fine-tuning is left out, as it knows the secret."""
    found: dict[tuple[str, str], dict[int, list[Mapping[str, float]]]] = {}
    for cell, record in sorted(grid.records.items()):
        if record.recovery and cell not in grid.faults and "secret" not in record.knowledge:
            found.setdefault((cell.defense, cell.attack), {}).setdefault(cell.seed, []).append(record.recovery)
    return found


def _row(grid: Grid, defense: str, attack: str, guesses: Guesses) -> MaskRow:
    names = sorted({name for each in guesses.values() for metrics in each for name in metrics})
    means = {name: mean_by_seed(_metric(guesses, name)) for name in names}
    metrics = {name: interval for name, interval in means.items() if interval is not None}
    share = metrics["density"].value if "density" in metrics else None
    chance = {"roc_auc": 0.5, "roc_auc_within": 0.5, "mcc": 0.0}
    if share is not None:  # a guess marks as many weights as the mask does
        chance |= {"pr_auc": share, "precision": share, "iou": share / (2 - share)}
    return MaskRow(
        defense,
        attack,
        tuple(grid.attacks[attack].knowledge),
        metrics,
        {name: value for name, value in chance.items() if name in metrics},
    )


def _metric(guesses: Guesses, name: str) -> dict[int, float]:
    """A metric by seed. Tasks of one release share its guess; where they do not, they are averaged."""
    found = {
        seed: [metrics[name] for metrics in each if math.isfinite(metrics.get(name, math.nan))]
        for seed, each in guesses.items()
    }
    return {seed: statistics.fmean(values) for seed, values in found.items() if values}


def _p(guesses: Guesses) -> float | None:
    above = mean_by_seed({seed: value - 0.5 for seed, value in _metric(guesses, "roc_auc").items()})
    return above.p if above is not None and above.count >= PRELIMINARY_SEEDS else None


def _plain_finetuning(grid: Grid) -> Attacks:
    """Fine-tuning of all weights within the suite's budget, by an attack at its defaults."""
    return frozenset(attack for attack in grid.training("all") if "[" not in attack)


def _with_value(grid: Grid, row: MaskRow, tasks: Sequence[str]) -> MaskRow:
    by_owner = frozenset(attack for attack in grid.by_owner() if grid.attacks[attack].adaptation == "finetuning")
    unauthorised, recovered, authorised = (
        mean_points(grid.best_attacks(row.defense, tasks, attacks))
        for attacks in (_plain_finetuning(grid), frozenset({row.attack}), by_owner)
    )
    gap = gap_by_seed(authorised, unauthorised)
    scored = replace(
        row,
        unauthorised=mean_by_seed(unauthorised),
        recovered=mean_by_seed(recovered),
        authorised=mean_by_seed(authorised),
        gap=gap,
    )
    seeds = sorted(unauthorised.keys() & recovered.keys() & authorised.keys())
    if gap is None or not seeds:
        return scored
    if gap.low <= 0:
        return replace(scored, outcome="worth nothing" if gap.high < 0 else "not distinguishable")
    value = ratio(
        [recovered[seed] - unauthorised[seed] for seed in seeds],
        [authorised[seed] - unauthorised[seed] for seed in seeds],
    )
    return replace(scored, value=value, outcome="not distinguishable" if value is None else "measured")
