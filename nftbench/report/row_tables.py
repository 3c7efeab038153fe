"""The tables of one row's page: utility, every attack on it, gains by task, cost to break, what was not planned."""

from __future__ import annotations

from collections.abc import Sequence

from nftbench.report.tables import least, multiple
from nftbench.scoring.cost_to_break import SHARES, UNITS
from nftbench.scoring.grid import knowledge_name
from nftbench.scoring.leaderboard import Leaderboard
from nftbench.scoring.per_attack import AttackRow
from nftbench.scoring.scores import Score
from nftbench.scoring.table import UNKNOWN, Table, interval, number, short


def utility(score: Score) -> Table:
    """What the row keeps of each utility metric, the least first."""
    kept = sorted(score.utility.by_metric.items(), key=lambda item: (item[1].value, item[0]))
    rows = tuple(
        (metric, interval(share, 100), "the excess is measured on it" if metric == score.excess.metric else "")
        for metric, share in kept
    )
    return Table("Utility kept, %", ("metric", "kept", ""), rows)


def claimed(score: Score) -> str:
    """The test of the claim in numbers: `5.1 [2.0, 8.2], suppression 7.0 [5.0, 9.0], p = 0.012`."""
    test = score.claim
    if test.excess is None:
        return UNKNOWN
    p = "" if test.p is None else f", p = {test.p:.2g} after Holm's correction"
    return f"{interval(test.excess)}; suppression {interval(test.suppression)}{p}"


def longer(board: Leaderboard, score: Score) -> str:
    """What training for longer than the budget adds, in points: on this row and on its undefended model."""
    if score.recipes.longer_adds is None:
        return UNKNOWN
    here = f"adds {interval(score.recipes.longer_adds)} points"
    undefended = next((one.recipes.longer_adds for one in board.scores if one.defense == score.row.reference), None)
    if score.kind == "reference" or undefended is None:
        return here
    return f"{here} here, {interval(undefended)} on the undefended model"


def doses(scores: Sequence[Score]) -> Table:
    """One family of the ladder, the weakest dose first."""
    rows = tuple(
        (
            score.defense,
            interval(score.excess.interval),
            interval(score.resistance.suppression),
            interval(score.resistance.attacked),
            interval(score.utility.retention, 100),
            least(score),
        )
        for score in scores
    )
    return Table("Doses", ("dose", "excess", "suppression", "attacked", "utility %", "least metric"), rows)


def attacks(score: Score) -> Table:
    """Every attack on one row, the strongest first."""
    header = (
        "attack",
        "knows",
        "counts",
        "gain",
        "score",
        "learning rate",
        "step",
        "steps",
        "FLOPs",
        "seconds",
        "preparation",
        "peak MB",
        "status",
    )
    return Table("Attacks", header, tuple(_attack(one) for one in score.attacks))


def _attack(one: AttackRow) -> tuple[str, ...]:
    return (
        one.attack,
        _knows(one),
        UNKNOWN if one.knowledge is None else "yes" if one.counts else "no",
        interval(one.gain),
        interval(one.attacked),
        short(one.learning_rate),
        short(one.step),
        short(one.steps),
        short(one.flops),
        short(one.seconds),
        UNKNOWN if one.preparation is None else f"{100 * one.preparation:.0f} %",
        short(None if one.memory is None else one.memory / 1e6),
        f"{one.cells - one.failed} of {one.cells} ok" + "".join(f"; {fault}" for fault in one.faults),
    )


def _knows(one: AttackRow) -> str:
    if one.knowledge is None:
        return UNKNOWN
    return knowledge_name(one.knowledge) if one.uses_release else ", ".join([*one.knowledge, "ignores the release"])


def gains(score: Score) -> Table:
    """What each attack gains on each task."""
    names = [task.task for task in score.resistance.tasks]
    rows = tuple((one.attack, *(number(one.gains.get(name)) for name in names)) for one in score.attacks)
    return Table("Gain by task", ("attack", *names), rows if names else ())


def cost_to_break(score: Score) -> Table:
    """Cost to break in every unit."""
    header = ("", *(f"to {100 * share:g} %" for share in SHARES))
    words = {"flops": "FLOPs", "memory": "peak memory"}
    rows = tuple(
        (words.get(unit, unit), *(multiple(score, unit, share) for share in SHARES))
        for unit in UNITS
        if score.cost_to_break.get(unit)
    )
    return Table("Cost to break", header, rows)


def not_planned(board: Leaderboard, score: Score) -> Table:
    """What was not tried on one row, and why."""
    rows = tuple(sorted(board.origin.skips.get(score.defense, {}).items()))
    return Table("Not planned", ("attack", "why"), rows)
