"""The verb `pack`, and the other verbs on a packed folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from nftbench.cli import main
from nftbench.records.store import Store
from nftbench.testing import tiny_suite

PACK = Path("runs/tiny/records.jsonl.xz")
SINGLE = Path("runs/tiny/records")


@pytest.fixture(scope="module")
def done(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a suite of six cells has been run and packed."""
    folder = tmp_path_factory.mktemp("packed")
    suite = tiny_suite(attacks=["none", "full"], seeds=[0, 1], budget={"durations": [2], "restarts": 1})
    (folder / "tiny.yaml").write_text(yaml.safe_dump(suite.model_dump(mode="json")))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["run", "tiny.yaml", "--jobs", "1"]) == 0
        assert main(["pack", "runs/tiny"]) == 0
    return folder


@pytest.fixture
def packed(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A copy of it, in which the test stands."""
    shutil.copytree(done, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Store(Path("runs/tiny"), Path())


def test_pack_prints_counts_and_sizes(packed: Store, capsys: pytest.CaptureFixture[str]) -> None:
    size = PACK.stat().st_size
    assert main(["pack", "runs/tiny"]) == 0
    assert capsys.readouterr().out == (
        f"runs/tiny: 6 records packed, 0 of them from single files; {size:,} bytes before, {size:,} after\n"
    )
    assert not SINGLE.exists()


def test_report_makes_the_same_leaderboard_from_a_packed_folder(packed: Store) -> None:
    files = sorted(Path("runs/tiny").glob("leaderboard.*"))
    before = [path.read_bytes() for path in files]
    assert main(["report", "runs/tiny"]) == 0
    assert len(files) == 4
    assert [path.read_bytes() for path in files] == before


def test_packed_cells_are_not_run_again(packed: Store, capsys: pytest.CaptureFixture[str]) -> None:
    before = PACK.read_bytes()
    assert main(["plan", "tiny.yaml"]) == 0
    said = capsys.readouterr().out
    assert "6 of 6 cells done in runs/tiny" in said
    assert "nothing is left to run" in said
    assert main(["run", "tiny.yaml", "--jobs", "1"]) == 0
    assert "6 of 6 cells done; nothing is left to run" in capsys.readouterr().out
    assert not SINGLE.exists()
    assert PACK.read_bytes() == before


def test_a_run_computes_only_the_cells_that_are_not_packed(packed: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """A job of two cells of which one is packed: a further task."""
    before, content = packed.records(), PACK.read_bytes()
    assert main(["run", "tiny.yaml", "--jobs", "1", "--tasks", "toy_topic,toy_tone", "--seeds", "0"]) == 0
    said = capsys.readouterr().out
    assert "planning; 0 records and records.jsonl.xz in runs/tiny" in said
    assert "2 of 4 cells done (a part of the suite's 10); 2 jobs to run" in said
    assert sorted(path.name.partition("-0-")[0] for path in SINGLE.iterdir()) == [
        "none-full-toy_tone",
        "none-none-toy_tone",
    ]
    assert PACK.read_bytes() == content
    assert main(["report", "runs/tiny"]) == 0
    assert "toy_tone" in Path("runs/tiny/leaderboard.md").read_text()
    assert len(packed.records()) == 8
    assert before.items() <= packed.records().items()


def test_force_removes_records_from_the_pack(packed: Store) -> None:
    before = packed.records()
    assert main(["run", "tiny.yaml", "--jobs", "1", "--force", "--attacks", "full", "--seeds", "1"]) == 0
    after = packed.records()
    assert after.keys() == before.keys()
    (again,) = (key for key in after if after[key] != before[key])
    assert (after[again].attack, after[again].seed, after[again].attacked) == ("full", 1, before[again].attacked)
    assert again not in {one["key"] for one in packed.packed()}
    assert len([*SINGLE.iterdir()]) == 1


def test_a_damaged_pack_is_refused_in_one_line(packed: Store, capsys: pytest.CaptureFixture[str]) -> None:
    PACK.write_bytes(PACK.read_bytes()[:-1])
    for words in (["report", "runs/tiny"], ["run", "tiny.yaml"], ["plan", "tiny.yaml"], ["pack", "runs/tiny"]):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert said.startswith("nftbench: runs/tiny/records.jsonl.xz: damaged")
        assert said.count("\n") == 1


def test_a_folder_that_no_run_wrote_is_not_packed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pack", str(tmp_path)]) == 2
    assert "no results here (manifest.json is missing)" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
