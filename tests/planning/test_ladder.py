"""The plan of a suite with a ladder and several initialisations: which cells its rows get, and in which order."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest

from nftbench.errors import NftbenchError
from nftbench.planning.plan import Plan, narrow, plan
from nftbench.suites import Family
from nftbench.suites.schema import Suite
from nftbench.testing import tiny_suite

LADDER = {
    "noise": ["noise[scale=0.1]", "noise[scale=0.4]"],
    "narrow": {"doses": ["narrow"], "stairs": True},
}


def suite(**changes: Any) -> Suite:
    usual = {
        "defenses": ["none", "random_mask"],
        "attacks": ["scratch", "full", "lora", "head"],
        "tasks": ["toy_topic", "toy_tone"],
        "benign": ["toy_agreement"],
        "yardsticks": ["cost"],
        "ladder": LADDER,
        "ladder_attacks": ["full", "lora"],
        "initialisations": 3,
    }
    return tiny_suite(**{**usual, **changes})


def tasks(found: Plan) -> dict[str, dict[str, set[str]]]:
    """The tasks of each row under each attack."""
    by_row: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for cell in found.cells:
        by_row[str(cell.defense)][str(cell.attack)].add(str(cell.task))
    return by_row


def test_a_dose_is_measured_on_ranked_tasks_and_utility_and_attacked_by_the_ladders_attacks() -> None:
    found = tasks(plan(suite()))
    ranked = {"toy_topic", "toy_tone"}
    for dose in ("noise", "noise[scale=0.4]", "narrow"):
        assert found[dose] == {"none": ranked | {"toy_agreement_pronoun"}, "full": ranked, "lora": ranked}


def test_a_twin_is_measured_for_utility_alone() -> None:
    found = tasks(plan(suite()))
    assert found["twin"] == found["twin[index=2]"] == {"none": {"toy_agreement_pronoun"}}
    assert "twin[index=3]" not in found


def test_without_ladder_attacks_a_dose_meets_every_attack_that_uses_the_release() -> None:
    assert tasks(plan(suite(ladder_attacks=[])))["noise"].keys() == {"none", "full", "lora", "head"}


def test_what_is_listed_among_defenses_too_is_one_row_with_the_whole_catalogue() -> None:
    found = plan(suite(defenses=["none", "noise", "twin", "random_mask"]))
    by_row = tasks(found)
    for row in ("noise", "twin"):
        assert by_row[row] == by_row["random_mask"]
        assert {"cost", "toy_agreement"} <= by_row[row]["none"]
    assert len({cell.key for cell in found.cells}) == len(found.cells)


def test_the_manifest_names_ladder_and_initialisations_in_canonical_form() -> None:
    manifest = plan(suite()).manifest()
    assert manifest.ladder == {
        "noise": Family(doses=("noise", "noise[scale=0.4]")),
        "narrow": Family(doses=("narrow",), stairs=True),
    }
    assert manifest.initialisations == ("twin", "twin[index=2]")


def test_within_a_seed_the_reference_comes_first_then_the_ladder() -> None:
    found = plan(suite(defenses=["random_mask", "none"], seeds=[0, 1]))
    order = ["none", "noise", "noise[scale=0.4]", "narrow", "twin", "twin[index=2]", "random_mask"]
    assert list(dict.fromkeys((cell.seed, str(cell.defense)) for cell in found.cells)) == [
        (seed, row) for seed in (0, 1) for row in order
    ]


def test_filters_work_on_doses_and_twins() -> None:
    whole = plan(suite())
    assert {str(cell.defense) for cell in narrow(whole, defenses=["noise", "twin"]).cells} == {
        "noise", "noise[scale=0.4]", "twin", "twin[index=2]",
    }  # fmt: skip
    assert {str(cell.attack) for cell in narrow(whole, defenses=["narrow"], attacks=["lora"]).cells} == {"lora"}


def test_without_a_ladder_its_attacks_ask_for_nothing() -> None:
    found = plan(suite(ladder={}, attacks=["full"], ladder_attacks=["full", "lora"]))
    assert {str(cell.attack) for cell in found.cells} == {"none", "full"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"ladder": {"noise": ["nois"]}}, "no defense is named 'nois'; did you mean 'noise'?"),
        ({"ladder": {"noise": ["noise", "noise[scale=0.1]"]}}, "tiny: ladder: noise is listed twice"),
        ({"ladder": {"one": ["noise"], "other": ["noise"]}}, "tiny: ladder: noise is listed twice"),
        ({"ladder": {"mask": ["random_mask"]}}, "tiny: ladder: random_mask is no trivial defense"),
        (
            {"ladder_attacks": ["dora"]},
            "tiny: ladder_attacks: dora is not among the suite's attacks; list it there too, or name others",
        ),
        ({"ladder_attacks": ["lor"]}, "no attack is named 'lor'; did you mean 'lora'?"),
        ({"salt": None}, "tiny: its grammars depend on a salt"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_one_line(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(NftbenchError) as caught:
        plan(suite(**changes))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_salt_is_in_every_key_of_the_toy_language_and_not_in_the_manifests_suite() -> None:
    one, other = plan(suite(salt="one")), plan(suite(salt="other"))
    assert not {cell.key for cell in one.cells} & {cell.key for cell in other.cells}
    assert {cell.key for cell in one.cells} == {cell.key for cell in plan(suite(salt="one")).cells}
    assert one.suite.salt == "one"
    assert (one.manifest().suite.salt, one.manifest().salt) == (None, None)


@pytest.mark.parametrize("text", ["twin[index=0]", "twin[index=-1]"])
def test_an_initialisation_below_the_first_is_refused(text: str) -> None:
    with pytest.raises(NftbenchError, match="index must be at least 1"):
        plan(suite(defenses=["none", text]))
