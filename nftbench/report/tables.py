"""The leaderboard's own tables: ranking, controls, what is not ranked, levels, tasks, utility, headroom, flags."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nftbench.report import order
from nftbench.report.doubts import EXPLANATIONS, SEVERITIES, own
from nftbench.scoring.cost_to_break import SHARES
from nftbench.scoring.grid import knowledge_name
from nftbench.scoring.leaderboard import Leaderboard
from nftbench.scoring.scores import Flag, Headroom, Score
from nftbench.scoring.table import UNKNOWN, Table, interval, number
from nftbench.scoring.verdicts import SHARES as SHARES_KEPT

MEASURED = ("excess", "suppression", "utility %", "least metric", "badge")
"""Columns that defenses and controls share."""
FLAG_COLUMNS = ("severity", "doubt", "what was seen", "what to do")


def ranking(board: Leaderboard, groups: tuple[str, ...] = ("ranked", "preliminary")) -> Table:
    """The ranking: what a row takes from the attacker beyond the trivial defenses, and what it keeps of utility."""
    header = (
        "#",
        "defense",
        *MEASURED,
        "claim",
        *(f"# ≥ {100 * share:g} %" for share in SHARES_KEPT),
        "Pareto",
        "worst task",
        "doubts",
    )
    rows = tuple(
        (
            rank(score),
            score.defense,
            *_measured(score),
            claim(score),
            *(_rank_among(score, share) for share in SHARES_KEPT),
            "yes" if score.standing.pareto else UNKNOWN,
            _worst(score),
            ", ".join(doubts(board, score)) or UNKNOWN,
        )
        for score in board.scores
        if score.standing.group in groups
    )
    return Table("Ranking", header, rows)


def preliminary(board: Leaderboard) -> str:
    """What the reader must know of ranks from few seeds; empty where there are none."""
    counts = {
        one.excess.interval.count
        for one in board.scores
        if one.standing.group == "preliminary" and one.excess.interval is not None
    }
    if not counts:
        return ""
    return (
        f"Ranks in round brackets are preliminary. At {min(counts)} base seeds the interval of a rank is often nearly "
        "everything, from the first place to the last; five seeds are needed."
    )


def controls(board: Leaderboard) -> Table:
    """The undefended model and the trivial defenses, family by family from the weakest dose to the strongest."""
    rows = tuple(
        (family, score.defense, *_measured(score), _worst(score), ", ".join(doubts(board, score)) or UNKNOWN)
        for family, score in order.controls(board)
    )
    return Table("Controls", ("family", "control", *MEASURED, "worst task", "doubts"), rows)


def place(score: Score) -> str:
    """The rank, in brackets where preliminary; for a row without one, what it is."""
    if score.standing.rank is not None:
        return f"{score.standing.rank}" if score.standing.group == "ranked" else f"({score.standing.rank})"
    return {"reference": "ref", "trivial": "control"}.get(score.kind, UNKNOWN)


def rank(score: Score) -> str:
    """The rank with the ranks that the comparisons leave open: `2 [1–4]`, or `(2 [1–4])` where preliminary."""
    standing = score.standing
    if standing.rank is None or standing.ranks is None:
        return place(score)
    found = f"{standing.rank} [{standing.ranks.first}–{standing.ranks.last}]"
    return found if standing.group == "ranked" else f"({found})"


def _rank_among(score: Score, share: float) -> str:
    found = score.standing.rank_among.get(share)
    return UNKNOWN if found is None else str(found)


def _measured(score: Score) -> tuple[str, ...]:
    """The cells of the columns `MEASURED`."""
    return (
        interval(score.excess.interval),
        suppression(score),
        interval(score.utility.retention, 100),
        least(score),
        score.utility.badge or UNKNOWN,
    )


def least(score: Score) -> str:
    """The metric that is kept least, with its share in percent: `toy_tone_particle 61.2 [58.0, 64.4]`."""
    kept = score.utility
    return f"{kept.least} {interval(kept.by_metric[kept.least], 100)}" if kept.least else UNKNOWN


def suppression(score: Score) -> str:
    """Suppression, marked `(partial)` if some attacks or tasks of the suite are missing from it."""
    partial = score.resistance.partial
    return f"{interval(partial.suppression)} (partial)" if partial else interval(score.resistance.suppression)


def claim(score: Score) -> str:
    """The verdict, with the knowledge of the attackers in the claim, as in `holds (method+data)`."""
    if score.claim.verdict is None or score.row.claim is None:
        return UNKNOWN
    way = "" if score.row.claim.adaptation == "finetuning" else f", {score.row.claim.adaptation}"
    return f"{score.claim.verdict} ({knowledge_name(score.row.claim.knowledge)}{way})"


def _worst(score: Score) -> str:
    task = score.resistance.worst_task
    return f"{number(task.suppression.value)} {task.task}" if task and task.suppression else UNKNOWN


def doubts(board: Leaderboard, score: Score) -> list[str]:
    """The names of the flags that not every defense has, and `incomplete` for a control with missing cells."""
    return [*(flag.name for flag in own(board, score)), *(["incomplete"] if _lacks_cells(score) else [])]


def _lacks_cells(score: Score) -> bool:
    """A control without all its cells. It is never ranked, so no other place would say it."""
    return score.standing.group == "control" and bool(score.standing.reasons)


def unranked(board: Leaderboard) -> Table:
    """What is not ranked, and why; reasons that all of these rows share are left out, see `shared_reasons`."""
    shared = shared_reasons(board)
    rows = tuple(
        (
            score.defense,
            *_measured(score),
            claim(score),
            "; ".join(reason for reason in score.standing.reasons if reason not in shared) or "see the top",
        )
        for score in board.scores
        if score.standing.group == "unranked"
    )
    return Table("Not ranked", ("defense", *MEASURED, "claim", "why"), rows)


def shared_reasons(board: Leaderboard) -> tuple[str, ...]:
    """Why none of several rows is ranked, where it is the same for all of them: the answer says it once."""
    rows = [score.standing.reasons for score in board.scores if score.standing.group == "unranked"]
    return tuple(reason for reason in rows[0] if all(reason in one for one in rows)) if len(rows) > 1 else ()


def details(board: Leaderboard) -> Table:
    """Other ways to look at the same attacks; the ladder's doses have a page of their own."""
    header = (
        "defense",
        "attacked",
        "gain",
        "protected fraction",
        "best single recipe",
        "its suppression",
        "beyond control",
        "authorised gain",
        *(f"{unit} to {100 * share:g} %" for unit in ("steps", "FLOPs") for share in SHARES),
        "seed spread",
        "attack spread",
    )
    rows = tuple(
        (
            score.defense,
            interval(score.resistance.attacked),
            interval(score.resistance.gain),
            number(score.resistance.protected_fraction, digits=2),
            score.recipes.best or UNKNOWN,
            interval(score.recipes.suppression),
            interval(score.resistance.beyond_control),
            interval(score.authorized_gain),
            *(multiple(score, unit, share) for unit in ("steps", "flops") for share in SHARES),
            number(score.resistance.seed_spread),
            number(score.resistance.attack_spread),
        )
        for score in order.without_ladder(board)
    )
    return Table("Details", header, rows)


def multiple(score: Score, unit: str, share: float) -> str:
    """The cost to break in this unit, to this share of the undefended gain."""
    found = score.cost_to_break.get(unit, {}).get(share)
    return str(found) if found else UNKNOWN


def levels(board: Leaderboard) -> Table:
    """Suppression at the ranking's and all other levels of knowledge, and the attacks designed against each row."""
    ranking = board.rules.ranking
    shown = order.without_ladder(board)
    known = [score.by_knowledge for score in shown]
    others = dict.fromkeys(name for one in known for name in (*one.suppression, *one.untested))
    names = [name for name in others if name != ranking]
    rows = tuple(
        (
            score.defense,
            claim(score),
            interval(score.by_knowledge.suppression.get(ranking)),
            *(_at(score, name) for name in names),
            ", ".join(score.by_knowledge.adaptive)
            or ("not adaptively attacked" if score.kind == "defense" else UNKNOWN),
        )
        for score in shown
        if score.by_knowledge.suppression
    )
    header = ("defense", "claim", f"{ranking} (ranking)", *names, "written against it")
    return Table("Suppression by what the attacker knows", header, rows)


def _at(score: Score, knowledge: str) -> str:
    if knowledge in score.by_knowledge.untested:
        return "untested"
    return interval(score.by_knowledge.suppression.get(knowledge))


def tasks(board: Leaderboard) -> tuple[Table, ...]:
    """One table a task."""
    header = ("defense", "unattacked", "attacked", "suppression", "most often best")
    shown = order.without_ladder(board)
    names = list(dict.fromkeys(task.task for score in shown for task in score.resistance.tasks))
    return tuple(
        Table(
            name,
            header,
            tuple(
                (
                    score.defense,
                    number(task.unattacked),
                    interval(task.attacked),
                    interval(task.suppression),
                    task.attack or UNKNOWN,
                )
                for score in shown
                for task in score.resistance.tasks
                if task.task == name
            ),
        )
        for name in names
    )


def utility(scores: Sequence[Score]) -> Table:
    """The metric and the family that leave a row least excess, and what it keeps of each utility metric, in percent."""
    names = list(dict.fromkeys(name for score in scores for name in score.utility.by_metric))
    rows = tuple(
        (
            score.defense,
            score.excess.metric or UNKNOWN,
            score.excess.family or UNKNOWN,
            score.utility.badge or UNKNOWN,
            *(interval(score.utility.by_metric.get(name), 100) for name in names),
        )
        for score in scores
        if score.utility.by_metric
    )
    return Table("Utility kept, %", ("defense", "excess on", "excess against", "badge", *names), rows)


def headroom(board: Leaderboard) -> Table:
    """The headroom of each task: how much a defense could suppress."""
    rows = tuple(
        (
            row.reference,
            row.task,
            number(row.unattacked),
            number(row.undefended),
            number(row.scratch),
            interval(row.gap),
            _counts(row),
        )
        for row in board.headroom
    )
    return Table("Headroom", ("reference", "task", "unattacked", "undefended", "scratch", "headroom", "counts"), rows)


def _counts(row: Headroom) -> str:
    if row.scratch is None or row.undefended is None:
        return "not known"
    return "yes" if row.kept else "no headroom"


def flags(board: Leaderboard) -> Table:
    """The reasons to doubt single rows. What every defense has is said once, see `doubts.about_all`; the doses of the
    ladder are on its page."""
    rows = tuple(
        (score.defense, *row) for score in order.without_ladder(board) for row in _flags(score, own(board, score))
    )
    return Table("Reasons to doubt", ("defense", *FLAG_COLUMNS), rows)


def row_flags(score: Score) -> Table:
    """All reasons to doubt one row."""
    return Table("Reasons to doubt", FLAG_COLUMNS, tuple(_flags(score, score.flags)))


def _flags(score: Score, found: Sequence[Flag]) -> Iterator[tuple[str, ...]]:
    for flag in found:
        yield SEVERITIES[flag.severity], flag.name, flag.message, EXPLANATIONS[flag.name].advice
    if _lacks_cells(score):
        yield SEVERITIES["warn"], "incomplete", "; ".join(score.standing.reasons), EXPLANATIONS["incomplete"].advice
