"""Scores in points: 100 times a metric, negative where lower is better, so that more is always better for the attacker.

The functions read measurements and records; they pick and average nothing but the tasks of one seed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping

from nftbench.contract import Measurement
from nftbench.records.record import Record

BestAttacks = Mapping[int, tuple[Record, ...]]
"""By base seed: for each of the chosen tasks the record of the attack that is best on validation."""

NOISE = 2.0
"""Points of suppression within which a row ends where the undefended model does. The best attacks on two undefended
models from different initialisations end 1.3 points apart (a standard deviation over base seeds)."""


def points(measurement: Measurement) -> float:
    """The metric times 100; negative where lower is better."""
    return in_points(measurement.value, measurement.higher_is_better)


def in_points(value: float, higher_is_better: bool) -> float:
    return 100 * value if higher_is_better else -100 * value


def above_floor(measurement: Measurement) -> float:
    """Points above the score of a model that knows nothing."""
    return points(measurement) - in_points(measurement.floor, measurement.higher_is_better)


def mean_points(best: BestAttacks | None) -> dict[int, float]:
    """By base seed: the test scores of the best attacks in points, averaged over the tasks."""
    return {
        seed: statistics.fmean(points(final(record)) for record in records) for seed, records in (best or {}).items()
    }


def final(record: Record) -> Measurement:
    """The test score that counts. Attack `none` may have measured the release only once, before "attacking" it."""
    found = record.attacked or record.unattacked
    assert found is not None  # a record without either has a fault, and is never chosen
    return found


def preference(record: Record) -> tuple[float, float, float, str]:
    """Sort key by which the best attack is chosen: score on the selection split, then its loss, then fewer steps.

    The test score is no part of it: a real attacker does not have it. Nor is the attack's own validation score, which
    it could raise by training on the validation documents.
    """
    if record.validation is None:
        return (-math.inf, -math.inf, -math.inf, record.attack)
    loss = record.validation.loss
    steps = record.picked.step if record.picked else math.inf
    finite = loss is not None and math.isfinite(loss)
    return (points(record.validation), -loss if finite and loss is not None else -math.inf, -steps, record.attack)
