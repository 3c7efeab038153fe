"""The dose judge: rows between the doses of a ladder, on its curve or above; a family that the ladder lacks."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from nftbench.calibration import dose
from nftbench.calibration.proof import Finding, Run
from nftbench.errors import NftbenchError
from nftbench.planning import registry
from nftbench.planning.plan import plan
from nftbench.records.record import CellId
from nftbench.testing import check_defense, tiny_suite
from tests.scoring import drawn

COMPOSED = Path(__file__).parent / "short_then_noise.py"
LADDER = {
    "early_stop": ["early_stop[fraction=0.8]", "early_stop", "early_stop[fraction=0.1]"],
    "noise": ["noise", "noise[scale=0.3]"],
    "narrow": {"doses": ["narrow", "narrow[keep=0.4]"], "stairs": True},
}
SUITE = tiny_suite(ladder=LADDER, attacks=["full", "head"], ladder_attacks=["full"], initialisations=2)


def judged(extra: dict[str, drawn.Truth], families: tuple[str, ...] = ("early_stop", "short")) -> Finding:
    """The ladder of random boards, and rows that take and keep so much."""
    records = drawn.records(extra, np.random.default_rng(0))
    ladder = {name: drawn.LADDER[name] for name in families}
    suite = tiny_suite(name="tiny-dose", seeds=list(range(5)), ranking=["method", "data"])
    run = Run(suite, tuple(CellId.of(one) for one in records), tuple(records), ladder, drawn.INITIALISATIONS)
    return dose.judge(SUITE, run)


def test_halfway_lie_the_reference_and_every_dose_of_each_family() -> None:
    assert dose.between(SUITE, "early_stop") == [
        "early_stop[fraction=0.9]", "early_stop[fraction=0.65]", "early_stop[fraction=0.3]",
    ]  # fmt: skip
    assert dose.between(SUITE, "noise") == ["noise[scale=0.05]", "noise[scale=0.2]"]
    assert dose.between(SUITE, "narrow") == ["narrow[keep=0.85]", "narrow[keep=0.55]"]
    one = tiny_suite(ladder={"noise": ["noise"]})
    assert dose.between(one, "noise") == []


def test_doses_that_differ_in_more_than_a_number_are_refused() -> None:
    with pytest.raises(
        NftbenchError, match="the doses of mixed must be one defense with exactly one parameter that differs"
    ):
        dose.between(tiny_suite(ladder={"mixed": ["noise", "early_stop"]}), "mixed")


def test_the_derived_suite_holds_the_ladder_and_all_between(cache: object) -> None:
    with registry.added(COMPOSED), registry.importing_added():
        derived = dose.derive(SUITE, ["short_then_noise"], ())
        whole = plan(derived)
    assert derived.seeds == (0, 1, 2, 3, 4)
    assert derived.pretraining.checkpoints == (0.3, 0.5, 0.65, 0.9)  # 0.5 is the suite's own
    assert derived.attacks == ("none", "scratch", "full")
    assert derived.ranking == SUITE.ranking
    attacked = {str(cell.defense) for cell in whole.cells if str(cell.attack) == "full"}
    halfway = {row for family in LADDER for row in dose.between(SUITE, family)}
    assert attacked == {"none", "short_then_noise", *SUITE.doses, *halfway}
    with pytest.raises(NftbenchError, match="tiny has no ladder"):
        dose.derive(tiny_suite(), (), ())


def test_two_families_composed_are_a_plugin_as_any(cache: Path) -> None:
    with registry.added(COMPOSED):
        check_defense("short_then_noise")


def test_models_on_the_curve_are_not_taken_for_defenses() -> None:
    found = judged({"half": drawn.trivial(0.3), "little": drawn.trivial(0.7)})
    assert found.failures == ()
    rows = {one["row"]: one for one in found.numbers["doses"]}
    assert rows.keys() == {"half", "little", *(d for family in drawn.LADDER.values() for d in family.doses)}
    assert rows["half"]["excess"]["low"] <= 0 < rows["half"]["suppression"]["low"]
    assert (rows["half"]["family"], rows["half"]["on_ladder"]) == (None, False)
    assert rows["short[dose=3]"]["on_ladder"]


def test_a_model_above_the_curve_is_a_failure() -> None:
    found = judged({"lucky": drawn.Truth(20.0, drawn.kept(0.6))})
    (failure,) = found.failures
    assert failure.startswith("lucky is taken for a defense: excess ")
    assert " over short on " in failure


def test_a_family_that_the_ladder_lacks_is_reported_and_no_failure() -> None:
    """`short` takes more than `early_stop` at each loss of utility, so without it most of that is excess."""
    found = judged({})
    assert found.failures == ()
    ((family, seen, most, row), (_, seen_short, most_short, _)) = found.tables[1].rows
    assert family == "early_stop"
    assert seen == "0 of 7"
    middle = next(one for one in found.numbers["doses"] if one["row"] == "short[dose=2]")
    assert middle["without_family"]["value"] > middle["excess"]["value"] + 1
    assert float(most_short.split()[0]) > float(most.split()[0])
    assert row.startswith("early_stop")
    assert seen_short.endswith("of 8")


def test_a_missing_dose_is_a_failure() -> None:
    records = drawn.records({}, np.random.default_rng(0))
    planned = tuple(CellId.of(one) for one in records)
    kept = tuple(one for one in records if one.defense != "short[dose=2]")
    suite = tiny_suite(name="tiny-dose", seeds=list(range(5)))
    (failure,) = dose.judge(SUITE, Run(suite, planned, kept, drawn.LADDER, drawn.INITIALISATIONS)).failures
    assert "cells have no result" in failure


def test_the_curves_are_drawn(tmp_path: Path) -> None:
    found = judged({"half": drawn.trivial(0.4)})
    assert found.draw is not None
    path = found.draw(tmp_path)
    assert path == tmp_path / "dose.png"
    image = matplotlib.image.imread(path)
    assert image.shape[0] > 300
    assert float(np.std(image[..., :3])) > 0.01  # not blank
