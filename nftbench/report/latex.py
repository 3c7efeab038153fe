"""leaderboard.tex: the defenses as a booktabs tabular, those without a rank below a rule; without doubts."""

from __future__ import annotations

from collections.abc import Sequence

from nftbench.report import tables
from nftbench.scoring.leaderboard import Leaderboard
from nftbench.scoring.table import UNKNOWN

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
}


def text(board: Leaderboard) -> str:
    """The file's content."""
    header = tables.ranking(board).header[:-1]
    blocks = [tables.ranking(board, groups).rows for groups in (("ranked", "preliminary"), ("unranked",))]
    lines = ["\\begin{tabular}{rl" + "r" * 3 + "l" * (len(header) - 5) + "}", r"\toprule", _line(header)]
    for rows in filter(None, blocks):
        lines += [r"\midrule", *(_line(row[:-1]) for row in rows)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _line(cells: Sequence[str]) -> str:
    return " & ".join(map(_escaped, cells)) + r" \\"


def _escaped(text: str) -> str:
    return "".join(ESCAPES.get(character, character) for character in text.replace("\n", " "))
