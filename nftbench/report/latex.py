"""leaderboard.tex: the ranking as a booktabs tabular, without the column of doubts."""

from __future__ import annotations

from nftbench.report import tables
from nftbench.scoring.leaderboard import Leaderboard
from nftbench.scoring.table import UNKNOWN

ESCAPES = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "×": r"$\times$",
    "[": "{[}",
    "]": "{]}",
    UNKNOWN: "--",
}


def text(board: Leaderboard) -> str:
    """The file's content."""
    table = tables.main(board)
    lines = [" & ".join(_escaped(cell) for cell in row[:-1]) + r" \\" for row in (table.header, *table.rows)]
    body = ["\\begin{tabular}{rl" + "r" * (len(table.header) - 3) + "}", r"\toprule", lines[0], r"\midrule", *lines[1:]]
    return "\n".join([*body, r"\bottomrule", r"\end{tabular}", ""])


def _escaped(text: str) -> str:
    return "".join(ESCAPES.get(character, character) for character in text.replace("\n", " "))
