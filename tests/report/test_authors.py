"""Each added plugin has a paragraph: its row and rank, what broke it or what it adds, and what evidence is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from nftbench.report import page, terminal, web
from nftbench.report.authors import paragraphs
from nftbench.scoring import Leaderboard
from nftbench.scoring.intervals import EXCESS_CONFIDENCE, Interval, difference
from nftbench.scoring.scores import Excess, Flag
from tests.factories import DEFENDED, TASKS, UNDEFENDED, failed, record, scored, suite, sweep

COMMAND = "nftbench report runs/tiny"
STRONGER = (0.61, 0.62, 0.66, 0.60, 0.63)
"""Where the added attack `mine` ends on `pmp` at each seed; the catalogue's best end at `DEFENDED`."""


def with_attack(on_pmp: Sequence[float] = STRONGER, **changes: Any) -> list[Any]:
    ends = {"none": UNDEFENDED, "pmp": on_pmp}
    return [
        *suite(),
        *(
            record(defense, "mine", task, seed, value, **changes)
            for defense, values in ends.items()
            for task in TASKS
            for seed, value in enumerate(values)
        ),
    ]


def board_with_defense(count: int = 5, **changes: Any) -> Leaderboard:
    return replace(scored([*suite(count), *sweep("mine", (0.66,) * count)], **changes), added_defenses=("mine",))


def test_nothing_is_said_where_nothing_was_added() -> None:
    assert paragraphs(scored(suite())) == ()


def test_a_defense_has_its_rank_what_broke_it_and_what_is_missing() -> None:
    board = board_with_defense()
    (said,) = paragraphs(board)
    mine = next(one for one in board.scores if one.defense == "mine")
    assert said.startswith("The added defense mine. mine has rank 2 of 2, and the comparisons leave open")
    assert mine.standing.ranks is not None
    assert f"rank {mine.standing.ranks.last}" in said
    assert (
        "The best single attack on validation is full, which ends at 66.0 points; undefended, the best end at 82.0."
        in said
    )
    assert "an attack written against it (`nftbench new attack`" in said
    assert "more base seeds:" not in said


def test_few_seeds_and_missing_cells_are_what_would_strengthen_it() -> None:
    (said,) = paragraphs(board_with_defense(3))
    assert "more base seeds: 3 of the 5 that a rank takes are there" in said
    broken = [failed(one) if one.attack == "full" else one for one in sweep("mine", (0.66,) * 5)]
    board = replace(scored([*suite(), *broken]), added_defenses=("mine",))
    (said,) = paragraphs(board)
    assert "mine has no rank: " in said
    assert "No attack on it has a result that counts." in said
    assert "cells without a result, first mine × full on pairs, seed 0: failed (boom)" in said


def test_an_effect_that_the_correction_takes_away_needs_more_seeds() -> None:
    """The interval of one row lies above zero, and not after Holm's correction over all defenses."""
    board = board_with_defense()
    alone = Excess(Interval(3.0, 0.1, 5.9, 5, 0.009, EXCESS_CONFIDENCE))
    for flags, asked in (((), False), ((Flag("no_effect", "note", "no effect"),), True)):
        scores = [replace(one, excess=alone, flags=flags) if one.defense == "mine" else one for one in board.scores]
        (said,) = paragraphs(replace(board, scores=tuple(scores)))
        assert ("more base seeds, because its excess may be zero" in said) == asked


def test_an_attack_against_it_is_not_asked_for_twice() -> None:
    against = [replace(one, against=("mine",)) for one in sweep("mine", (0.6,) * 5, attack="special")]
    board = scored([*suite(), *sweep("mine", (0.66,) * 5), *(one for one in against if one.attack == "special")])
    (said,) = paragraphs(replace(board, added_defenses=("mine",)))
    assert "written against it" not in said


def test_rows_of_one_plugin_share_a_paragraph() -> None:
    records = [*suite(), *sweep("mine[x=1]", (0.66,) * 5), *sweep("mine[x=2]", (0.7,) * 5)]
    (said,) = paragraphs(replace(scored(records), added_defenses=("mine",)))
    assert "mine · 1 has rank 2 of 3" in said
    assert "mine · 2 has rank 3 of 3" in said
    assert said.count("What would strengthen the evidence") == 1


def test_what_an_attack_adds_is_the_difference_that_it_makes_paired_by_seed() -> None:
    board = scored(with_attack(), added=("mine",))
    ((found,),) = [[one for one in board.added_attacks[0].additions if one.defense == "pmp"]]
    expected = difference([100 * value for value in STRONGER], [100 * value for value in DEFENDED])
    assert found.adds is not None
    assert found.adds.value == pytest.approx(expected.value)
    assert (found.adds.low, found.adds.high) == pytest.approx((expected.low, expected.high))
    (said,) = paragraphs(board)
    assert f"With mine attackers get further than with the catalogue alone: {expected.value:.1f} [" in said
    assert "points on pmp, where those end at 52.0." in said
    assert "On none, where it does not count, it ends at 82.0 points, and the best of the catalogue at 82.0." in said
    assert "a place in the suite's own file" in said


def test_an_attack_that_adds_nothing_is_told_so() -> None:
    board = scored(with_attack([value - 0.05 for value in DEFENDED]), added=("mine",))
    (found,) = [one for one in board.added_attacks[0].additions if one.defense == "pmp"]
    assert found.adds is not None
    assert found.adds.value == 0
    assert "With mine they get no further that the run can tell on pmp." in paragraphs(board)[0]


def test_two_added_attacks_do_not_hide_each_other() -> None:
    """Each is compared with the catalogue, and not with the other."""
    twin = [replace(one, attack="twin", key=f"{one.key}-twin") for one in with_attack() if one.attack == "mine"]
    board = scored([*with_attack(), *twin], added=("mine", "twin"))
    assert len({found.adds for one in board.added_attacks for found in one.additions if found.defense == "pmp"}) == 1
    assert len(paragraphs(board)) == 2


def test_a_failed_cell_of_an_attack_is_no_result() -> None:
    records = [
        failed(one) if (one.defense, one.attack, one.seed) == ("pmp", "mine", 0) else one for one in with_attack()
    ]
    (said,) = paragraphs(scored(records, added=("mine",)))
    assert "mine has no result that counts on any defense." in said
    assert "its 2 cells without a result on pmp (2 × failed (boom))" in said


def test_an_attack_is_not_compared_with_a_catalogue_that_lacks_cells() -> None:
    records = [failed(one) if (one.defense, one.attack) == ("pmp", "full") else one for one in with_attack()]
    (said,) = paragraphs(scored(records, added=("mine",)))
    assert "mine cannot be compared with the catalogue on pmp yet, because cells are missing." in said
    assert "no result" not in said.partition("What would")[0]


def test_an_attack_beyond_the_ranking_is_compared_with_attacks_that_know_as_much() -> None:
    board = scored(with_attack(knowledge=("base",)), added=("mine",))
    assert not board.added_attacks[0].counts
    (said,) = paragraphs(board)
    assert "points on pmp" in said
    assert "no rank depends on it" in said


def test_every_report_says_it_and_escapes_it() -> None:
    board = board_with_defense()
    (said,) = paragraphs(board)
    console = Console(width=10_000, record=True)
    console.print(terminal.summary(board))
    assert said in console.export_text()
    assert "rank 2 of 2" in page.leaderboard(board, COMMAND)
    assert "rank 2 of 2" in web.text([(board, COMMAND)])
    evil = "mine[x='<script>alert(1)</script>']"
    records = [replace(one, defense=evil) if one.defense == "mine" else one for one in sweep("mine", (0.66,) * 5)]
    found = replace(scored([*suite(), *records]), added_defenses=("mine",))
    assert "<script>alert" not in web.text([(found, COMMAND)])
    assert "<script>alert" not in page.leaderboard(found, COMMAND)
