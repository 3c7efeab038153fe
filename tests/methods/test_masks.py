"""Masks of the largest scores, against sorting; overlaps of masks, against sets."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from nftbench.methods import masks


@st.composite
def scored(draw: Any, distinct: bool = False) -> dict[str, Tensor]:
    """One to four tensors of one or two dimensions, with ties unless `distinct`."""
    shapes = draw(st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=2), min_size=1, max_size=4))
    sizes = [math.prod(shape) for shape in shapes]
    whole = (
        st.permutations(range(sum(sizes)))
        if distinct
        else st.lists(st.integers(0, 3), min_size=sum(sizes), max_size=sum(sizes))
    )
    parts = torch.tensor(draw(whole), dtype=torch.float32).split(sizes)
    return {str(i): part.view(shape) for i, (part, shape) in enumerate(zip(parts, shapes, strict=True))}


def chosen(scores: dict[str, Tensor], mask: dict[str, Tensor], names: list[str]) -> list[float]:
    return sorted((value for name in names for value in scores[name][mask[name]].tolist()), reverse=True)


def ranked(scores: dict[str, Tensor], names: list[str]) -> list[float]:
    return sorted((value for name in names for value in scores[name].flatten().tolist()), reverse=True)


@settings(max_examples=40)
@given(scores=scored(), share=st.floats(0.0, 1.0), scope=st.sampled_from(["global", "per_tensor"]))
def test_top_is_what_sorting_finds(scores: dict[str, Tensor], share: float, scope: masks.Scope) -> None:
    """The multiset of the chosen scores, ties and all, and the exact count."""
    found = masks.top(scores, share, scope)
    assert list(found) == list(scores)
    assert all(found[name].dtype == torch.bool and found[name].shape == scores[name].shape for name in scores)
    for names in [list(scores)] if scope == "global" else [[name] for name in scores]:
        everything = ranked(scores, names)
        assert chosen(scores, found, names) == everything[: math.floor(share * len(everything))]


@settings(max_examples=40)
@given(scores=scored(distinct=True), data=st.data())
def test_largest_marks_exactly_so_many(scores: dict[str, Tensor], data: st.DataObject) -> None:
    everything = ranked(scores, list(scores))
    count = data.draw(st.integers(0, len(everything)))
    found = masks.largest(scores, count)
    assert set(chosen(scores, found, list(scores))) == set(everything[:count])


@pytest.mark.parametrize(
    ("scores", "share", "marked"),
    [
        (torch.cat([torch.zeros(90), torch.ones(10)]), 0.7, 70),
        (torch.zeros(10), 0.35, 3),
        (torch.arange(16.0), 0.05, 0),
        (torch.full((4,), -math.inf), 0.5, 2),
    ],
)
def test_ties_do_not_widen_the_mask(scores: Tensor, share: float, marked: int) -> None:
    """Words that are not in a batch have a gradient of exactly zero; a share of less than one weight is nothing."""
    found = masks.top({"table": scores}, share)["table"]
    assert int(found.sum()) == marked
    assert not found[scores < scores[found].min()].any() if marked else True


@settings(max_examples=40)
@given(data=st.data())
def test_overlap_is_that_of_sets(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    one, other = (
        {str(i): torch.tensor(data.draw(st.lists(st.booleans(), min_size=n, max_size=n))) for i, n in enumerate(sizes)}
        for _ in range(2)
    )

    def members(mask: dict[str, Tensor]) -> set[tuple[str, int]]:
        return {(name, int(index)) for name, kept in mask.items() for index in kept.nonzero().flatten()}

    either = members(one) | members(other)
    expected = len(members(one) & members(other)) / len(either) if either else 1.0
    assert masks.overlap(one, other) == expected == masks.overlap(other, one)
