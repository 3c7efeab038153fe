"""The verbs on a folder of nftbench 0.1, and on records of other code than today's."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from nftbench.cli import main
from nftbench.planning.older_keys import older_keys
from nftbench.planning.plan import plan
from nftbench.records.store import Store
from nftbench.testing import tiny_suite

COUNT = 4
"""Cells of the suite."""


@pytest.fixture(scope="module")
def begun(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a suite and, under runs/tiny, its results as 0.1 left them."""
    folder = tmp_path_factory.mktemp("older")
    suite = tiny_suite(defenses=["none", "noise"], attacks=["none"])
    (folder / "tiny.yaml").write_text(yaml.safe_dump(suite.model_dump(mode="json", exclude_defaults=True)))
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main(["run", "tiny.yaml", "--jobs", "1"]) == 0
    finally:
        os.chdir(before)
    store, older = Store(folder / "runs" / "tiny", cache), older_keys(plan(suite))
    records = store.records()
    store.forget(list(records))
    for key, record in records.items():
        silent = {name: value for name, value in record.provenance.items() if name != "sources"}
        store.write(replace(record, key=older[key], provenance=silent))
    return folder


Call = Callable[..., list[str]]


@pytest.fixture
def call(begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """`call("run")`: the lines that a verb prints, in a copy of the folder."""
    shutil.copytree(begun, tmp_path / "folder")
    monkeypatch.chdir(tmp_path / "folder")

    def run(verb: str, *words: str) -> list[str]:
        capsys.readouterr()
        assert main([verb, *words]) == 0
        return capsys.readouterr().out.splitlines()

    return run


UNKNOWN = "which code and which base weights they came from is unknown"


def test_plan_says_what_a_run_would_take_over_and_writes_nothing(call: Call) -> None:
    before = sorted(Path("runs/tiny/records").iterdir())
    lines = call("plan", "tiny.yaml")
    assert f"a run will take over {COUNT} records of nftbench 0.1; {UNKNOWN}" in lines
    assert f"sources of {COUNT} cells: {COUNT} do not say" in lines
    assert "time: nothing is left to run" in lines
    assert sorted(Path("runs/tiny/records").iterdir()) == before


def test_run_takes_the_whole_plan_over_even_where_it_is_narrowed(call: Call) -> None:
    lines = call("run", "tiny.yaml", "--defenses", "noise", "--jobs", "1")
    assert f"{COUNT} records of nftbench 0.1 taken over; {UNKNOWN}" in lines
    assert any(line.endswith("0 jobs to run") for line in lines)
    again = call("run", "tiny.yaml", "--jobs", "1")
    assert not any("taken over" in line for line in again)
    assert f"sources of {COUNT} cells: {COUNT} do not say" in again
    assert f"sources of {COUNT} cells: {COUNT} do not say" in call("report", "runs/tiny")


def test_force_forgets_the_older_records_too(call: Call) -> None:
    lines = call("run", "tiny.yaml", "--force", "--jobs", "1")
    assert not any("taken over" in line for line in lines)
    assert f"sources of {COUNT} cells: {COUNT} as today" in call("report", "runs/tiny")


def test_report_ranks_an_older_folder_as_it_is(call: Call, begun: Path) -> None:
    manifest = Path("runs/tiny/manifest.json")
    store = Store(Path("runs/tiny"), Path())
    older = older_keys(plan(tiny_suite(defenses=["none", "noise"], attacks=["none"])))
    text = manifest.read_text()
    for key, before in older.items():
        text = text.replace(key, before)
    manifest.write_text(text)
    lines = call("report", "runs/tiny")
    assert f"sources of {COUNT} cells: {COUNT} do not say" in lines
    assert len(store.records()) == COUNT
