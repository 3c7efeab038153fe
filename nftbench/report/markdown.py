"""A leaderboard as Markdown: one page with the ranking, what is not ranked and why, each task, every doubt; and one
for each defense with every attack on it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from nftbench.report import tables
from nftbench.report.tables import Table
from nftbench.scoring.score import Leaderboard, Score

GUIDE = """\
- A number is a mean over base seeds with its 95 % interval (paired Student's t or Welch's, the wider). Scores are in
  points: an accuracy of 0.83 is 83.0; where lower is better they are counted negative.
- **suppression**: what the best attack on the undefended model scores, less what the best attack on this row scores.
  The best is picked on validation, scored on test; {scratch}. *(partial)* is
  by those attacks alone that this row and the undefended model both have so far; the missing ones may be stronger.
- **excess**: suppression beyond the strongest trivial defense (`control`) that clears the utility bar. This ranks.
  Where its interval covers zero the row has no effect beyond the trivial defenses.
- **utility %**: base utility kept, floor taken out, the worst metric. Ranked rows keep {bar} % with their lower bound.
- **claim**: *holds* needs every cell, the utility bar, and excess above zero against attackers who have and use what
  the claim says they may (in brackets), Holm-corrected over rows. The burden of proof is on the defense.
- **#**: rows that cannot be told apart share a rank; in brackets it is preliminary, of fewer than five seeds; `ref` is
  the undefended model, `control` a trivial defense.
- **untested**: no attack on this row uses all that the level grants, so that nobody knows what it withstands there.
- **to 50 %**: what the cheapest attack takes to reach that share of the undefended gain, preparation included, as a
  multiple of what the undefended model takes; `>` where the largest budget ended first, `≤` where an attack that takes
  no optimizer steps, and so is not counted, gets there too.
"""
CLAIMS = """\
- **Claims**: what a paper says, and the measurement over as many base seeds as stand beside it. A claim *holds* where
  the whole interval lies on its side of the bound, *does not hold* where it lies on the other, and is *not
  distinguishable* between; without a bound or with one seed it is *measured*. Nothing is corrected for their number.
"""
RECOVERY = """\
- **Recovery of secrets**: how near a guess comes to the secret mask, in round brackets what knowing nothing scores;
  *above chance* is about ROC-AUC over all weights, Holm-corrected. **mask value recovered** is (recovered -
  unauthorised) / (authorised - unauthorised) with Fieller's interval, *not distinguishable* where that of the gap
  covers zero.
"""
ATTACKS = """\
Means over base seeds with their 95 % interval, over the tasks that count; in points. The learning rate is the one
picked most often (of an attack that has none, its setting), step and costs are medians; a cost is that of one task's
attacker: preparation, sweep and restarts. What does not *count* needs knowledge beyond the ranking's.
"""


def page(board: Leaderboard, command: str) -> str:
    """The whole page, with the command that made it."""
    measured = f"{board.records} of {board.planned} cells recorded. Attackers have: {board.ranking}."
    parts = [f"# {_escaped(board.suite) or 'Leaderboard'}", _escaped(board.about), measured, _problems(board)]
    first = (tables.claims(board), tables.main(board), tables.unranked(board), tables.levels(board))
    own = (*tables.aware(board), tables.merging(board))
    parts += [_section(table) for table in (*first, tables.flags(board), *own)]
    parts += ["## Tasks", *(_section(table, "###") for table in (tables.headroom(board), *tables.tasks(board)))]
    rest = (tables.utility(board), tables.details(board), *tables.recovered(board), tables.healed(board))
    parts += [_section(table) for table in rest]
    if board.readings:
        parts += ["## Readings", *(_section(table, "###") for table in tables.readings(board))]
    parts += [_links(board), "## How to read it", _guide(board)]
    return _joined([*parts, _commands(board, command)])


def pages(board: Leaderboard, command: str) -> dict[str, str]:
    """A page for each defense, by file name."""
    names = _names(board)
    return {names[score.defense]: _defense(board, score, command) for score in board.scores}


def _defense(board: Leaderboard, score: Score, command: str) -> str:
    facts = {
        "standing": " ".join([score.standing, tables.place(score) if score.rank is not None else ""]).strip(),
        "excess": tables.interval(score.excess),
        "suppression": tables.suppression(score),
        "utility %": tables.interval(score.retention, 100),
        "claim": tables.claim(score),
        "why not ranked": "; ".join(score.reasons) if score.standing == "unranked" else "",
        "written against it": ", ".join(score.adaptive),
    }
    known = {name: fact for name, fact in facts.items() if fact not in ("", tables.UNKNOWN)}
    parts = [f"# {_escaped(score.defense)}", f"[{_escaped(board.suite) or 'Leaderboard'}](../leaderboard.md)"]
    parts += ["\n".join(f"- **{name}**: {_escaped(fact)}" for name, fact in known.items())]
    tried = _section(tables.attacks(score))
    parts += [tried and f"{tried}\n\n{ATTACKS.rstrip()}"]
    rest = (tables.gains(score), tables.breaking(score), tables.skipped(board, score), tables.own_flags(board, score))
    parts += [_section(table) for table in rest]
    return _joined([*parts, _commands(board, command)])


def _names(board: Leaderboard) -> dict[str, str]:
    """A file name for each defense: readable, and its own also where two read alike to a file system."""
    found: dict[str, str] = {}
    for score in sorted(board.scores, key=lambda one: one.defense):
        stem = re.sub(r"[^A-Za-z0-9=.+-]+", "_", score.defense).strip("_.")[:100] or "defense"
        taken = {name.lower() for name in found.values()}
        number = next(n for n in range(1, len(board.scores) + 1) if _file(stem, n).lower() not in taken)
        found[score.defense] = _file(stem, number)
    return found


def _file(stem: str, number: int) -> str:
    return f"{stem}.md" if number == 1 else f"{stem}-{number}.md"


def _links(board: Leaderboard) -> str:
    names = _names(board)
    links = [f"- [{_label(score.defense)}](defenses/{names[score.defense]})" for score in board.scores]
    return "\n\n".join(["## Every attack on each defense", "\n".join(links)]) if links else ""


def _label(spec: str) -> str:
    """A spec as the text of a link, which its brackets must not end."""
    return _escaped(spec).replace("[", "\\[").replace("]", "\\]")


def _guide(board: Leaderboard) -> str:
    fresh = any(row.scratch is not None for row in board.headroom)
    scratch = "training from scratch is always among the attacks" if fresh else "training from scratch was not tried"
    parts = [GUIDE.format(bar=f"{100 * board.utility_bar:g}", scratch=scratch)]
    parts += [CLAIMS] if board.claims else []
    parts += [RECOVERY] if board.recovered else []
    return "".join(parts).rstrip()


def _commands(board: Leaderboard, command: str) -> str:
    """The last command, and where others made some of the records, those."""
    parts = ["## The command", "    " + " ".join(command.split())]
    made: Mapping[str, int] = board.commands
    if set(made) - {command}:
        parts += [
            "The records were made by",
            "\n".join(f"    {_counted(made[one])}{' '.join(one.split())}" for one in made),
        ]
    return "\n\n".join(parts)


def _counted(records: int) -> str:
    return f"{records:6}  "


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


def _joined(parts: list[str]) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"


def _escaped(text: str) -> str:
    """Text of plugins and errors shows as it is: no column, tag or emphasis begins in it."""
    flat = " ".join(text.split())
    for character in "\\`*|":
        flat = flat.replace(character, f"\\{character}")
    return flat.replace("<", "&lt;")
