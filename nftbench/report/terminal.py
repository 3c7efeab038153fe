"""A leaderboard in the terminal, while a suite runs and afterwards, and what became of its papers' claims."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from nftbench.report import order, tables
from nftbench.scoring.leaderboard import Leaderboard
from nftbench.scoring.side_tables.paper_claims import PaperClaims
from nftbench.scoring.table import Table

STYLES = {"refuted": "red", "holds": "green"}
"""By the first word of a verdict."""
SHOWN = ("#", "defense", "excess", "suppression", "utility %", "claim", "doubts")
KEPT = ("defense", "# ≥ 95 %", "# ≥ 90 %", "# ≥ 80 %", "# ≥ 50 %", "Pareto", "least metric", "worst task")
CONTROLS = ("family", "control", "excess", "suppression", "utility %", "doubts")
WHOLE = ("#", "excess", "suppression", "utility %")
"""Columns of numbers, whose intervals stand in a second line: the tables fit a terminal of 100 columns."""


def ranking(board: Leaderboard) -> RichTable:
    """The ranking with rows that are not ranked at its end: one table for the live display."""
    table = tables.ranking(board, ("ranked", "preliminary", "unranked"))
    return _narrow(table, SHOWN, f"{board.suite} · attackers have {board.rules.ranking}")


def summary(board: Leaderboard) -> RenderableType:
    """The ranking, what the reader must know of the suite, why rows are not ranked, and the controls."""
    shared = tables.shared_reasons(board)
    notes = [Text(board.about)] if board.about else []
    notes += [Text(problem, style="yellow") for problem in board.problems]
    notes += [Text(note) for note in (tables.preliminary(board), tables.not_ranked(board)) if note]
    for score in order.without_ladder(board):  # the board's problems say what the ladder lacks
        own = [reason for reason in score.standing.reasons if reason not in shared]
        notes += [Text.assemble((score.defense, "bold"), f": {'; '.join(own)}")] if own else []
    ranks, controls = tables.ranking(board), tables.controls(board)
    return Group(
        ranking(board),
        *notes,
        *([_narrow(ranks, KEPT, "Ranks among the rows that keep so much utility")] if ranks.rows else []),
        *([_narrow(controls, CONTROLS, "Controls")] if controls.rows else []),
        *([claims(board)] if board.side_table(PaperClaims).rows else []),
    )


def _narrow(table: Table, names: Sequence[str], title: str) -> RichTable:
    """Some columns of a table, for a narrow terminal."""
    shown = RichTable(title=Text(title), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in names:
        numbers = name in WHOLE or name.startswith("# ")
        words = None if numbers else 16 if name in ("defense", "control") else 10
        shown.add_column(
            name, justify="right" if numbers else "left", overflow="fold", no_wrap=numbers, min_width=words
        )
    for row in table.rows:
        cells = dict(zip(table.header, row, strict=True))
        # Text, not str: a spec's brackets would be read as markup
        shown.add_row(*(Text(_broken(name, cells), STYLES.get(cells[name].split(" ")[0], "")) for name in names))
    return shown


def _broken(name: str, cells: Mapping[str, str]) -> str:
    """A cell on several lines: the interval below its number, the badge below the utility, a doubt on each line."""
    if name == "utility %":
        return "\n".join([cells[name].replace(" [", "\n["), cells["badge"]])
    if name == "doubts":
        return cells[name].replace(", ", "\n")
    return cells[name].replace(" [", "\n[") if name in WHOLE else cells[name]


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
