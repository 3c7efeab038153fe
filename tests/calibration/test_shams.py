"""The judge of shams: an attack has to break each sham, and no sham may be ranked as a defense."""

from __future__ import annotations

from pathlib import Path

import pytest

from nftbench.calibration import shams
from nftbench.calibration.proof import Finding, Run
from nftbench.errors import NftbenchError
from nftbench.records.record import CellId, Record
from nftbench.testing import tiny_suite
from tests.factories import LADDER, record, sweep

SUITE = tiny_suite(defenses=["none", "early_stop"], attacks=["full", "heal"], seeds=[0, 1, 2])
SEEDS = (0.80, 0.82, 0.84)
NOISE = (0.004, -0.006, 0.002)


def lowered(by: float) -> list[float]:
    return [end - by + error for end, error in zip(SEEDS, NOISE, strict=True)]


def with_attacks(name: str, full: float, rebalance: float, utility: float = 0.75) -> list[Record]:
    """A row whose attacks end so far below the undefended model's."""
    found = sweep(name, lowered(full), utility=utility, tasks=("topic",))
    ends = zip(lowered(rebalance), range(3), strict=True)
    return found + [record(name, "rebalance", "topic", seed, end, knowledge=("method",)) for end, seed in ends]


def judged(*rows: list[Record]) -> Finding:
    undefended = [*with_attacks("none", 0.0, 0.01), *with_attacks("early_stop", 0.02, 0.02)]
    records = [*undefended, *(one for records in rows for one in records)]
    planned = tuple(CellId.of(one) for one in records)
    derived = tiny_suite(name="tiny-shams", seeds=[0, 1, 2], tasks=["topic"], ranking=["method"])
    derived = derived.model_copy(update={"ladder": LADDER})
    return shams.judge(SUITE, Run(derived, planned, tuple(records)))


def test_a_sham_that_one_attack_breaks_passes_and_the_attack_is_named() -> None:
    found = judged(with_attacks("loud", 0.4, 0.0))
    assert found.failures == ()
    (sham,) = found.numbers["shams"]
    assert sham["breakers"] == ("rebalance",)
    full = next(one for one in sham["attacks"] if one["attack"] == "full")
    # undefended 82 from 30 unattacked; 40 below it a gain of 12 of 52 is left
    assert full["regained"] == pytest.approx(12 / 52)
    assert full["lacks"]["value"] == pytest.approx(40.0)
    assert found.tables[0].rows[0][5] == "rebalance (82.0)"
    assert ("full", "0 of 1", "loud") in found.tables[1].rows


def test_an_attack_breaks_a_sham_that_it_fine_tunes_like_the_undefended_model() -> None:
    (same,) = judged(with_attacks("same", 0.0, 0.01)).numbers["shams"]
    assert same["breakers"] == ("full", "rebalance")
    (hard,) = judged(with_attacks("hard", 0.4, 0.06)).numbers["shams"]
    assert hard["breakers"] == ()


def test_a_sham_that_is_ranked_is_a_failure() -> None:
    found = judged(with_attacks("strong", 0.4, 0.4))
    assert any("strong is taken for a defense: preliminary, excess 38.0" in failure for failure in found.failures)
    assert "no attack breaks strong" in found.failures


def test_a_wide_interval_alone_breaks_nothing() -> None:
    """With three seeds as far apart as these nothing can be told from zero; half the gain is not the whole."""
    name = "wild"
    records = sweep(name, [0.84, 0.30, 0.66], tasks=("topic",))
    records += [record(name, "rebalance", "topic", seed, 0.3, knowledge=("method",)) for seed in range(3)]
    found = judged(records)
    full = next(one for one in found.numbers["shams"][0]["attacks"] if one["attack"] == "full")
    assert full["lacks"]["low"] < 0
    assert full["regained"] < shams.REGAINED
    assert "no attack breaks wild" in found.failures


def test_a_sham_that_pays_with_utility_need_not_break() -> None:
    found = judged(with_attacks("useless", 0.4, 0.4, utility=0.6))
    assert found.failures == ()
    assert found.notes == ("no attack breaks useless, which loses utility",)


def test_an_attack_with_a_failed_cell_breaks_nothing() -> None:
    records = with_attacks("loud", 0.4, 0.0)
    records = [one for one in records if (one.attack, one.seed) != ("rebalance", 1)]
    planned = with_attacks("loud", 0.4, 0.0)
    undefended = [*with_attacks("none", 0.0, 0.01), *with_attacks("early_stop", 0.02, 0.02)]
    cells = tuple(CellId.of(one) for one in [*undefended, *planned])
    derived = tiny_suite(name="tiny-shams", seeds=[0, 1, 2], tasks=["topic"], ranking=["method"])
    found = shams.judge(SUITE, Run(derived, cells, (*undefended, *records)))
    (sham,) = found.numbers["shams"]
    assert [one["attack"] for one in sham["attacks"]] == ["full"]
    assert (sham["standing"], found.failures) == ("unranked", ("no attack breaks loud",))
    assert found.notes[0].startswith("1 of")


def test_the_derived_suite_has_attacks_that_know_at_most_the_method() -> None:
    derived = shams.derive(SUITE, ["noise"], ())
    assert derived.tasks == ("toy_topic",)
    assert derived.defenses == ("none", "early_stop", "noise")
    assert {"none", "full", "lora", "head", "linear_probe"} <= set(derived.attacks)
    assert not {"heal", "authorized", "merge", "scratch"} & set(derived.attacks)
    assert derived.ranking <= {"method"}
    narrowed = shams.derive(SUITE, ["noise"], ["full", "heal"])
    assert (narrowed.attacks, narrowed.ranking) == (("none", "full", "heal"), {"data"} | narrowed.ranking)


def test_a_proof_without_shams_is_refused() -> None:
    with pytest.raises(NftbenchError, match="--shams FOLDER"):
        shams.derive(SUITE, (), ())


def test_the_folder_of_shams_is_a_folder_of_plugins() -> None:
    folder = Path(__file__).parent / "shams"
    assert all(path.suffix == ".py" for path in folder.iterdir() if path.is_file())
