"""Records name the code that they come from; a line says which of them come from other code than today's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nftbench.planning import code_origin, registry
from nftbench.planning.code_origin import PACKAGES
from nftbench.planning.plugin_sources import source_digest
from nftbench.records.record import Record
from nftbench.running.workspace import Workspace

MakeWorkspace = Callable[..., Workspace]
RunAll = Callable[..., dict[tuple[str, str, str, int], Record]]
MINE = (
    "@dataclass(frozen=True)\nclass Mine(Defense):\n    stage: ClassVar = 'posttrain'\n"
    "    def protect(self, model, context):\n        return Protected(model)\n"
)


def changed(record: Record, **sources: str) -> Record:
    """The record as if it had been made from these sources."""
    return replace(record, provenance={**record.provenance, "sources": sources})


@pytest.fixture
def records(workspace: MakeWorkspace, run_all: RunAll) -> list[Record]:
    return list(run_all(workspace(attacks=["none", "lora"])).values())


def test_a_record_names_its_plugins_their_shared_modules_and_the_rooms(records: list[Record]) -> None:
    by_attack = {record.attack: record.provenance["sources"] for record in records if record.task == "toy_topic"}
    assert by_attack["none"].keys() == {"defense", "attack", "task", *PACKAGES}
    assert by_attack["lora"].keys() == {"defense", "attack", "task", "nftbench.methods.adapters", *PACKAGES}
    assert by_attack["lora"]["attack"] == source_digest(registry.find("attacks", "lora"))
    assert all(len(digest) == 64 for found in by_attack.values() for digest in found.values())


def test_one_line_says_which_cells_come_from_other_code(records: list[Record], cache: Path) -> None:
    assert code_origin.comparison([], cache) is None
    assert code_origin.comparison(records, cache) == f"sources of {len(records)} cells: {len(records)} as today"
    one = records[0]
    others = [
        one,
        changed(one, attack="another", **{"nftbench.training": "another"}),
        changed(one, attack="another"),
        changed(one, **{"nftbench.methods.gone": "x"}),
        replace(one, defense="gone[x=1]"),
        changed(one),
    ]
    assert code_origin.comparison(others, cache) == (
        f"sources of 6 cells: 1 as today; 2 other than today (attack {one.attack}, nftbench.training); "
        "2 unknown, from a plugin that is not here; 1 do not say"
    )


def test_shared_code_is_parsed_once_for_each_content(tmp_path: Path, workspace: MakeWorkspace) -> None:
    here = workspace()
    first = code_origin.sources(here.plan, here.plan.cells[0], tmp_path)
    kept = {path.read_text() for path in (tmp_path / "code").iterdir()}
    assert kept == {first[package] for package in PACKAGES}


def test_a_plugin_that_is_edited_during_a_run_fails_its_jobs_alone(
    workspace: MakeWorkspace, run_all: RunAll, plugin: Callable[[str, str], Path]
) -> None:
    path = plugin("mine", MINE)
    here: Any = workspace(defenses=["none", "mine"], attacks=["none", "full"])
    path.write_text(path.read_text().replace("'posttrain'", "'pretrain'"))
    for record in run_all(here).values():
        if record.defense == "none":
            assert record.status == "ok"
        else:
            assert (record.status, record.reason) == (
                "failed",
                "defense 'mine': its source has changed since the run began; start the run again",
            )
