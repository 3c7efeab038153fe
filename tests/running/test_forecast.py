"""The forecast of a run's time: from the settings, from records, and against what published and finished runs took."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from nftbench import suites
from nftbench.planning.plan import Plan, plan
from nftbench.records import manifest as manifests
from nftbench.records.record import Record
from nftbench.records.spec import Spec
from nftbench.records.store import Store
from nftbench.running import estimate, forecast, speed
from nftbench.running.forecast import STEP_SECONDS, Forecast, Step
from nftbench.testing import tiny_suite
from tests import factories

SMALL = Path(__file__).parents[2] / "results" / "small"
TOOK = {"small": 33 * 60.0, "standard": 4 * 3600}
"""Seconds that the suites took on two cores: `small` by its log, beside other work; `standard` by its own words."""


@pytest.fixture(autouse=True)
def machine_of_the_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published runs were made on about as fast a CPU."""
    monkeypatch.setattr(speed, "slowness", lambda *, large: 1.0)


def everything(whole: Plan, folder: Path) -> estimate.Left:
    """What is left where nothing has been run."""
    return estimate.remaining(whole, Store(folder, folder), set())


@pytest.mark.parametrize("name", TOOK)
def test_without_records_the_time_is_within_a_factor_of_two(name: str, tmp_path: Path) -> None:
    whole = plan(suites.read(name, ["salt=any"]))
    left = everything(whole, tmp_path)
    found = forecast.forecast(whole, left, estimate.parameters_of(whole.suite)).total(2)
    assert TOOK[name] / 2 < found < 2 * TOOK[name]


@pytest.mark.parametrize("number", [20, 200, 1224])
def test_with_the_first_records_the_time_is_within_a_factor_of_two(number: int, tmp_path: Path) -> None:
    """From few records of `small`, which are all of its cheap attack `none`, and from all of them."""
    if json.loads((SMALL / "manifest.json").read_text()).get("format") != manifests.FORMAT:
        pytest.skip("results/small was made by an earlier protocol")
    whole = plan(suites.read("small", ["salt=any"]))
    records = sorted(_as_planned(whole, list(Store(SMALL, tmp_path).records().values())), key=_written)[:number]
    assert len(records) == number
    left = everything(whole, tmp_path)
    found = forecast.forecast(whole, left, estimate.parameters_of(whole.suite), records).total(2)
    assert TOOK["small"] / 2 < found < 2 * TOOK["small"]


def _as_planned(whole: Plan, records: Sequence[Record]) -> list[Record]:
    """The records with the keys of today's releases: the published ones have those of another salt."""
    cells = {(str(cell.defense), str(cell.attack), str(cell.task), cell.seed): cell for cell in whole.cells}
    return [
        replace(one, release=cells[one.defense, one.attack, one.task, one.seed].release)
        for one in records
        if (one.defense, one.attack, one.task, one.seed) in cells
    ]


def _written(record: Record) -> str:
    return str(record.provenance["written"])


def test_records_count_preparation_once_a_job(tmp_path: Path) -> None:
    """Two tasks: 10 s each after 100 s of preparation; the release is measured in 1 s a task, its cost in 7."""
    suite = tiny_suite(attacks=["none", "heal"], tasks=["toy_topic", "toy_tone"], yardsticks=["cost"])
    whole = plan(suite)
    left = replace(everything(whole, tmp_path), releases=(), bases=())
    seconds = {"heal": 10.0, "none": 1.0, "cost": 7.0}
    found = [
        replace(
            factories.record("none", attack, str(cell.task), 1, 0.5, role=role, provenance={"seconds": took}),
            cost=replace(factories.COST, preparation_seconds=100.0) if attack == "heal" else None,
            release=cell.release,
        )
        for cell in whole.cells
        for attack, role in [(str(cell.attack), whole.role(cell))]
        for took in [seconds["cost" if role == "yardstick" else attack]]
    ]
    total = forecast.forecast(whole, left, 1, found).total(1)
    assert total == pytest.approx(2 * 10 + 100 + 3 * 1 + 7 + 2 * STEP_SECONDS)


def test_what_is_not_measured_is_as_much_slower_as_what_is() -> None:
    slow, other = Step("attack", "full", 4.0, 3), Step("attack", "lora", 2.0, 3)
    release = Step("protect", "pmp", 10.0)
    found = Forecast({"full": slow, "lora": other, "pmp": release})
    assert [found.seconds(step) for step in (slow, other, release)] == [12.0, 6.0, 10.0]
    found = found.after(["full"], 36.0)
    assert "full" not in found.left
    assert [found.seconds(step) for step in (slow, other, release)] == [36.0, 18.0, 30.0]
    found = found.after(["pmp"], 5.0)  # of its own stage alone
    assert found.seconds(other) == 18.0
    assert found.seconds(release) == 5.0
    assert found.after(["lora"], None).total(1) == 0.0


def test_steps_that_ended_together_share_their_time_as_was_expected() -> None:
    base, release, job = Step("base", "", 2.0), Step("protect", "none", 28.0), Step("attack", "lora", 10.0, 3)
    found = Forecast({"base": base, "none": release, "lora": job}).after(["base", "none", "of another run"], 90.0)
    assert list(found.left) == ["lora"]
    assert [found.seconds(step) for step in (base, release, job)] == [6.0, 84.0, 90.0]


def test_many_workers_do_not_shorten_the_longest_step() -> None:
    found = Forecast({"a": Step("attack", "long", 100.0), "b": Step("attack", "full", 10.0)})
    assert found.total(1) == 110.0
    assert found.total(8) == 100.0
    assert found.total(8, {"a": 60.0}) == 40.0


def test_preparation_on_text_and_longer_training_take_longer(tmp_path: Path) -> None:
    whole = plan(tiny_suite(attacks=["none", "full", "heal", "long"]))
    expected = forecast.forecast(whole, everything(whole, tmp_path), 10_000_000)
    took = {step.name: expected.seconds(step) for step in expected.left.values() if step.stage == "attack"}
    assert took["none"] < took["full"] < took["heal"] < took["long"]


def test_a_defense_that_trains_takes_as_long_as_its_passes(tmp_path: Path) -> None:
    """Of blocks; documents fill a quarter of a block."""
    size, suite = 10_000_000, tiny_suite(defenses=["none", "continued[steps=3]", "trap2[task=toy_topic,update=full]"])
    whole = plan(suite)
    expected = forecast.forecast(whole, everything(whole, tmp_path), size)
    took = {step.name: expected.seconds(step) for step in expected.left.values() if step.stage == "protect"}
    block = 6 * suite.corpus.block * size / (forecast.THROUGHPUT["cpu"] * forecast.LARGE_GAIN)
    assert took == {
        "none": pytest.approx(STEP_SECONDS),
        "continued[steps=3]": pytest.approx(STEP_SECONDS + 3 * 8 * block),
        "trap2[task=toy_topic,update=full]": pytest.approx(STEP_SECONDS + 2 * 1000 * 4 * block / 4),
    }


def test_the_time_of_published_defenses_is_within_a_factor_of_two(tmp_path: Path) -> None:
    """In processor time: they were made beside other work."""
    if json.loads((SMALL / "manifest.json").read_text()).get("format") != manifests.FORMAT:
        pytest.skip("results/small was made by an earlier protocol")
    whole = plan(suites.read("small", ["salt=any"]))
    took = {
        one.defense: STEP_SECONDS + one.protection.ledger.spent.seconds
        for one in Store(SMALL, tmp_path).records().values()
        if one.protection is not None and one.protection.ledger is not None
    }
    expected = forecast.forecast(whole, everything(whole, tmp_path), estimate.parameters_of(whole.suite))
    tried = [step for step in expected.left.values() if step.stage == "protect" and step.name in took]
    tried = [step for step in tried if not step.name.startswith("short")]  # taken to train for as long as the base
    assert {"condition_number", "dlr_lock", "pmp", "trap2"} <= {Spec.parse(step.name).name for step in tried}
    for step in tried:
        assert took[step.name] / 2 < expected.seconds(step) < 2 * took[step.name], step.name


@pytest.mark.parametrize("slower", [4.0, 0.25])
def test_the_time_left_follows_other_work_on_the_machine(slower: float) -> None:
    """Half-way, other work begins or ends. The means of all that was measured were still wrong by a factor of two."""
    usual = {"none": 3.0, "lora": 20.0, "full": 30.0, "heal": 60.0}
    chance = random.Random(0)
    took: dict[str, float] = {}
    steps: dict[str, Step] = {}
    for release in range(40):
        steps[f"{release}"], took[f"{release}"] = Step("protect", f"defense {release % 10}", 10.0), 20.0
        for attack, seconds in usual.items():
            key = f"{release} {attack}"
            steps[key], took[key] = Step("attack", attack, 4.0, 3), seconds * chance.lognormvariate(0, 0.2)
    found, now = Forecast(steps), 1.0
    for number, (key, seconds) in enumerate(took.items()):
        if number == 100:
            now = slower
        if number == 150:
            left = now * sum(list(took.values())[number:])
            assert left / 1.25 < found.total(1) < 1.25 * left
        found = found.after([key], now * seconds)


def test_a_step_that_is_late_shows_how_slow_the_machine_is() -> None:
    """Before anything has ended, too: the rest was taken to be as fast as predicted until the first step was over."""
    found = Forecast({"base": Step("base", "", 10.0), "full": Step("attack", "full", 30.0)})
    assert found.total(1, {"base": 5.0}) == 35.0
    assert found.total(1, {"base": 40.0}) == pytest.approx(0.2 * 40 + 30 * 4)
