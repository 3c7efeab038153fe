"""The protocol of side tables, which are shown beside the ranking, and the evidence that they are computed from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, Self

from nftbench.records.record import Record, Row
from nftbench.scoring.grid import Attacks, Grid
from nftbench.scoring.scores import Excess
from nftbench.scoring.table import Table
from nftbench.suites.schema import PaperClaim
from nftbench.terms import Verdict

Position = Literal["first", "after the flags", "after the details", "last"]
"""A table's position in leaderboard.md: before the ranking, after the flags, after the rows' details, or at the end."""


def _without_ladder(defense: str, tasks: Sequence[str], attacks: Attacks) -> Excess:
    return Excess(reason="no ladder of trivial defenses to measure from")


@dataclass(frozen=True)
class SuiteEvidence:
    """What side tables are computed from: a suite's records, and results of the ranking about its rows."""

    grid: Grid
    tasks: Mapping[str, Sequence[str]]
    """The tasks with headroom, by reference."""
    readings: Sequence[Record] = ()
    """Records of yardsticks."""
    paper_claims: Sequence[PaperClaim] = ()
    unjudged: frozenset[str] = frozenset()
    """Rows that tables must not judge, because cells are missing or records have different versions."""
    misleading: frozenset[str] = frozenset()
    """Rows whose claims cannot hold, because the release misled its attackers or may have done so."""
    flagged: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """By row: the names of its flags."""
    keeping: frozenset[str] = frozenset()
    """Rows whose badge says that they keep utility."""
    excess: Callable[[str, Sequence[str], Attacks], Excess] = _without_ladder
    """By row, tasks and attacks: what the row takes from these attacks on these tasks beyond the trivial defenses."""


class SideTable(Protocol):
    """A table beside the ranking, as a frozen dataclass of its rows.

    With an entry in `SIDE_TABLES`, it appears in leaderboard.md and leaderboard.json.
    """

    name: ClassVar[str]
    """The key of the table in leaderboard.json."""
    position: ClassVar[Position]
    heading: ClassVar[str] = ""
    """The heading of the section in which `tables` are subsections; empty for no such section."""
    guide: ClassVar[str] = ""
    """How to read the table, as an item of a Markdown list. It is shown if the table has rows."""

    @classmethod
    def of(cls, evidence: SuiteEvidence) -> Self: ...

    @classmethod
    def judges(cls, row: Row) -> bool:
        """Whether this table, and not the ranking, judges the claim of a defense with this row."""
        return False

    def verdicts(self) -> Mapping[str, Sequence[Verdict]]:
        """By defense: this table's verdicts on the defense's claim."""
        return {}

    def tables(self) -> tuple[Table, ...]:
        """The tables to show."""
        ...

    def content(self) -> Any:
        """The content for leaderboard.json, made of dataclasses, mappings, sequences, texts and numbers.

        None leaves the table out of the file.
        """
        ...
