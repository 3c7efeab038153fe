"""The sham judge: a sham with an excess is a failure; what breaks it, and what alone holds it down, is named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nftbench.calibration import shams
from nftbench.calibration.proof import Finding, Run
from nftbench.errors import NftbenchError
from nftbench.planning.plan import plan
from nftbench.records.record import CellId, Record
from nftbench.testing import tiny_suite
from tests.scoring import drawn

LADDER = {"early_stop": ["early_stop[fraction=0.9]", "early_stop"]}
SUITE = tiny_suite(attacks=["none", "full"], ladder=LADDER, ladder_attacks=["full"], initialisations=2)
BEST, START = drawn.BEST, 30.0


def records(taken: Mapping[str, tuple[float, float]], utility: float = 1.0) -> list[Record]:
    """Shams from which `full` is kept by so many points and `lora` by so many; a ladder whose doses lack `lora`."""
    truths = {name: drawn.Truth(points, drawn.EVERYTHING * utility) for name, (points, _) in taken.items()}
    found = drawn.records(truths, np.random.default_rng(0))
    more = []
    for one in found:
        lowered = {**taken, "none": (0.0, 1.0)}.get(one.defense)
        if one.attack == "full" and lowered and one.attacked:
            end = replace(one.attacked, value=one.attacked.value + (lowered[0] - lowered[1]) / 100)
            more.append(replace(one, attack="lora", key=f"lora/{one.key}", attacked=end, validation=end))
    return [*found, *more]


def judged(taken: Mapping[str, tuple[float, float]], utility: float = 1.0, lost: str = "") -> Finding:
    found = records(taken, utility)
    suite = tiny_suite(name="tiny-shams", seeds=list(range(5)), ranking=["method", "data"])
    kept = tuple(one for one in found if f"{one.defense}/{one.attack}/{one.seed}" != lost)
    run = Run(suite, tuple(CellId.of(one) for one in found), kept, drawn.LADDER, drawn.INITIALISATIONS)
    return shams.judge(SUITE, run)


def test_a_sham_that_the_suites_own_attack_breaks_passes_without_a_note() -> None:
    found = judged({"same": (0.0, 40.0)})
    assert (found.failures, found.notes) == ((), ())
    (sham,) = found.numbers["shams"]
    assert sham["standing"] == "ranked"
    assert sham["breakers"] == ("full",)
    lora = next(one for one in sham["attacks"] if one["attack"] == "lora")
    assert lora["lacks"]["value"] == pytest.approx(39.0, abs=1.5)  # of the 1 that it takes from the undefended model
    assert lora["regained"] == pytest.approx((BEST - START - 40) / (BEST - START), abs=0.05)
    assert ("lora", "0 of 1", "same") in found.tables[1].rows


def test_a_sham_with_an_excess_by_the_suites_own_attacks_is_a_failure_whatever_else_breaks_it() -> None:
    found = judged({"loud": (40.0, 1.0)})
    (failure,) = found.failures
    assert failure.startswith("loud is taken for a defense: ranked, excess 3")
    assert found.notes == ("loud: broken by lora alone, which the suite does not run",)


def test_an_excess_that_a_flag_alone_keeps_from_the_ranking_is_noted() -> None:
    found = judged({"bright": (40.0, 0.0)}, utility=1.2)
    assert found.failures == ()
    (note,) = found.notes
    assert note.startswith("bright: unranked, or its excess would be 3")
    assert "it was trained on more than the undefended model" in note


def test_what_nothing_breaks_is_noted_with_what_holds_it_down() -> None:
    trivial = drawn.trivial(0.15)
    found = judged({"slow": (trivial.suppression, trivial.suppression)}, utility=0.6)
    assert found.failures == ()
    assert found.notes == ("slow: no attack breaks it, and it loses utility",)
    incomplete = judged({"torn": (40.0, 40.0)}, lost="torn/full/1")
    assert incomplete.failures == ()
    assert incomplete.notes[0].startswith("torn: unranked, or its excess would be 3")
    assert "]: incomplete: torn × full" in incomplete.notes[0]
    assert "cells have no result" in incomplete.notes[1]


def test_a_wide_interval_alone_breaks_nothing() -> None:
    """With seeds as far apart as these nothing can be told from zero; half the gain is not the whole."""
    found = records({"wild": (0.0, 0.0)})
    ends = dict(enumerate((0.84, 0.10, 0.66, 0.86, 0.20)))
    found = [
        replace(one, attacked=end, validation=end)
        if one.defense == "wild" and one.attack in ("full", "lora") and one.attacked
        and (end := replace(one.attacked, value=ends[one.seed]))
        else one
        for one in found
    ]  # fmt: skip
    suite = tiny_suite(name="tiny-shams", seeds=list(range(5)), ranking=["method", "data"])
    run = Run(suite, tuple(map(CellId.of, found)), tuple(found), drawn.LADDER, drawn.INITIALISATIONS)
    (sham,) = shams.judge(SUITE, run).numbers["shams"]
    full = next(one for one in sham["attacks"] if one["attack"] == "full")
    assert full["lacks"]["low"] < 0
    assert full["regained"] < shams.REGAINED
    assert sham["breakers"] == ()


def test_the_derived_suite_has_the_suites_own_attacks_tasks_and_level(cache: object) -> None:
    suite = tiny_suite(
        attacks=["none", "scratch", "full", "heal", "merge", "authorized"],
        tasks=["toy_topic", "toy_tone"],
        ladder=LADDER,
        ladder_attacks=["full"],
        initialisations=2,
    )
    derived = shams.derive(suite, ["noise"], ["rebalance"])
    assert derived.tasks == suite.tasks
    assert derived.seeds == (0, 1, 2, 3, 4)
    assert derived.attacks == ("none", "scratch", "full", "heal", "rebalance")
    assert derived.ranking == suite.ranking
    on_doses = {str(cell.attack) for cell in plan(derived).cells if str(cell.defense) == "early_stop"}
    assert on_doses == {"none", "full"}


def test_a_proof_without_shams_or_without_a_ladder_is_refused() -> None:
    with pytest.raises(NftbenchError, match="--shams FOLDER"):
        shams.derive(SUITE, (), ())
    with pytest.raises(NftbenchError, match="tiny has no ladder"):
        shams.derive(tiny_suite(attacks=["full"]), ["noise"], ())


def test_the_folder_of_shams_is_a_folder_of_plugins() -> None:
    folder = Path(__file__).parent / "shams"
    assert all(path.suffix == ".py" for path in folder.iterdir() if path.is_file())
