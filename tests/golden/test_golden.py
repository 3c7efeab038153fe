"""The core computes the stored numbers, or the version of the area that changed has been raised."""

from __future__ import annotations

import copy
import json
import pkgutil
from pathlib import Path
from typing import Any

import pytest

import nftbench.methods
from tests.golden.golden import STORED, VERSIONS, Numbers, compute, moved, store


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Numbers]:
    return compute(tmp_path_factory.mktemp("golden"))


@pytest.fixture
def stored() -> Any:
    return json.loads(STORED.read_text())


def test_no_number_changes_under_an_unchanged_version(found: dict[str, Numbers], stored: Any) -> None:
    assert moved(stored, found, VERSIONS) == []


def test_a_raised_version_comes_with_new_numbers(stored: Any) -> None:
    """Raise the version, then `make golden`: the numbers stored are those of the version that the core has."""
    assert {area: kept["version"] for area, kept in stored.items()} == VERSIONS


@pytest.mark.parametrize("area", VERSIONS)
def test_a_changed_number_is_reported_unless_the_version_was_raised(
    area: str, found: dict[str, Numbers], stored: Any
) -> None:
    for name in stored[area]["numbers"]:
        other = copy.deepcopy(stored)
        other[area]["numbers"][name] *= 1 + 1e-5
        (problem,) = moved(other, found, VERSIONS)
        assert problem.startswith(f"{area}: {name} was ")
        assert not moved(other, found, {**VERSIONS, area: VERSIONS[area] + 1})
    left_out = {**found, area: {}}
    assert len(moved(stored, left_out, VERSIONS)) == len(stored[area]["numbers"])


def test_every_module_that_plugins_share_has_a_number(found: dict[str, Numbers]) -> None:
    """But `passes`, from which `plan` forecasts times, and which moves no result."""
    modules = {module.name for module in pkgutil.iter_modules(nftbench.methods.__path__)} - {"passes"}
    tried = {name.split(" ")[0].rstrip(",") for numbers in found.values() for name in numbers}
    assert {f"methods.{name}" for name in modules} <= tried


def test_new_numbers_are_not_stored_under_an_unchanged_version(
    stored: Any, found: dict[str, Numbers], tmp_path: Path
) -> None:
    path = tmp_path / "golden.json"
    stored["attack"]["numbers"]["preparation"] *= 2
    path.write_text(json.dumps(stored))
    before = path.read_bytes()
    assert len(store(path, found, VERSIONS)) == 1
    assert path.read_bytes() == before
    raised = {**VERSIONS, "attack": VERSIONS["attack"] + 1}
    assert store(path, found, raised) == []
    assert json.loads(path.read_text())["attack"] == {"version": raised["attack"], "numbers": found["attack"]}
