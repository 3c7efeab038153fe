"""The salt of a folder of results: drawn once, kept, read by every later run, named by `pack`, public where given."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from nftbench.cli import execution, progress
from nftbench.cli.execution import PUBLIC_SALT
from nftbench.cli.salt import plan_with_salt
from nftbench.errors import NftbenchError
from nftbench.planning.plan import Plan, plan
from nftbench.records.count import complete_seeds
from nftbench.records.store import Store
from nftbench.running.executors.steps import Event
from nftbench.suites.schema import Suite
from nftbench.testing import tiny_suite

FOLDER = Path("runs/tiny")
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(call: Call, tmp_path: Path) -> Call:
    """As everywhere, where a suite without a salt lies; runs have one worker."""
    suite = tiny_suite(attacks=["none"], seeds=[0, 1]).model_dump(mode="json")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**suite, "salt": None}))
    return lambda verb, *words: call(verb, *words, *(["--jobs", "1"] if verb == "run" else []))


def store(folder: Path = FOLDER) -> Store:
    return Store(folder, Path())


def drawn() -> str:
    found = store().salt()
    assert found is not None
    return found


def test_a_run_draws_a_salt_and_writes_it_nowhere_else(call: Call) -> None:
    assert call("run", "tiny.yaml", "--seeds", "0")[0] == 0
    text = drawn()
    assert len(bytes.fromhex(text)) == 16
    assert (FOLDER / "salt").stat().st_mode & 0o777 == 0o600
    others = [path for path in FOLDER.rglob("*") if path.is_file() and path.name != "salt"]
    assert {"manifest.json", "leaderboard.json"} <= {path.name for path in others}
    assert not [path for path in others if text.encode() in path.read_bytes()]
    manifest = store().manifest()
    assert (manifest.salt, manifest.public_salt) == (None, False)


def test_every_later_run_uses_the_folders_salt(call: Call) -> None:
    """A shard of other seeds, and a resumed run."""
    call("run", "tiny.yaml", "--seeds", "0")
    text, keys = drawn(), store().manifest().keys
    call("run", "tiny.yaml", "--seeds", "1")
    assert (drawn(), store().manifest().keys) == (text, keys)
    code, out, _ = call("run", "tiny.yaml")
    assert code == 0
    assert any(line.endswith("nothing is left to run") for line in out.splitlines())
    assert PUBLIC_SALT not in out
    assert "not drawn yet" not in call("plan", "tiny.yaml")[1]


@pytest.mark.parametrize("verb", ["plan", "run"])
def test_another_salt_than_the_folders_is_refused_in_one_line(call: Call, verb: str) -> None:
    call("run", "tiny.yaml", "--seeds", "0")
    before = (FOLDER / "manifest.json").read_bytes()
    code, _, said = call(verb, "tiny.yaml", "--salt", "other")
    assert code == 2
    assert said == "nftbench: runs/tiny: was begun with another salt; leave the salt out, or start a new folder\n"
    assert (FOLDER / "manifest.json").read_bytes() == before


def test_two_folders_have_different_salts_and_keys(call: Call) -> None:
    call("run", "tiny.yaml", "--seeds", "0")
    call("run", "tiny.yaml", "--seeds", "0", "--out", "again")
    again = store(Path("again"))
    assert again.salt() != drawn()
    assert not again.manifest().keys & store().manifest().keys


def test_pack_names_the_salt_and_a_run_that_repeats_it_is_shown_as_public(call: Call) -> None:
    call("run", "tiny.yaml", "--seeds", "0")
    text = drawn()
    assert PUBLIC_SALT not in call("pack", str(FOLDER))[1] + call("report", str(FOLDER))[1]
    packed = store().manifest()
    assert (packed.salt, packed.public_salt) == (text, False)
    _, out, _ = call("run", "tiny.yaml", "--seeds", "0", "--salt", text, "--out", "again")
    again = store(Path("again")).manifest()
    assert again.keys == packed.keys
    assert (again.salt, again.public_salt) == (text, True)
    assert PUBLIC_SALT in " ".join(out.split())
    assert PUBLIC_SALT in (Path("again") / "leaderboard.md").read_text()


def test_what_is_run_after_packing_had_a_public_salt(call: Call) -> None:
    call("run", "tiny.yaml")
    call("pack", str(FOLDER))
    (FOLDER / "salt").unlink()  # a published folder has it in its manifest
    _, out, _ = call("run", "tiny.yaml")
    assert any(line.endswith("nothing is left to run") for line in out.splitlines())
    assert not store().manifest().public_salt
    _, out, _ = call("run", "tiny.yaml", "--defenses", "noise", "--seeds", "0")
    assert store().manifest().public_salt
    assert PUBLIC_SALT in " ".join(out.split())


def test_plan_without_a_folder_says_that_keys_depend_on_a_salt_and_writes_nothing(call: Call) -> None:
    code, out, _ = call("plan", "tiny.yaml")
    assert code == 0
    assert "salt: not drawn yet; the keys of cells will depend on it" in out.splitlines()
    assert not FOLDER.exists()
    assert "not drawn yet" not in call("plan", "tiny.yaml", "--salt", "x")[1]


def test_a_command_line_that_is_refused_draws_no_salt(call: Call) -> None:
    assert call("run", "tiny.yaml", "--attacks", "authorized")[0] == 2
    assert not FOLDER.exists()


def test_a_salt_is_refused_where_there_is_no_grammar(call: Call) -> None:
    code, _, said = call("plan", "paper-condition-number", "--salt", "x")
    assert code == 2
    assert "salt is for the toy language" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("salt", ["a b", "", " ", "x "])
def test_a_salt_is_one_word(call: Call, salt: str) -> None:
    code, _, said = call("plan", "tiny.yaml", "--salt", salt)
    assert (code, said) == (2, f"nftbench: --salt {salt!r}: write one word, without blanks\n")


def test_of_processes_that_draw_at_once_one_wins(tmp_path: Path) -> None:
    code = (
        "import sys, time, pathlib\nfrom nftbench.records.store import Store\n"
        "folder = pathlib.Path(sys.argv[1])\nprint('ready', flush=True)\nsys.stdin.readline()\n"
        "print(Store(folder, folder).keep_salt(sys.argv[2]))\n"
    )
    command = [sys.executable, "-P", "-c", code, str(tmp_path / "runs")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    texts = [f"salt-{number}" for number in range(4)]
    processes = [subprocess.Popen([*command, text], **pipes) for text in texts]  # type: ignore[call-overload]
    for process in processes:
        process.stdout.readline()
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    found = {process.communicate()[0].strip() for process in processes}
    assert found == {store(tmp_path / "runs").salt()}
    assert found <= set(texts)


def test_a_plan_is_made_again_where_another_run_drew_meanwhile(tmp_path: Path) -> None:
    here = store(tmp_path / "runs")

    def slow(suite: Suite) -> Plan:
        here.keep_salt("the-other-runs")
        return plan(suite)

    found, salt = plan_with_salt(tiny_suite(salt=None), here, slow, keep=True)
    assert salt is not None
    assert (found.suite.salt, salt.text, salt.public) == ("the-other-runs", "the-other-runs", False)
    with pytest.raises(NftbenchError, match="was begun with another salt"):
        plan_with_salt(tiny_suite(salt="given"), here, plan, keep=True)


def test_a_folder_of_the_former_version_is_refused_before_any_work(call: Call) -> None:
    FOLDER.mkdir(parents=True)
    (FOLDER / "manifest.json").write_text('{"suite": {}, "cells": []}')
    for verb in ("run", "plan"):
        code, _, said = call(verb, "tiny.yaml")
        assert code == 2
        assert "made by nftbench 0.1" in said
        assert "start a new folder" in said
        assert said.count("\n") == 1
    assert not (FOLDER / "salt").exists()


def test_the_leaderboard_is_shown_after_each_seed(call: Call) -> None:
    _, out, _ = call("run", "tiny.yaml")
    said = [line for line in out.splitlines() if line.endswith("the leaderboard so far, also in runs/tiny:")]
    assert said == ["seed 0 is complete; the leaderboard so far, also in runs/tiny:"]
    assert out.index(said[0]) < out.index("seed 1: ")


def test_the_leaderboard_so_far_scores_complete_seeds_alone(call: Call) -> None:
    """Cells of a seed that has only begun are no faults of the ladder."""
    call("run", "tiny.yaml")
    store = execution.open_store(None, "tiny")
    manifest = store.manifest()
    records = store.planned(manifest)
    late = next(cell.key for cell in manifest.cells if cell.seed == 1)
    begun = {key: record for key, record in records.items() if key != late}
    assert complete_seeds(manifest, begun) == {0}
    board = execution.rank(begun, manifest, {0})
    assert (board.origin.records, board.origin.planned) == (sum(cell.seed == 0 for cell in manifest.cells),) * 2
    assert all(not one.incomplete for one in board.scores)
    assert any(one.incomplete for one in execution.rank(begun, manifest).scores)


def test_the_live_leaderboard_keeps_its_rows_while_the_next_seed_runs(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    boards = []

    @contextlib.contextmanager
    def watched(_: object, score: progress.ScoreSoFar, __: object) -> Iterator[Callable[[Event], None]]:
        yield lambda event: boards.append(score(event.records)) if event.records else None

    monkeypatch.setattr(progress, "display", watched)
    call("run", "tiny.yaml")
    both = len(store().manifest().cells)
    assert [board.origin.planned for board in boards] == [both // 2, both]  # each seed is one job
    assert all(not one.incomplete for board in boards for one in board.scores)


@pytest.mark.parametrize("salt", [b"\n", b"\xff\xfe", b"\0\0\0", b"two words"])
def test_a_salt_that_is_no_word_is_refused(salt: bytes, call: Call) -> None:
    """Everybody could generate the grammars that an empty one stands for, and a damaged one is another salt."""
    FOLDER.mkdir(parents=True)
    (FOLDER / "salt").write_bytes(salt)
    code, _, err = call("plan", "tiny.yaml")
    assert code == 2
    assert err.startswith(f"nftbench: {FOLDER}/salt: is empty or damaged; restore it, or delete it")
    assert (FOLDER / "salt").read_bytes() == salt
