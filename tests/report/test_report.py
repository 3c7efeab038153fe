"""Reports show every row once, with its numbers and doubts, in every format; no file is half written."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from nftbench import report
from nftbench.contract import Claim
from nftbench.records.record import CellId, Record
from nftbench.report import json as json_file, latex as latex_file, page as pages, terminal
from nftbench.scoring import Leaderboard
from nftbench.scoring.intervals import Interval
from nftbench.scoring.table import interval, number
from tests.factories import COST, TASKS, curve, failed, record, scored, scratch, suite, sweep
from tests.pages import rows

COMMAND = "nftbench report runs/tiny"


def renamed(records: list[Record], old: str, new: str) -> list[Record]:
    return [replace(one, defense=new) if one.defense == old else one for one in records]


@pytest.fixture
def board() -> Leaderboard:
    doubtful = sweep("random_mask", (0.75, 0.76, 0.74, 0.77, 0.75), utility=0.7)
    records = [*suite(), *(replace(one, at_edge=one.attack == "full") for one in doubtful)]
    records += [
        record("pmp", "authorized", task, seed, 0.9, knowledge=("secret",)) for task in TASKS for seed in range(5)
    ]
    return scored(
        [replace(one, curve=curve(0.3, one.attacked.value), cost=COST) if one.attacked else one for one in records]
    )


def test_numbers_have_one_decimal_and_their_interval() -> None:
    assert interval(Interval(12.34, 8.06, 16.54, 5)) == "12.3 [8.1, 16.5]"
    assert interval(Interval(12.34)) == "12.3"
    assert interval(Interval(0.965, 0.951, 0.979, 5), 100) == "96.5 [95.1, 97.9]"
    assert interval(None) == "–"
    assert number(-0.04) == "0.0"


def test_the_page_ranks_rows_and_says_why_others_are_not_ranked(board: Leaderboard) -> None:
    page = pages.leaderboard(board, COMMAND)
    ranking = rows(page, "Ranking")
    assert [row[:2] for row in ranking] == [["1", "pmp"], ["control", "early_stop"], ["ref", "none"]]
    assert ranking[0][2].startswith("20.0 [")
    assert ranking[0][3].startswith("30.0 [")
    assert ranking[0][8] == "holds (release alone)"
    [unranked] = rows(page, "Not ranked")
    assert unranked[0] == "random_mask"
    assert "still at an edge of the grid" in unranked[-1]
    assert [row[1] for row in rows(page, "Headroom")] == list(TASKS)
    assert len(rows(page, "topic")) == 4
    assert "pmp" in {row[0] for row in rows(page, "Reasons to doubt")}
    assert [row[-1] for row in rows(page, "Headroom")] == ["yes", "yes"]
    guide = page.partition("## How to read it")[2]
    assert "training from scratch is always among the attacks" in guide
    assert "**Claims**" not in guide
    assert page.rstrip().endswith(f"    {COMMAND}")


def test_without_scratch_headroom_is_not_known() -> None:
    page = pages.leaderboard(scored([one for one in suite() if one.attack != "scratch"]), COMMAND)
    assert [row[-1] for row in rows(page, "Headroom")] == ["not known", "not known"]
    assert "training from scratch was not tried" in page.partition("## How to read it")[2]
    assert "always among the attacks" not in page


def test_suppression_is_shown_by_knowledge_with_the_claim_and_adaptive_attacks() -> None:
    def against(defense: str, attack: str, *knowledge: str) -> list[Record]:
        return [
            record(defense, attack, task, seed, 0.4, knowledge=knowledge, against=("pmp",))
            for task in TASKS
            for seed in range(5)
        ]

    records = [*suite(), *against("none", "diff", "base"), *against("pmp", "diff", "base"), *sweep("mask", (0.6,) * 5)]
    planned = [CellId.of(one) for one in records]
    page = pages.leaderboard(scored(records, planned=planned), COMMAND)
    header = page.partition("## Suppression by what the attacker knows\n\n")[2].splitlines()[0]
    assert header == "| defense | claim | method+data (ranking) | release alone | base | written against it |"
    found = {row[0]: row[1:] for row in rows(page, "Suppression by what the attacker knows")}
    assert found["pmp"][0] == "holds (release alone)"
    assert found["pmp"][1] == found["pmp"][2]
    assert found["pmp"][3].startswith("30.0 [")
    assert found["pmp"][4] == "diff"
    assert found["mask"][3:] == ["untested", "not adaptively attacked"]
    assert found["early_stop"][3:] == ["untested", "–"]
    assert found["none"][3:] == ["0.0 [0.0, 0.0]", "–"]


def test_a_control_that_lacks_cells_is_shown_once_as_incomplete() -> None:
    records = suite()
    index = next(i for i, one in enumerate(records) if (one.defense, one.attack) == ("none", "full"))
    records[index] = failed(records[index])
    page = pages.leaderboard(scored(records), COMMAND)
    assert [row[1] for row in rows(page, "Ranking")] == ["early_stop", "none"]
    assert all(row[-1].endswith("incomplete") for row in rows(page, "Ranking"))
    assert [row[0] for row in rows(page, "Not ranked")] == ["pmp"]
    doubts = [row for row in rows(page, "Reasons to doubt") if row[2] == "incomplete"]
    assert [row[0] for row in doubts] == ["early_stop", "none"]
    assert all("none × full on pairs, seed 0: failed (boom)" in row[3] for row in doubts)


def test_commands_that_made_records_are_shown_where_they_are_not_the_last_one() -> None:
    def by(command: str, written: str, one: Record) -> Record:
        return replace(one, provenance={**one.provenance, "command": command, "written": written})

    later, first = "nftbench run tiny --attacks lora", "nftbench run tiny"
    records = suite()
    mixed = [by(later, "2026-01-02", one) if one.attack == "full" else by(first, "2026-01-01", one) for one in records]
    board = scored(mixed)
    assert list(board.origin.commands) == [first, later]
    assert sum(board.origin.commands.values()) == len(records)
    page = pages.leaderboard(board, later)
    assert page.partition("## The command\n\n")[2].splitlines() == [
        f"    {later}",
        "",
        "The records were made by",
        "",
        f"    {board.origin.commands[first]:6}  {first}",
        f"    {board.origin.commands[later]:6}  {later}",
    ]
    assert "were made by" not in pages.leaderboard(scored([by(first, "", one) for one in records]), first)


def test_a_partial_suppression_says_so() -> None:
    planned = [CellId.of(one) for one in suite()]
    board = scored([one for one in suite() if one.attack == "full"], planned=planned)
    row = next(row for row in rows(pages.leaderboard(board, COMMAND), "Not ranked") if row[0] == "pmp")
    assert row[2].startswith("30.0 [")
    assert row[2].endswith("] (partial)")
    assert "partial: by full on pairs, topic alone" in row[-1]


def test_a_claim_names_what_its_attackers_know() -> None:
    bare = [replace(one, row=replace(one.row, claim=Claim())) if one.defense == "pmp" else one for one in suite()]
    assert rows(pages.leaderboard(scored(bare), COMMAND), "Ranking")[0][8] == "holds (release alone)"
    wide = Claim(frozenset({"data", "method"}))
    told = [replace(one, row=replace(one.row, claim=wide)) if one.defense == "pmp" else one for one in suite()]
    assert rows(pages.leaderboard(scored(told), COMMAND), "Ranking")[0][8] == "untested (method+data)"


def test_text_of_plugins_is_escaped(board: Leaderboard) -> None:
    records = renamed(suite(), "pmp", "evil[text=a|b<script>\n`x`*]")
    records[-1] = failed(records[-1])
    page = pages.leaderboard(scored(records), "run\n\n# evil")
    assert "evil[text=a\\|b&lt;script> \\`x\\`\\*]" in page
    assert "<script" not in page
    assert "    run # evil" in page
    latex = latex_file.text(scored(renamed(suite(), "pmp", "a_b&c%{d}\\[x=1]")))
    assert r"a\_b\&c\%\{d\}\textbackslash{}{[}x=1{]}" in latex


def test_preliminary_ranks_are_in_brackets() -> None:
    page = pages.leaderboard(scored(suite(3)), COMMAND)
    assert rows(page, "Ranking")[0][:2] == ["(1)", "pmp"]


def test_each_format_holds_every_row_and_no_draft_is_left(board: Leaderboard, tmp_path: Path) -> None:
    paths = report.write(board, tmp_path / "new", COMMAND)
    assert [path.name for path in paths[:4]] == [f"leaderboard.{kind}" for kind in ("md", "csv", "json", "tex")]
    there = [path for path in tmp_path.joinpath("new").rglob("*") if path.is_file()]
    assert sorted(there) == sorted(paths)  # no drafts left
    content = json.loads(paths[2].read_text())
    assert content["command"] == COMMAND
    assert [score["defense"] for score in content["scores"]] == ["pmp", "early_stop", "none", "random_mask"]
    assert content["scores"][0]["suppression"]["value"] == pytest.approx(30.0)
    lines = list(csv.DictReader(io.StringIO(paths[1].read_text())))
    assert lines[0]["defense"] == "pmp"
    assert float(lines[0]["excess"]) == pytest.approx(20.0)
    assert float(lines[0]["excess_low"]) < 20 < float(lines[0]["excess_high"])
    assert lines[0]["rank"] == "1"
    assert lines[3]["rank"] == ""
    tex = paths[3].read_text()
    assert tex.startswith(r"\begin{tabular}{rl")
    assert all(line.count(" & ") == 8 for line in tex.splitlines() if line.endswith(r"\\"))


def test_writing_again_replaces_whole_files(board: Leaderboard, tmp_path: Path) -> None:
    first = [path.read_bytes() for path in report.write(board, tmp_path, COMMAND)]
    assert [path.read_bytes() for path in report.write(board, tmp_path, COMMAND)] == first


@pytest.mark.parametrize(
    "records",
    [[], suite(1), sweep("pmp", (0.5,)), scratch([0.4]), [failed(one) for one in suite(2)]],
    ids=["empty", "one seed", "no reference", "scratch only", "all failed"],
)
def test_every_report_is_made_whatever_is_missing(records: list[Record], tmp_path: Path) -> None:
    board = scored(records)
    for path in report.write(board, tmp_path, COMMAND):
        text = path.read_text()
        assert "nan" not in text.lower().replace("finance", "")
        assert "inf]" not in text
        assert "Infinity" not in text
    Console(file=io.StringIO(), width=200).print(terminal.summary(board))


def test_the_terminal_shows_names_as_they_are_and_reasons(board: Leaderboard) -> None:
    console = Console(file=io.StringIO(), width=220, color_system=None)
    records = renamed(suite(), "early_stop", "early_stop[fraction=0.5]")
    console.print(terminal.summary(scored(records)))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "early_stop[fraction=0.5]" in shown  # not read as markup
    assert "30.0 [" in shown
    console.print(terminal.summary(board))
    assert "random_mask: the best learning rate" in console.file.getvalue()  # type: ignore[attr-defined]


def test_infinite_ends_of_intervals_become_null() -> None:
    content = json.loads(json_file.text(scored(suite(1)), COMMAND))
    assert content["scores"][0]["suppression"]["low"] is None
    assert math.isfinite(content["scores"][0]["suppression"]["value"])
