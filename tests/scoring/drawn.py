"""Boards drawn at random: records of a whole suite, with a ladder of trivial defenses and six utility metrics.

The noise is that of published records. Two models that differ in their initialisation alone end 1.3 points apart after
the best attack (`results/small-null`: the standard deviation over twelve seeds), so one model varies by 0.92. Utility
is bits per token, which varies by 0.1 % of what is above the floor, and five metrics that vary by `noise`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from nftbench.contract import Claim
from nftbench.records.record import CellId, Record, Row
from nftbench.scoring import Leaderboard, score
from nftbench.suites.schema import Family
from tests.factories import RANKING, measurement, record

Shares = NDArray[np.float64]
"""The share of each metric that a row keeps."""

METRICS = ("bits", "pairs", "agreement", "topic", "tone", "classes")
ATTACKED = "words"
BEST, SCRATCH = 88.0, 45.0
"""Points after the best attack: of the undefended model, and from scratch."""
MODEL = 0.92
"""Standard deviation of a model's suppression over initialisations, in points."""
COSTS = np.array([0.1, 1.0, 0.9, 0.8, 0.6, 0.5])
"""How much of each metric a trivial defense loses, relative to `pairs`."""
DOSES = ((2.5, 0.13), (4.5, 0.2), (8.0, 0.3), (15.0, 0.5), (27.0, 0.8))
"""Points taken from the attacker, and the share of `pairs` that is lost, as early stopping does in
`results/small-dose`. Its weakest doses, which cannot be told from the undefended model, are left out."""
FAMILIES = {"early_stop": 1.0, "noise": 1.2}
"""Both lose the same at each dose; the second takes more."""
LADDER = {name: Family(doses=tuple(f"{name}[dose={index}]" for index in range(len(DOSES)))) for name in FAMILIES}
INITIALISATIONS = ("twin[index=1]", "twin[index=2]", "twin[index=3]")
EVERYTHING: Shares = np.ones(len(METRICS))


def kept(lost: float) -> Shares:
    """What a trivial defense keeps that loses this share of `pairs`."""
    return 1 - lost * COSTS


@dataclass(frozen=True)
class Truth:
    """What a row truly takes and keeps."""

    suppression: float
    retention: Shares = field(default_factory=lambda: EVERYTHING)

    @property
    def excess(self) -> float:
        """Its height above the lowest of the true curves, by numpy's interpolation."""
        heights = []
        for strength in FAMILIES.values():
            taken = [0.0, *(strength * points for points, _ in DOSES), BEST - SCRATCH]
            for metric in range(len(METRICS)):
                lost = [0.0, *(loss * COSTS[metric] for _, loss in DOSES), 1.0]
                heights.append(self.suppression - np.interp(1 - min(self.retention[metric], 1.0), lost, taken))
        return float(min(heights))


def trivial(lost: float, family: str = "noise") -> Truth:
    """A model on the true curve of a family."""
    losses, taken = [0.0, *(loss for _, loss in DOSES)], [0.0, *(points for points, _ in DOSES)]
    return Truth(FAMILIES[family] * float(np.interp(lost, losses, taken)), kept(lost))


def records(
    truths: Mapping[str, Truth], generator: np.random.Generator, *, seeds: int = 5, noise: float = 0.03
) -> list[Record]:
    """A suite's records: the rows of `truths`, the reference with its initialisations, scratch and the ladder."""
    rows = {"none": Truth(0.0)} | dict(truths)
    for name, strength in FAMILIES.items():
        for dose, (points, loss) in zip(LADDER[name].doses, DOSES, strict=True):
            rows[dose] = Truth(strength * points, kept(loss))
    spread = np.array([0.001, *[noise] * (len(METRICS) - 1)])
    level = generator.normal(0, 1, seeds)  # of a seed's tasks, which all rows share
    found = []
    for name, truth in rows.items():
        ends = BEST + level - truth.suppression - generator.normal(0, MODEL, seeds)
        found += [_attack(name, "none", seed, 30.0) for seed in range(seeds)]
        found += [_attack(name, "full", seed, end) for seed, end in enumerate(ends)]
    found += [_attack("none", "scratch", seed, SCRATCH + level[seed]) for seed in range(seeds)]
    for name, truth in [*rows.items(), *((twin, Truth(0.0)) for twin in INITIALISATIONS if twin not in rows)]:
        shares = truth.retention + spread * generator.normal(0, 1, (seeds, len(METRICS)))
        found += [
            _utility(name, metric, seed, shares[seed, at]) for seed in range(seeds) for at, metric in enumerate(METRICS)
        ]
    return found


def board(found: list[Record]) -> Leaderboard:
    """The leaderboard of records that are all that was planned."""
    planned = [CellId.of(one) for one in found]
    return score(
        found, ranking=RANKING, ladder=LADDER, initialisations=INITIALISATIONS, side_tables=(), planned=planned
    )


def _row(name: str) -> Row:
    control = name.startswith((*FAMILIES, "twin"))
    return Row("pretrain", control, "none", claim=None if control or name == "none" else Claim())


def _attack(defense: str, attack: str, seed: int, points: float) -> Record:
    return replace(record(defense, attack, ATTACKED, seed, points / 100), row=_row(defense))


def _utility(defense: str, metric: str, seed: int, share: float) -> Record:
    """Bits per token are 2.5 of 5 at the floor, lower is better; accuracies 0.9 of a floor of 0.5."""
    measured = (
        measurement(5 - 2.5 * share, floor=5, higher=False)
        if metric == "bits"
        else measurement(0.5 + 0.4 * share, floor=0.5)
    )
    one = record(defense, "none", metric, seed, 0.0, role="utility", validation=None, row=_row(defense))
    return replace(one, unattacked=measured, attacked=measured)
