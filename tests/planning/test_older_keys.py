"""Folders of nftbench 0.1: their keys are computed in the old way, and their records are taken over."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nftbench.device import Device
from nftbench.planning import older_keys, registry
from nftbench.planning.keys import TODAY
from nftbench.planning.plan import plan
from nftbench.running.workspace import Workspace
from nftbench.suites.reading import parse

ROOT = Path(__file__).parents[2]
MakeWorkspace = Callable[..., Workspace]


@pytest.mark.parametrize("folder", ["small", "standard"])
def test_older_keys_are_those_of_published_folders(folder: str) -> None:
    """Both were run at the last commit of 0.1."""
    manifest = json.loads((ROOT / "results" / folder / "manifest.json").read_text())
    whole = plan(parse(manifest["suite"], folder), device=Device.parse(manifest["device"]), limit=manifest["limit"])
    published = {tuple(workspace): key for *workspace, key in [*manifest["cells"], *manifest["readings"]]}
    older = older_keys.older_keys(whole)
    found = {
        (str(cell.defense), str(cell.attack), str(cell.task), cell.seed): older[cell.key]
        for cell in whole.cells
        if cell.key in older
    }
    assert found, "no plugin is as 0.1 had it: see tests/golden/freeze.py"
    assert found.items() <= published.items()


def test_a_plugin_that_0_1_did_not_have_has_no_older_key(
    plugin: Callable[[str, str], Path], workspace: MakeWorkspace
) -> None:
    plugin(
        "mine",
        "@dataclass(frozen=True)\nclass Mine(Defense):\n    stage: ClassVar = 'posttrain'\n"
        "    def protect(self, model, context):\n        return Protected(model)\n",
    )
    whole = workspace(defenses=["none", "mine"]).plan
    older = older_keys.older_keys(whole)
    assert {cell.defense.name for cell in whole.cells if cell.key in older} == {"none"}


def test_other_versions_of_the_core_have_no_older_keys(workspace: MakeWorkspace) -> None:
    versions = {**TODAY.versions, "attack": (["attack", 2],)}
    assert older_keys.older_keys(workspace().plan)
    assert not older_keys.older_keys(workspace().plan, replace(TODAY, versions=versions))


@pytest.fixture
def begun(workspace: MakeWorkspace, run_all: Callable[..., Any]) -> Workspace:
    """A folder as 0.1 left it, with one record of a cell that failed."""
    here = workspace(attacks=["none", "full"])
    run_all(here)
    older = older_keys.older_keys(here.plan)
    for key, record in here.store.records().items():
        failed = {"status": "failed", "reason": "as it went"} if record.attack == "full" else {}
        silent = {name: value for name, value in record.provenance.items() if name != "sources"}
        here.store.write(replace(record, key=older[key], provenance=silent, **failed))
    here.store.forget([cell.key for cell in here.plan.cells])
    return here


def test_settled_records_are_taken_over_once(begun: Workspace) -> None:
    before = begun.store.records()
    measured = {cell.key for cell in begun.plan.cells if cell.attack.name == "none"}
    found = older_keys.older_records(begun.plan, begun.store)
    assert found.keys() == measured
    assert begun.store.records() == before, "asking writes nothing"
    assert older_keys.take_over(begun.plan, begun.store) == len(measured) > 0
    after = begun.store.records()
    assert after.keys() == before.keys() | measured
    older = older_keys.older_keys(begun.plan)
    assert all(after[key] == replace(before[older[key]], key=key) for key in measured)
    assert older_keys.take_over(begun.plan, begun.store) == 0


def test_a_settled_record_of_today_is_kept(begun: Workspace) -> None:
    cell = next(cell for cell in begun.plan.cells if cell.attack.name == "none")
    older = begun.store.records()[older_keys.older_keys(begun.plan)[cell.key]]
    begun.store.write(replace(older, key=cell.key, status="nonfinite"))
    assert cell.key not in older_keys.older_records(begun.plan, begun.store)


def test_every_plugin_of_0_1_is_frozen_and_still_there() -> None:
    frozen = json.loads(older_keys.FROZEN.read_text())["plugins"]
    for place in frozen:
        kind, name = place.split("/")
        assert registry.find(kind, name).origin == "nftbench"  # type: ignore[arg-type]
