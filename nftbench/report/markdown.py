"""A leaderboard as one Markdown page: the ranking, what is not ranked and why, each task, every doubt."""

from __future__ import annotations

from nftbench.report import tables
from nftbench.report.tables import Table
from nftbench.score import Leaderboard

GUIDE = """\
- A number is a mean over base seeds with its 95 % interval (paired Student's t or Welch's, the wider). Scores are in
  points: an accuracy of 0.83 is 83.0; where lower is better they are counted negative.
- **suppression**: what the best attack on the undefended model scores, less what the best attack on this row scores.
  The best is picked on validation, scored on test; training from scratch is always among the attacks. *(partial)* is
  by those attacks alone that this row and the undefended model both have so far; the missing ones may be stronger.
- **excess**: suppression beyond the strongest trivial defense (`control`) that keeps as much utility. This ranks. Where
  its interval covers zero the row has no effect beyond the trivial defenses.
- **utility %**: base utility kept, floor taken out, the worst metric. Ranked rows keep {bar} % with their lower bound.
- **claim**: *holds* needs every cell, the utility bar, and excess above zero against attackers who have what the claim
  says they may (in brackets), Holm-corrected over rows. The burden of proof is on the defense.
- **#**: rows that cannot be told apart share a rank; in brackets it is preliminary, of fewer than five seeds; `ref` is
  the undefended model, `control` a trivial defense.
- **to 50 %**: what the best attack takes to reach that share of the undefended gain, as a multiple of what the
  undefended model takes; `>` where the budget ended first.
"""


def page(board: Leaderboard, command: str) -> str:
    """The whole page, with the command that made it."""
    measured = f"{board.records} of {board.planned} cells recorded. Attackers have: {board.ranking}."
    parts = [f"# {_escaped(board.suite) or 'Leaderboard'}", measured, _problems(board)]
    first = (tables.claims(board), tables.main(board), tables.unranked(board), tables.flags(board))
    parts += [_section(table) for table in (*first, *tables.aware(board), tables.merging(board))]
    parts += ["## Tasks", *(_section(table, "###") for table in (tables.headroom(board), *tables.tasks(board)))]
    rest = (tables.utility(board), tables.details(board), tables.levels(board), tables.recovery(board))
    parts += [_section(table) for table in rest]
    if board.readings:
        parts += ["## Readings", *(_section(table, "###") for table in tables.readings(board))]
    parts += ["## How to read it", GUIDE.format(bar=f"{100 * board.utility_bar:g}").rstrip()]
    parts += ["## The command", "    " + " ".join(command.split())]
    return "\n\n".join(part for part in parts if part) + "\n"


def _problems(board: Leaderboard) -> str:
    return "\n".join(f"- **{_escaped(problem)}**" for problem in board.problems)


def _section(table: Table, level: str = "##") -> str:
    if not table.rows:
        return ""
    ruler = tuple("---" for _ in table.header)
    lines = [_line(table.header), f"| {' | '.join(ruler)} |", *(_line(row) for row in table.rows)]
    return f"{level} {_escaped(table.title)}\n\n" + "\n".join(lines)


def _line(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(_escaped(cell) for cell in cells)} |"


def _escaped(text: str) -> str:
    """Text of plugins and errors shows as it is: no column, tag or emphasis begins in it."""
    flat = " ".join(text.split())
    for character in "\\`*|":
        flat = flat.replace(character, f"\\{character}")
    return flat.replace("<", "&lt;")
