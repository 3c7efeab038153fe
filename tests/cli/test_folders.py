"""A folder of results belongs to one suite: another one does not take it over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Never

import pytest
import yaml

from nftbench.cli import execution
from nftbench.testing import tiny_suite
from tests.comparing.sides import folder, manifest
from tests.factories import record

Call = Callable[..., tuple[int, str, str]]


def held_by(name: str) -> Path:
    """A folder of results of a suite with this name."""
    found = [record("none", "none", "toy_topic", 0, 0.5)]
    return folder(Path("there"), found, manifest(found, name=name))


@pytest.fixture
def suite(tmp_path: Path) -> str:
    """A suite file whose suite is named `mine`, and which has a ladder."""
    content = tiny_suite(name="mine", seeds=[0], attacks=["none", "full"]).model_dump(mode="json", exclude={"salt"})
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**content, "ladder": {"noise": ["noise[scale=0.1]"]}}))
    return str(path)


@pytest.mark.parametrize("verb", ["run", "plan"])
def test_a_folder_of_another_suite_is_refused_and_stays(verb: str, call: Call, suite: str) -> None:
    there = held_by("small")
    before = (there / "manifest.json").read_bytes()
    code, _, complaint = call(verb, suite, "--out", there)
    assert (code, complaint) == (
        2,
        f"nftbench: {there}: holds the suite small, and this is mine: choose another folder with --out, or run small "
        "there (for the same suite under a new name, add --set name=small)\n",
    )
    assert (there / "manifest.json").read_bytes() == before
    assert not (there / "salt").exists()


@pytest.mark.parametrize("changes", [["--set", "budget.restarts=2"], ["--set", "name=small"]])
def test_the_same_suite_goes_on_with_other_settings_or_under_its_old_name(
    changes: list[str], call: Call, suite: str
) -> None:
    assert call("plan", suite, "--out", held_by("small" if "name=small" in changes else "mine"), *changes)[0] == 0


@pytest.mark.parametrize(("name", "goes_on"), [("mine-shams", True), ("mine", False), ("small-shams", False)])
def test_a_proof_goes_on_in_a_copy_of_another_proofs_folder(
    name: str, goes_on: bool, call: Call, suite: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def carry_out(*_: Any) -> Never:
        raise execution.NftbenchError("it goes on")

    monkeypatch.setattr(execution, "carry_out", carry_out)
    code, _, complaint = call("calibrate", suite, "--proof", "dose", "--out", held_by(name))
    assert code == 2
    assert ("it goes on" in complaint) == goes_on
    assert (f"holds the suite {name}, and this is mine-dose" in complaint) != goes_on
