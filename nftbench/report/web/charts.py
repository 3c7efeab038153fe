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
from nftbench.scoring.intervals import Interval
from nftbench.scoring.leaderboard import Leaderboard
from nftbench.scoring.scores import Curve, Score
from nftbench.scoring.table import UNKNOWN, interval, number

MARKS = {
    "o": "M10 5A5 5 0 1 1 0 5A5 5 0 1 1 10 5Z",
    "s": "M0 0H10V10H0Z",
    "^": "M5 0L10 9H0Z",
    "D": "M5 0L10 5L5 10L0 5Z",
    "v": "M0 0H10L5 9Z",
    "P": "M3 0H7V3H10V7H7V10H3V7H0V3H3Z",
    "X": "M2 0L5 3L8 0L10 2L7 5L10 8L8 10L5 7L2 10L0 8L3 5L0 2Z",
}
"""matplotlib's marks as paths of SVG, which pictures and legends share."""
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
    """A style as colour, mark and dash. The colour null is that of text: greys and black would not suit a dark page."""
    dash = [round(WIDTH * part, 1) for part in style.dash] or "solid"
    return {"color": style.color if style.color.startswith("#") else None, "mark": MARKS[style.marker], "dash": dash}


def _panel(board: Leaderboard, reference: str, labels: Mapping[str, str], rows: Mapping[str, Style]) -> dict[str, Any]:
    """The rows that are compared with one undefended model: on the mean over the metrics, and on each metric alone on
    which the excess of a row is measured."""
    placed = [one for one in order.placed(board) if one.row.reference == reference]
    metrics = dict.fromkeys([MEAN, *(one.excess.metric for one in placed if one.excess.metric)])
    return {"reference": reference, "views": [_view(board, reference, placed, one, labels, rows) for one in metrics]}


def _view(
    board: Leaderboard,
    reference: str,
    placed: Sequence[Score],
    metric: str,
    labels: Mapping[str, str],
    rows: Mapping[str, Style],
) -> dict[str, Any]:
    """Rows and curves of trivial defenses against what is kept of one metric."""
    curves = [one for one in board.frontier if (one.reference, one.metric) == (reference, metric)]
    families = styles.families(board)
    return {
        "metric": _said(metric),
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
            {**_point(one, kept, metric, curves, labels), "look": _look(rows[one.defense])}
            for one in placed
            if (kept := one.utility.retention if metric == MEAN else one.utility.by_metric.get(metric))
        ],
    }


def _point(
    score: Score, kept: Interval, metric: str, curves: Sequence[Curve], labels: Mapping[str, str]
) -> dict[str, Any]:
    """One row of the frontier, with what is said about it beside the pointer."""
    taken, excess = score.resistance.suppression, score.excess
    assert taken is not None  # order.placed has no other rows
    alone = f" on {excess.metric}" if excess.metric not in (MEAN, None) else ""
    return {
        "row": score.defense,
        "label": labels[score.defense],
        "control": score.kind == "trivial",
        "at": (min(max(100 * kept.value, LEFT + 2), RIGHT - 2), taken.value),
        "kept": (100 * kept.low, 100 * kept.high),
        "taken": (taken.low, taken.high),
        "foot": _foot(excess.family, kept, curves) if excess.interval else None,
        "counts": excess.metric == metric,
        "excess": number(excess.interval.value) if excess.interval else None,
        "metric": _said(excess.metric or MEAN),
        "words": {
            "rank": tables.rank(score),
            "excess": f"{interval(excess.interval)}{alone}",
            "suppression": interval(taken),
            f"utility %{'' if metric == MEAN else f', {metric}'}": interval(kept, 100),
            "badge": score.utility.badge or UNKNOWN,
            "claim": tables.claim(score),
        },
    }


def _said(metric: str) -> str:
    return "mean over all metrics" if metric == MEAN else metric


def _foot(family: str | None, kept: Interval, curves: Sequence[Curve]) -> float | None:
    """Where the bar of a row's excess begins: on the curve of the family that binds, at the row's utility."""
    own = next((one for one in curves if one.family == family), None)
    if own is None:
        return None
    line, x = path(own), 100 * kept.value
    for (right, upper), (left, lower) in itertools.pairwise(line):
        if left <= x <= right and left < right:
            return lower + (upper - lower) * (x - left) / (right - left)
    return line[0][1] if x > line[0][0] else line[-1][1]


def _budget(board: Leaderboard, labels: Mapping[str, str], rows: Mapping[str, Style]) -> list[dict[str, Any]]:
    """A curve for each row off the ladder, and for training from scratch."""
    kinds: dict[str, str] = {score.defense: score.kind for score in board.scores}
    return [
        {
            "row": one.defense,
            "label": labels.get(one.defense, one.defense),
            "kind": kinds.get(one.defense, "scratch"),
            "look": _look(rows.get(one.defense, styles.SCRATCH)),
            "points": [(flops, score.value) for flops, score in zip(one.flops, one.scores, strict=True)],
        }
        for one in order.budgets(board)
    ]
