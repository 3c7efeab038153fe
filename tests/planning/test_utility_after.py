"""Attacks after which utility is measured: which keys depend on it, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from nftbench.errors import NftbenchError
from nftbench.planning.plan import plan
from nftbench.records.record import CellId
from nftbench.testing import tiny_suite

ATTACKS = ["none", "full", "repair"]


def keys(**changes: Any) -> dict[CellId, str]:
    cells = plan(tiny_suite(**{"attacks": ATTACKS, "tasks": ["toy_topic", "toy_tone"], **changes})).cells
    return {CellId.of(cell): cell.key for cell in cells}


def moved(before: dict[CellId, str], after: dict[CellId, str]) -> set[str]:
    """The attacks whose cells have another key."""
    same = {cell: key for cell, key in before.items() if after[cell] == key}
    return {cell.attack for cell in before.keys() - same.keys()}


def test_only_the_cells_of_the_named_attacks_depend_on_what_utility_is() -> None:
    plain, asked = keys(), keys(utility_after=["repair"])
    assert moved(plain, asked) == {"repair"}
    more = {"utility": ["toy_agreement_pronoun", "bits_per_token"]}
    assert moved(plain, keys(**more)) == set()
    assert moved(asked, keys(utility_after=["repair"], **more)) == {"repair"}


def test_the_spec_may_be_written_with_parameters_at_their_defaults() -> None:
    assert keys(utility_after=["repair[text=0.5]"]) == keys(utility_after=["repair"])


@pytest.mark.parametrize(
    ("attack", "expected"),
    [
        ("repiar", "no attack is named 'repiar'; did you mean 'repair'?"),
        ("lora", "tiny: utility_after: lora is not among the suite's attacks"),
        ("none", "tiny: utility_after: none changes no weight, so utility stays as it is"),
    ],
)
def test_an_attack_that_is_none_of_the_suites_or_changes_nothing_is_refused(attack: str, expected: str) -> None:
    with pytest.raises(NftbenchError) as caught:
        plan(tiny_suite(attacks=ATTACKS, utility_after=[attack]))
    assert expected in str(caught.value)
