"""Pairing: rows are compared with their reference only if their records name the same base weights."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nftbench.records.record import Record
from nftbench.scoring.grid import arrange
from nftbench.scoring.pairing import unpaired
from tests.factories import record


def rows(own: str | None, reference: str | None, seed: int = 0) -> list[Record]:
    found = [record("pmp", "full", "topic", seed, 0.4), record("none", "full", "topic", seed, 0.8)]
    return [replace(one, base_sha256=base) for one, base in zip(found, (own, reference), strict=True)]


def test_other_base_weights_are_not_compared() -> None:
    found = unpaired([*rows("a", "b", 0), *rows("a", "a", 1)])
    assert list(found) == [("pmp", 0)]
    assert "none at seed 0" in found["pmp", 0]


@pytest.mark.parametrize(("own", "reference"), [("a", "a"), (None, "a"), ("a", None), (None, None)])
def test_equal_or_unknown_base_weights_are_compared(own: str | None, reference: str | None) -> None:
    assert not unpaired(rows(own, reference))


def test_a_row_whose_reference_has_no_records_is_not_unpaired() -> None:
    assert not unpaired(rows("a", "b")[:1])


def test_a_row_with_two_bases_is_unpaired() -> None:
    first, second = (rows(own, "a")[0] for own in ("a", "b"))
    assert ("pmp", 0) in unpaired([first, second, *rows("a", "a")[1:]])


@pytest.mark.parametrize("change", [{"status": "failed"}, {"uses_release": False}])
def test_only_results_on_a_release_count(change: dict[str, object]) -> None:
    own, reference = rows("a", "b")
    assert not unpaired([replace(own, **change), reference])


def test_an_unpaired_row_has_no_results_and_the_leaderboard_says_so() -> None:
    grid, problems = arrange([*rows("a", "b"), *rows("a", "a", 1)], None, frozenset(), 0.9)
    assert {(place.defense, place.seed) for place in grid.faults if place in grid.records} == {("pmp", 0)}
    assert [text for text in problems if "pmp" in text and "none at seed 0" in text]
