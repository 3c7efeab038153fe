"""Attacks that prepare on public text beside training from scratch on as much of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nftbench.records.record import Record
from nftbench.scoring import Leaderboard
from nftbench.scoring.side_tables.text_control import TextControl, TextRow
from nftbench.scoring.table import Table
from tests.factories import COST, TASKS, record, scored, suite

SEEDS = 3


def on_text(defense: str, attack: str, values: tuple[float, ...], steps: int = 200, **changes: object) -> list[Record]:
    cost = replace(COST, preparation_steps=steps)
    return [
        record(defense, attack, task, seed, value, **{"knowledge": ("data",), "cost": cost, **changes})
        for task in TASKS
        for seed, value in enumerate(values)
    ]


HEALED = [one for row in ("none", "early_stop", "pmp") for one in on_text(row, "heal", (0.70, 0.72, 0.71))]
AFRESH = on_text("none", "scratch[text=true]", (0.60, 0.65, 0.61))


def table(records: list[Record]) -> tuple[TextRow, ...]:
    return scored([*suite(SEEDS), *records]).side_table(TextControl).rows


def test_the_gain_beyond_training_from_scratch_on_the_same_text_is_scored() -> None:
    found = {row.defense: row for row in table([*HEALED, *AFRESH])}
    assert list(found) == ["early_stop", "none", "pmp"]
    pmp = found["pmp"]
    assert (pmp.attack, pmp.control, pmp.steps) == ("heal", "scratch[text=true]", 200)
    assert pmp.from_release is not None
    assert pmp.from_release.value == pytest.approx(71.0)
    assert pmp.from_scratch is not None
    assert pmp.from_scratch.value == pytest.approx(62.0)
    assert pmp.beyond is not None
    assert pmp.beyond.value == pytest.approx(((70 - 60) + (72 - 65) + (71 - 61)) / 3)
    assert pmp.beyond.count == SEEDS


def test_attack_and_control_are_compared_only_with_equal_text_and_knowledge() -> None:
    assert table(HEALED) == ()
    assert table(AFRESH) == ()
    assert table([*HEALED, *on_text("none", "scratch[text=true]", (0.6, 0.65, 0.61), steps=400)]) == ()
    untold = [replace(one, knowledge=("data", "method")) for one in HEALED]
    assert table([*untold, *AFRESH]) == ()
    silent = [replace(one, cost=COST) for one in [*HEALED, *AFRESH]]
    assert table(silent) == ()  # nobody prepared


def table_of(board: Leaderboard) -> Table:
    (found,) = board.side_table(TextControl).tables()
    return found


def test_the_table_shows_both_scores_with_their_intervals() -> None:
    board = scored([*suite(SEEDS), *HEALED, *AFRESH])
    line = next(row for row in table_of(board).rows if row[0] == "pmp")
    assert line[:6] == ("pmp", "heal", "200", "71.0 [68.5, 73.5]", "scratch[text=true]", "62.0 [55.4, 68.6]")
    assert table_of(scored(suite(SEEDS))).rows == ()
