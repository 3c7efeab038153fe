"""The answer first: who is ranked where, what it costs, which claims hold and what broke them, as one paragraph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import get_args

from nftbench.report import order, tables
from nftbench.report.labels import of
from nftbench.scoring.leaderboard import Leaderboard
from nftbench.scoring.points import NOISE
from nftbench.scoring.scores import Score
from nftbench.scoring.side_tables.paper_claims import ClaimStatus, PaperClaims
from nftbench.scoring.table import interval, number

MOST = 6
"""Rows that a sentence names at most."""
HOLDING = {"holds": "that hold", "holds at a cost": "that hold at a cost"}


def answer(board: Leaderboard) -> str:
    """The paragraph; empty where the suite has no defense with a result."""
    return " ".join(sentences(board))


def sentences(board: Leaderboard) -> list[str]:
    """The parts of the paragraph, each about one question; one that has no answer is left out."""
    names = of(board)
    papers = _papers(board)
    claims = "" if papers else _claims(board, names)
    ranks = [_effects(board, names), _ranking(board, names), _unranked(board, names)]
    parts = [papers, *ranks, claims, _ends(board, names)]
    return [part for part in parts if part]


def _effects(board: Leaderboard, names: Mapping[str, str]) -> str:
    """Which ranked defenses are shown to take more than trivial ones. Nothing is said where no excess has an interval,
    or where a row has an effect that a flag keeps from being ranked."""
    judged = [one for one in order.defenses(board) if one.excess.interval and one.excess.interval.count > 1]
    above = [one for one in judged if not any(flag.name == "no_effect" for flag in one.flags)]
    ranked = [names[one.defense] for one in above if one.standing.rank is not None]
    if not judged or (above and not ranked):
        return ""
    who = f"{listed(ranked)} {'are' if len(ranked) > 1 else 'is'}" if ranked else "No defense is"
    return f"{who} shown to take more from attackers than a trivial defense that keeps as much utility."


def _ranking(board: Leaderboard, names: Mapping[str, str]) -> str:
    ranked = [one for one in order.defenses(board) if one.standing.rank is not None]
    if not ranked:
        return ""
    first, *others = ranked
    preliminary = " (preliminary)" if first.standing.group == "preliminary" else ""
    count = f"first of {len(ranked)} ranked defenses" if others else "the only ranked defense"
    said = (
        f"{names[first.defense]} is {count}{preliminary}: its excess over trivial defenses is "
        f"{interval(first.excess.interval)} points, and it keeps {interval(first.utility.retention, 100)} % of utility."
    )
    if others:
        said += f" Then {listed(f'{names[one.defense]} ({_excess(one)}, keeps {_kept(one)} %)' for one in others)}."
    if others and all((one.standing.ranks and one.standing.ranks.last == len(ranked)) for one in ranked):
        said += " The comparisons do not settle the order: each of them may be last."
    return said


def _unranked(board: Leaderboard, names: Mapping[str, str]) -> str:
    rows = [names[one.defense] for one in order.defenses(board) if one.standing.group == "unranked"]
    if not rows:
        return ""
    why = "; ".join(_why(reason, board.problems) for reason in tables.shared_reasons(board))
    if not why:
        return f"Not ranked: {listed(rows)} ({'their' if len(rows) > 1 else 'its'} table says why)."
    each = "each: " if " its " in f" {why}" else ""  # the reason is worded for one row
    return f"Not ranked: {listed(rows)} ({each}{why})."


def _why(reason: str, problems: Sequence[str]) -> str:
    """Of a reason that the board's problems say as well, only the beginning."""
    cause = next((problem for problem in problems if reason.endswith(f": {problem}")), None)
    return f"{reason.removesuffix(f': {cause}')}, as said below" if cause else reason


def _papers(board: Leaderboard) -> str:
    """How often each outcome occurs among the claims of papers, which are what their suites are about."""
    found = Counter(one.outcome for one in board.side_table(PaperClaims).rows)
    counts = [f"{found[outcome]} × {outcome}" for outcome in get_args(ClaimStatus) if found[outcome]]
    return f"Outcomes of {found.total()} claims of papers: {', '.join(counts)}." if found else ""


def _claims(board: Leaderboard, names: Mapping[str, str]) -> str:
    verdicts: dict[str, list[str]] = {}
    for one in order.defenses(board):
        if one.claim.verdict is not None:
            verdicts.setdefault(one.claim.verdict, []).append(names[one.defense])
    if not verdicts:
        return ""
    words = "; ".join(f"{HOLDING.get(verdict, verdict)}: {listed(rows)}" for verdict, rows in verdicts.items())
    if HOLDING.keys() & verdicts.keys():
        return f"Claims {words}."
    return f"No claim holds. {words[0].upper()}{words[1:]}."


def _ends(board: Leaderboard, names: Mapping[str, str]) -> str:
    """Where the best attack of each task ends on each defense, and which attack is best alone."""
    ends = {
        one.defense: f"{names[one.defense]} {number(one.resistance.attacked.value)} ({_by(one)})"
        for one in order.defenses(board)
        if one.recipes.best and one.resistance.attacked
    }
    if not ends:
        return ""
    known = [one for one in board.scores if one.kind == "reference" and one.resistance.attacked]
    undefended = [f"{number(one.resistance.attacked.value)}" for one in known if one.resistance.attacked]
    beside = f"; the undefended model {undefended[0]}" if len(undefended) == 1 else ""
    return f"Where the best attacks end, in points: {listed(ends.values())}{beside}."


def _by(score: Score) -> str:
    gain = score.resistance.gain
    if gain and gain.value <= NOISE:
        return "nothing gained"
    single = score.best_attack
    alone = f", {number(single.attacked.value)}" if single and single.attacked else ""
    return f"best single attack: {score.recipes.best}{alone}"


def _excess(score: Score) -> str:
    return number(score.excess.interval.value) if score.excess.interval else "no excess"


def _kept(score: Score) -> str:
    return number(100 * score.utility.retention.value) if score.utility.retention else "an unknown share"


def listed(words: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`; of many the first and their number."""
    found = list(words)
    if len(found) > MOST:
        found = [*found[: MOST - 1], f"{len(found) - MOST + 1} more"]
    *before, last = found
    return f"{', '.join(before)} and {last}" if before else last
