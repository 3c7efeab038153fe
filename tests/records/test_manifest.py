"""manifest.json: a written manifest is read back, and another file is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nftbench.errors import NftbenchError
from nftbench.planning.plan import plan
from nftbench.records import manifest as manifests
from nftbench.records.manifest import Manifest
from nftbench.testing import tiny_suite


def planned() -> Manifest:
    suite = tiny_suite(defenses=["none", "early_stop"], attacks=["none", "full", "authorized"], yardsticks=["cost"])
    return plan(suite, limit=7).manifest("nftbench run tiny --limit 7")


def write(folder: Path, content: Any) -> Path:
    path = folder / "manifest.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_manifest_survives_the_disk_exactly(tmp_path: Path) -> None:
    found = planned()
    assert found.readings
    assert found.skips
    assert manifests.read(write(tmp_path, manifests.dump(found))) == found


def test_keys_are_those_of_cells_and_readings() -> None:
    content = json.loads(manifests.dump(planned()))
    assert planned().keys == {cell[-1] for cell in content["cells"] + content["readings"]}


def test_a_folder_of_the_former_protocol_is_refused(tmp_path: Path) -> None:
    """Its manifest has no `format`."""
    content = json.loads(manifests.dump(planned()))
    del content["format"]
    with pytest.raises(NftbenchError, match=r"made by nftbench 0\.1 .*start a new folder"):
        manifests.read(write(tmp_path, content))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"cells": ', "damaged .*; restore it from a copy, or delete it"),
        ("\x00", "damaged .*; restore it from a copy, or delete it"),
        ([], "not a manifest of nftbench: the whole file"),
        ({}, "suite: is missing"),
        ({"suite": {"name": "x"}, "cells": [], "format": 2}, r"suite\.\w+"),
        ({"cells": [], "format": 99}, "made by another version of nftbench .format 99, not 2."),
    ],
)
def test_a_file_that_is_no_manifest_is_refused_in_one_line(content: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(NftbenchError, match=said) as caught:
        manifests.read(write(tmp_path, content))
    assert str(tmp_path / "manifest.json") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", [["none", "full", "toy_topic", 0], ["none", "full", "toy_topic", "first", "key"], 3])
def test_a_damaged_cell_is_named(damage: Any, tmp_path: Path) -> None:
    content = json.loads(manifests.dump(planned()))
    content["cells"][2] = damage
    with pytest.raises(NftbenchError, match=r"manifest\.json: .*cells\.2"):
        manifests.read(write(tmp_path, content))
