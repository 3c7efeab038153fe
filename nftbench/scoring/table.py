"""A table of plain text, and how numbers are written in it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nftbench.scoring.intervals import Interval

UNKNOWN = "–"


@dataclass(frozen=True)
class Table:
    """Plain text in rows and columns; what shows it escapes it. A table without rows is not shown."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def interval(value: Interval | None, scale: float = 1.0, digits: int = 1) -> str:
    """`12.3 [8.1, 16.5]`; without brackets where one seed allows no interval."""
    if value is None:
        return UNKNOWN
    middle, low, high = (number(scale * end, digits) for end in (value.value, value.low, value.high))
    return f"{middle} [{low}, {high}]" if math.isfinite(value.low) else middle


def number(value: float | None, digits: int = 1) -> str:
    """So many decimals; no negative zero."""
    return UNKNOWN if value is None else f"{round(value, digits) + 0.0:.{digits}f}"


def precise(value: Interval | None) -> str:
    """Three significant digits, for numbers of any size."""
    if value is None:
        return UNKNOWN
    if not math.isfinite(value.low):
        return f"{value.value:.3g}"
    return f"{value.value:.3g} [{value.low:.3g}, {value.high:.3g}]"


def short(value: float | None) -> str:
    """Three significant digits; whole numbers in full up to a million."""
    if value is None:
        return UNKNOWN
    return f"{value:.0f}" if value == round(value) and abs(value) < 1e6 else f"{value:.3g}"
