"""What a table beside the ranking is, and what it is made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, Self

from nftbench.records.record import Record, Row
from nftbench.scoring.grid import Grid
from nftbench.scoring.table import Table
from nftbench.suites.schema import PaperClaim
from nftbench.terms import Verdict

Position = Literal["first", "after the flags", "after the details", "last"]
"""Where in leaderboard.md a table stands: before the ranking, after the reasons to doubt, after the details of the
rows, or behind everything else."""


@dataclass(frozen=True)
class SuiteEvidence:
    """What tables are made from: a suite's records, and what the ranking has found out about its rows."""

    grid: Grid
    tasks: Mapping[str, Sequence[str]]
    """The tasks with headroom, by reference."""
    readings: Sequence[Record] = ()
    """Records of yardsticks."""
    paper_claims: Sequence[PaperClaim] = ()
    unjudged: frozenset[str] = frozenset()
    """Rows of which no table judges anything: cells are missing, or records differ in versions."""
    misleading: frozenset[str] = frozenset()
    """Rows whose claims cannot hold: the release misled its attackers, or may have."""


class SideTable(Protocol):
    """A table beside the ranking: a frozen dataclass with its rows, and one entry in `SIDE_TABLES`.

    That is all it takes to appear in leaderboard.md and leaderboard.json.
    """

    name: ClassVar[str]
    """In leaderboard.json."""
    position: ClassVar[Position]
    heading: ClassVar[str] = ""
    """A heading of its own, under which `tables` stand as subsections."""
    guide: ClassVar[str] = ""
    """How to read it, as an item of a Markdown list; shown where the table has rows."""

    @classmethod
    def of(cls, evidence: SuiteEvidence) -> Self: ...

    @classmethod
    def judges(cls, row: Row) -> bool:
        """Whether the claim of such a defense is judged in this table, and not by the ranking."""
        return False

    def verdicts(self) -> Mapping[str, Sequence[Verdict]]:
        """By defense: what this table says of the defense's claim."""
        return {}

    def tables(self) -> tuple[Table, ...]:
        """What the reader sees."""
        ...

    def content(self) -> Any:
        """What leaderboard.json holds: dataclasses, mappings, sequences, texts and numbers."""
        ...
