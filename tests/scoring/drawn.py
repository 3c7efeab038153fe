"""Boards drawn at random: records of a whole suite, with a ladder of trivial defenses and seven utility metrics.

Everything is as measured on 300 thousand parameters and the toy language. Two models that differ in their
initialisation alone end 1.3 points apart after the best attack (`results/small-null`: the standard deviation over
twelve seeds), so one model varies by 0.92. What trivial defenses take and keep, and how far each metric varies from
model to model, is that of the suite `small`. Between the measured doses they lie on a smooth path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

from nftbench.contract import Claim
from nftbench.records.record import CellId, Record, Row
from nftbench.scoring import Leaderboard, score
from nftbench.suites.schema import Family
from tests.factories import RANKING, measurement, record

Shares = NDArray[np.float64]
"""The share of each metric that a row keeps."""

METRICS = ("bits", "object", "verb", "tone", "agreement", "classes", "other")
NOISE = np.array([0.001, 0.026, 0.024, 0.047, 0.063, 0.029, 0.010])
"""Standard deviation of each metric from model to model, as a share of what the reference has above its floor."""
LARGEST_NOISE = np.array([0.001, 0.026, 0.024, 0.047, 0.124, 0.029, 0.010])
"""The same, with that of agreement in `results/standard`."""
ATTACKED = "words"
BEST, SCRATCH = 88.0, 37.0
"""Points after the best attack: of the undefended model, and from scratch."""
MODEL = 0.92
"""Standard deviation of a model's suppression over initialisations, in points."""
MEASURED = {
    "early_stop": (
        (0.8, 0.1, (0.991, 0.979, 0.92, 0.951, 0.662, 0.977, 0.968)),
        (0.5, 2.3, (0.984, 0.949, 0.908, 0.919, 0.35, 0.965, 0.915)),
        (0.2, 15.3, (0.954, 0.875, 0.8, 0.533, 0.004, 0.936, 0.894)),
        (0.1, 24.3, (0.91, 0.326, 0.241, 0.368, 0.001, 0.903, 0.816)),
        (0.02, 49.2, (0.343, 0.009, 0.0, 0.0, 0.0, 0.122, 0.438)),
    ),
    "short": (
        (0.6, 0.2, (0.997, 1.0, 0.984, 0.97, 0.749, 0.989, 0.988)),
        (0.4, 6.2, (0.99, 1.0, 0.954, 0.958, 0.387, 0.989, 0.983)),
        (0.25, 13.3, (0.975, 0.928, 0.908, 0.787, 0.02, 0.985, 0.964)),
        (0.1, 24.1, (0.905, 0.213, 0.159, 0.319, 0.0, 0.92, 0.831)),
        (0.02, 49.6, (0.68, 0.013, 0.002, 0.013, 0.0, 0.368, 0.637)),
    ),
}
"""By family and dose: the fraction of training, the points taken from the attacker, and the share of each metric kept.

From three seeds of `small` of 2026-11-28. Shares are cut off at 0 and 1, and no dose keeps more than a weaker one."""
DOSES = {
    "early_stop": (0.8, 0.65, 0.5, 0.35, 0.2, 0.1, 0.02),
    "short": (0.8, 0.6, 0.4, 0.3, 0.2, 0.15, 0.1, 0.02),
}
"""The fractions in the ladder of the suite `standard`."""
LADDER = {
    name: Family(doses=tuple(f"{name}[dose={index}]" for index in range(len(fractions))))
    for name, fractions in DOSES.items()
}
INITIALISATIONS = ("twin[index=1]", "twin[index=2]", "twin[index=3]")
EVERYTHING: Shares = np.ones(len(METRICS))


@dataclass(frozen=True)
class Truth:
    """What a row truly takes and keeps."""

    suppression: float
    retention: Shares = field(default_factory=lambda: EVERYTHING)
    """[metrics], or [seeds, metrics]."""

    def excess(self, doses: Mapping[str, Sequence[float]] = DOSES, metrics: Sequence[str] = ()) -> float:
        """Its height above the lowest of the true curves of means, and of these metrics, by numpy's interpolation."""
        chosen = [[*range(len(METRICS))], *([METRICS.index(metric)] for metric in metrics)]
        heights = []
        for family, fractions in doses.items():
            knots = [trivial(one, family) for one in fractions]
            taken = [0.0, *(one.suppression for one in knots), BEST - SCRATCH]
            for columns in chosen:
                lost = [0.0, *(1 - one.retention[columns].mean() for one in knots), 1.0]
                kept_here = np.minimum(self.retention[columns], 1.0).mean()
                heights.append(self.suppression - np.interp(1 - kept_here, lost, taken))
        return float(min(heights))


def trivial(fraction: float, family: str = "short") -> Truth:
    """A model of a family that had this fraction of training."""
    fractions, taken, shares = zip(*((1.0, 0.0, EVERYTHING), *MEASURED[family]), strict=True)
    path = PchipInterpolator(-np.log(fractions), np.column_stack([taken, np.array(shares)]))
    found = path(-np.log(fraction))
    return Truth(float(found[0]), found[1:])


def kept(fraction: float, family: str = "short") -> Shares:
    """What a model of a family keeps that had this fraction of training."""
    return trivial(fraction, family).retention


def records(
    truths: Mapping[str, Truth], generator: np.random.Generator, *, seeds: int = 5, noise: float = 1.0
) -> list[Record]:
    """A suite's records: the rows of `truths`, the reference with its initialisations, scratch and the ladder.

    `noise` multiplies that of the utility metrics.
    """
    rows = {"none": Truth(0.0)} | dict(truths)
    for family, fractions in DOSES.items():
        rows |= {
            dose: trivial(fraction, family) for dose, fraction in zip(LADDER[family].doses, fractions, strict=True)
        }
    level = generator.normal(0, 1, seeds)  # of a seed's tasks, which all rows share
    found = []
    for name, truth in rows.items():
        ends = BEST + level - truth.suppression - generator.normal(0, MODEL, seeds)
        found += [_attack(name, "none", seed, 30.0) for seed in range(seeds)]
        found += [_attack(name, "full", seed, end) for seed, end in enumerate(ends)]
    found += [_attack("none", "scratch", seed, SCRATCH + level[seed]) for seed in range(seeds)]
    for name, truth in [*rows.items(), *((twin, Truth(0.0)) for twin in INITIALISATIONS if twin not in rows)]:
        shares = truth.retention + noise * NOISE * generator.normal(0, 1, (seeds, len(METRICS)))
        found += [
            _utility(name, metric, seed, shares[seed, at]) for seed in range(seeds) for at, metric in enumerate(METRICS)
        ]
    return found


CROWD = {
    "pmp[steps=200]": Truth(20.0, kept(0.25)),
    "pmp[steps=200,complement=released]": Truth(21.0, kept(0.25)),
    "oracle": Truth(24.0, np.array([0.999, 1, 1, 1, 1, 1, 1])),
    "mask": Truth(0.5),
    "destroyer": Truth(12.0, np.array([1, 1, 1, 0, 1, 1, 1])),
}
"""Rows for a picture: two that stand close together, one with an effect, one without, one that loses a metric."""


def board(found: list[Record]) -> Leaderboard:
    """The leaderboard of records that are all that was planned."""
    planned = [CellId.of(one) for one in found]
    return score(
        found, ranking=RANKING, ladder=LADDER, initialisations=INITIALISATIONS, side_tables=(), planned=planned
    )


def _row(name: str) -> Row:
    control = name.startswith((*DOSES, "twin"))
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
