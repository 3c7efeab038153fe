"""What the page's two pictures draw: the frontier and the budget curves, as plain data for the script in the page.

Colours, marks and dashes are those of the figures, nftbench.report.styles.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from nftbench.report import order, styles, tables
from nftbench.report.frontier_path import LEFT, RIGHT, path
from nftbench.report.json import plain
from nftbench.report.styles import Style
from nftbench.scoring.frontier import MEAN
from nftbench.scoring.leaderboard import Leaderboard
from nftbench.scoring.scores import Curve, Score
from nftbench.scoring.table import UNKNOWN, interval

MARKS = {
    "o": "circle",
    "s": "rect",
    "^": "triangle",
    "D": "diamond",
    "v": "path://M0 0H10L5 9Z",
    "P": "path://M3 0H7V3H10V7H7V10H3V7H0V3H3Z",
    "X": "path://M2 0L5 3L8 0L10 2L7 5L10 8L8 10L5 7L2 10L0 8L3 5L0 2Z",
}
"""matplotlib's marks as ECharts' symbols."""
WIDTH = 2
"""The width of a line, in pixels."""


def charts(board: Leaderboard, labels: Mapping[str, str]) -> dict[str, Any]:
    """Both pictures; JSON has a type for every value. Utility is in percent, scores and suppression in points."""
    panels = dict.fromkeys(score.row.reference for score in order.placed(board))
    rows = styles.of(board)
    found = {
        "frontier": [_panel(board, reference, labels, rows) for reference in panels],
        "budget": _budget(board, labels, rows),
        "ranking": board.rules.ranking,
    }
    content: dict[str, Any] = plain(found)
    return content


def _look(style: Style) -> dict[str, Any]:
    """A style in ECharts' words. The colour null is that of text: greys and black would not suit a dark page."""
    dash = [round(WIDTH * part, 1) for part in style.dash] or "solid"
    return {"color": style.color if style.color.startswith("#") else None, "mark": MARKS[style.marker], "dash": dash}


def _panel(board: Leaderboard, reference: str, labels: Mapping[str, str], rows: Mapping[str, Style]) -> dict[str, Any]:
    """The rows that are compared with one undefended model, and the curves of the trivial defenses beside it."""
    curves = [one for one in board.frontier if (one.reference, one.metric) == (reference, MEAN)]
    families = styles.families(board)
    return {
        "reference": reference,
        "curves": [
            {
                "family": one.family,
                "look": _look(families[one.family]),
                "line": path(one),
                "doses": [
                    {"row": row, "label": labels.get(row, row), "at": (100 * kept, taken)}
                    for row, kept, taken in one.doses
                ],
            }
            for one in curves
        ],
        "points": [
            {**_point(one, curves, labels), "look": _look(rows[one.defense])}
            for one in order.placed(board)
            if one.row.reference == reference
        ],
    }


def _point(score: Score, curves: Sequence[Curve], labels: Mapping[str, str]) -> dict[str, Any]:
    """One row of the frontier, with what is said about it beside the pointer."""
    kept, taken, excess = score.utility.retention, score.resistance.suppression, score.excess
    assert kept is not None
    assert taken is not None  # order.placed has no other rows
    alone = f", by {excess.metric} alone" if excess.metric not in (MEAN, None) else ""
    return {
        "row": score.defense,
        "label": labels[score.defense],
        "control": score.kind == "trivial",
        "at": (min(max(100 * kept.value, LEFT + 2), RIGHT - 2), taken.value),
        "kept": (100 * kept.low, 100 * kept.high),
        "taken": (taken.low, taken.high),
        "foot": _foot(score, curves) if excess.interval else None,
        "words": {
            "rank": tables.rank(score),
            "excess": f"{interval(excess.interval)}{alone}",
            "suppression": interval(taken),
            "utility %": f"{interval(kept, 100)}, {score.utility.badge or UNKNOWN}",
            "claim": tables.claim(score),
        },
    }


def _foot(score: Score, curves: Sequence[Curve]) -> float | None:
    """Where the bar of a row's excess begins: on the curve of the family that binds, at the row's utility."""
    kept = score.utility.retention
    own = next((one for one in curves if one.family == score.excess.family), None)
    if own is None or kept is None:
        return None
    line, x = path(own), 100 * kept.value
    for (right, upper), (left, lower) in itertools.pairwise(line):
        if left <= x <= right and left < right:
            return lower + (upper - lower) * (x - left) / (right - left)
    return line[0][1] if x > line[0][0] else line[-1][1]


def _budget(board: Leaderboard, labels: Mapping[str, str], rows: Mapping[str, Style]) -> list[dict[str, Any]]:
    """A curve for each row off the ladder, and for training from scratch; the undefended model last."""
    kinds: dict[str, str] = {score.defense: score.kind for score in order.without_ladder(board)}
    doses = {score.defense for scores in order.doses(board).values() for score in scores}
    places = {defense: index for index, defense in enumerate(kinds)}
    curves = sorted(
        (one for one in board.budgets if one.defense not in doses),
        key=lambda one: places.get(one.defense, len(places)),
    )
    return [
        {
            "row": one.defense,
            "label": labels.get(one.defense, one.defense),
            "kind": kinds.get(one.defense, "scratch"),
            "look": _look(rows.get(one.defense, styles.SCRATCH)),
            "points": [(flops, score.value) for flops, score in zip(one.flops, one.scores, strict=True)],
        }
        for one in curves
    ]
