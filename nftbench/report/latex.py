"""leaderboard.tex: every row in a booktabs tabular that fits an article; ranked rows, those without a rank, controls.

It has the columns of the answer; leaderboard.csv has all."""

from __future__ import annotations

import re
from collections.abc import Sequence

from nftbench.report import order, tables
from nftbench.report.labels import of
from nftbench.scoring.leaderboard import Leaderboard
from nftbench.scoring.scores import Score
from nftbench.scoring.table import UNKNOWN, interval

NUMBER = "r@{}l"
"""The alignment of a number and, in a column of its own, its interval."""
COLUMNS = {"#": "r", "defense": "l", "excess": NUMBER, "suppression": NUMBER, "utility %": NUMBER, "claim": "l"}
"""The columns, each with its alignment."""
ABOUT = (
    "% Needs the package booktabs. \\input{leaderboard} fits an article in one column. Where labels are long, graphicx",
    "% makes it fit: \\resizebox{\\linewidth}{!}{\\input{leaderboard}}.",
    "% Excess and suppression are in points; 95 % intervals are in brackets, of the excess 98 %. leaderboard.csv has",
    "% every column.",
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
BOUNDS = re.compile(r"\[(.+), (.+)\]")
"""The ends of an interval, which is set small, as in many papers: otherwise the table is wider than a page."""


def text(board: Leaderboard) -> str:
    """The file's content."""
    names = of(board)
    defenses = order.defenses(board)
    groups: Sequence[Sequence[Score]] = (
        [score for score in defenses if score.standing.rank is not None],
        [score for score in defenses if score.standing.rank is None],
        [score for _, score in order.controls(board)],
    )
    lines = [
        *ABOUT,
        r"\begingroup\footnotesize\setlength{\tabcolsep}{2.5pt}%",
        f"\\begin{{tabular}}{{@{{}}{''.join(COLUMNS.values())}@{{}}}}",
        r"\toprule",
        _line([_heading(name, alignment) for name, alignment in COLUMNS.items()]),
    ]
    for scores in filter(None, groups):
        lines += [r"\midrule", *(_line(_cells(score, names[score.defense])) for score in scores)]
    return "\n".join([*lines, r"\bottomrule", *_note(defenses), r"\end{tabular}\endgroup", ""])


def _cells(score: Score, label: str) -> tuple[str, ...]:
    """One row, in the order of `COLUMNS`. A control has neither rank nor claim."""
    return (
        _escaped(tables.rank(score) if score.standing.rank is not None else UNKNOWN),
        _escaped(label),
        _number(interval(score.excess.interval)),
        _number(tables.suppression(score)),
        _number(interval(score.utility.retention, 100)),
        _escaped(_verdict(score)),
    )


def _verdict(score: Score) -> str:
    """The verdict on the claim, with a star where `_note` says something about it."""
    if score.claim.verdict is None or score.row.claim is None:
        return UNKNOWN
    return score.claim.verdict + ("" if score.row.claim.adaptation == "finetuning" else "*")


def _note(scores: Sequence[Score]) -> list[str]:
    """The line below the table about claims with a star; none where no claim has one."""
    claims = [score.row.claim for score in scores if score.row.claim is not None and score.claim.verdict is not None]
    ways = sorted({claim.adaptation.replace("_", " ") for claim in claims} - {"finetuning"})
    said = f"* its claim is about adapting the release by {' or '.join(ways)}, and not by fine-tuning"
    width = sum(1 + (alignment == NUMBER) for alignment in COLUMNS.values())
    return [f"\\multicolumn{{{width}}}{{@{{}}l}}{{{said}}} \\\\"] if ways else []


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _heading(name: str, alignment: str) -> str:
    return f"\\multicolumn{{2}}{{c}}{{{_escaped(name)}}}" if alignment == NUMBER else _escaped(name)


def _number(text: str) -> str:
    """The two cells of a number such as `8.5 [6.8, 10.2]`, which may have no interval, or a word after it."""
    value, _, rest = text.partition(" ")
    small = BOUNDS.sub(r"$_{[\1,\\,\2]}$", rest)
    return f"{_escaped(value)} & {small}".rstrip()


def _escaped(text: str) -> str:
    words = "".join(ESCAPES.get(character, character) for character in text.replace("\n", " "))
    return MINUS.sub("$-$", words)
