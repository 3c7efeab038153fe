"""Exports hold the leaderboard's numbers in other tools' formats, and nothing that tells of the machine."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import zipfile
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from nftbench.cli import execution, main
from nftbench.records.manifest import Manifest
from nftbench.records.record import Record
from nftbench.records.store import Store
from nftbench.report.exports import FORMATS, Results, published
from nftbench.report.exports.results import _without_paths
from nftbench.scoring.scores import Score
from tests.comparing.sides import HERE, PMP, folder, manifest, records

SECRET_SALT = "5a17" * 8
HOME = "/home/somebody/secret-project"
COMMAND = f"nftbench run small --out {HOME}/runs/small --data '{HOME}/my data' --plugin={HOME}/mine.py"
WHEN = {**HERE, "written": "2026-11-28T14:38:00+00:00", "command": COMMAND}
CHECKPOINT = f"checkpoint[path={HOME}/release,reference={HOME}/base]"


def made(rows: dict[str, tuple[float, ...]] | None = None) -> tuple[Manifest, list[Record]]:
    found = records(rows or {"pmp": PMP}, provenance=WHEN)
    return replace(manifest(found), command=COMMAND), found


def exported(plan: Manifest, found: list[Record]) -> Results:
    return published(plan, found, plan.command, execution.rank)


@pytest.fixture(scope="module")
def results() -> Results:
    return exported(*made())


def row(results: Results, defense: str) -> Score:
    return next(one for one in results.board.scores if one.defense == defense)


# ------------------------------------------------------------------------------------------------------------- privacy


def test_no_export_tells_of_the_machine(tmp_path: Path) -> None:
    """Paths stand in commands, in the specifications of checkpoints and in reasons of failures."""
    plan, found = made({"pmp": PMP, CHECKPOINT: PMP})
    found[5] = replace(found[5], status="failed", reason=f"OSError: cannot read '{HOME}/my data/x'", attacked=None)
    plan = replace(plan, cells=manifest(found).cells)
    store = Store(folder(tmp_path / "run", found, plan), tmp_path)
    store.keep_salt(SECRET_SALT)
    execution.export(store.results, list(FORMATS))
    files = [path for path in store.results.rglob("*") if path.is_file()]
    new = [path for path in files if {"every_eval_ever", "model-index"} & set(path.parts) or "Bigger" in path.name]
    assert len({path.relative_to(store.results).parts[0] for path in new}) == 3
    for path in new:
        text = path.read_text() + str(path.relative_to(store.results))
        for private in ("somebody", "secret-project", SECRET_SALT, str(Path.home()) + "/"):
            assert private not in text, path
    assert "checkpoint[path=release,reference=base]" in (store.results / "customBiggerIsBetter.json").read_text()


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (COMMAND, "nftbench run small --out small --data 'my data' --plugin=mine.py"),
        ("nftbench run small --out runs/small", "nftbench run small --out runs/small"),
        ("see https://hf.co/a/b, 3 points/s", "see https://hf.co/a/b, 3 points/s"),
        ("~/x/y and ~me/z", "y and z"),
        (r"open C:\Users\me\run failed", "open run failed"),
        ("No such file: '/a/b'.", "No such file: 'b'."),
        ("checkpoint[path=/a/b,reference=org/name]", "checkpoint[path=b,reference=org/name]"),
        ("none / full", "none / full"),
    ],
)
def test_paths_are_shortened_to_their_last_part(text: str, clean: str) -> None:
    assert _without_paths(text) == clean


def test_different_paths_stay_different() -> None:
    assert _without_paths({"one": "/a/model", "other": ["/b/model", "/a/model"]}) == {
        "one": "model",
        "other": ["model-2", "model"],
    }


def test_a_run_without_paths_is_exported_as_it_is() -> None:
    found = records({"pmp": PMP})
    clean = exported(manifest(found), found)
    assert list(clean.records) == found
    assert clean.manifest == manifest(found)


# ------------------------------------------------------------------------------------------------------ every_eval_ever


def logs(results: Results) -> dict[str, Any]:
    return {path: json.loads(text) for path, text in FORMATS["every_eval_ever"](results).items()}


def test_records_of_every_eval_ever_have_their_place_and_the_required_fields(results: Results) -> None:
    found = logs(results)
    assert len(found) == 2, "none and pmp, but no dose of the ladder"
    hexes = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
    for path, log in found.items():
        place = re.fullmatch(rf"every_eval_ever/data/nftbench/([\w.=+-]+)/([\w.=+-]+)/{hexes}\.json", path)
        assert place is not None
        assert log["model_info"]["id"] == f"{place[1]}/{place[2]}"
        assert log["schema_version"] == "0.3.0"
        assert log["retrieved_timestamp"] == "1795876680"
        assert log["evaluation_id"] == f"nftbench.tiny/{log['model_info']['id']}/1795876680"
        assert log["eval_library"]["version"] == "0.2.0"
        assert {one["score_details"]["uncertainty"]["num_samples"] for one in log["evaluation_results"]} == {5}
        identities = [one["evaluation_result_id"] for one in log["evaluation_results"]]
        assert len(set(identities)) == len(identities)


def test_their_numbers_are_those_of_the_leaderboard(results: Results) -> None:
    (log,) = [one for one in logs(results).values() if one["model_info"]["name"] == "pmp"]
    found = {(one["evaluation_name"], one["metric_config"]["metric_id"]): one for one in log["evaluation_results"]}
    score = row(results, "pmp")
    assert score.resistance.suppression is not None
    whole = found["nftbench.tiny.all_tasks", "nftbench.suppression"]["score_details"]
    assert whole["score"] == score.resistance.suppression.value == pytest.approx(30)
    assert whole["uncertainty"]["confidence_interval"]["lower"] == score.resistance.suppression.low
    attacked = found["nftbench.tiny.topic", "nftbench.attacked_score"]
    assert attacked["metric_config"]["lower_is_better"]
    assert attacked["score_details"]["score"] == pytest.approx(52)
    assert attacked["generation_config"]["additional_details"]["attack"] == "full"
    assert found["nftbench.tiny.minimal_pairs", "nftbench.utility_kept"]["score_details"]["score"] == pytest.approx(100)
    assert ("nftbench.tiny.all_tasks", "nftbench.excess") in found


def test_equal_results_give_equal_files_and_others_do_not(results: Results) -> None:
    assert FORMATS["every_eval_ever"](exported(*made())) == FORMATS["every_eval_ever"](results)
    other = FORMATS["every_eval_ever"](exported(*made({"pmp": tuple(one + 0.01 for one in PMP)})))
    same = other.keys() & FORMATS["every_eval_ever"](results).keys()
    assert len(same) == 1
    assert "none" in same.pop()


def schema() -> Any:
    """Their own schema: of the installed package, or in the wheel that EVERY_EVAL_EVER names (it needs Python 3.12)."""
    name = "every_eval_ever/schemas/eval.schema.json"
    if wheel := os.environ.get("EVERY_EVAL_EVER"):
        return json.loads(zipfile.ZipFile(wheel).read(name))
    try:
        return json.loads(Path(str(distribution("every-eval-ever").locate_file(name))).read_text())
    except PackageNotFoundError:
        return pytest.skip("the schema is not here: EVERY_EVAL_EVER=every_eval_ever-0.3.0-py3-none-any.whl names it")


def test_they_obey_the_schema_of_every_eval_ever(results: Results) -> None:
    validator = Draft7Validator(schema())
    single = exported(*made({"pmp": PMP[:1]}))
    local = exported(*made({CHECKPOINT: PMP, "checkpoint[path=org/name,reference=org/base]": PMP}))
    for one in (results, single, local):
        for path, log in logs(one).items():
            assert [error.message for error in validator.iter_errors(log)] == [], path


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"path": f"{HOME}/base", "sha256": "b" * 64}, {"base_model": "base", "base_model_sha256": "b" * 64}),
        ({"path": "org/base", "revision": "c0ffee"}, {"base_model": "org/base", "base_model_revision": "c0ffee"}),
    ],
)
def test_a_given_base_is_named_also_as_the_twin_of_an_audit(given: dict[str, str], said: dict[str, str]) -> None:
    plan, found = made({CHECKPOINT: PMP})
    audit = exported(replace(plan, suite=plan.suite.model_copy(update={"model": given})), found)
    assert len(logs(audit)) == 2
    for log in logs(audit).values():
        details = log["model_info"]["additional_details"]
        assert {name: one for name, one in details.items() if name.startswith(("base_model", "model_type"))} == said


def test_a_checkpoint_of_the_hub_keeps_its_id() -> None:
    found = logs(exported(*made({"checkpoint[path=org/name,reference=org/base]": PMP})))
    (log,) = [one for one in found.values() if one["model_info"]["id"] == "org/name"]
    assert log["model_info"]["additional_details"]["model_availability"] == "open_weights"
    assert log["source_metadata"]["evaluator_relationship"] == "other"


# ---------------------------------------------------------------------------------------- model-index, benchmark action


def test_each_defense_has_a_model_index_that_the_hub_reads(results: Results) -> None:
    from huggingface_hub.repocard_data import model_index_to_eval_results

    ((path, text),) = FORMATS["model-index"](results).items()
    assert path == "model-index/pmp.yaml"
    name, found = model_index_to_eval_results(yaml.safe_load(text)["model-index"])
    assert name == "pmp"
    by_metric = {one.metric_type: one for one in found}
    assert by_metric["nftbench.suppression"].metric_value == pytest.approx(30)
    assert by_metric["nftbench.suppression"].metric_args["command"].startswith("nftbench run small --out small")
    score = row(results, "pmp")
    expected = {f"{one.task}, fine-tuned by the strongest attack" for one in score.resistance.tasks}
    expected |= {"mean over tasks", "mean over metrics", *score.utility.by_metric}
    assert {one.dataset_name for one in found} == expected, "each task and metric keeps its name"
    kept = {one.dataset_name for one in found if one.task_name == "utility before any attack"}
    assert kept == {"mean over metrics", *score.utility.by_metric}


def test_the_benchmark_action_gets_a_number_with_its_range(results: Results) -> None:
    entries = json.loads(FORMATS["customBiggerIsBetter"](results)["customBiggerIsBetter.json"])
    by_name = {one["name"]: one for one in entries}
    assert list(by_name) == ["pmp: suppression", "pmp: excess", "pmp: utility kept"]
    suppression = row(results, "pmp").resistance.suppression
    assert suppression is not None
    one = by_name["pmp: suppression"]
    assert (one["unit"], one["value"]) == ("points", 30.0)
    assert json.loads(one["range"]) == pytest.approx([suppression.low, suppression.high], abs=1e-3)
    assert by_name["pmp: utility kept"]["value"] == 100.0
    for each in entries:
        assert {"name", "unit", "value"} <= each.keys() <= {"name", "unit", "value", "range", "extra"}
        assert math.isfinite(each["value"])


def test_one_seed_has_numbers_without_a_range() -> None:
    (first, *_) = json.loads(
        FORMATS["customBiggerIsBetter"](exported(*made({"pmp": PMP[:1]})))["customBiggerIsBetter.json"]
    )
    assert "range" not in first
    assert first["extra"].startswith("1 base seed,")


# ----------------------------------------------------------------------------------------------------- the command line


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    plan, found = made()
    return folder(Path("run"), found, plan)


def test_report_writes_formats_into_the_folder(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "run", *(word for name in FORMATS for word in ("--format", name))]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "run/customBiggerIsBetter.json" in said
    assert "run/model-index/pmp.yaml" in said
    assert len([*run.glob("every_eval_ever/data/*/*/*/*.json")]) == 2
    assert main(["report", "run", "--format", "html"]) == 2


def test_a_tracker_that_is_not_installed_is_named_with_its_extra(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["report", "run", "--log-to", "wandb"]) == 2
    said = capsys.readouterr().err
    assert said == "nftbench: --log-to wandb: the package is not installed: pip install 'nftbench[wandb]'\n"
    assert not (run / "leaderboard.md").exists()


def test_a_tracker_that_refuses_is_one_line(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As wandb does without a login; the reports are written by then."""
    (tmp_path / "wandb.py").write_text(
        "class Settings:\n    def __init__(self, **names):\n        raise OSError('no\\nlogin')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(["report", "run", "--log-to", "wandb"]) == 2
    assert capsys.readouterr().err == "nftbench: --log-to wandb: OSError: no login\n"
    assert (run / "leaderboard.md").exists()
