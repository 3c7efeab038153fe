"""The oracle: attackers heed what it planted, on it and on nothing else; its judge finds strengths in their order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nftbench import Outcome, Point
from nftbench.calibration import oracle
from nftbench.calibration.proof import Finding, Run
from nftbench.errors import NftbenchError
from nftbench.planning import registry
from nftbench.planning.plan import plan
from nftbench.records.record import CellId
from nftbench.testing import check_attack, check_defense, tiny_suite
from tests.calibration.planted import worse
from tests.factories import measurement
from tests.scoring import drawn

FILE = Path(__file__).parent / "planted.py"
LADDER = {"early_stop": ["early_stop[fraction=0.9]", "early_stop"]}
OBEYING = ["planted[attack=full]", "planted[attack=heal]"]


@pytest.fixture(autouse=True)
def known() -> Iterator[None]:
    with registry.added(FILE), registry.importing_added():
        yield


# ------------------------------------------------------------------------------------------------------- the plugins


def test_both_are_plugins_as_any(cache: Path) -> None:
    check_defense("planted")
    check_attack("planted[attack=lora]")


@pytest.mark.parametrize("points", [4.0, 20.0])
def test_attackers_give_away_the_points_that_the_defense_asks_for(points: float, run_all: Any, workspace: Any) -> None:
    """Their own attack on a weak network: so much noise that a score falls from 100 % to as many points fewer."""
    network = nn.Linear(64, 2, bias=False)
    inputs = torch.randn(4000, 64, generator=torch.Generator().manual_seed(1))
    truth = network(inputs).argmax(1)
    task = SimpleNamespace(
        split=lambda name: {"validation": inputs}[name],
        evaluate=lambda one, split: measurement(float((one(split).argmax(1) == truth).float().mean())),
    )
    before = Outcome(network, measurement(1.0), Point(1e-3, 1, 1.0, 0.0))
    after = worse(before, task, points)
    assert after.validation is not None
    assert after.validation.value == pytest.approx(1 - points / 100, abs=0.01)
    assert task.evaluate(after.network, inputs) == after.validation
    assert task.evaluate(network, inputs).value == 1.0  # the network itself stays


def test_other_defenses_are_attacked_as_ever(workspace: Callable[..., Any], run_all: Any) -> None:
    found = run_all(workspace(attacks=["none", "full", "planted", "planted[attack=heal]", "heal"]))
    for own, obeying in (("full", "planted"), ("heal", "planted[attack=heal]")):
        plain, same = (found["none", attack, "toy_topic", 0] for attack in (own, obeying))
        assert same.attacked == plain.attacked
        assert same.curve == plain.curve
        assert same.trained_weights == plain.trained_weights


def test_the_attacker_knows_the_method_and_what_its_attack_knows() -> None:
    heal = registry.create("attacks", "planted[attack=heal]")
    assert heal.knowledge == {"data", "method"}
    assert heal.uses() == ("heal",)
    assert registry.create("attacks", "planted[attack=full]").trained_weights == "all"


@pytest.mark.slow
def test_the_effect_is_real_and_grows_with_the_strength(attacked: Callable[..., Any]) -> None:
    ends = [attacked(row, "planted").attacked.value for row in ("none", "planted[points=8]", "planted[points=24]")]
    assert ends[0] > ends[1] > ends[2]
    assert ends[0] - ends[2] > 0.15


# --------------------------------------------------------------------------------------------------------- the judge


def judged(taken: Mapping[str, float], **kept: float) -> Finding:
    """Strengths that take so many points; `kept` are shares of utility, and else it is whole."""
    truths = {name: drawn.Truth(points, drawn.EVERYTHING * kept.get(name, 1.0)) for name, points in taken.items()}
    records = drawn.records(truths, np.random.default_rng(0))
    planned = tuple(CellId.of(one) for one in records)
    suite = tiny_suite(name="tiny-oracle", defenses=["none", *taken], seeds=list(range(5)), ranking=["method", "data"])
    return oracle.judge(tiny_suite(), Run(suite, planned, tuple(records), drawn.LADDER, drawn.INITIALISATIONS))


def test_strengths_in_order_pass_and_the_weakest_may_be_too_weak() -> None:
    found = judged({"weak": 0.5, "middle": 9.0, "strong": 25.0})
    assert found.failures == ()
    (note,) = found.notes
    assert note.startswith("too weak to be found: weak, excess ")
    assert [(one["rank"], one["found"]) for one in found.numbers["grades"]] == [(3, False), (2, True), (1, True)]
    assert float(found.tables[0].rows[2][6].split()[0]) == pytest.approx(16.0, abs=2.5)  # more than the weaker


def test_strengths_out_of_order_are_a_failure() -> None:
    found = judged({"weak": 25.0, "strong": 9.0})
    assert any("no less than the stronger strong" in failure for failure in found.failures)


def test_an_oracle_without_a_strength_that_is_found_is_a_failure() -> None:
    found = judged({"weak": 0.2, "strong": 0.5})
    assert {failure.split()[0] for failure in found.failures if "is not found" in failure} == {"weak", "strong"}


def test_a_strength_that_pays_with_utility_is_a_failure() -> None:
    found = judged({"strong": 40.0}, strong=0.7)
    assert any(failure.startswith("strong loses utility: keeps ") for failure in found.failures)


def test_the_derived_suite_has_the_ladder_and_attackers_who_know_all_that_is_claimed(cache: object) -> None:
    rows = ["planted[points=3]", "planted[points=6.0]"]
    suite = tiny_suite(attacks=["full", "heal"], ladder=LADDER, ladder_attacks=["full", "heal"], initialisations=2)
    derived = oracle.derive(suite, rows, OBEYING)
    assert derived.defenses == ("none", "planted[points=3]", "planted")
    assert derived.ranking == {"method", "data"}
    assert derived.seeds == (0, 1, 2, 3, 4)
    assert derived.attacks == ("none", "scratch", *OBEYING)
    on_doses = {str(cell.attack) for cell in plan(derived).cells if str(cell.defense) == "early_stop"}
    assert on_doses == {"none", "planted", "planted[attack=heal]"}
    with pytest.raises(
        NftbenchError, match="the claim grants attackers data, method, which none of none, scratch, full"
    ):
        oracle.derive(suite, rows, ["full"])
    with pytest.raises(NftbenchError, match="name the planted defense's plugin"):
        oracle.derive(suite, (), ())
    with pytest.raises(NftbenchError, match="make the same claim"):
        oracle.derive(suite, ["planted", "early_stop"], ())
    with pytest.raises(NftbenchError, match="tiny has no ladder"):
        oracle.derive(tiny_suite(), rows, OBEYING)
