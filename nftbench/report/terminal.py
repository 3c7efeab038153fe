"""A leaderboard in the terminal, while a suite runs and afterwards, and what became of its papers' claims."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from nftbench.report import order, tables
from nftbench.report.answer import answer
from nftbench.report.authors import paragraphs
from nftbench.report.doubts import EXPLANATIONS, about_all, own
from nftbench.report.labels import of, shown
from nftbench.scoring.leaderboard import Leaderboard
from nftbench.scoring.side_tables.paper_claims import PaperClaims
from nftbench.scoring.table import Table

STYLES = {"refuted": "red", "holds": "green"}
"""By the first word of a verdict."""
SHOWN = ("#", "defense", "excess", "suppression", "utility %", "claim")
KEPT = ("defense", "# ≥ 95 %", "# ≥ 90 %", "# ≥ 80 %", "# ≥ 50 %", "Pareto")
CONTROLS = ("control", "excess", "suppression", "utility %")
WHOLE = ("#", "excess", "suppression", "utility %")
"""Columns of numbers, which are never broken. In the ranking their intervals stand in a second line, so that it fits a
terminal of 80 columns."""


def ranking(board: Leaderboard) -> RichTable:
    """The ranking with rows that are not ranked at its end: one table for the live display."""
    table = shown(tables.ranking(board, ("ranked", "preliminary", "unranked")), of(board))
    return _narrow(table, SHOWN, f"{board.suite} · attackers have {board.rules.ranking}", below=True)


def summary(board: Leaderboard) -> RenderableType:
    """The answer, the ranking, what the reader must know of the suite, the doubts with advice, and the controls."""
    shared, names = tables.shared_reasons(board), of(board)
    notes = [Text(problem, style="yellow") for problem in board.problems]
    notes += [Text(note) for note in (tables.preliminary(board), about_all(board)) if note]
    for score in order.without_ladder(board):  # the board's problems say what the ladder lacks
        reasons = [reason for reason in score.standing.reasons if reason not in shared]
        notes += [_note(names[score.defense], "; ".join(reasons))] if reasons else []
        if score.kind == "defense":
            notes += [
                _note(names[score.defense], f"{flag.message}: {EXPLANATIONS[flag.name].advice}")
                for flag in own(board, score)
                if flag.severity == "warn"
            ]
    ranks, controls = shown(tables.ranking(board), names), shown(tables.controls(board), names)
    first = [Text(one) for one in (answer(board), *paragraphs(board), board.about) if one]
    return Group(
        *first,
        ranking(board),
        *notes,
        *([_narrow(ranks, KEPT, "Ranks among the rows that keep so much utility")] if ranks.rows else []),
        *([_narrow(controls, CONTROLS, "Controls")] if controls.rows else []),
        *([claims(board)] if board.side_table(PaperClaims).rows else []),
    )


def _note(name: str, words: str) -> Text:
    return Text.assemble((name, "bold"), f": {words}")


def _narrow(table: Table, names: Sequence[str], title: str, *, below: bool = False) -> RichTable:
    """Some columns of a table, for a narrow terminal; with `below`, intervals stand below their numbers."""
    made = RichTable(title=Text(title), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in names:
        numbers = name in WHOLE or name.startswith("# ")
        words = None if numbers else 16 if name in ("defense", "control") else 10
        made.add_column(name, justify="right" if numbers else "left", overflow="fold", no_wrap=numbers, min_width=words)
    for row in table.rows:
        cells = dict(zip(table.header, row, strict=True))
        lines = [_below(name, cells) if below else cells[name] for name in names]
        # Text, not str: a spec's brackets would be read as markup
        made.add_row(*(Text(line, STYLES.get(line.split(" ")[0], "")) for line in lines))
    return made


def _below(name: str, cells: Mapping[str, str]) -> str:
    """A cell on several lines: the interval below its number, the badge below the utility. Of a claim the verdict."""
    if name == "claim":
        return cells[name].partition(" (")[0]
    if name == "utility %":
        return "\n".join([cells[name].replace(" [", "\n["), cells["badge"]])
    return cells[name].replace(" [", "\n[") if name in WHOLE else cells[name]


def claims(board: Leaderboard) -> RichTable:
    """The claims of the suite's papers, with their measurements."""
    (table,) = board.side_table(PaperClaims).tables()
    return plain(table, f"{board.suite} · claimed and measured", whole=["measured"], lines=True)


def plain(table: Table, title: str | None = None, *, whole: Iterable[str] = (), lines: bool = False) -> RichTable:
    """Any table as it is; columns in `whole` are not wrapped, `lines` draws one between rows."""
    made = RichTable(title=Text(title or table.title), title_justify="left", show_lines=lines)
    for name in table.header:
        longest = max(map(len, name.split()), default=1)  # words of the header are not broken
        made.add_column(Text(name), overflow="fold", no_wrap=name in whole, min_width=longest)
    for row in table.rows:
        made.add_row(*map(Text, row))
    return made
