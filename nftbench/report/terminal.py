"""A leaderboard in the terminal, after a run and while it runs, and what became of its papers' claims."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from nftbench.report import tables
from nftbench.scoring.score import Leaderboard

STYLES = {"refuted": "red", "holds": "green", "ref": "dim", "control": "dim"}
SHOWN = ("#", "defense", "excess", "suppression", "utility %", "worst task", "claim", "doubts")


def ranking(board: Leaderboard) -> RichTable:
    """The main table, rows that are not ranked at its end: one for the live display."""
    table = tables.main(board, ("ranked", "preliminary", "control", "unranked"))
    columns = [table.header.index(name) for name in SHOWN]
    shown = RichTable(title=Text(f"{board.suite} · attackers have {board.ranking}"), title_justify="left")
    for name in SHOWN:
        shown.add_column(name, justify="left" if name in ("defense", "claim", "doubts") else "right", overflow="fold")
    for row in table.rows:
        # Text, not str: a spec's brackets would be read as markup
        shown.add_row(*(Text(row[column], style=STYLES.get(row[column].partition(" ")[0], "")) for column in columns))
    return shown


def summary(board: Leaderboard) -> RenderableType:
    """The table, what the reader must know of the suite, and why rows are not ranked."""
    notes = [Text(board.about)] if board.about else []
    notes += [Text(problem, style="yellow") for problem in board.problems]
    notes += [
        Text.assemble((score.defense, "bold"), f": {'; '.join(score.reasons)}")
        for score in board.scores
        if score.reasons
    ]
    return Group(ranking(board), *notes, *([claims(board)] if board.claims else []))


def claims(board: Leaderboard) -> RichTable:
    """What the suite's papers claim, beside the measurement."""
    table = tables.claims(board)
    shown = RichTable(title=Text(f"{board.suite} · claimed and measured"), title_justify="left", show_lines=True)
    for name in table.header:
        shown.add_column(name, overflow="fold", no_wrap=name == "measured")
    for row in table.rows:
        shown.add_row(*map(Text, row))
    return shown
