"""A leaderboard in the terminal, while a suite runs and afterwards, and what became of its papers' claims."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from nftbench.report import tables
from nftbench.scoring.leaderboard import Leaderboard
from nftbench.scoring.side_tables.paper_claims import PaperClaims
from nftbench.scoring.table import Table

STYLES = {"refuted": "red", "holds": "green", "ref": "dim", "control": "dim"}
SHOWN = ("#", "defense", "excess", "suppression", "utility %", "worst task", "claim", "doubts")


def ranking(board: Leaderboard) -> RichTable:
    """The ranking with rows that are not ranked at its end: one table for the live display."""
    table = tables.main(board, ("ranked", "preliminary", "control", "unranked"))
    columns = [table.header.index(name) for name in SHOWN]
    shown = RichTable(title=Text(f"{board.suite} · attackers have {board.rules.ranking}"), title_justify="left")
    for name in SHOWN:
        shown.add_column(name, justify="left" if name in ("defense", "claim", "doubts") else "right", overflow="fold")
    for row in table.rows:
        # Text, not str: a spec's brackets would be read as markup
        shown.add_row(*(Text(row[column], style=STYLES.get(row[column].partition(" ")[0], "")) for column in columns))
    return shown


def summary(board: Leaderboard) -> RenderableType:
    """The ranking, what the reader must know of the suite, and why rows are not ranked."""
    notes = [Text(board.about)] if board.about else []
    notes += [Text(problem, style="yellow") for problem in board.problems]
    notes += [
        Text.assemble((score.defense, "bold"), f": {'; '.join(score.standing.reasons)}")
        for score in board.scores
        if score.standing.reasons
    ]
    return Group(ranking(board), *notes, *([claims(board)] if board.side_table(PaperClaims).rows else []))


def claims(board: Leaderboard) -> RichTable:
    """The claims of the suite's papers, with their measurements."""
    (table,) = board.side_table(PaperClaims).tables()
    return plain(table, f"{board.suite} · claimed and measured", whole=["measured"], lines=True)


def plain(table: Table, title: str | None = None, *, whole: Iterable[str] = (), lines: bool = False) -> RichTable:
    """Any table as it is; columns in `whole` are not wrapped, `lines` draws one between rows."""
    shown = RichTable(title=Text(title or table.title), title_justify="left", show_lines=lines)
    for name in table.header:
        shown.add_column(Text(name), overflow="fold", no_wrap=name in whole)
    for row in table.rows:
        shown.add_row(*map(Text, row))
    return shown
