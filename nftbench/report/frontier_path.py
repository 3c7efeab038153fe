"""The line that a family of trivial defenses draws in every picture of the frontier."""

from __future__ import annotations

from nftbench.scoring.scores import Curve

LEFT, RIGHT = -12.0, 116.0
"""The percents of utility that a picture can show; a row beyond them stands at its edge."""


def path(curve: Curve) -> list[tuple[float, float]]:
    """The line of a curve from right to left: utility in percent, and points. A staircase is flat up to its next dose.

    It goes on flat where utility is above 100 %, and beyond the last dose if that is where the family ends.
    """
    knots = [(100 * retention, suppression) for retention, suppression in curve.knots]
    most = max(taken for kept, taken in knots if kept >= 100)
    line = [(RIGHT, most), (100.0, most)]
    for kept, taken in ((kept, taken) for kept, taken in knots if kept < 100):
        if curve.stairs:
            line.append((kept, line[-1][1]))
        line.append((kept, taken))
    return [*line, (LEFT, line[-1][1])] if curve.stairs or knots[-1][0] <= 0 else line
