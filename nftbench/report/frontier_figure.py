"""The picture of the score: fine-tuning suppressed against utility kept, with the curves of the trivial defenses.

Utility is the mean over the metrics. The excess is a row's height above the curve of the family that binds, drawn as a
bar from the curve to the point. Where a single metric binds, the excess is less than this height: the bar is a thin
dashed line, and the label has the number and names the metric.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.container import Container, ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from nftbench.report import order, styles
from nftbench.report.frontier_path import LEFT, RIGHT, path
from nftbench.report.labels import of
from nftbench.report.styles import Style
from nftbench.scoring.frontier import MEAN
from nftbench.scoring.intervals import Interval
from nftbench.scoring.leaderboard import Leaderboard
from nftbench.scoring.scores import Curve, Score
from nftbench.scoring.table import number

UNDEFENDED: Mapping[str, Any] = {
    **{"marker": "*", "color": "white", "markeredgecolor": "black", "markeredgewidth": 1.2},
    **{"markersize": 14, "linestyle": ""},
}
BAR: Mapping[str, Any] = {"linewidth": 4.5, "alpha": 0.5, "solid_capstyle": "butt"}
"""The excess, where it is the distance that the picture shows."""
OTHER_METRIC: Mapping[str, Any] = {"linewidth": 1.2, "linestyle": ":"}
"""The distance in the picture, where the excess is measured on another metric."""
REACHED, REACHED_DOWN_TO = "0.95", -1e3
"""The colour of what trivial defenses reach, from their curves down to below every picture."""
COVERED = 1e3
"""The price of a pixel of another label that a label covers; it is higher than that of anything else."""
CROSSED = 500.0
"""The same for the line from another label to its point."""
STRUCK = 50.0
"""The same for lines and marks: a label stands far from its point rather than on one."""
MISTAKEN = 1e3
"""The price of a place that is nearer to another point than to the label's own."""
DPI = 160
"""Pixels per inch, of the layout as of the file: letters are not equally wide at another resolution."""
NEAR = 14
"""Points of distance within which a label needs no line to its point."""

Array = NDArray[np.float64]
Box = tuple[float, float, float, float]
"""Left, lower, right and upper end in pixels."""


@dataclass(frozen=True)
class Place:
    """Where a row stands in its panel."""

    score: Score
    kept: Interval
    taken: Interval

    @property
    def x(self) -> float:
        """Utility in percent, within the panel."""
        return min(max(100 * self.kept.value, LEFT + 2), RIGHT - 2)

    @property
    def inside(self) -> bool:
        """Whether the row stands where its utility is."""
        return self.x == 100 * self.kept.value


def frontier(board: Leaderboard) -> Figure | None:
    """Suppression (points) against utility kept (percent): curves of the families, their doses, and the defenses."""
    panels = _panels(board)
    if not panels:
        return None
    columns = min(len(panels), 2)
    lines = math.ceil(len(panels) / columns)
    size = (8.4, 5.4) if columns == 1 else (9.2, 3.9 * lines)
    figure, grid = plt.subplots(lines, columns, figsize=size, dpi=DPI, squeeze=False, layout="constrained")
    families, rows = styles.families(board), styles.of(board)
    several = len(panels) > 1
    for axes, (reference, places) in zip(grid.flat, panels.items(), strict=False):
        curves = [one for one in board.frontier if (one.reference, one.metric) == (reference, MEAN)]
        _panel(axes, curves, places, families, rows)
        axes.set_xlabel(f"utility kept, %: mean over the metrics{f' of {plain(reference)}' if several else ''}")
    for axes in grid[:, 0]:
        axes.set_ylabel("suppression, points")
    title = f"{board.suite}: what defenses take from the best attack, beyond trivial defenses that keep as much"
    figure.suptitle(plain(title), fontsize=10)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
        axes.legend(handles=_legend(families), loc="center", fontsize=9, frameon=False)
    if len(panels) == grid.size:
        figure.legend(handles=_legend(families), loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    figure.canvas.draw()  # lays the panels out, so that labels can be placed among what is drawn
    figure.set_layout_engine("none")
    names = of(board)
    for axes, places in zip(grid.flat, panels.values(), strict=False):
        _label(axes, [(one, _text(one, names)) for one in places])
    return figure


def _panels(board: Leaderboard) -> dict[str, list[Place]]:
    """The rows by reference, the fullest panel first."""
    found: dict[str, list[Place]] = {}
    for score in order.placed(board):
        kept, taken = score.utility.retention, score.resistance.suppression
        if kept is not None and taken is not None:
            found.setdefault(score.row.reference, []).append(Place(score, kept, taken))
    return dict(sorted(found.items(), key=lambda item: (-len(item[1]), item[0])))


def _panel(
    axes: Axes,
    curves: Sequence[Curve],
    places: Sequence[Place],
    families: Mapping[str, Style],
    rows: Mapping[str, Style],
) -> None:
    """Everything but the labels."""
    for curve in curves:
        look = families[curve.family]
        x, y = zip(*path(curve), strict=True)
        axes.fill_between(x, y, y2=REACHED_DOWN_TO, color=REACHED, linewidth=0, zorder=0.1)
        axes.plot(x, y, color=look.color, linestyle=look.line, linewidth=1.6, label=plain(curve.family), zorder=2)
        _, kept, taken = zip(*curve.doses, strict=True)
        marks: dict[str, Any] = {"color": look.color, "marker": look.marker, "markersize": 4, "linestyle": ""}
        axes.plot([100 * one for one in kept], taken, zorder=2, **marks)
    axes.plot([100], [0], zorder=7, **UNDEFENDED)  # above everything, for defenses without effect stand on it
    for one in places:
        look = rows[one.score.defense]
        excess, height = one.score.excess.interval, one.taken.value
        if excess is not None:
            axes.plot(
                [one.x] * 2,
                [_foot(one, curves), height],
                color=look.color,
                **(BAR if one.score.excess.metric == MEAN else OTHER_METRIC),
                label=f"excess of {plain(one.score.defense)}",
                zorder=3,
            )
        axes.errorbar(
            one.x,
            height,
            xerr=_bars(one.kept, 100) if one.inside else None,
            yerr=_bars(one.taken),
            fmt=look.marker if one.inside else "<" if one.x < 100 else ">",
            color=look.color,
            markerfacecolor=look.color if one.score.kind == "defense" else "white",
            capsize=2,
            elinewidth=0.8,
            markersize=6,
            zorder=4,
        )
    axes.grid(color="0.92", linewidth=0.7, zorder=0)
    axes.set_axisbelow(True)
    _frame(axes, curves, places)


def _foot(place: Place, curves: Sequence[Curve]) -> float:
    """Where the bar of a row's excess begins: on the curve of the family that binds, at the row's utility."""
    [own] = [one for one in curves if one.family == place.score.excess.family]
    x, y = zip(*reversed(path(own)), strict=True)
    return float(np.interp(place.x, x, y))


def _frame(axes: Axes, curves: Sequence[Curve], places: Sequence[Place]) -> None:
    """Show every value, but not the whole of the widest interval: that of three seeds would squeeze everything else."""
    x = [100.0, *(one.x for one in places), *(100 * kept for curve in curves for _, kept, _ in curve.doses)]
    y = [0.0, *(one.taken.value for one in places), *(taken for curve in curves for _, _, taken in curve.doses)]
    y += [_foot(one, curves) for one in places if one.score.excess.interval]
    margin = 2 + 0.16 * (max(y) - min(y))
    axes.set_xlim(max(LEFT, min(x) - 6), min(RIGHT, max(x) + 14))
    axes.set_ylim(min(y) - 1.6 * margin, max(y) + margin)  # names of rows that take nothing stand below them


def _legend(families: Mapping[str, Style]) -> list[Artist | Container]:
    trivial = [
        Line2D(
            [],
            [],
            color=look.color,
            marker=look.marker,
            linestyle=look.line,
            markersize=4,
            label=f"trivial defense: {plain(family)}",
        )
        for family, look in families.items()
    ]
    measured: list[Artist] = [
        Patch(color=REACHED, label="what trivial defenses reach"),
        Line2D([], [], color="0.5", label="excess: from the line to the defense", **BAR),
        Line2D([], [], color="0.5", label="less excess on another metric: see the name", **OTHER_METRIC),
    ]
    middle = Line2D([], [], color="black", marker="o", linestyle="", markersize=5)
    ends = LineCollection([[(0, 0), (1, 0)], [(0, 0), (0, 1)]], colors="black", linewidths=0.8)
    return [
        *trivial,
        *(measured if families else []),
        ErrorbarContainer((middle, (), (ends,)), has_xerr=True, has_yerr=True, label="defense, with 95 % intervals"),
        Line2D([], [], label="undefended", **UNDEFENDED),
    ]


def _text(place: Place, names: Mapping[str, str]) -> str:
    """A row's name with its excess; and its utility, where the panel does not reach it."""
    excess, metric = place.score.excess.interval, place.score.excess.metric
    found = [names[place.score.defense]]
    if excess is not None:
        found += [f"{'+' * (excess.value > 0)}{number(excess.value)}"]
        found[-1] += f" by {metric} alone" if metric not in (MEAN, None) else ""
    found += [] if place.inside else [f"at {100 * place.kept.value:.0f} % utility"]
    return plain("\n".join(found))


def _label(axes: Axes, labels: Sequence[tuple[Place, str]]) -> None:
    """Write each label beside its point: at the nearest of many places where it covers least of what is drawn.

    The points of most utility, which crowd at 100 %, choose first. A label that stands away from its point gets a line
    to it.
    """
    frame, pixels = axes.get_window_extent(), axes.figure.dpi / 72
    ends = (axes.transData.transform((one.x, one.taken.value)) for one, _ in labels)
    points = [(float(x), float(y)) for x, y in ends]
    drawn = [(*_around(point, 5 * pixels), STRUCK) for point in points] + _drawn(axes, [one for one, _ in labels])
    for index in sorted(range(len(labels)), key=lambda one: points[one], reverse=True):
        one, words = labels[index]
        text = axes.annotate(
            words,
            (one.x, one.taken.value),
            xytext=(0, 0),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=7.5,
            linespacing=1.15,
            arrowprops={"arrowstyle": "-", "color": "0.45", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3},
            zorder=6,
        )
        size, (x, y) = text.get_window_extent(), points[index]
        boxes = np.array(drawn)
        best: tuple[float, tuple[float, float], float] | None = None
        for distance, angle in itertools.product(
            (7.0, 10.0, 14.0, 19.0, 24.0, 36.0, 50.0, 66.0, 84.0, 105.0, 130.0), range(0, 360, 15)
        ):
            dx = math.cos(math.radians(angle)) * (distance * pixels + size.width / 2)
            dy = math.sin(math.radians(angle)) * (distance * pixels + size.height / 2)
            box = _box((x + dx, y + dy), size.width / 2, size.height / 2)
            inside = frame.x0 <= box[0] and box[2] <= frame.x1 and frame.y0 <= box[1] and box[3] <= frame.y1
            others = [_apart(other, box) for place, other in enumerate(points) if place != index]
            cost = distance + (0 if inside else 1e6) + _price([box], boxes)
            cost += MISTAKEN * (min(others, default=math.inf) <= _apart((x, y), box))
            if distance > NEAR:
                cost += _price(_along((x, y), (x + dx, y + dy), 1), boxes[boxes[:, 4] >= CROSSED])
            if best is None or cost < best[0]:
                best = (cost, (dx, dy), distance)
        assert best is not None
        _, (dx, dy), distance = best
        text.set_position((dx / pixels, dy / pixels))
        drawn.append((*_box((x + dx, y + dy), size.width / 2 + 2 * pixels, size.height / 2 + 2 * pixels), COVERED))
        if distance > NEAR:
            drawn += [(*part, CROSSED) for part in _along((x, y), (x + dx, y + dy), 3)]
        elif text.arrow_patch is not None:
            text.arrow_patch.set_visible(False)


def _price(own: Sequence[Box], drawn: Array) -> float:
    """What these boxes cost: the area that they share with each drawn one, times its price a pixel."""
    x0, y0, x1, y1 = np.array(own)[:, :, None].transpose(1, 0, 2)
    width = np.minimum(x1, drawn[:, 2]) - np.maximum(x0, drawn[:, 0])
    height = np.minimum(y1, drawn[:, 3]) - np.maximum(y0, drawn[:, 1])
    return float((width.clip(0) * height.clip(0) * drawn[:, 4]).sum())


def _drawn(axes: Axes, places: Sequence[Place]) -> list[tuple[float, float, float, float, float]]:
    """Boxes along the lines and marks that labels should not cover, with the price of covering them."""

    def pixels(points: Iterable[Sequence[float]]) -> list[tuple[float, float]]:
        return [(float(x), float(y)) for x, y in (axes.transData.transform(tuple(point)) for point in points)]

    found: list[tuple[float, float, float, float, float]] = []
    for one in places:  # matplotlib keeps error bars apart from lines
        (left,), (right,) = _bars(one.kept, 100) if one.inside else ([0.0], [0.0])
        (down,), (up,) = _bars(one.taken)
        x, y = one.x, one.taken.value
        for start, end in (pixels([(x - left, y), (x + right, y)]), pixels([(x, y - down), (x, y + up)])):
            found += [(*box, STRUCK) for box in _along(start, end, 3)]
    for line in axes.get_lines():
        ends = pixels(np.asarray(line.get_xydata()))
        if line.get_linestyle() == "None":
            found += [(*_around(end, 4), STRUCK) for end in ends]
        else:
            found += [(*box, STRUCK) for pair in itertools.pairwise(ends) for box in _along(*pair, 3)]
    return found


def _along(start: tuple[float, float], end: tuple[float, float], reach: float) -> list[Box]:
    """Small boxes along a line."""
    steps = max(1, int(math.dist(start, end) / 6))
    shares = [step / steps for step in range(steps + 1)]
    return [
        _around((start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])), reach)
        for share in shares
    ]


def _apart(point: tuple[float, float], box: Box) -> float:
    """The distance between a point and a box."""
    (x, y), (x0, y0, x1, y1) = point, box
    return math.hypot(max(x0 - x, 0, x - x1), max(y0 - y, 0, y - y1))


def _around(point: tuple[float, float], reach: float) -> Box:
    return _box(point, reach, reach)


def _box(middle: tuple[float, float], across: float, up: float) -> Box:
    """The box that reaches so far from its middle to either side."""
    x, y = middle
    return x - across, y - up, x + across, y + up


def _bars(value: Interval, scale: float = 1.0) -> list[list[float]]:
    """Error bars for matplotlib; an interval without ends (one seed) has none."""
    ends = (value.value - value.low, value.high - value.value)
    return [[scale * end if math.isfinite(end) else 0.0] for end in ends]


def plain(text: str) -> str:
    """The text as it is: a dollar sign would begin a formula."""
    return text.replace("$", r"\$")
