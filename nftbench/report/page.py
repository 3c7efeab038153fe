"""leaderboard.md with the ranking, every task and every doubt; a page for each row with every attack on it, but one
page for all doses of the ladder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from nftbench.report import order, provenance, row_tables, tables
from nftbench.report.answer import answer
from nftbench.report.authors import paragraphs
from nftbench.report.doubts import about_all
from nftbench.report.labels import of, shown
from nftbench.report.markdown import commands, escaped, items, joined, link_text, one_line, section
from nftbench.scoring.leaderboard import Leaderboard
from nftbench.scoring.scores import Score
from nftbench.scoring.side_tables import Position, SideTable
from nftbench.scoring.table import UNKNOWN, Table, interval

GUIDE = """\
- A number is a mean over base seeds with its 95 % interval (Student's t, differences paired by seed); that of an excess
  is 98 %. Scores are in points: an accuracy of 0.83 is 83.0; where lower is better they are counted negative.
- **suppression**: what the best attack on the undefended model scores, less what the best attack on this row scores.
  The best is picked on validation, scored on test; {scratch}. *(partial)* is
  by those attacks alone that this row and the undefended model both have so far; the missing ones may be stronger.
- **excess**: what the row takes from the attacker beyond the best trivial defense that keeps as much utility, for
  the family of trivial defenses that leaves least of it. This ranks. Where its interval covers zero, no effect beyond
  the trivial defenses is shown. In the picture it is the height of a point above the highest curve. A metric alone
  binds where the row clearly shows less of it than the trivial defense of the same mean; the label says so.
- **utility %**: utility kept, the mean over the metrics; floor taken out, in percent of the undefended model's, which
  is a mean over its initialisations. No metric counts for more than 100 %; one is below zero where the release scores
  worse than a model without any knowledge. The undefended row is one of the initialisations, so it need not be at 100.
  **least metric**: the one that is kept least. **badge**: *keeps* where a test shows on every metric that less than
  10 % is lost, *loses* where it shows on some that more is, else *cannot tell*. It takes no row out of the ranking.
- **defense**: a row's label: its plugin, and what tells it from other rows of this plugin. The list above has the
  full specifications. **doubts** are only those that not every defense has.
- **#**: the rank by excess, with the ranks that the comparisons leave open in square brackets; in round brackets it is
  preliminary, of fewer than five seeds.
- **# ≥ 90 %**: the rank among the rows that keep at least 90 % of utility. **Pareto**: no other
  ranked row takes more from the attacker and keeps more utility.
- **claim**: *holds* if the excess against attackers who have and use what the claim says they may (in brackets) lies
  above zero, Holm-corrected over rows, and the row keeps utility; *at a cost* if it may not keep it. *Refuted* if it
  is at most zero, or if these attackers end where they do on the undefended model. They always know the method: it is
  public.
- **Controls**: trivial defenses, which anyone could use. A family of them is a ladder, the weakest dose first; the
  excess of a dose is measured from the ladder without this dose. A dose may lie off its family's curve: doses that are
  out of order share a mean, and no curve rises beyond what training from scratch leaves.
- **headroom**: how far the undefended model ends above training from scratch. A task counts where this is more than two
  points in the mean and no chance: it is at every seed, or the whole interval lies above zero.
- **untested**: there are fewer than three base seeds, or no attack on this row uses all that the level grants, so that
  nobody knows what it withstands there. *Not shown* is a claim that was tested and neither holds nor is refuted.
- **to 50 %**: what the cheapest attack takes to reach that share of the undefended gain, preparation included, as a
  multiple of what the undefended model takes; `>` where the largest budget ended first, `≤` where an attack that takes
  no optimizer steps, and so is not counted, gets there too.
"""
ATTACKS = """\
Means over base seeds with their 95 % interval, over the tasks that count; in points. The learning rate is the one
picked most often (of an attack that has none, its setting), step and costs are medians; a cost is that of one task's
attacker: preparation, sweep and restarts. What does not *count* needs knowledge beyond the ranking's.
"""
PICTURE = """\
![Fine-tuning suppressed against utility kept: defenses above and below the curves of trivial defenses](frontier.png)"""
LADDER = "ladder.md"
ABOUT_LADDER = """\
Anyone could use these defenses, so a defense has to beat them. Each family is one of them in doses, the weakest first.
The excess of a dose is measured from the ladder without this dose.
"""


def leaderboard(board: Leaderboard, command: str) -> str:
    """The whole page, with the command that made it."""
    origin, names = board.origin, of(board)
    beside = f", {origin.readings} of them readings of yardsticks" if origin.readings else ""
    measured = f"{origin.records} of {origin.planned} cells recorded{beside}. Attackers have: {board.rules.ranking}."

    def labelled(table: Table, level: str = "##") -> str:
        return section(shown(table, names), level)

    return joined(
        [
            f"# {_title(board)}",
            escaped(answer(board)),
            *map(escaped, paragraphs(board)),
            escaped(board.about),
            measured,
            items(board.problems, bold=True),
            *_side_tables(board, "first"),
            labelled(tables.ranking(board)),
            tables.preliminary(board),
            escaped(about_all(board)),
            section(shown(tables.unranked(board), of(board))),
            PICTURE if order.placed(board) else "",
            *map(labelled, (tables.controls(board), tables.levels(board), tables.flags(board))),
            *_side_tables(board, "after the flags"),
            "## Tasks",
            *(labelled(table, "###") for table in (tables.headroom(board), *tables.tasks(board))),
            *map(labelled, (tables.utility(order.everything(board)), tables.details(board))),
            *_side_tables(board, "after the details"),
            *_side_tables(board, "last"),
            _links(board),
            "## How to read it",
            guide(board),
            _provenance(board),
            _commands(board, command),
        ]
    )


def rows(board: Leaderboard, command: str) -> dict[str, str]:
    """A page for each row and one for the ladder, by file name."""
    names = file_names(board)
    pages = {names[score.defense]: _row(board, score, command) for score in order.without_ladder(board)}
    return pages | ({LADDER: _ladder(board, command)} if order.doses(board) else {})


def _row(board: Leaderboard, score: Score, command: str) -> str:
    return joined(
        [
            f"# {escaped(score.defense)}",
            f"[{_title(board)}](../leaderboard.md)",
            _listed(facts(board, score)),
            section(tables.row_flags(score)),
            section(row_tables.utility(score)),
            _attacks(score),
            section(row_tables.gains(score)),
            section(row_tables.cost_to_break(score)),
            section(row_tables.not_planned(board, score)),
            _commands(board, command),
        ]
    )


def facts(board: Leaderboard, score: Score) -> dict[str, str]:
    """What a row's page says first, as far as it is known."""
    standing, excess, kept = score.standing, score.excess, score.utility
    binds = f", on {excess.metric} against {excess.family}" if excess.metric else ""
    found = {
        "standing": f"{standing.group} {tables.rank(score)}" if standing.rank is not None else standing.group,
        "excess": f"{interval(excess.interval)}{binds}" if excess.interval else f"none: {excess.reason}",
        "suppression": tables.suppression(score),
        "utility %": f"{interval(kept.retention, 100)}: {kept.badge}" if kept.retention else "",
        "least metric": tables.least(score),
        "claim": tables.claim(score),
        "excess against the claim's attackers": row_tables.claimed(score),
        "why not ranked": "; ".join(standing.reasons) if standing.group == "unranked" else "",
        "longer training": row_tables.longer(board, score),
        "written against it": ", ".join(score.by_knowledge.adaptive),
    }
    return {name: fact for name, fact in found.items() if fact not in ("", UNKNOWN)}


def _attacks(score: Score) -> str:
    attacks = section(row_tables.attacks(score))
    return attacks and f"{attacks}\n\n{ATTACKS.rstrip()}"


def _ladder(board: Leaderboard, command: str) -> str:
    """The page of all doses: for each family its doses side by side, then every attack on each."""
    parts = ["# The ladder of trivial defenses", f"[{_title(board)}](../leaderboard.md)", ABOUT_LADDER.rstrip()]
    names = of(board)
    for family, scores in order.doses(board).items():
        parts += [f"## {escaped(family)}", section(shown(row_tables.doses(scores), names), "###")]
        parts += [section(shown(tables.utility(scores), names), "###")]
        for score in scores:
            attacks, doubts = section(row_tables.attacks(score), "####"), section(tables.row_flags(score), "####")
            reason = score.excess.reason if score.excess.reason not in board.problems else None
            none = f"No excess: {escaped(reason)}." if reason else ""
            parts += [f"### {escaped(score.defense)}", none, doubts, attacks]
    return joined([*parts, "## How to read it", ATTACKS.rstrip(), _commands(board, command)])


def _title(board: Leaderboard) -> str:
    return escaped(board.suite) or "Leaderboard"


def _side_tables(board: Leaderboard, position: Position) -> list[str]:
    names = of(board)
    return [_side_table(table, names) for table in board.side_tables if table.position == position]


def _side_table(table: SideTable, labels: Mapping[str, str]) -> str:
    sections = [section(shown(one, labels), "###" if table.heading else "##") for one in table.tables()]
    full = [one for one in sections if one]
    return "\n\n".join([f"## {table.heading}", *full] if table.heading and full else full)


def file_names(board: Leaderboard) -> dict[str, str]:
    """A readable file name for each row, different also where a file system ignores upper and lower case."""
    found: dict[str, str] = {}
    rows = order.without_ladder(board)
    for score in sorted(rows, key=lambda one: one.defense):
        stem = re.sub(r"[^A-Za-z0-9=.+-]+", "_", score.defense).strip("_.")[:100] or "defense"
        taken = {LADDER, *(name.lower() for name in found.values())}
        number = next(n for n in range(1, len(rows) + 2) if _file(stem, n).lower() not in taken)
        found[score.defense] = _file(stem, number)
    return found


def _file(stem: str, number: int) -> str:
    return f"{stem}.md" if number == 1 else f"{stem}-{number}.md"


def _links(board: Leaderboard) -> str:
    names = file_names(board)
    rows = order.without_ladder(board)
    labels = of(board)
    links = []
    for one in rows:
        label = labels[one.defense]
        whole = f": {link_text(one.defense)}" if one.defense != label else ""
        links.append(f"- [{link_text(label)}](defenses/{names[one.defense]}){whole}")
    links += [f"- [the ladder of trivial defenses](defenses/{LADDER})"] if order.doses(board) else []
    return "\n\n".join(["## Every attack on each defense", "\n".join(links)]) if links else ""


def guide(board: Leaderboard) -> str:
    """How to read the leaderboard, as Markdown."""
    fresh = any(row.scratch is not None for row in board.headroom)
    scratch = "training from scratch is always among the attacks" if fresh else "training from scratch was not tried"
    own = GUIDE.format(scratch=scratch)
    beside: Sequence[SideTable] = [one for one in board.side_tables if any(table.rows for table in one.tables())]
    return "".join([own, *(table.guide for table in beside)]).rstrip()


def _provenance(board: Leaderboard) -> str:
    found = provenance.facts(board)
    return joined(["## Provenance", _listed(found)]).rstrip() if found else ""


def _listed(found: Mapping[str, str]) -> str:
    return "\n".join(f"- **{name}**: {escaped(fact)}" for name, fact in found.items())


def _commands(board: Leaderboard, command: str) -> str:
    """The last command; and where others made some of the records, those with the number of records."""
    parts = ["## The command", commands([one_line(command)])]
    made = board.origin.commands
    if set(made) - {command}:
        parts += ["The records were made by", commands(f"{made[one]:6}  {one_line(one)}" for one in made)]
    return "\n\n".join(parts)
