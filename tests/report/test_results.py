"""Published pages are what today's code makes of the records beside them; figures are not compared.

A folder of results/ with a leaderboard is a suite's, as `nftbench report` writes it; every other one is a proof's, as
`nftbench calibrate` writes it. A proof that has no records of its own reads the folders that its command names.
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from nftbench import calibration, report, suites
from nftbench.cli import app, execution
from nftbench.errors import NftbenchError
from nftbench.planning.plan import plan
from nftbench.records.store import Store

RESULTS = Path(__file__).resolve().parents[2] / "results"
VERBS: Any = typer.main.get_command(app)
FOLDERS = sorted(path for path in RESULTS.iterdir() if path.is_dir())
BOARDS = [folder for folder in FOLDERS if (folder / "leaderboard.md").exists()]
LONG = ("-null", "-power", "-attacks")
"""The ends of the names of the proofs that take longest: that of `null` scores 400 leaderboards."""
PROOFS = [
    pytest.param(folder, marks=pytest.mark.slow if folder.name.endswith(LONG) else (), id=folder.name)
    for folder in FOLDERS
    if folder not in BOARDS
]


@pytest.fixture(autouse=True)
def of_today(request: pytest.FixtureRequest) -> None:
    """Skip folders of the former protocol, and proofs that read one: they are to be made again."""
    folder: Path = request.getfixturevalue("folder")
    try:
        for name in [folder.name] if folder in BOARDS else read_by(folder) or [folder.name]:
            Store(RESULTS / name, folder).manifest()
    except NftbenchError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("folder", BOARDS, ids=lambda folder: folder.name)
def test_a_leaderboard_is_that_of_its_records(folder: Path, tmp_path: Path) -> None:
    """As the verb `report` makes it."""
    store = Store(folder, tmp_path)
    manifest = store.manifest()
    board = execution.rank(store.planned(manifest), manifest)
    report.write(board, tmp_path, manifest.command)
    check(folder, tmp_path, "leaderboard.*", "defenses/*", "index.html")


@pytest.mark.slow
@pytest.mark.parametrize("folder", BOARDS, ids=lambda folder: folder.name)
def test_published_cells_are_those_that_are_planned_today(folder: Path, tmp_path: Path) -> None:
    """So whoever changes a defense, an attack or a task sees what must run again."""
    manifest = Store(folder, tmp_path).manifest()
    suite = manifest.suite.model_copy(update={"salt": manifest.salt})
    if suite.given is not None or suite.corpus.source != "toy":
        pytest.skip("its text or its weights are not in the repository")
    changed = manifest.keys.symmetric_difference(cell.key for cell in plan(suite, limit=manifest.limit).cells)
    assert not changed, (
        f"{len(changed)} cells are no longer those that are published: run the suite and publish it anew"
    )


@pytest.mark.parametrize("folder", PROOFS)
def test_a_proof_is_what_its_judge_finds_in_its_records(folder: Path, tmp_path: Path) -> None:
    proof, command = folder.name.rpartition("-")[2], command_of(folder)
    asked, judged = arguments(command), calibration.find(proof)
    if isinstance(judged, calibration.Read):
        found = judged.judge([calibration.Run.read(RESULTS / name, tmp_path) for name in read_by(folder)])
    else:
        suite = suites.read(asked["suite"], asked["changes"] or ())
        found = judged.found(suite, calibration.Run.read(folder, tmp_path))
    calibration.write(found, tmp_path, proof, command)
    check(folder, tmp_path, f"{proof}.md", f"{proof}.json")


def command_of(folder: Path) -> str:
    """The command that made a proof."""
    command: str = json.loads((folder / f"{folder.name.rpartition('-')[2]}.json").read_text())["command"]
    return command


def read_by(folder: Path) -> list[str]:
    """The names of the published runs that a proof reads; empty if it reads its own records."""
    asked, judged = arguments(command_of(folder)), calibration.find(folder.name.rpartition("-")[2])
    if not isinstance(judged, calibration.Read):
        return []
    return [one.name for one in asked["finished"] or judged.folders(asked["suite"])]


def arguments(command: str) -> dict[str, Any]:
    """What a command line asks for, by the names of the verb's parameters; its paths need not be there."""
    words = shlex.split(command)[1:]
    with VERBS.make_context("nftbench", list(words), resilient_parsing=True) as group:
        name, verb, rest = VERBS.resolve_command(group, words)
        found: dict[str, Any] = verb.make_context(name, rest, parent=group, resilient_parsing=True).params
    return found


def check(published: Path, made: Path, *patterns: str) -> None:
    """The same pages in both folders, and none else; of each that differs the first other line is said."""
    names = {path.relative_to(folder) for folder in (published, made) for one in patterns for path in folder.glob(one)}
    pairs = {name: itertools.zip_longest(lines(published / name), lines(made / name)) for name in sorted(names)}
    other = {name: next((pair for pair in both if pair[0] != pair[1]), None) for name, both in pairs.items()}
    said = [f"{name}\n  published: {pair[0]}\n  made: {pair[1]}" for name, pair in other.items() if pair]
    assert names
    assert not said, "\n".join(said)


def lines(path: Path) -> list[str]:
    """Numbers to nine decimals, for the last ones are those of a machine's mathematics library."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return re.sub(r"-?\d+\.\d{10,}(e-\d+)?", lambda number: f"{round(float(number[0]), 9) + 0.0}", text).splitlines()
