"""Every attack on a row by itself, against numbers worked out by hand; and the page that shows them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nftbench import report
from nftbench.contract import Cost, Point
from nftbench.records.record import CellId, Record
from nftbench.report import page, row_tables
from nftbench.scoring import Leaderboard
from nftbench.scoring.per_attack import AttackRow
from tests.factories import TASKS, failed, record, scored, suite, sweep

COUNT = 3
SPENT = Cost(
    steps=50,
    seconds=10.0,
    step_flops=100.0,
    peak_memory_bytes=3_000_000,
    preparation_steps=20,
    preparation_flops=700.0,
    preparation_seconds=30.0,
)


def lora(spent: Cost | None = None) -> list[Record]:
    """On `none` and `pmp`: seed s takes 50 + 10 s steps; rates 0.1, 0.2, 0.2 are picked, at steps 10, 30, 100."""
    found = []
    for defense in ("none", "pmp"):
        for task in TASKS:
            for seed, (rate, step) in enumerate(((0.1, 10), (0.2, 30), (0.2, 100))):
                plain = record(defense, "lora", task, seed, 0.6 + 0.01 * seed, knowledge=("method",), against=("pmp",))
                cost = spent or replace(SPENT, steps=50 + 10 * seed)
                found.append(replace(plain, picked=Point(rate, step, 0.6, None), cost=cost))
    return found


def board(*more: list[Record]) -> Leaderboard:
    return scored([*suite(COUNT), *(one for records in more for one in records)])


def attacks(found: Leaderboard, defense: str = "pmp") -> dict[str, AttackRow]:
    return {one.attack: one for score in found.scores if score.defense == defense for one in score.attacks}


def test_gain_recipe_and_cost_by_hand() -> None:
    one = attacks(board(lora()))["lora"]
    assert one.attacked is not None
    assert one.attacked.value == pytest.approx(61.0)
    assert one.gain is not None
    assert (one.gain.value, one.gain.count) == (pytest.approx(31.0), COUNT)
    assert one.gains == pytest.approx({"pairs": 31.0, "topic": 31.0})
    assert (one.learning_rate, one.step) == (0.2, 30)
    assert one.steps == 20 + 60
    assert one.flops == 700 + 60 * 100
    assert (one.seconds, one.memory) == (40.0, 3_000_000)
    assert one.preparation == pytest.approx(0.75)
    assert (one.knowledge, one.against, one.counts) == (("method",), ("pmp",), True)
    assert (one.cells, one.failed, one.faults) == (6, 0, ())


def test_attacks_that_ignore_the_release_are_on_every_row_and_those_with_the_secret_are_left_out() -> None:
    owner = [record("pmp", "authorized", task, seed, 0.9, knowledge=("secret",)) for task in TASKS for seed in range(3)]
    found = board(owner)
    assert attacks(found)["authorized"].counts is False
    scratch = attacks(found)["scratch"]
    assert (scratch.uses_release, scratch.counts, scratch.cells) == (False, True, 6)
    assert scratch.gain is not None
    assert scratch.gain.value == pytest.approx(10.0)  # over the release as it is
    assert list(attacks(found)) == ["authorized", "full", "scratch"]  # the strongest first
    assert "authorized" not in attacks(found, "none")
    assert "none" not in attacks(found)


def test_failed_and_missing_cells_are_said() -> None:
    records = lora()
    broken = [failed(one, "oom") if one.defense == "pmp" and one.seed == 1 else one for one in records]
    left = [one for one in broken if (one.defense, one.task, one.seed) != ("pmp", "topic", 2)]
    one = attacks(board(left))["lora"]
    assert (one.cells, one.failed, one.faults) == (6, 3, ("1 × missing", "2 × oom (boom)"))
    assert (one.attacked, one.gain, one.gains) == (None, None, {})
    assert one.learning_rate in (0.1, 0.2)


def test_costs_that_were_not_counted_are_unknown_and_not_nothing() -> None:
    probe = attacks(board(lora(Cost(steps=8, seconds=1.0))))["lora"]
    assert (probe.flops, probe.memory, probe.steps) == (None, None, 8)
    prompted = attacks(board(lora(Cost(seconds=1.0))))["lora"]
    assert (prompted.flops, prompted.steps) == (None, 0)
    bare = attacks(board())["full"]
    assert (bare.steps, bare.flops, bare.seconds, bare.preparation) == (None, None, None, None)


def test_an_attack_that_is_planned_on_one_task_has_its_gain_there() -> None:
    merged = [one for one in lora() if one.task == "topic"]
    planned = [CellId.of(one) for one in [*suite(COUNT), *merged]]
    found = attacks(scored([*suite(COUNT), *merged], planned=planned))["lora"]
    assert found.cells == 3
    assert found.gain is not None
    assert found.gain.value == pytest.approx(31.0)
    assert list(found.gains) == ["topic"]


def test_what_an_attack_without_a_record_knows_is_not_known() -> None:
    """It may be one that knows the secret, and must not be shown as one that counts."""
    known = suite(COUNT)
    planned = [CellId.of(one) for one in known]
    missing = [CellId("pmp", "authorized", task, seed) for task in TASKS for seed in range(COUNT)]
    found = scored(known, planned=[*planned, *missing])
    assert attacks(found)["authorized"].knowledge is None
    (score,) = [one for one in found.scores if one.defense == "pmp"]
    (row,) = [row for row in row_tables.attacks(score).rows if row[0] == "authorized"]
    assert row[1:4] == ("–", "–", "–")


def test_each_row_has_a_page(tmp_path: Path) -> None:
    skips = [("pmp", "redistill", "it has | no locked MLPs")]
    full = [*suite(COUNT), *lora(), *sweep("pmp[x=a|b]", (0.5,) * COUNT), *sweep("pmp_x=a_b", (0.5,) * COUNT)]
    found = scored(full, skips=skips)
    paths = report.write(found, tmp_path, "nftbench run tiny")
    pages = sorted(path.name for path in paths if path.parent.name == "defenses")
    assert pages == ["ladder.md", "none.md", "pmp.md", "pmp_x=a_b-2.md", "pmp_x=a_b.md"]
    page = (tmp_path / "defenses" / "pmp.md").read_text()
    assert "[tiny](../leaderboard.md)" in page
    line = next(line for line in page.splitlines() if line.startswith("| lora |"))
    cells = [cell.strip() for cell in line.strip("|").split(" | ")]
    assert cells[:3] == ["lora", "method", "yes"]
    assert cells[3].startswith("31.0 [28.")
    assert cells[5:] == ["0.2", "30", "80", "6700", "40", "75 %", "3", "6 of 6 ok"]
    assert "| redistill | it has \\| no locked MLPs |" in page
    assert "Not planned" not in (tmp_path / "defenses" / "none.md").read_text()
    assert page.rstrip().endswith("    nftbench run tiny")
    board_page = (tmp_path / "leaderboard.md").read_text()
    assert "- [pmp · a\\|b](defenses/pmp_x=a_b.md): pmp\\[x=a\\|b\\]\n" in board_page
    assert "- [pmp](defenses/pmp.md)\n" in board_page
    assert all(f"](defenses/{name})" in board_page for name in pages)


@pytest.mark.parametrize("names", [["A", "a"], ["../up", ".", "[]"], ["x" * 300, "x" * 299 + "y"]])
def test_every_row_has_a_file_of_its_own_in_the_folder(names: list[str]) -> None:
    records = [one for name in names for one in sweep(name, (0.5,) * COUNT)]
    found = scored([*suite(COUNT), *records])
    files = list(page.rows(found, "nftbench run tiny"))
    assert len({name.lower() for name in files}) == len(found.scores)
    assert all(Path(name).name == name and len(name) < 120 for name in files)
