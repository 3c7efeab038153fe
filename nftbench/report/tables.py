"""The leaderboard's own tables: the ranking, what is not ranked, details, levels, tasks, utility, headroom, flags."""

from __future__ import annotations

from nftbench.scoring.cost_to_break import SHARES
from nftbench.scoring.grid import knowledge_name
from nftbench.scoring.leaderboard import Leaderboard
from nftbench.scoring.scores import Headroom, Score
from nftbench.scoring.table import UNKNOWN, Table, interval, number


def main(board: Leaderboard, groups: tuple[str, ...] = ("ranked", "preliminary", "control")) -> Table:
    """The ranking: what a row takes from the attacker beyond the trivial defenses, and what it keeps of utility."""
    header = ("#", "defense", "excess", "suppression", "utility %", "attacked", "gain", "worst task", "claim", "doubts")
    rows = tuple(
        (
            place(score),
            score.defense,
            interval(score.excess.interval),
            suppression(score),
            interval(score.utility.retention, 100),
            number(score.resistance.attacked.value if score.resistance.attacked else None),
            number(score.resistance.gain.value if score.resistance.gain else None),
            _worst(score),
            claim(score),
            ", ".join(_doubts(score)) or UNKNOWN,
        )
        for score in board.scores
        if score.standing.group in groups
    )
    return Table("Ranking", header, rows)


def place(score: Score) -> str:
    """The rank, in brackets where preliminary; for a row without one, what it is."""
    if score.standing.rank is not None:
        return f"{score.standing.rank}" if score.standing.group == "ranked" else f"({score.standing.rank})"
    return {"reference": "ref", "trivial": "control"}.get(score.kind, UNKNOWN)


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


def _doubts(score: Score) -> list[str]:
    """The names of the row's flags. A control with missing cells is also marked here, as it is never ranked anyway."""
    lacking = score.standing.group == "control" and score.standing.reasons
    return [*(flag.name for flag in score.flags), *(["incomplete"] if lacking else [])]


def unranked(board: Leaderboard) -> Table:
    """What is not ranked, and why."""
    rows = tuple(
        (
            score.defense,
            interval(score.excess.interval),
            suppression(score),
            interval(score.utility.retention, 100),
            claim(score),
            "; ".join(score.standing.reasons),
        )
        for score in board.scores
        if score.standing.group == "unranked"
    )
    return Table("Not ranked", ("defense", "excess", "suppression", "utility %", "claim", "why"), rows)


def details(board: Leaderboard) -> Table:
    """Other ways to look at the same attacks."""
    header = (
        "defense",
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
            number(score.resistance.protected_fraction, digits=2),
            score.recipes.best or UNKNOWN,
            interval(score.recipes.suppression),
            interval(score.resistance.beyond_control),
            interval(score.authorized_gain),
            *(multiple(score, unit, share) for unit in ("steps", "flops") for share in SHARES),
            number(score.resistance.seed_spread),
            number(score.resistance.attack_spread),
        )
        for score in board.scores
    )
    return Table("Details", header, rows)


def multiple(score: Score, unit: str, share: float) -> str:
    """The cost to break in this unit, to this share of the undefended gain."""
    found = score.cost_to_break.get(unit, {}).get(share)
    return str(found) if found else UNKNOWN


def levels(board: Leaderboard) -> Table:
    """Suppression at the ranking's and all other levels of knowledge, and the attacks designed against each row."""
    ranking = board.rules.ranking
    known = [score.by_knowledge for score in board.scores]
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
        for score in board.scores
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
    header = ("defense", "unattacked", "attacked", "suppression", "best attack")
    names = list(dict.fromkeys(task.task for score in board.scores for task in score.resistance.tasks))
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
                for score in board.scores
                for task in score.resistance.tasks
                if task.task == name
            ),
        )
        for name in names
    )


def utility(board: Leaderboard) -> Table:
    """Retention of each utility metric, in percent."""
    names = list(dict.fromkeys(name for score in board.scores for name in score.utility.by_metric))
    rows = tuple(
        (score.defense, *(interval(score.utility.by_metric.get(name), 100) for name in names)) for score in board.scores
    )
    return Table("Utility kept, %", ("defense", *names), rows if names else ())


def headroom(board: Leaderboard) -> Table:
    """The headroom of each task: how much a defense could suppress."""
    rows = tuple(
        (
            row.reference,
            row.task,
            number(row.unattacked),
            number(row.undefended),
            number(row.scratch),
            _counts(row),
        )
        for row in board.headroom
    )
    return Table("Headroom", ("reference", "task", "unattacked", "undefended", "scratch", "counts"), rows)


def _counts(row: Headroom) -> str:
    if row.scratch is None or row.undefended is None:
        return "not known"
    return "yes" if row.kept else "no headroom"


def flags(board: Leaderboard) -> Table:
    """Every reason to doubt a row."""
    rows = tuple((score.defense, *row) for score in board.scores for row in row_flags(score).rows)
    return Table("Reasons to doubt", ("defense", "severity", "flag", "what was seen"), rows)


def row_flags(score: Score) -> Table:
    """The reasons to doubt one row."""
    rows: list[tuple[str, str, str]] = [(flag.severity, flag.name, flag.message) for flag in score.flags]
    if "incomplete" in _doubts(score):
        rows.append((UNKNOWN, "incomplete", "; ".join(score.standing.reasons)))
    return Table("Reasons to doubt", ("severity", "flag", "what was seen"), tuple(rows))
