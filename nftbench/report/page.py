"""leaderboard.md with the ranking, every task and every doubt; and one page for each row with every attack on it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from nftbench.report import row_tables, tables
from nftbench.report.markdown import commands, escaped, items, joined, link_text, one_line, section
from nftbench.scoring.leaderboard import Leaderboard
from nftbench.scoring.scores import Score
from nftbench.scoring.side_tables import Position, SideTable
from nftbench.scoring.table import UNKNOWN, interval

GUIDE = """\
- A number is a mean over base seeds with its 95 % interval (Student's t, differences paired by seed). Scores are in
  points: an accuracy of 0.83 is 83.0; where lower is better they are counted negative.
- **suppression**: what the best attack on the undefended model scores, less what the best attack on this row scores.
  The best is picked on validation, scored on test; {scratch}. *(partial)* is
  by those attacks alone that this row and the undefended model both have so far; the missing ones may be stronger.
- **excess**: what the row takes from the attacker beyond the best trivial defense that keeps as much utility, on the
  metric and against the family of trivial defenses that leave least. This ranks. Where its interval covers zero the
  row has no effect beyond the trivial defenses.
- **utility %**: utility kept on the metric that is kept least, floor taken out, of the undefended model's.
- **claim**: *holds* if the excess against attackers who have and use what the claim says they may (in brackets) lies
  above zero, Holm-corrected over rows, and the row keeps utility; *at a cost* if it may not keep it. *Refuted* if it
  is at most zero, or if these attackers end where they do on the undefended model.
- **#**: the rank by excess; in brackets it is preliminary, of fewer than five seeds; `ref` is the undefended model,
  `control` a trivial defense.
- **untested**: no attack on this row uses all that the level grants, so that nobody knows what it withstands there.
- **to 50 %**: what the cheapest attack takes to reach that share of the undefended gain, preparation included, as a
  multiple of what the undefended model takes; `>` where the largest budget ended first, `≤` where an attack that takes
  no optimizer steps, and so is not counted, gets there too.
"""
ATTACKS = """\
Means over base seeds with their 95 % interval, over the tasks that count; in points. The learning rate is the one
picked most often (of an attack that has none, its setting), step and costs are medians; a cost is that of one task's
attacker: preparation, sweep and restarts. What does not *count* needs knowledge beyond the ranking's.
"""


def leaderboard(board: Leaderboard, command: str) -> str:
    """The whole page, with the command that made it."""
    origin = board.origin
    measured = f"{origin.records} of {origin.planned} cells recorded. Attackers have: {board.rules.ranking}."
    return joined(
        [
            f"# {_title(board)}",
            escaped(board.about),
            measured,
            items(board.problems, bold=True),
            *_side_tables(board, "first"),
            *map(section, (tables.main(board), tables.unranked(board), tables.levels(board), tables.flags(board))),
            *_side_tables(board, "after the flags"),
            "## Tasks",
            *(section(table, "###") for table in (tables.headroom(board), *tables.tasks(board))),
            *map(section, (tables.utility(board), tables.details(board))),
            *_side_tables(board, "after the details"),
            *_side_tables(board, "last"),
            _links(board),
            "## How to read it",
            _guide(board),
            _commands(board, command),
        ]
    )


def rows(board: Leaderboard, command: str) -> dict[str, str]:
    """A page for each row, by file name."""
    names = _names(board)
    return {names[score.defense]: _row(board, score, command) for score in board.scores}


def _row(board: Leaderboard, score: Score, command: str) -> str:
    standing = score.standing
    facts = {
        "standing": f"{standing.group} {tables.place(score)}" if standing.rank is not None else standing.group,
        "excess": interval(score.excess.interval),
        "suppression": tables.suppression(score),
        "utility %": interval(score.utility.retention, 100),
        "claim": tables.claim(score),
        "why not ranked": "; ".join(standing.reasons) if standing.group == "unranked" else "",
        "written against it": ", ".join(score.by_knowledge.adaptive),
    }
    known = {name: fact for name, fact in facts.items() if fact not in ("", UNKNOWN)}
    attacks = section(row_tables.attacks(score))
    return joined(
        [
            f"# {escaped(score.defense)}",
            f"[{_title(board)}](../leaderboard.md)",
            "\n".join(f"- **{name}**: {escaped(fact)}" for name, fact in known.items()),
            attacks and f"{attacks}\n\n{ATTACKS.rstrip()}",
            section(row_tables.gains(score)),
            section(row_tables.cost_to_break(score)),
            section(row_tables.not_planned(board, score)),
            section(tables.row_flags(score)),
            _commands(board, command),
        ]
    )


def _title(board: Leaderboard) -> str:
    return escaped(board.suite) or "Leaderboard"


def _side_tables(board: Leaderboard, position: Position) -> list[str]:
    return [_side_table(table) for table in board.side_tables if table.position == position]


def _side_table(table: SideTable) -> str:
    sections = [section(one, "###" if table.heading else "##") for one in table.tables()]
    shown = [one for one in sections if one]
    return "\n\n".join([f"## {table.heading}", *shown] if table.heading and shown else shown)


def _names(board: Leaderboard) -> dict[str, str]:
    """A readable file name for each row, different also where a file system ignores upper and lower case."""
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
    links = [f"- [{link_text(score.defense)}](defenses/{names[score.defense]})" for score in board.scores]
    return "\n\n".join(["## Every attack on each defense", "\n".join(links)]) if links else ""


def _guide(board: Leaderboard) -> str:
    fresh = any(row.scratch is not None for row in board.headroom)
    scratch = "training from scratch is always among the attacks" if fresh else "training from scratch was not tried"
    own = GUIDE.format(scratch=scratch)
    shown: Sequence[SideTable] = [one for one in board.side_tables if any(table.rows for table in one.tables())]
    return "".join([own, *(table.guide for table in shown)]).rstrip()


def _commands(board: Leaderboard, command: str) -> str:
    """The last command; and where others made some of the records, those with the number of records."""
    parts = ["## The command", commands([one_line(command)])]
    made = board.origin.commands
    if set(made) - {command}:
        parts += ["The records were made by", commands(f"{made[one]:6}  {one_line(one)}" for one in made)]
    return "\n\n".join(parts)
