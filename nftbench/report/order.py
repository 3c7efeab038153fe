"""Which rows stand in which table, and in which order: defenses, then controls, and the ladder family by family."""

from __future__ import annotations

from nftbench.scoring.budget_curve import BudgetCurve
from nftbench.scoring.leaderboard import Leaderboard
from nftbench.scoring.scores import Score
from nftbench.scoring.table import UNKNOWN


def defenses(board: Leaderboard) -> tuple[Score, ...]:
    """The rows that are no controls: ranked, preliminary, then unranked ones."""
    return tuple(score for score in board.scores if score.standing.group != "control")


def doses(board: Leaderboard) -> dict[str, tuple[Score, ...]]:
    """The rows of each family of the ladder, the weakest dose first; those that have no records are left out."""
    controls = {score.defense: score for score in board.scores if score.standing.group == "control"}
    found = {
        family: tuple(controls[row] for row in rows if row in controls and controls[row].kind == "trivial")
        for family, rows in board.ladder.items()
    }
    return {family: rows for family, rows in found.items() if rows}


def beside_ladder(board: Leaderboard) -> tuple[Score, ...]:
    """The references, and the controls that belong to no family."""
    on_ladder = {score.defense for rows in doses(board).values() for score in rows}
    others = [one for one in board.scores if one.standing.group == "control" and one.defense not in on_ladder]
    return tuple(sorted(others, key=lambda one: one.kind != "reference"))


def without_ladder(board: Leaderboard) -> tuple[Score, ...]:
    """Every row but the doses of the ladder, which are many and are few attacks' targets."""
    return (*defenses(board), *beside_ladder(board))


def controls(board: Leaderboard) -> tuple[tuple[str, Score], ...]:
    """The name of its family, and the row: references, controls without a family, then family by family."""
    beside = [("undefended" if one.kind == "reference" else UNKNOWN, one) for one in beside_ladder(board)]
    return (*beside, *((family, score) for family, rows in doses(board).items() for score in rows))


def everything(board: Leaderboard) -> tuple[Score, ...]:
    """Every row: defenses, references, other controls, and the ladder family by family."""
    return (*defenses(board), *(score for _, score in controls(board)))


def budgets(board: Leaderboard) -> list[BudgetCurve]:
    """The budget curves of the rows off the ladder, in the order of `without_ladder`; then of training from scratch."""
    on_ladder = {score.defense for rows in doses(board).values() for score in rows}
    places = {score.defense: place for place, score in enumerate(without_ladder(board))}
    shown = [curve for curve in board.budgets if curve.defense not in on_ladder]
    return sorted(shown, key=lambda curve: places.get(curve.defense, len(places)))


def placed(board: Leaderboard) -> tuple[Score, ...]:
    """The rows that the picture of the frontier shows as points: defenses and controls beside the ladder, where both
    what they keep and what they take is known."""
    shown = (score for score in without_ladder(board) if score.kind != "reference")
    return tuple(score for score in shown if score.utility.retention and score.resistance.suppression)
