"""Intervals over repetitions on one given base: what they cover where no base varies, and where they are too short."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from nftbench.scoring.frontier import Family, Row, excess
from nftbench.scoring.intervals import EXCESS_CONFIDENCE, beats_zero, difference
from tests.scoring.drawn import BEST, DOSES, METRICS, MODEL, SCRATCH, Truth, trivial

Scores = NDArray[np.float64]
SEEDS, DOCUMENTS, TAKEN = 5, 400, 3.0
"""Repetitions, test documents of each, and the points that the simulated defense takes."""


class Task:
    """Documents on which the attacked reference and the attacked row are right with some probability.

    Most documents are easy or hopeless for both, as in real tasks. On some the row is worse, on others it is better.
    """

    def __init__(self, count: int, generator: np.random.Generator) -> None:
        easy = generator.beta(1.2, 0.25, count)
        moved = generator.normal(-TAKEN / 100, 0.4, count)
        self.generator = generator
        self.right = np.stack([easy, np.clip(easy + moved, 0, 1)])
        self.suppression = float(100 * (self.right[0] - self.right[1]).mean())

    def scores(self, documents: NDArray[np.int64]) -> tuple[float, float]:
        """One repetition, in points: the luck of an attack's draws, then each document's answer."""
        luck = self.generator.normal(0, MODEL / 100, (2, 1))
        answers = self.generator.random((2, len(documents))) < np.clip(self.right[:, documents] + luck, 0, 1)
        reference, row = 100 * answers.mean(axis=1)
        return float(reference), float(row)


def coverage(*, drawn: bool, whole: bool = False, runs: int = 800) -> float:
    """The share of runs whose interval holds the true suppression on all documents of the task.

    Args:
        drawn: each repetition has test documents of its own; otherwise all have the first ones.
        whole: the task has no documents but those that are tested.
    """
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(runs):
        task = Task(DOCUMENTS if whole else 20 * DOCUMENTS, generator)
        count = len(task.right[0])
        first = np.arange(DOCUMENTS)
        pairs = [task.scores(generator.permutation(count)[:DOCUMENTS] if drawn else first) for _ in range(SEEDS)]
        found = difference(*zip(*pairs, strict=True))
        hits += found.low <= task.suppression <= found.high
    return hits / runs


def test_with_documents_of_its_own_each_repetition_counts_what_the_choice_of_documents_does() -> None:
    assert coverage(drawn=True) == pytest.approx(0.95, abs=0.02)


def test_with_the_same_documents_the_interval_holds_for_these_alone() -> None:
    """It is too short for the task that they come from, and right where they are the whole task."""
    assert coverage(drawn=False) < 0.9
    assert coverage(drawn=False, whole=True) == pytest.approx(0.95, abs=0.02)


def board(truth: Truth, generator: np.random.Generator, spread: float) -> tuple[float | None, float]:
    """The p value of a row's excess, and the excess itself, where no utility varies between repetitions.

    Protections are deterministic: all repetitions of a row have the same weights and the same utility.
    """
    reference = generator.normal(0, MODEL, SEEDS)

    def row(name: str, true: Truth) -> Row:
        taken = true.suppression + reference + spread * generator.normal(0, MODEL, SEEDS)
        kept = {
            metric: dict.fromkeys(range(SEEDS), float(share))
            for metric, share in zip(METRICS, true.retention, strict=True)
        }
        return Row(name, dict(enumerate(taken.tolist())), kept)

    untrained = dict(enumerate((BEST - SCRATCH + reference).tolist()))
    families = [
        Family(name, tuple(row(f"{name} {one}", trivial(one, name)) for one in fractions), untrained)
        for name, fractions in DOSES.items()
    ]
    found = excess(row("row", truth), families, dict.fromkeys(METRICS))
    assert found.interval is not None
    return found.interval.p, found.interval.value


@pytest.mark.slow
def test_without_variation_between_protections_null_fakes_stay_rare() -> None:
    """The attacks' draws alone carry the test: models on the curve are taken for defenses in at most 1 %."""
    generator = np.random.default_rng(1)
    fakes = [Truth(0.0), trivial(0.6), trivial(0.2, "early_stop")]
    found = [board(fakes[run % len(fakes)], generator, 1.0)[0] for run in range(300)]
    assert np.mean([beats_zero(p, EXCESS_CONFIDENCE) for p in found]) <= 0.01


@pytest.mark.slow
def test_a_defense_that_takes_four_points_is_found_on_one_base() -> None:
    generator = np.random.default_rng(2)
    found = [board(Truth(4.0), generator, 1.0)[0] for _ in range(60)]
    assert np.mean([beats_zero(p, EXCESS_CONFIDENCE) for p in found]) >= 0.8
