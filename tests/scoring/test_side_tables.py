"""A new table beside the ranking is one class and one entry in a list; then every report shows it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from nftbench.records.record import Row
from nftbench.report import json as json_file, page
from nftbench.scoring import Leaderboard
from nftbench.scoring.side_tables import SIDE_TABLES, Position, SideTable, SuiteEvidence
from nftbench.scoring.table import Table
from nftbench.terms import Verdict
from tests.factories import scored, suite
from tests.pages import rows


@dataclass(frozen=True)
class Failures(SideTable):
    """How many cells of each row have no result; it judges rows that protect after training."""

    name: ClassVar[str] = "failures"
    position: ClassVar[Position] = "after the details"
    guide: ClassVar[str] = "- **Failures**: cells without a result.\n"

    counts: Mapping[str, int]

    @classmethod
    def of(cls, evidence: SuiteEvidence) -> Failures:
        faults = [cell.defense for cell in evidence.grid.faults]
        return cls({defense: faults.count(defense) for defense in sorted(evidence.grid.rows)})

    @classmethod
    def judges(cls, row: Row) -> bool:
        return row.stage == "posttrain"

    def verdicts(self) -> Mapping[str, Sequence[Verdict]]:
        return {defense: ["refuted"] for defense in self.counts}

    def tables(self) -> tuple[Table, ...]:
        return (Table("Failures", ("defense", "cells"), tuple((row, f"{n}") for row, n in self.counts.items())),)

    def content(self) -> Any:
        return self.counts


def verdict(board: Leaderboard) -> Verdict | None:
    return next(one.claim.verdict for one in board.scores if one.defense == "pmp")


def test_a_new_table_is_one_class_and_one_entry() -> None:
    board = scored(suite(), side_tables=(*SIDE_TABLES, Failures))
    text = page.leaderboard(board, "nftbench run tiny")
    assert rows(text, "Failures") == [["early_stop", "0"], ["none", "0"], ["pmp", "0"]]
    assert "- **Failures**: cells without a result." in text.partition("## How to read it")[2]
    content = json.loads(json_file.text(board, "nftbench run tiny"))
    assert content["failures"] == {"early_stop": 0, "none": 0, "pmp": 0}
    plain = json.loads(json_file.text(scored(suite()), "nftbench run tiny"))
    assert {name: value for name, value in content.items() if name != "failures"} == plain


def test_a_table_judges_the_claims_of_the_rows_that_it_names_and_no_others() -> None:
    assert verdict(scored(suite(), side_tables=(*SIDE_TABLES, Failures))) == "holds"
    after = [replace(one, row=replace(one.row, stage="posttrain")) if one.defense == "pmp" else one for one in suite()]
    assert verdict(scored(after)) == "holds"
    board = scored(after, side_tables=(*SIDE_TABLES, Failures))
    assert verdict(board) == "refuted"
    (row,) = [one for one in board.scores if one.defense == "pmp"]
    assert row.standing.group == "unranked"
    assert row.claim.p is None


def test_names_in_the_json_file_are_different() -> None:
    names = [table.name for table in SIDE_TABLES]
    assert len({*names}) == len(names)
