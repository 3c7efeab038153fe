"""Reports show every row once, with its numbers and doubts, in every format; no file is half written."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from rich.console import Console

from nftbench import report
from nftbench.contract import Claim
from nftbench.records.record import CellId, Record
from nftbench.report import json as json_file, latex as latex_file, page as pages, terminal, web
from nftbench.report.doubts import EXPLANATIONS
from nftbench.scoring import Leaderboard
from nftbench.scoring.flags import CHECKS
from nftbench.scoring.intervals import Interval
from nftbench.scoring.table import interval, number
from nftbench.suites.schema import Family
from tests.factories import COST, DEFENDED, STOPPED, TASKS, curve, failed, record, scored, scratch, suite, sweep
from tests.pages import rows
from tests.schema import BOARD_PATH, board_text

COMMAND = "nftbench report runs/tiny"


def board_of(records: list[Record], doses: Mapping[str, float] | None = None) -> Leaderboard:
    """The board of these records, and of a ladder with such doses: by name, where the best attack ends."""
    names = {f"early_stop[dose={name}]": end for name, end in (doses or {}).items()}
    found = [one for name, end in names.items() for one in sweep(name, [end + 0.01 * seed for seed in range(5)])]
    return scored([*records, *found], **({"ladder": {"early_stop": Family(doses=tuple(names))}} if doses else {}))


def table(page: str, heading: str) -> list[dict[str, str]]:
    """The rows of the first table under a heading, by column."""
    head = next(line for line in page.split(f"# {heading}\n", 1)[1].splitlines() if line.startswith("| "))
    names = [name.strip() for name in head.strip("|").split(" | ")]
    return [dict(zip(names, row, strict=True)) for row in rows(page, heading)]


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
    [first] = table(page, "Ranking")
    assert first["defense"] == "pmp"
    assert first["#"] == "1 [1–1]"
    assert first["excess"].startswith("20.0 [")
    assert first["suppression"].startswith("30.0 [")
    assert (first["utility %"], first["least metric"]) == ("100.0 [100.0, 100.0]", "minimal_pairs 100.0 [100.0, 100.0]")
    assert first["badge"] == "keeps"
    assert first["claim"] == "holds (release alone)"
    [unranked] = table(page, "Not ranked")
    assert (unranked["defense"], unranked["utility %"]) == ("random_mask", "90.0 [90.0, 90.0]")
    assert "still at an edge of the grid" in unranked["why"]
    assert "Not ranked: random_mask (its table says why)." in page
    assert [row[1] for row in rows(page, "Headroom")] == list(TASKS)
    assert len(rows(page, "topic")) == 3
    doubts = {(row[0], row[1], row[2]): row[4] for row in rows(page, "Reasons to doubt")}
    assert doubts["random_mask", "not ranked", "edge"] == "raise \\`budget.extension\\` and run it again"
    assert "pmp" not in {row for row, _, _ in doubts}  # what is said of it is said of all, above
    assert "Of every defense here: no attack was written against this defense (write one" in page
    assert [row[-1] for row in rows(page, "Headroom")] == ["yes", "yes"]
    guide = page.partition("## How to read it")[2]
    assert "training from scratch is always among the attacks" in guide
    assert "**Claims**" not in guide
    assert page.rstrip().endswith(f"    {COMMAND}")
    assert "preliminary." not in page.partition("## How to read it")[0]


def test_ranks_are_also_given_among_rows_that_keep_so_much_utility() -> None:
    """The row that takes most keeps 60 %; another keeps 98 % and takes less than one that keeps everything."""
    records = [
        *suite(),
        *sweep("destroyer", (0.42, 0.43, 0.42, 0.42, 0.42), utility=0.55),
        *sweep("mask", (0.78,) * 5, utility=0.74),
    ]
    found = {row["defense"]: row for row in table(pages.leaderboard(board_of(records), COMMAND), "Ranking")}
    columns = ("# ≥ 95 %", "# ≥ 90 %", "# ≥ 80 %", "# ≥ 50 %", "Pareto")
    ranks = {defense: [found[defense][name] for name in columns] for defense in found}
    assert ranks == {
        "pmp": ["1", "1", "1", "1", "yes"],
        "destroyer": ["–", "–", "–", "2", "yes"],
        "mask": ["2", "2", "2", "3", "–"],
    }


def test_controls_have_a_table_of_their_own_in_the_order_of_doses() -> None:
    found = board_of(suite(), {"weak": 0.78, "strong": 0.6, "middle": 0.7})
    page = pages.leaderboard(found, COMMAND)
    assert [row["defense"] for row in table(page, "Ranking")] == ["pmp"]
    controls = [(row["family"], row["control"]) for row in table(page, "Controls")]
    doses = [("early_stop", f"early_stop · {name}") for name in ("weak", "strong", "middle")]
    assert controls == [("undefended", "none"), ("–", "early_stop"), *doses]
    for heading in ("Details", "pairs", "Suppression by what the attacker knows"):
        assert {row["defense"] for row in table(page, heading)} == {"pmp", "early_stop", "none"}
    assert [row["defense"] for row in table(page, "Utility kept, %")][3:] == [name for _, name in doses]


def test_the_utility_table_says_which_metric_and_family_leave_least(board: Leaderboard) -> None:
    found = {row["defense"]: row for row in table(pages.leaderboard(board, COMMAND), "Utility kept, %")}
    assert (found["pmp"]["excess on"], found["pmp"]["excess against"]) == ("mean", "early_stop")
    assert found["random_mask"]["minimal_pairs"] == "90.0 [90.0, 90.0]"
    assert found["none"]["excess on"] == "–"


def test_one_page_holds_all_doses_of_the_ladder() -> None:
    found = pages.rows(board_of([*suite(), *sweep("ladder", (0.6,) * 5)], {"weak": 0.78, "strong": 0.6}), COMMAND)
    assert sorted(found) == ["early_stop.md", "ladder-2.md", "ladder.md", "none.md", "pmp.md"]  # a defense named so
    ladder = found["ladder.md"]
    assert [row[0] for row in rows(ladder, "Doses")] == ["early_stop · weak", "early_stop · strong"]
    assert "full" in {row[0] for row in rows(ladder.partition("### early_stop[dose=strong]")[2], "Attacks")}


def test_a_defense_has_a_page_with_what_binds_its_excess_and_what_longer_training_adds() -> None:
    longer = [
        record(defense, "long", task, seed, value, trained_weights="all_longer")
        for defense, value in (("none", 0.85), ("pmp", 0.58))
        for task in TASKS
        for seed in range(5)
    ]
    whole = [replace(one, trained_weights="all") if one.attack == "full" else one for one in suite()]
    planned = [CellId.of(one) for one in (*whole, *longer)]
    page = pages.rows(scored([*whole, *longer], planned=planned), COMMAND)["pmp.md"]
    facts = dict(re.findall(r"^- \*\*(.+?)\*\*: (.+)$", page, re.MULTILINE))
    assert facts["standing"] == "ranked 1 [1–1]"
    assert facts["excess"].endswith("], on mean against early_stop")
    assert facts["utility %"] == "100.0 [100.0, 100.0]: keeps"
    assert facts["least metric"] == "minimal_pairs 100.0 [100.0, 100.0]"
    assert re.fullmatch(r"adds 6\.0 \[.*\] points here, 3\.0 \[.*\] on the undefended model", facts["longer training"])
    assert facts["excess against the claim's attackers"].endswith("after Holm's correction")
    assert rows(page, "Utility kept, %") == [["minimal_pairs", "100.0 [100.0, 100.0]", ""]]


def test_a_reason_that_all_unranked_rows_share_is_said_once() -> None:
    records = [*suite(), *sweep("mask", (0.7,) * 5)]
    reason = "the suite has no ladder of trivial defenses to measure from"
    page = pages.leaderboard(scored(records, ladder={}), COMMAND)
    assert page.count(reason) == 1
    assert f"Not ranked: pmp and mask (no excess: {reason})." in page
    assert [row["why"] for row in table(page, "Not ranked")] == ["see the top", "see the top"]
    console = Console(file=io.StringIO(), width=100, color_system=None)
    console.print(terminal.summary(scored(records, ladder={})))
    assert " ".join(console.file.getvalue().split()).count(reason) == 1  # type: ignore[attr-defined]


def test_a_reason_that_the_top_of_the_page_says_is_not_said_again() -> None:
    records = [failed(one) if (one.defense, one.attack) == ("early_stop", "full") else one for one in suite()]
    page = pages.leaderboard(scored([*records, *sweep("mask", (0.7,) * 5)]), COMMAND)
    assert page.count("the ladder is incomplete") == 1
    assert "Not ranked: pmp and mask (no excess, as said below)." in page


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

    records = [*suite(), *against("none", "diff", "base"), *against("pmp", "diff", "base")]
    records += [*sweep("mask", (0.6,) * 5), *sweep("noise", (0.7,) * 5)]
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
    assert found["noise"][3:] == ["untested", "–"]
    assert found["none"][3:] == ["0.0 [0.0, 0.0]", "–"]


def test_a_control_that_lacks_cells_is_shown_once_as_incomplete() -> None:
    records = suite()
    index = next(i for i, one in enumerate(records) if (one.defense, one.attack) == ("none", "full"))
    records[index] = failed(records[index])
    page = pages.leaderboard(scored(records), COMMAND)
    assert [row["control"] for row in table(page, "Controls")] == ["none", "early_stop"]
    assert all(row["doubts"].endswith("incomplete") for row in table(page, "Controls"))
    assert [row[0] for row in rows(page, "Not ranked")] == ["pmp"]
    doubts = [row for row in rows(page, "Reasons to doubt") if row[2] == "incomplete"]
    assert [row[0] for row in doubts] == ["none"]
    assert "none × full on pairs, seed 0: failed (boom)" in doubts[0][3]
    assert "none × full on pairs, seed 0: failed (boom)" in pages.rows(scored(records), COMMAND)["ladder.md"]


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
    [row] = table(pages.leaderboard(board, COMMAND), "Not ranked")
    assert row["suppression"].startswith("30.0 [")
    assert row["suppression"].endswith("] (partial)")
    assert "partial: by full on pairs, topic alone" in row["why"]


def test_a_claim_names_what_its_attackers_know() -> None:
    bare = [replace(one, row=replace(one.row, claim=Claim())) if one.defense == "pmp" else one for one in suite()]
    assert table(pages.leaderboard(scored(bare), COMMAND), "Ranking")[0]["claim"] == "holds (release alone)"
    wide = Claim(frozenset({"data", "method"}))
    told = [replace(one, row=replace(one.row, claim=wide)) if one.defense == "pmp" else one for one in suite()]
    assert table(pages.leaderboard(scored(told), COMMAND), "Ranking")[0]["claim"] == "untested (method+data)"


def test_text_of_plugins_is_escaped(board: Leaderboard) -> None:
    records = renamed(suite(), "pmp", "evil[text=a|b<script>\n`x`*]")
    records[-1] = failed(records[-1])
    page = pages.leaderboard(scored(records), "run\n\n# evil")
    assert "evil[text=a\\|b&lt;script> \\`x\\`\\*]" in page
    assert "<script" not in page
    assert "    run # evil" in page
    dose = "early_stop[text=a|b<i>`]"
    ladder = {"fam|ily<b>": Family(doses=(dose,))}
    board = replace(scored(renamed(suite(), "early_stop", dose), ladder=ladder), labels={dose: "half|way<i>`"})
    page, on_ladder = pages.leaderboard(board, COMMAND), pages.rows(board, COMMAND)["ladder.md"]
    shown = "early_stop[text=a\\|b&lt;i>\\`]"
    assert "| fam\\|ily&lt;b> | half\\|way&lt;i>\\` |" in page
    assert f"### {shown}" in on_ladder
    assert "## fam\\|ily&lt;b>" in on_ladder
    assert "<b>" not in page + on_ladder
    assert "<i>" not in page + on_ladder
    latex = latex_file.text(replace(scored(suite()), labels={"pmp": "a_b&c%{d}\\[x=1]"}))
    assert r"a\_b\&c\%\{d\}\textbackslash{}{[}x=1{]}" in latex


def test_preliminary_ranks_are_in_brackets() -> None:
    page = pages.leaderboard(scored(suite(3)), COMMAND)
    assert rows(page, "Ranking")[0][:2] == ["(1 [1–1])", "pmp"]
    assert "At 3 base seeds the interval of a rank is often nearly everything" in page


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
    assert [lines[0][name] for name in ("rank", "rank_first", "rank_last", "rank_among_95")] == ["1", "1", "1", "1"]
    assert float(lines[3]["utility_percent:minimal_pairs"]) == pytest.approx(90)
    words = [lines[0][name] for name in ("utility_badge", "least_metric", "pareto", "worst_task")]
    assert words[:3] == ["keeps", "minimal_pairs", "True"]
    assert words[3] in TASKS
    assert [line["ladder_family"] for line in lines] == ["", "early_stop", "", ""]
    assert lines[3]["rank"] == ""
    assert content["ladder"] == {"early_stop": ["early_stop"]}
    assert content["scores"][0]["rank_among"] == {"95": 1, "90": 1, "80": 1, "50": 1}
    assert content["scores"][3]["utility_percent"]["value"] == pytest.approx(90)
    tex = paths[3].read_text()
    assert tex.startswith("% Needs the package booktabs.")
    assert "\n\\begin{tabular}{@{}rl" in tex
    cells = [line for line in tex.splitlines() if line.endswith(r"\\")]
    assert cells[1].startswith("1 {[}1--1{]} & pmp & 20.0 & $_{[")
    assert tex.count(r"\midrule") == 3  # above the ranked row, the row without a rank, and the controls
    assert [line.split(" & ")[1] for line in cells[1:]] == ["pmp", "random\\_mask", "none", "early\\_stop"]


def test_latex_shows_defenses_without_a_rank_below_a_rule() -> None:
    tex = latex_file.text(scored(suite(1)))
    assert r"\midrule" + "\n-- & pmp & 20.0 & & 30.0 & & 100.0 & & untested \\\\" in tex
    assert tex.count("early") == 1


def test_latex_sets_a_minus_and_no_hyphen_before_a_number() -> None:
    records = [*suite(), *sweep("better", (0.85, 0.87, 0.89, 0.86, 0.88))]
    tex = latex_file.text(replace(scored(records), labels={"better": "a-1"}))
    [line] = [line for line in tex.splitlines() if "a-1" in line]
    assert line.split(" & ")[4:6] == ["$-$5.0", "$_{[-5.0,\\,-5.0]}$"]


def test_every_line_of_latex_has_as_many_cells_as_columns(board: Leaderboard) -> None:
    tex = latex_file.text(board)
    [columns] = re.findall(r"\\begin\{tabular\}\{(.+)\}", tex)
    width = len(columns.replace("@{}", ""))
    heading, *lines = [line for line in tex.splitlines() if line.endswith(r"\\")]
    assert len(lines) == len(board.scores)
    assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in lines} == {width}
    assert len(re.findall(r"(?<!\\)&", heading)) + 1 + heading.count(r"\multicolumn{2}") == width


def test_latex_says_which_claims_are_not_about_fine_tuning() -> None:
    merging = sweep("better", DEFENDED, claim=Claim(frozenset({"base"}), "merging"))
    tex = latex_file.text(scored([*suite(), *merging]))
    [starred] = [line for line in tex.splitlines() if line.endswith("* \\\\")]
    assert " & better & " in starred
    assert "* its claim is about adapting the release by merging, and not by fine-tuning" in tex


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex of texlive-latex-recommended")
@pytest.mark.parametrize("labels", [{}, {"pmp": "a_b&c%{d}\\[x=1] ~^#$"}])
def test_latex_compiles_and_fits_an_article(labels: dict[str, str], tmp_path: Path) -> None:
    merging = sweep("dlr_lock[depth=1]", DEFENDED, claim=Claim(frozenset({"base"}), "merging"))
    board = replace(scored([*suite(), *merging, *sweep("dlr_lock", STOPPED)]), labels=labels)
    (tmp_path / "leaderboard.tex").write_text(latex_file.text(board))
    (tmp_path / "article.tex").write_text(
        r"\documentclass{article}\usepackage{booktabs}\begin{document}\noindent\input{leaderboard}\end{document}"
    )
    words = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "article.tex"]
    ended = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stdout
    assert "Overfull" not in ended.stdout
    assert "Underfull" not in ended.stdout


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
        for script in web.SCRIPTS:  # the libraries' code in the page is no report
            text = text.replace(web.HERE.joinpath(script).read_text(), "")
        assert not re.search(r"\bnan\b", text.lower())
        assert "inf]" not in text
        assert "Infinity" not in text
    Console(file=io.StringIO(), width=200).print(terminal.summary(board))


def test_the_terminal_shows_names_as_they_are_and_reasons(board: Leaderboard) -> None:
    console = Console(file=io.StringIO(), width=220, color_system=None)
    records = renamed(suite(1), "early_stop", "early_stop[fraction=0.5]")
    ladder = {"early_stop": Family(doses=("early_stop[fraction=0.5]",))}
    named = replace(scored(records, ladder=ladder), labels={"early_stop[fraction=0.5]": "[half]"})
    console.print(terminal.summary(named))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "[half]" in shown  # not read as markup
    assert "30.0" in shown
    assert "pmp: 1 base seed: three are preliminary" in shown
    console.print(terminal.summary(board))
    assert "random_mask: the best learning rate" in console.file.getvalue()  # type: ignore[attr-defined]


def test_the_terminal_fits_80_columns() -> None:
    """Neither names nor numbers with their intervals are broken."""
    long = "condition_number[harmful=toy_topic,lambda_ill=10,lambda_well=1,balanced=true,learning_rate=1e-3,epochs=40]"
    records = [*renamed(suite(), "pmp", long), *sweep("trap2[task=toy_topic]", (0.9,) * 5, utility=-0.55)]
    console = Console(file=io.StringIO(), width=80, color_system=None)
    console.print(terminal.summary(scored(records)))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(map(len, lines)) <= 80
    for name in ("condition_number", "trap2", "suppression", "holds"):
        assert any(name in line.split() for line in lines)
    whole = board_of(records).scores
    for score in (score for score in whole if score.excess.interval):
        assert any(interval(score.excess.interval).partition(" ")[2] in line for line in lines)


def test_infinite_ends_of_intervals_become_null() -> None:
    content = json.loads(json_file.text(scored(suite(1)), COMMAND))
    assert content["scores"][0]["suppression"]["low"] is None
    assert math.isfinite(content["scores"][0]["suppression"]["value"])


def test_the_answer_comes_first(board: Leaderboard) -> None:
    """Who is ranked where, what it costs, what the claim is worth and where attacks end, before any table."""
    first = pages.leaderboard(board, COMMAND).splitlines()[2]
    assert first.startswith(
        "pmp is shown to take more from attackers than a trivial defense that keeps as much utility. "
        "pmp is the only ranked defense: its excess over trivial defenses is 20.0 ["
    )
    assert "it keeps 100.0 [100.0, 100.0] % of utility. Not ranked: random_mask (its table says why)." in first
    assert "Claims that hold: pmp" in first
    assert (
        "in points: pmp 52.0 (best single attack: full, 52.0) and random_mask 75.4 (best single attack: full, 75.4)"
        in first
    )
    assert first.endswith("; the undefended model 82.0.")
    console = Console(file=io.StringIO(), width=2000, color_system=None)
    console.print(terminal.summary(board))
    assert console.file.getvalue().startswith("pmp is shown to take more")  # type: ignore[attr-defined]


def test_the_answer_says_first_that_nothing_is_shown_to_work() -> None:
    found = pages.leaderboard(scored(suite(defended=(0.8, 0.79, 0.83, 0.84, 0.82))), COMMAND)
    assert found.splitlines()[2].startswith("No defense is shown to take more from attackers than a trivial defense")
    one_seed = pages.leaderboard(scored(suite(1)), COMMAND)
    assert "shown to take" not in one_seed


def test_the_answer_names_few_of_many_rows() -> None:
    many = [one for index in range(9) for one in sweep(f"mask[index={index}]", (0.7,) * 5)]
    first = pages.leaderboard(scored([*suite(), *many]), COMMAND).splitlines()[2]
    assert "and 4 more" in first
    assert "The comparisons do not settle the order" not in first


def test_doubts_of_every_defense_are_said_once() -> None:
    records = [*suite(3), *sweep("mask", (0.7,) * 3, utility=0.5)]
    found = pages.leaderboard(scored(records), COMMAND)
    ranking = {row["defense"]: row["doubts"].split(", ") for row in table(found, "Ranking")}
    assert "utility" in ranking["mask"]
    assert not any("preliminary" in names for names in ranking.values())
    assert found.count(EXPLANATIONS["preliminary"].advice) == 1
    assert "preliminary" not in {row[2] for row in rows(found, "Reasons to doubt")}


def test_every_flag_is_explained() -> None:
    assert EXPLANATIONS.keys() == {check.name for check in CHECKS} | {"incomplete"}


def test_rows_are_labelled_and_specified_once() -> None:
    long = "pmp[complement=released,radius=0.02]"
    found = pages.leaderboard(scored([*suite(), *sweep(long, (0.6,) * 5)]), COMMAND)
    assert {row["defense"] for row in table(found, "Ranking")} == {"pmp", "pmp · released"}
    whole = long.replace("[", "\\[").replace("]", "\\]")
    assert found.count(whole) == 1
    assert f"- [pmp · released](defenses/pmp_complement=released_radius=0.02.md): {whole}" in found


@pytest.mark.parametrize("records", [suite(), suite(1), []], ids=["whole", "one seed", "empty"])
def test_leaderboard_json_keeps_its_schema(records: list[Record]) -> None:
    content = json.loads(json_file.text(scored(records), COMMAND))
    checker = Draft202012Validator(json.loads(BOARD_PATH.read_text()))
    checker.validate(content)
    for score in content["scores"][:1]:
        del score["utility_percent"]
        assert not checker.is_valid(content)


def test_the_published_schema_is_that_of_the_types() -> None:
    assert BOARD_PATH.read_text() == board_text(), "run make schema"
