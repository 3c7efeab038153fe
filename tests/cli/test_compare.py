"""The verbs `compare` and `baseline`: what they read, refuse, write and return."""

from __future__ import annotations

import json
import lzma
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from nftbench.cli import main
from nftbench.records import pack
from nftbench.records.store import Store
from tests.comparing.sides import MASK, PMP, folder, manifest, records

ROWS = {"pmp": PMP, "random_mask": MASK}
WORSE = {**ROWS, "pmp": tuple(one + 0.1 + wobble for one, wobble in zip(PMP, (0, 0.01, -0.01, 0.005, 0), strict=True))}

FOREIGN: dict[str, Callable[[dict[str, Any]], None]] = {
    "ladder.json": lambda board: board.update(ladder=1),
    "names.json": lambda board: board["scores"][-1].update(defense=[]),
    "counts.json": lambda board: board["scores"][-1]["utility_percent"].update(count="many"),
    "nan.json": lambda board: board["scores"][-1]["utility_percent"].update(value=float("nan")),
}
"""By the name of a leaderboard.json: what somebody made of it."""


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder; the test stands beside it, outside of GitHub Actions."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    monkeypatch.delenv("GITHUB_JOB", raising=False)
    return folder(Path("base"), records(ROWS))


def compared(*words: str | Path) -> int:
    return main(["compare", *map(str, words)])


def test_a_run_folder_its_pack_and_its_baseline_say_the_same(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = folder(Path("new"), records(WORSE))
    assert main(["baseline", "base", "--out", "frozen.xz"]) == 0
    assert main(["pack", "base"]) == 0
    capsys.readouterr()
    said = []
    for one in (base, base / "records.jsonl.xz", "frozen.xz"):
        assert (
            compared(one, new, "--metric", "suppression,retention,excess,cost_to_break,memory", "--format", "json") == 1
        )
        content = json.loads(capsys.readouterr().out)
        assert content["base"].pop("path") == str(base if one == base / "records.jsonl.xz" else one)
        said.append(content)
    assert said[0] == said[1] == said[2]
    assert said[0]["base"]["origin"]["processors"] == ["Here"]


def test_a_baseline_is_small_and_names_its_origin(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["baseline", "base"]) == 0
    path = Path("nftbench-baseline-tiny.jsonl.xz")
    assert capsys.readouterr().out.startswith(f"{path}: {len(records(ROWS))} records of suite tiny")
    header = json.loads(pack.decode(path.read_bytes(), "it")[0])
    assert {"baseline", "suite", "commits", "processors", "versions"} <= header.keys()
    assert header["suite"] == "tiny"
    assert header["manifest"]["salt"] == "public"
    assert path.stat().st_size < 12_000


def test_a_leaderboard_is_compared_by_its_intervals(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = folder(Path("new"), records({**ROWS, "pmp": [one + 0.2 for one in PMP]}))
    for one in (base, new):
        assert main(["report", str(one)]) == 0
    capsys.readouterr()
    asked = ("--metric", "suppression,retention,attacked", "--format", "json")
    for second in (new / "leaderboard.json", new):
        assert compared(base / "leaderboard.json", second, *asked) == 1
        content = json.loads(capsys.readouterr().out)
        verdicts = {(one["row"], one["metric"]): one["verdict"] for one in content["rows"]}
        assert verdicts["pmp", "suppression"] == verdicts["pmp", "attacked"] == "regressed"
        assert verdicts["random_mask", "retention"] == "held"
        assert any("names no settings" in note for note in content["notes"])


def test_reports_are_written_before_the_gate_fails(
    base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    new = folder(Path("new"), records(WORSE))
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "summary.md")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    files = ("--format", "junit", "--out", "out/junit.xml", "--format", "markdown", "--out", "out/comment.md")
    assert compared(base, new, *files, "--format", "table") == 1
    said = capsys.readouterr()
    assert said.out.startswith("REGRESSED: 1 regressed")
    assert "::error title=pmp%3A suppression regressed::" in said.err
    assert ElementTree.parse("out/junit.xml").getroot().get("failures") == "1"
    assert Path("out/comment.md").read_text() == Path("summary.md").read_text()
    assert Path("summary.md").read_text().startswith("<!-- nftbench-compare:tiny -->")


def test_a_file_without_a_format_has_the_one_that_its_name_ends_with(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for name in ("c.json", "c.md", "c.xml", "c.txt") for word in ("--out", name)]
    assert compared(base, base, *words) == 0
    assert capsys.readouterr().out == ""
    assert json.loads(Path("c.json").read_text())["outcome"]
    assert Path("c.md").read_text().startswith("<!-- nftbench-compare:tiny -->")
    assert ElementTree.parse("c.xml").getroot().get("failures") == "0"
    assert "intervals of changes are of 95 %" in Path("c.txt").read_text()


def test_a_comment_belongs_to_its_job_or_to_the_gate_that_is_named(
    base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GITHUB_JOB", "quick")
    for words, marker in (((), "tiny:quick"), (("--name", "slow"), "tiny:slow")):
        assert compared(base, base, *words, "--format", "markdown") == 0
        assert capsys.readouterr().out.startswith(f"<!-- nftbench-compare:{marker} -->")


def test_a_summary_that_cannot_be_written_changes_no_verdict(
    base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "absent/summary.md")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert compared(base, folder(Path("same"), records(ROWS))) == 0
    assert compared(base, folder(Path("new"), records(WORSE))) == 1
    said = capsys.readouterr().err
    assert "GITHUB_STEP_SUMMARY: absent/summary.md: No such file or directory" in said
    assert "::error title=pmp%3A suppression regressed::" in said


def test_a_gate_may_be_told_never_to_fail(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = folder(Path("new"), records(WORSE))
    assert compared(base, new, "--fail-on", "never") == 0
    assert capsys.readouterr().out.startswith("REGRESSED")


def test_a_run_compared_with_itself_says_so(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A gate that names one folder twice is always green."""
    assert compared(base, base) == 0
    assert "BASE and NEW are both base, so nothing can differ" in capsys.readouterr().out
    assert main(["baseline", "base", "--out", "frozen.xz"]) == 0
    capsys.readouterr()
    assert compared("frozen.xz", base) == 0
    assert "nothing can differ" not in capsys.readouterr().out


def test_other_settings_end_with_three(base: Path) -> None:
    found = records(ROWS)
    new = folder(Path("new"), found, manifest(found, pretraining={"steps": 99, "warmup": 1}))
    assert compared(base, new) == 3


def test_what_is_no_result_is_refused_in_one_line(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = json.loads((base / "manifest.json").read_text())
    del old["format"]
    for name in ("old", "empty", "nothing"):
        Path(name).mkdir()
    Path("old/manifest.json").write_text(json.dumps(old))
    Store(Path("empty"), Path()).write_manifest(manifest(records(ROWS)))
    Path("garbage").write_bytes(b"\x00\xff{")
    Path("list.json").write_text("[1]")
    Path("board.json").write_text('{"suite": "x", "scores": [{"defense": "a"}]}')
    assert main(["report", str(base)]) == 0
    for name, spoil in FOREIGN.items():
        board = json.loads((base / "leaderboard.json").read_text())
        spoil(board)
        Path(name).write_text(json.dumps(board))
    capsys.readouterr()
    Path("garbage.xz").write_bytes(lzma.compress(b"not a pack"))
    Path("other.xz").write_bytes(pack.encode([{"key": "a"}]))
    Path("future.xz").write_bytes(pack.encode([{"baseline": 99}]))
    Path("hollow.xz").write_bytes(pack.encode([{"baseline": 1}]))
    Path("none.xz").write_bytes(pack.encode([]))
    wrong = ("old", "empty", "nothing", "garbage", "list.json", "board.json", "garbage.xz", "other.xz", "future.xz")
    for one in (*wrong, *FOREIGN, "hollow.xz", "none.xz", "absent"):
        for sides in ((one, base), (base, one)):
            assert compared(*sides) == 2
            said = capsys.readouterr().err
            assert said.count("\n") == 1, said
            assert one in said
            assert "delete it to compute" not in said, "a baseline is not computed cell by cell"
    assert main(["baseline", "nothing"]) == 2
    assert compared(base, base, "--format", "table", "--out", "one", "--out", "two") == 2
    assert compared(base, base, "--min-drop", "much") == 2


def test_a_baseline_does_not_take_the_name_of_a_run_s_pack(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It would replace the records of a packed run, and compare would read the folder in its place."""
    assert main(["pack", str(base)]) == 0
    before = (base / "records.jsonl.xz").read_bytes()
    assert main(["baseline", str(base), "--out", str(base / "records.jsonl.xz")]) == 2
    assert "choose another" in capsys.readouterr().err
    assert (base / "records.jsonl.xz").read_bytes() == before


def test_a_baseline_of_an_unfinished_run_says_so(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = records(ROWS)
    folder(Path("half"), [one for one in found if one.seed < 3], manifest(found))
    assert main(["baseline", "half"]) == 0
    assert "a row is compared without the seeds that lack cells" in capsys.readouterr().out
    assert compared("nftbench-baseline-tiny.jsonl.xz", base, "--format", "json") == 0
    assert {one["difference"]["count"] for one in json.loads(capsys.readouterr().out)["rows"]} == {3}


def test_one_seed_judges_nothing(base: Path) -> None:
    one = {name: scores[:1] for name, scores in ROWS.items()}
    folder(Path("one"), records(one))
    folder(Path("other"), [replace(each, key=f"x{each.key}") for each in records(one)])
    assert compared("one", "other") == 3
