"""How a comparison's lines are said: the sentence on top, the numbers, the smallest drop that could be seen."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping

from nftbench.comparing import Comparison, Line
from nftbench.comparing.verdicts import UNCHANGED
from nftbench.errors import NftbenchError
from nftbench.report import labels
from nftbench.scoring.intervals import PRELIMINARY_SEEDS, Interval
from nftbench.scoring.table import UNKNOWN, Table, interval, number, short

HEADER = ("verdict", "row", "metric", "base", "new", "change", "p (Holm)", "sees drops from", "why")


def shown(comparison: Comparison, only_changed: bool) -> tuple[Line, ...]:
    """The lines of a report. A change that matters is shown even where nothing can be said of it."""
    return tuple(
        line for line in comparison.lines if not (only_changed and line.verdict in UNCHANGED and not line.moved)
    )


def names(comparison: Comparison) -> Mapping[str, str]:
    """The labels of the rows, by specification. Attacks have none, as on the leaderboard."""
    rows = list(dict.fromkeys(line.row for line in comparison.lines))
    if comparison.settings.role == "defense":
        with contextlib.suppress(NftbenchError):  # a leaderboard.json may call a row anything
            return labels.labels(rows, comparison.labels, comparison.own_labels)
    return {row: row for row in rows}


def in_full(comparison: Comparison) -> list[str]:
    """The specifications behind labels: `pmp: pmp[discovery_steps=200]`."""
    return [f"{label}: {row}" for row, label in names(comparison).items() if label != row]


def headline(comparison: Comparison) -> str:
    """The answer in one sentence: the outcome, and how many lines have each verdict."""
    counts = ", ".join(f"{count} {name}" for name, count in comparison.counts.items()) or "no row to compare"
    answer: str = comparison.outcome
    if comparison.outcome == "nothing comparable" and comparison.counts.get("underpowered"):
        answer = "nothing can be judged"  # what could be compared is there
    return f"{answer.upper()}: {counts}"


def untested(comparison: Comparison) -> str:
    """What is to be known of underpowered lines: that seeds are too few and what to do, and which of them moved."""
    lines = [line for line in comparison.lines if line.verdict == "underpowered" and line.difference is not None]
    own = names(comparison)
    few = [line.difference.count for line in lines if line.difference and line.difference.count < PRELIMINARY_SEEDS]
    moved = [f"{own[line.row]} {line.metric} {change(line)}" for line in lines if line.moved]
    said = []
    if few:
        why = "one base seed gives no interval" if max(few) == 1 else "two base seeds are too few for a test"
        said.append(
            f"{len(few)} line{'s have' if len(few) > 1 else ' has'} both sides, but {why}: run both with at least "
            f"{PRELIMINARY_SEEDS}, as with --set 'seeds=[0, 1, 2]'."
        )
    if moved:
        said.append(f"Moved by --min-drop or more, without a verdict: {'; '.join(moved)}.")
    return " ".join(said)


def sight(comparison: Comparison) -> str:
    """How large a drop the comparison could have seen at all; empty where nothing was tested."""
    found = comparison.detectable
    if not found:
        equal = any(line.difference is not None for line in comparison.lines)
        return (
            "All numbers are equal at every seed, as those of the same run are. So they hold, and do not say how small "
            "a drop would be found."
            if equal
            else ""
        )
    units = {line.metric: line.unit for line in comparison.lines}
    each = [f"{metric} {_limit(drop, units[metric])}" for metric, drop in sorted(found.items())]
    return f"The smallest drops that it finds in every row, with 80 % power: {', '.join(each)}."


def test(comparison: Comparison) -> str:
    """The test in a sentence, and the level of the intervals."""
    tested = sum(line.p is not None for line in comparison.lines)
    levels = sorted({line.difference.confidence for line in comparison.lines if line.difference is not None})
    named = " or ".join(f"{100 * level:g} %" for level in levels)
    ends = f" The intervals of changes are of {named}." if levels else ""
    return (
        f"{tested} test{'s' * (tested != 1)} at alpha = {comparison.settings.alpha:g} together (two-sided, Holm); "
        "a change also has to reach the smallest drop that matters."
        f"{ends}"
    )


def table(comparison: Comparison, only_changed: bool) -> Table:
    """Every line with its numbers."""
    own = names(comparison)
    rows = tuple(
        (
            line.verdict,
            own[line.row],
            line.metric,
            _level(line, line.base),
            _level(line, line.new),
            change(line),
            UNKNOWN if line.p_holm is None else f"{line.p_holm:.2g}",
            UNKNOWN if line.difference is None or line.detectable == 0 else _limit(line.detectable, line.unit),
            line.why,
        )
        for line in shown(comparison, only_changed)
    )
    return Table("Rows and metrics", HEADER, rows)


def change(line: Line) -> str:
    """NEW less BASE with its interval, in points or percent."""
    if line.difference is None:
        return UNKNOWN
    if line.unit == "points":
        return interval(line.difference)
    ends = (line.difference.value, line.difference.low, line.difference.high)
    middle, low, high = (_percent(end) for end in ends)
    return f"{middle} % [{low}, {high}]" if math.isfinite(line.difference.low) else f"{middle} %"


def sentence(line: Line, row: str) -> str:
    """One line as a sentence, with this name of its row, for an annotation or a test report."""
    said = f"{row}: {line.metric} {line.verdict}"
    if line.difference is not None:
        said += f", {_level(line, line.base)} to {_level(line, line.new)}, change {change(line)}"
        if line.p_holm is not None:
            said += f", p (Holm) {line.p_holm:.2g}"
    return f"{said}. {line.why}" if line.why else said


def level(line: Line, value: float) -> float:
    """A number of a side in the metric's own unit: points, a multiple, seconds or bytes."""
    return value if line.unit == "points" else math.exp(min(value, 700 * 100) / 100)


def _level(line: Line, found: Interval | None) -> str:
    if found is None:
        return UNKNOWN
    if line.unit == "points":
        return number(found.value)
    written: Mapping[str, Callable[[float], str]] = {
        "cost_to_break": lambda value: f"{value:.3g}×",
        "seconds": lambda value: f"{short(value)} s",
        "memory": lambda value: f"{short(value / 1e6)} MB",
    }
    return written[line.metric](level(line, found.value))


def _limit(drop: float | None, unit: str) -> str:
    """The smallest drop that is found, in words."""
    if drop is None or not math.isfinite(drop):
        return "none"
    return f"{drop:.1f} points" if unit == "points" else f"{_percent(drop)} %"


def _percent(logarithm: float) -> str:
    """100 · ln of a ratio as the change in percent."""
    if not math.isfinite(logarithm) or logarithm > 1000:
        return "∞" if logarithm > 0 else "-100"
    return number(100 * math.expm1(logarithm / 100), 0)
