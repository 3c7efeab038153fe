"""leaderboard.tex: every row in a booktabs tabular: ranked defenses, below a rule those without a rank, then controls.

Doubts are left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nftbench.report import tables
from nftbench.report.labels import of, shown
from nftbench.scoring.leaderboard import Leaderboard
from nftbench.scoring.table import UNKNOWN, Table

ESCAPES = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "×": r"$\times$",
    "≥": r"$\geq$",
    "[": "{[}",
    "]": "{]}",
    UNKNOWN: "--",
    "·": r"$\cdot$",
}


def text(board: Leaderboard) -> str:
    """The file's content."""
    names = of(board)
    defenses = [shown(tables.ranking(board, groups), names) for groups in (("ranked", "preliminary"), ("unranked",))]
    header = defenses[0].header[:-1]
    blocks = [[row[:-1] for row in table.rows] for table in defenses]
    blocks.append([_control(header, row) for row in _by_column(shown(tables.controls(board), names))])
    lines = ["\\begin{tabular}{rl" + "r" * 3 + "l" * (len(header) - 5) + "}", r"\toprule", _line(header)]
    for rows in filter(None, blocks):
        lines += [r"\midrule", *map(_line, rows)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _by_column(table: Table) -> list[dict[str, str]]:
    return [dict(zip(table.header, row, strict=True)) for row in table.rows]


def _control(header: Sequence[str], row: Mapping[str, str]) -> tuple[str, ...]:
    """A control in the columns of the ranking; it has neither rank nor claim."""
    return tuple(row["control"] if name == "defense" else row.get(name, UNKNOWN) for name in header)


def _line(cells: Sequence[str]) -> str:
    return " & ".join(map(_escaped, cells)) + r" \\"


def _escaped(text: str) -> str:
    return "".join(ESCAPES.get(character, character) for character in text.replace("\n", " "))
