"""The verb `merge`: a real run in two folders, and what it refuses."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from nftbench.records.store import Store
from nftbench.testing import tiny_suite
from tests.comparing.sides import PMP, folder, manifest, records

Call = Callable[..., tuple[int, str, str]]
FOUND = records({"pmp": PMP})
PLAN = manifest(FOUND)


def test_two_halves_of_a_run_merge_into_the_whole(call: Call, tmp_path: Path) -> None:
    """Seed by seed in two folders, one of them packed, and in one folder: the same leaderboard, which can go on."""
    suite = tiny_suite(attacks=["none", "full"], seeds=[0, 1], budget={"durations": [2], "restarts": 1})
    Path("tiny.yaml").write_text(yaml.safe_dump({**suite.model_dump(mode="json"), "salt": None}))
    (tmp_path / "b").mkdir()
    assert call("run", "tiny.yaml", "--jobs", 1, "--out", "a", "--seeds", 0)[0] == 0
    Path("b/salt").write_bytes(Path("a/salt").read_bytes())
    assert call("run", "tiny.yaml", "--jobs", 1, "--out", "b", "--seeds", 1)[0] == 0
    assert call("merge", "a", "b", "--out", "c")[:2] == (
        0,
        "c: 6 of 6 cells recorded; rank them with nftbench report c\n",
    )
    merged = Store(Path("c"), tmp_path)
    assert merged.manifest().salt is None
    assert merged.salt() == Store(Path("a"), tmp_path).salt()
    assert stat.S_IMODE(Path("c/salt").stat().st_mode) == 0o600
    code, said, _ = call("run", "tiny.yaml", "--jobs", 1, "--out", "c")
    assert code == 0
    assert "6 of 6 cells done; nothing is left to run" in said
    assert "do not count" not in said
    assert call("pack", "b")[0] == 0
    assert call("merge", "a", "b", "c", "--out", "d")[0] == 0
    assert Store(Path("d"), tmp_path).records() == merged.records()
    assert call("pack", "d")[0] == call("report", "d")[0] == 0
    for name in ("leaderboard.csv", "leaderboard.tex"):
        assert Path("d", name).read_bytes() == Path("c", name).read_bytes()
    assert call("compare", "c", "d")[0] == 3, "two seeds judge nothing, but both are read"


def test_what_is_left_out_is_said_and_fails(call: Call) -> None:
    folder(Path("a"), FOUND, PLAN)
    other = [replace(one, key=f"x{one.key[1:]}") for one in FOUND]
    folder(Path("b"), other, manifest(other, pretraining={"steps": 99, "warmup": 1}))
    code, said, complaint = call("merge", "a", "b", "--out", "c")
    assert code == 1
    assert f"c: {len(FOUND)} of {len(FOUND)} cells recorded" in said
    assert complaint == (
        f"nftbench: b: {len(FOUND)} of {len(FOUND)} records left out: other settings of the suite: "
        "pretraining.steps, pretraining.warmup\n"
    )


def test_another_suite_is_named(call: Call) -> None:
    folder(Path("a"), FOUND, PLAN)
    other = [replace(one, key=f"x{one.key[1:]}") for one in FOUND]
    folder(Path("b"), other, manifest(other, name="other"))
    code, _, complaint = call("merge", "a", "b", "--out", "c")
    assert code == 1
    assert complaint == (
        f"nftbench: b: {len(FOUND)} of {len(FOUND)} records left out: it holds the suite other, and a the suite tiny\n"
    )


def test_damaged_files_are_named_and_stay(call: Call) -> None:
    store = Store(folder(Path("a"), FOUND, PLAN), Path())
    victim = store.path(FOUND[0])
    victim.write_text(victim.read_text()[:100])
    code, said, complaint = call("merge", "a", "--out", "c")
    assert code == 1
    assert f"{len(FOUND) - 1} of {len(FOUND)} cells" in said
    assert complaint.startswith(f"nftbench: {victim}: damaged, left out: ")
    assert victim.exists()
    folder(Path("b"), FOUND, PLAN)
    assert call("pack", "b")[0] == 0
    pack = Path("b/records.jsonl.xz")
    pack.write_bytes(pack.read_bytes()[:-9])
    code, _, complaint = call("merge", "a", "b", "--out", "d")
    assert (code, complaint.count("\n")) == (2, 1)
    assert complaint.startswith("nftbench: b/records.jsonl.xz: damaged")
    assert not Path("d").exists()


def test_a_contradiction_writes_nothing(call: Call, tmp_path: Path) -> None:
    folder(Path("a"), FOUND, PLAN)
    folder(Path("b"), records({"pmp": PMP}, base="other"), PLAN)
    code, _, complaint = call("merge", "a", "b", "--out", "c")
    assert (code, complaint.count("\n")) == (2, 1)
    assert complaint.startswith("nftbench: nothing is merged: seed 0: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    assert call("merge", "a", "b", "--out", "c", "--keep", "last")[0] == 1
    assert {one.base_sha256 for one in Store(Path("c"), tmp_path).records().values()} == {
        f"other-{seed}" for seed in range(5)
    }


def test_the_folder_where_one_is_cannot_be_replaced(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(Path("a"), FOUND, PLAN)
    Path("here").mkdir()
    monkeypatch.chdir("here")
    code, _, complaint = call("merge", "../a", "--out", ".")
    assert (code, complaint.count("\n")) == (2, 1)
    assert "is the folder where you are" in complaint


def test_bad_input_is_refused_in_one_line(call: Call) -> None:
    folder(Path("a"), FOUND, PLAN)
    Path("empty").mkdir()
    old = json.loads(Path("a/manifest.json").read_text())
    Path("old").mkdir()
    Path("old/manifest.json").write_text(json.dumps({**old, "format": 1}))
    for words in (
        ("a", "empty", "--out", "c"),
        ("a", "absent", "--out", "c"),
        ("a", "old", "--out", "c"),
        ("a", "--out", "a"),
        ("a",),
    ):
        code, _, complaint = call("merge", *words)
        assert (code, complaint.count("\n")) == (2, 1), words
    assert not Path("c").exists()


def test_run_plan_and_report_name_records_of_another_folder(call: Call) -> None:
    """Copied in by hand; their keys belong to another salt."""
    suite = tiny_suite(attacks=["none"], seeds=[0])
    Path("tiny.yaml").write_text(yaml.safe_dump(suite.model_dump(mode="json")))
    assert call("run", "tiny.yaml", "--jobs", 1, "--out", "a")[0] == 0
    store = Store(Path("a"), Path())
    for one in list(store.records().values()):
        store.write(replace(one, key=f"x{one.key[1:]}"))
    count = len(store.records()) // 2
    line = f"records in a that do not count: {count} of planned cells, but made with another salt"
    for words in (("plan", "tiny.yaml", "--out", "a"), ("run", "tiny.yaml", "--out", "a"), ("report", "a")):
        code, said, _ = call(*words)
        assert code == 0
        assert line in said, words
