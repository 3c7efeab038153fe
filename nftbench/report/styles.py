"""The looks of rows and of families of trivial defenses, the same in every figure of every suite and on the page.

The colours are those of Okabe and Ito, which colour-blind readers can tell apart, and a brown. Orange and sky blue are
darker than theirs: each colour has a contrast of at least 3 with a white and with a dark page (WCAG 2.2, section
1.4.11). Marks and dashes tell rows of one colour apart.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from nftbench.records.spec import Spec
from nftbench.report import order
from nftbench.scoring.leaderboard import Leaderboard

INK = "black"
"""The colour of text. On a dark page it is light."""
BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#C68600", "#009E73", "#D55E00"
PURPLE, SKY, BROWN = "#CC79A7", "#3D97CE", "#8C6244"
COLORS = {
    "pmp": BLUE,
    "dlr_lock": VERMILION,
    "random_mask": GREEN,
    "condition_number": PURPLE,
    "trap2": ORANGE,
    "checkpoint": SKY,
    "none": INK,
}
"""The colours of the defenses that most suites show. Others have one of `OTHERS`, by their name."""
OTHERS = (SKY, BROWN, BLUE, VERMILION, GREEN, PURPLE, ORANGE)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""Names of marks in matplotlib."""

Dash = tuple[float, ...]
"""Lengths of dashes and gaps in turn, as multiples of the line's width. An empty one is a solid line."""
SOLID, DASHED, DASH_DOT, DOTTED = (), (3.7, 1.6), (6.4, 1.6, 1.0, 1.6), (1.0, 1.65)
DASHES: tuple[Dash, ...] = (SOLID, DASHED, DASH_DOT, DOTTED, (5, 1, 1, 1, 1, 1), (8, 3), (3, 3))


@dataclass(frozen=True)
class Style:
    """How a row or a family is drawn."""

    color: str
    marker: str = "o"
    dash: Dash = SOLID

    @property
    def line(self) -> Literal["-"] | tuple[float, Dash]:
        """The dash as matplotlib's `linestyle`."""
        return (0, self.dash) if self.dash else "-"


SCRATCH = Style(INK, dash=DOTTED)
"""Training from scratch, which is no row."""
FAMILIES = tuple(
    itertools.starmap(Style, zip(("0.25", "0.45", "0.3", "0.55", "0.35", "0.5", "0.4"), MARKERS, DASHES, strict=True))
)
"""Families of trivial defenses are grey, and differ in marks and dashes; colours are for defenses."""


def of(board: Leaderboard) -> dict[str, Style]:
    """The style of each row of a leaderboard, which every picture of it uses."""
    return styles(score.defense for score in order.everything(board))


def families(board: Leaderboard) -> dict[str, Style]:
    """The style of each family of trivial defenses of a leaderboard."""
    return dict(zip(dict.fromkeys(curve.family for curve in board.frontier), itertools.cycle(FAMILIES), strict=False))


def styles(rows: Iterable[str]) -> dict[str, Style]:
    """The style of each row. Colour follows from the plugin's name alone; rows of one colour differ in the rest."""
    used: dict[str, int] = {}
    found = {}
    for row in rows:
        color = color_of(Spec.parse(row).name)
        index = used.get(color, 0)
        used[color] = index + 1
        found[row] = Style(color, MARKERS[index % len(MARKERS)], DASHES[index % len(DASHES)])
    return found


def color_of(plugin: str) -> str:
    """A plugin's colour in every figure."""
    return COLORS.get(plugin) or OTHERS[zlib.crc32(plugin.encode()) % len(OTHERS)]
