"""The score of a guess of a secret mask: every metric agrees with counting, and only the order of weights counts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from statistics import mean
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from nftbench.errors import NftbenchError
from nftbench.running import mask_accuracy


@st.composite
def guessed(draw: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A guess with ties and a mask over one to three tensors, not all of one kind."""
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=3).filter(lambda found: sum(found) > 1))
    count = sum(sizes)
    marks = draw(st.lists(st.booleans(), min_size=count, max_size=count).filter(lambda found: len(set(found)) == 2))
    scores = draw(st.lists(st.integers(-3, 3), min_size=count, max_size=count))
    return (
        {str(i): part for i, part in enumerate(torch.tensor(scores, dtype=torch.float32).split(sizes))},
        {str(i): part for i, part in enumerate(torch.tensor(marks).split(sizes))},
    )


def flat(tensors: dict[str, Tensor]) -> list[Any]:
    return [value for tensor in tensors.values() for value in tensor.flatten().tolist()]


def pairs(scores: Sequence[float], marks: Sequence[bool]) -> float:
    """The share of (marked, unmarked) pairs in which the marked one scores higher; equal ones count half."""
    inside = [score for score, marked in zip(scores, marks, strict=True) if marked]
    outside = [score for score, marked in zip(scores, marks, strict=True) if not marked]
    return mean((one > other) + (one == other) / 2 for one in inside for other in outside)


def average_precision(scores: Sequence[float], marks: Sequence[bool]) -> float:
    """Sum over thresholds of precision there times the recall gained."""
    total, before = 0.0, 0
    for threshold in sorted(set(scores), reverse=True):
        taken = [marked for score, marked in zip(scores, marks, strict=True) if score >= threshold]
        total += (sum(taken) - before) / sum(marks) * sum(taken) / len(taken)
        before = sum(taken)
    return total


def expected_hits(scores: Sequence[float], marks: Sequence[bool]) -> float:
    """Marked weights among the highest, averaged over all ways of breaking ties."""
    count = sum(marks)
    places = range(len(scores))
    hits = [
        sum(marks[place] for place in cut)
        for cut in itertools.combinations(places, count)
        if min(scores[place] for place in cut) >= max((scores[p] for p in places if p not in cut), default=-math.inf)
    ]
    return mean(hits)


@settings(max_examples=40)
@given(both=guessed())
def test_every_metric_agrees_with_counting(both: tuple[dict[str, Tensor], dict[str, Tensor]]) -> None:
    guess, mask = both
    scores, marks = flat(guess), flat(mask)
    found = mask_accuracy.score(guess, mask)
    hits, count = expected_hits(scores, marks), sum(marks)
    # The confusion matrix of a cut that takes as many as are marked.
    right, wrong, missed, rest = hits, count - hits, count - hits, len(marks) - 2 * count + hits
    assert found["density"] == pytest.approx(count / len(marks))
    assert found["roc_auc"] == pytest.approx(pairs(scores, marks))
    assert found["pr_auc"] == pytest.approx(average_precision(scores, marks))
    assert found["precision"] == pytest.approx(hits / count)
    assert found["iou"] == pytest.approx(hits / (2 * count - hits))
    matthews = (right * rest - wrong * missed) / (count * (len(marks) - count))
    assert found["mcc"] == pytest.approx(matthews)
    mixed = [name for name, kept in mask.items() if 0 < int(kept.sum()) < kept.numel()]
    assert ("roc_auc_within" in found) == ("pr_auc_within" in found) == bool(mixed)
    if mixed:
        sizes = [mask[name].numel() for name in mixed]
        for metric, of in (("roc_auc", pairs), ("pr_auc", average_precision)):
            values = [of(guess[name].tolist(), mask[name].tolist()) for name in mixed]
            weighted = sum(size * value for size, value in zip(sizes, values, strict=True)) / sum(sizes)
            assert found[f"{metric}_within"] == pytest.approx(weighted)


TRANSFORMS = {
    "line": lambda score: 3 * score - 7,
    "exp": torch.exp,
    "atan": torch.atan,
    "integers": lambda score: score.to(torch.int8),
    "bfloat16": lambda score: score.to(torch.bfloat16),
}


@pytest.mark.parametrize("name", TRANSFORMS)
@settings(max_examples=10)
@given(both=guessed())
def test_only_the_order_of_a_guess_counts(name: str, both: tuple[dict[str, Tensor], dict[str, Tensor]]) -> None:
    guess, mask = both
    changed = {key: TRANSFORMS[name](score) for key, score in guess.items()}
    assert mask_accuracy.score(changed, mask) == mask_accuracy.score(guess, mask)


@settings(max_examples=15)
@given(both=guessed())
def test_the_mask_itself_is_perfect_its_reverse_is_worst_and_a_constant_is_chance(
    both: tuple[dict[str, Tensor], dict[str, Tensor]],
) -> None:
    _, mask = both
    perfect = mask_accuracy.score({name: kept.float() for name, kept in mask.items()}, mask)
    assert {name: value for name, value in perfect.items() if name != "density"} == dict.fromkeys(
        set(perfect) - {"density"}, 1.0
    )
    assert mask_accuracy.score({name: -kept.float() for name, kept in mask.items()}, mask)["roc_auc"] == 0.0
    nothing = mask_accuracy.score({name: torch.full(kept.shape, 3.0) for name, kept in mask.items()}, mask)
    density = nothing["density"]
    chance = {"roc_auc": 0.5, "pr_auc": density, "precision": density, "iou": density / (2 - density), "mcc": 0.0}
    assert {name: nothing[name] for name in chance} == pytest.approx(chance, abs=1e-12)
    assert nothing.get("roc_auc_within", 0.5) == 0.5


def test_knowing_the_density_of_each_tensor_is_chance_within_tensors() -> None:
    """A guess that knows each tensor's density and nothing else: good over all weights, chance within tensors."""
    generator = torch.Generator().manual_seed(0)
    densities = {"queries": 0.1, "embeddings": 0.5, "head": 0.9}
    mask = {name: torch.rand(400, generator=generator) < share for name, share in densities.items()}
    guess = {name: torch.full((400,), share) for name, share in densities.items()}
    found = mask_accuracy.score(guess, mask)
    assert found["roc_auc"] > 0.8
    assert found["roc_auc_within"] == 0.5
    assert found["pr_auc_within"] == pytest.approx(found["density"])


def test_a_large_tensor_counts_more_than_a_small_one() -> None:
    """A norm told wholly beside a matrix told not at all."""
    mask = {"norm": torch.arange(10) < 5, "matrix": (torch.arange(990) % 2).bool()}
    guess = {"norm": mask["norm"].float(), "matrix": torch.zeros(990)}
    assert mask_accuracy.score(guess, mask)["roc_auc_within"] == pytest.approx(0.5 + 0.5 * 10 / 1000)


def test_tensors_that_are_all_marked_or_unmarked_have_no_score_within_tensors() -> None:
    mask = {"free": torch.ones(3, dtype=torch.bool), "frozen": torch.zeros(3, dtype=torch.bool)}
    found = mask_accuracy.score({name: torch.arange(3.0) for name in mask}, mask)
    assert "roc_auc_within" not in found
    assert found["roc_auc"] == 0.5


@pytest.mark.parametrize("marked", [True, False])
def test_a_mask_of_one_kind_has_only_a_density(marked: bool) -> None:
    mask = {"w": torch.full((3,), marked)}
    assert mask_accuracy.score({"w": torch.arange(3.0)}, mask) == {"density": float(marked)}


@pytest.mark.parametrize(
    ("guess", "reason"),
    [
        ({"other": torch.zeros(4)}, "does not fit the release: w"),
        ({"w": torch.zeros(2, 2)}, "does not fit the release: w"),
        ({"w": torch.tensor([0.0, 1.0, math.nan, 0.0])}, "not finite: w"),
        ({"w": torch.tensor([0.0, 1.0, math.inf, 0.0])}, "not finite: w"),
    ],
)
def test_a_guess_of_another_shape_or_not_finite_is_refused(guess: dict[str, Tensor], reason: str) -> None:
    with pytest.raises(NftbenchError, match=reason):
        mask_accuracy.score(guess, {"w": torch.tensor([True, False, True, False])})


def test_a_guess_may_hold_more_and_need_a_gradient() -> None:
    mask = {"w": torch.tensor([True, False])}
    guess = {"w": torch.tensor([2.0, 1.0], requires_grad=True), "buffer": torch.zeros(9)}
    assert mask_accuracy.score(guess, mask)["roc_auc"] == 1.0
