"""The table of merging against numbers worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from nftbench.contract import Claim
from nftbench.records.record import CellId, Record
from nftbench.scoring.grid import Grid, arrange
from nftbench.scoring.intervals import difference, mean
from nftbench.scoring.side_tables import SuiteEvidence
from nftbench.scoring.side_tables.merging import Merging, MergingRow
from tests.factories import RANKING, failed, measurement, record, row

CLAIM = Claim(frozenset({"base"}), "merging")
BASE, ALONE = (0.30, 0.25, 0.35, 0.30, 0.30), (0.80, 0.75, 0.85, 0.80, 0.90)
MERGED, PLAIN = (0.40, 0.35, 0.50, 0.40, 0.42), (0.70, 0.65, 0.80, 0.70, 0.84)
KEPT, PLAIN_KEPT = (0.2, 0.2, 0.3, 0.2, 0.2), (0.8, 0.8, 0.9, 0.8, 0.9)
"""(merged - base) / (standalone - base), the control's alike."""


def cells(defense: str, merged: Sequence[float], attack: str = "merge", **changes: Any) -> list[Record]:
    """One protected update: seed s is worth `ALONE[s]` by itself and `merged[s]` in a merge."""
    here = row(defense, task_aware=True, **{"claim": CLAIM, **changes})
    found = []
    for seed, value in enumerate(merged):
        start = measurement(ALONE[seed])
        found.append(record(defense, "none", "topic", seed, ALONE[seed], row=here))
        tried = record(defense, attack, "topic", seed, value, row=here, unattacked=start)
        found.append(replace(tried, adaptation="merging", knowledge=("base",), against=("trap2",)))
    return found


def records(merged: Sequence[float] = MERGED, plain: Sequence[float] = PLAIN) -> list[Record]:
    return [
        *(record("none", "none", "topic", seed, value) for seed, value in enumerate(BASE[: len(merged)])),
        *cells("plain", plain),
        *cells("trap2", merged, control="plain"),
    ]


def grid(found: Sequence[Record]) -> Grid:
    return arrange(found, [CellId.of(one) for one in found], RANKING)[0]


def lines(found: Sequence[Record], **doubts: frozenset[str]) -> tuple[MergingRow, ...]:
    return Merging.of(SuiteEvidence(grid(found), {}, **doubts)).rows


def table(found: Sequence[Record]) -> dict[str, MergingRow]:
    return {one.defense: one for one in lines(found)}


def test_merged_scores_are_those_computed_by_hand() -> None:
    rows = table(records())
    assert list(rows) == ["plain", "trap2"]
    trap = rows["trap2"]
    assert (trap.attack, trap.task, trap.control) == ("merge", "topic", "plain")
    assert trap.base is not None
    assert trap.standalone is not None
    assert trap.merged is not None
    assert trap.base.value == pytest.approx(30.0)
    assert trap.standalone.value == pytest.approx(82.0)
    assert trap.merged.value == pytest.approx(41.4)
    assert trap.kept is not None
    assert trap.control_kept is not None
    assert trap.beyond is not None
    for found, wanted in (
        (trap.kept, mean(KEPT)),
        (trap.control_kept, mean(PLAIN_KEPT)),
        (trap.beyond, difference(KEPT, PLAIN_KEPT)),
    ):
        assert (found.value, found.low, found.high) == pytest.approx((wanted.value, wanted.low, wanted.high))
        assert found.count == 5
    assert trap.beyond.value == pytest.approx(-0.62)
    assert trap.verdict == "holds"
    assert rows["plain"].kept == trap.control_kept
    assert (rows["plain"].control, rows["plain"].control_kept, rows["plain"].verdict) == (None, None, None)


def test_each_operator_has_a_row() -> None:
    ties = [one for one in cells("trap2", PLAIN, "merge[operator=ties]", control="plain") if one.attack != "none"]
    found = lines([*records(), *ties])
    assert [(one.defense, one.attack) for one in found] == [
        ("plain", "merge"),
        ("trap2", "merge"),
        ("trap2", "merge[operator=ties]"),
    ]
    assert found[2].kept is not None
    assert found[2].kept.value == pytest.approx(0.84)
    assert (found[2].control_kept, found[2].verdict) == (None, "untested")  # the control was not merged that way


def test_a_claim_is_refuted_where_the_update_merges_as_well_as_its_control() -> None:
    assert table(records(PLAIN))["trap2"].verdict == "refuted"
    noisy = table(records((0.40, 0.80, 0.45, 0.78, 0.42)))["trap2"]
    assert noisy.beyond is not None
    assert noisy.beyond.value < 0 < noisy.beyond.high
    assert noisy.verdict == "refuted"


def test_a_claim_is_untested_with_too_few_seeds_or_failed_cells() -> None:
    assert table(records(MERGED[:2], PLAIN[:2]))["trap2"].verdict == "untested"
    assert table(records(MERGED[:3], PLAIN[:3]))["trap2"].verdict == "holds"
    broken = [failed(one) if (one.defense, one.attack, one.seed) == ("trap2", "merge", 4) else one for one in records()]
    trap = table(broken)["trap2"]
    assert (trap.kept, trap.beyond, trap.verdict) == (None, None, "untested")
    lacking = [one for one in records() if one.defense != "plain"]
    assert table(lacking)["trap2"].verdict == "untested"


def test_a_release_that_misled_its_attackers_or_lacks_cells_proves_nothing() -> None:
    trap = frozenset({"trap2"})
    (_, sound), (_, misleading), (plain, unjudged) = (
        lines(records(), **doubts) for doubts in ({}, {"misleading": trap}, {"unjudged": trap})
    )
    assert [one.verdict for one in (sound, misleading, unjudged, plain)] == ["holds", "untested", "untested", None]
    (_, refuted) = lines(records(merged=PLAIN), misleading=trap)
    assert refuted.verdict == "refuted"


def test_an_update_without_a_gain_has_no_share_to_keep() -> None:
    worthless = [
        replace(one, attacked=measurement(0.3), validation=measurement(0.3))
        if (one.defense, one.attack, one.seed) == ("trap2", "none", 0)
        else one
        for one in records()
    ]
    trap = table(worthless)["trap2"]
    assert trap.kept is not None
    assert trap.kept.count == 4
    assert trap.verdict == "untested"


def test_an_update_that_gains_next_to_nothing_holds_at_a_cost() -> None:
    """It loses five times its gain of one point. That is no share of an update that anyone would merge."""
    nothing = [
        replace(one, attacked=measurement(BASE[one.seed] + by), validation=measurement(BASE[one.seed] + by))
        for one in records()
        for by in (0.01 if one.attack == "none" else -0.05,)
        if one.defense == "trap2"
    ]
    trap = table([*(one for one in records() if one.defense != "trap2"), *nothing])["trap2"]
    assert trap.kept is not None
    assert trap.kept.value == pytest.approx(-5.0)
    assert trap.verdict == "holds at a cost"


def test_without_merging_attacks_there_is_no_table() -> None:
    assert lines([record("none", "full", "topic", 0, 0.5)]) == ()
