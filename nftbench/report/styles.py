"""The look of rows in figures: a defense has the same colour in every figure of every suite.

The colours are those of Okabe and Ito, which colour-blind readers can tell apart. Marks and dashes tell rows of one
colour apart.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass

from matplotlib.typing import LineStyleType

from nftbench.records.spec import Spec

BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, BROWN = "#CC79A7", "#56B4E9", "#7F5539"
COLORS = {
    "pmp": BLUE,
    "dlr_lock": VERMILION,
    "random_mask": GREEN,
    "condition_number": PURPLE,
    "trap2": ORANGE,
    "checkpoint": SKY,
    "none": "black",
}
"""The colours of the defenses that most suites show. Others have one of `OTHERS`, by their name."""
OTHERS = (SKY, BROWN, BLUE, VERMILION, GREEN, PURPLE, ORANGE)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES: tuple[LineStyleType, ...] = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)), (0, (8, 3)), (0, (3, 3)))


@dataclass(frozen=True)
class Style:
    """How a row is drawn."""

    color: str
    marker: str
    dash: LineStyleType


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
