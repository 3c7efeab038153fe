"""leaderboard.tex: every row in a booktabs tabular: ranked defenses, below a rule those without a rank, then controls.

It has the columns of the answer; leaderboard.csv has all."""

from __future__ import annotations

import re
from collections.abc import Mapping

from nftbench.report import tables
from nftbench.report.labels import of, shown
from nftbench.scoring.leaderboard import Leaderboard
from nftbench.scoring.table import UNKNOWN, Table

COLUMNS = {
    "#": "r",
    "defense": "l",
    "excess": "r",
    "suppression": "r",
    "utility %": "r",
    "badge": "l",
    "claim": "l",
    "worst task": "l",
}
"""The columns of the ranking that are shown, each with its alignment."""
ABOUT = (
    "% Needs the package booktabs. With graphicx, \\resizebox{\\linewidth}{!}{\\input{leaderboard}} fits it to a page.",
    "% Excess and suppression are in points; 95 % intervals are in brackets. leaderboard.csv has every column.",
)
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
MINUS = re.compile(r"(?<![\w-])-(?=\d)")
"""A sign before a number, which would be set as a hyphen."""


def text(board: Leaderboard) -> str:
    """The file's content."""
    names = of(board)
    defenses = (shown(tables.ranking(board, groups), names) for groups in (("ranked", "preliminary"), ("unranked",)))
    controls = [row | {"defense": row["control"]} for row in _by_column(shown(tables.controls(board), names))]
    lines = [
        *ABOUT,
        f"\\begin{{tabular}}{{{''.join(COLUMNS.values())}}}",
        r"\toprule",
        _line(dict(zip(COLUMNS, COLUMNS, strict=True))),
    ]
    for rows in filter(None, (*map(_by_column, defenses), controls)):
        lines += [r"\midrule", *map(_line, rows)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _by_column(table: Table) -> list[dict[str, str]]:
    return [dict(zip(table.header, row, strict=True)) for row in table.rows]


def _line(row: Mapping[str, str]) -> str:
    """A row of the tabular. A control has neither rank nor claim."""
    return " & ".join(_escaped(row.get(name, UNKNOWN)) for name in COLUMNS) + r" \\"


def _escaped(text: str) -> str:
    words = "".join(ESCAPES.get(character, character) for character in text.replace("\n", " "))
    return MINUS.sub("$-$", words)
