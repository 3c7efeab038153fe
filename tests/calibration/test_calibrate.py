"""The calibration judge: each fault of a suite is a failure, and a valid suite passes."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from nftbench.calibration import calibration, report, write
from nftbench.calibration.proof import Finding, Run
from nftbench.cli import main
from nftbench.planning.plan import Plan, plan
from nftbench.records.record import Cell, Record
from nftbench.testing import tiny_suite
from tests.factories import measurement, record

NOISE = {4: 0.004, 0: -0.006, 1: 0.001}
"""What the seeds differ by; smaller than every effect below."""
Value = Callable[[Cell], float]


@pytest.fixture(scope="module")
def derived(cache: Path) -> Plan:
    suite = tiny_suite(attacks=["none", "full", "head"], pretraining={"checkpoints": [0.5, 0.28]}, seeds=[4])
    return calibration.needed(plan(calibration.derive(suite, (), ())))


def valid(cell: Cell) -> float:
    """What a valid suite measures: chance is 0.25."""
    name, attack, task = cell.defense.name, cell.attack.name, str(cell.task)
    if task == "toy_agreement_pronoun":
        return {"early_stop": 0.80, "twin": 0.852}.get(name, 0.85)
    twin = 0.004 * (name == "twin")
    return {"none": 0.26, "full": 0.88, "head": 0.70, "scratch": 0.31}[attack] + twin


def measured(derived: Plan, value: Value) -> Finding:
    return judged(derived, made(derived, value))


def judged(derived: Plan, records: dict[str, Record]) -> Finding:
    return calibration.judge(derived.suite, Run.of(derived, records))


def made(derived: Plan, value: Value) -> dict[str, Record]:
    found = {}
    for cell in derived.cells:
        score = value(cell) + NOISE[cell.seed] * (2 if cell.defense.name == "twin" else 1)
        one = record(
            str(cell.defense), str(cell.attack), str(cell.task), cell.seed, score, unattacked=measurement(0.26)
        )
        found[cell.key] = replace(one, key=cell.key)
    return found


def changed(**values: float) -> Value:
    """`valid`, but for cells of this attack, or this defense on the utility metric."""

    def value(cell: Cell) -> float:
        of = cell.defense.name if str(cell.task) == "toy_agreement_pronoun" else cell.attack.name
        return values.get(of, valid(cell)) if cell.defense.name != "twin" or of == "twin" else valid(cell)

    return value


def test_the_derived_suite_holds_only_the_cells_that_are_judged(derived: Plan) -> None:
    assert derived.suite.name == "tiny-calibration"
    assert derived.suite.seeds == (4, 0, 1)
    assert derived.suite.defenses == ("none", "early_stop", "early_stop[fraction=0.28]", "twin")
    asked = {(str(cell.defense), str(cell.attack)) for cell in derived.cells}
    attacked = {(row, attack) for row in ("none", "twin") for attack in ("none", "full", "head")}
    stopped = {("early_stop", "none"), ("early_stop[fraction=0.28]", "none")}
    assert asked == attacked | stopped | {("none", "scratch")}


def test_a_valid_suite_passes(derived: Plan) -> None:
    found = measured(derived, valid)
    assert found.failures == ()
    (task,) = found.numbers["tasks"]
    assert task["attack"] == "full"
    assert task["end"] == pytest.approx([88.4, 87.4, 88.1])
    assert task["scratch_gain"] == pytest.approx([6.4, 5.4, 6.1])
    assert found.tables[0].rows[0][3] == "62.0 (62.0, 62.0, 62.0)"
    less = found.tables[1]
    assert [(row[0], row[-1]) for row in less.rows] == [
        ("early_stop", "yes"),
        ("early_stop[fraction=0.28]", "yes"),
    ]


@pytest.mark.parametrize(
    ("value", "failure"),
    [
        (changed(full=0.5, head=0.5), "toy_topic: the strongest attack gains 24.0 points, at least 30 are needed"),
        (changed(full=0.79), "toy_topic: the strongest attack ends at 79.0, not in 80 to 95"),
        (changed(full=0.96), "toy_topic: the strongest attack ends at 96.0, not in 80 to 95"),
        (changed(scratch=0.36), "toy_topic: training from scratch gains 11.4 points, at most 10 may be"),
        (changed(early_stop=0.85), "half the pre-training lowers no utility metric measurably"),
        (changed(twin=0.75), "two undefended models differ: toy_agreement_pronoun by 10.03"),
    ],
)
def test_each_fault_of_a_suite_is_named(derived: Plan, value: Value, failure: str) -> None:
    found = measured(derived, value)
    assert not found.valid
    assert any(failure in one for one in found.failures), found.failures


def test_the_strongest_attack_is_picked_on_validation(derived: Plan) -> None:
    records = made(derived, changed(head=0.87))
    for key, one in records.items():
        if (one.defense, one.attack) == ("none", "head"):
            records[key] = replace(one, attacked=measurement(0.92))
    (task,) = judged(derived, records).numbers["tasks"]
    assert task["attack"] == "full"


def test_the_strongest_attack_is_the_rankings(derived: Plan) -> None:
    """Who has the data may train from scratch; who rescales a released update does something else."""
    (task,) = measured(derived, changed(scratch=0.92)).numbers["tasks"]
    assert task["attack"] == "scratch"
    records = {
        key: replace(one, adaptation="rescaling") if one.attack == "full" else one
        for key, one in made(derived, valid).items()
    }
    (task,) = judged(derived, records).numbers["tasks"]
    assert task["attack"] == "head"


def test_cells_that_attacked_different_weights_are_a_failure(derived: Plan) -> None:
    records = {key: replace(one, release_sha256=one.attack) for key, one in made(derived, valid).items()}
    (failure,) = judged(derived, records).failures
    assert failure.endswith("on toy_topic, seed 4: cells of this row and seed attacked different weights")


def test_a_suite_with_a_failed_cell_is_not_valid(derived: Plan) -> None:
    records = made(derived, valid)
    key = next(key for key, one in records.items() if one.attack == "head")
    records[key] = replace(records[key], status="failed", reason="boom", attacked=None)
    (failure,) = judged(derived, records).failures
    assert "1 of" in failure
    assert "none × head on toy_topic" in failure


def test_files_and_terminal_say_the_same(derived: Plan, tmp_path: Path) -> None:
    found = measured(derived, changed(full=0.96))
    page, content = (path.read_text() for path in write(found, tmp_path, "calibration", "nftbench calibrate tiny"))
    shown = io.StringIO()
    Console(file=shown, width=200).print(report(found))
    for text in ("tiny-calibration: not valid", "96.0 (96.4, 95.4, 96.1)", *found.failures):
        assert text in page
        assert text in shown.getvalue()
    assert json.loads(content)["failures"] == list(found.failures)


def test_the_verb_runs_and_refuses_an_untrained_model(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    suite = tiny_suite(attacks=["none", "full"], budget={"durations": [2], "restarts": 1, "extension": 0})
    Path("tiny.yaml").write_text(yaml.safe_dump(suite.model_dump(mode="json")))
    assert main(["calibrate", "tiny.yaml", "--jobs", "1"]) == 1
    assert "tiny-calibration: not valid" in capsys.readouterr().out
    content = json.loads(Path("runs/tiny-calibration/calibration.json").read_text())
    assert [len(task["end"]) for task in content["tasks"]] == [3]
    assert {gap["what"] for gap in content["twin"]} == {"toy_agreement_pronoun", "toy_topic, attacked"}
