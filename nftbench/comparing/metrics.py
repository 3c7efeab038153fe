"""What is compared: the metrics of a row, with their units, their direction and the smallest drop that matters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from nftbench.errors import NftbenchError, suggest

Role = Literal["defense", "attack"]
"""For whom a comparison is made. Rows are defenses for an author of defenses, and attacks for an author of attacks."""
Unit = Literal["points", "percent"]
UTILITY = "utility"
"""Stands for each utility metric by itself; a line calls one `utility.NAME`."""
MIN_DROP = {"points": 5.0, "percent": 25.0}
"""The smallest drop that matters, where the command line names none. A row of five base seeds varies by 1.3 points
(`results/small-null`). Two such runs on different machines see drops from about 4.5 points on, after Holm's
correction for a few rows."""


@dataclass(frozen=True)
class Metric:
    """A number of a row. In `percent` its samples are 100 · ln(value), whose differences are relative changes."""

    name: str
    unit: Unit
    higher_is_better: bool
    """For the author of the rows."""
    on_one_machine: bool = False
    """Whether another processor alone changes it, so that only runs on the same processor compare."""


COSTS = (Metric("seconds", "percent", False, on_one_machine=True), Metric("memory", "percent", False))
OF_DEFENSES = (
    Metric("excess", "points", True),
    Metric("suppression", "points", True),
    Metric("retention", "points", True),
    Metric(UTILITY, "points", True),
    Metric("attacked", "points", False),
    Metric("cost_to_break", "percent", True),
    *COSTS,
)
OF_ATTACKS = (Metric("attacked", "points", True), *COSTS)
METRICS: dict[Role, dict[str, Metric]] = {
    "defense": {one.name: one for one in OF_DEFENSES},
    "attack": {one.name: one for one in OF_ATTACKS},
}
DEFAULT: dict[Role, tuple[str, ...]] = {"defense": ("suppression", "retention"), "attack": ("attacked",)}


def metric(role: Role, name: str, option: str = "--metric") -> Metric:
    """The metric with this name; `utility.NAME` is a single utility metric.

    Raises:
        NftbenchError: rows of this role have no such metric.
    """
    known, (first, dot, _) = METRICS[role], name.partition(".")
    if first not in known or (dot and first != UTILITY):
        raise NftbenchError(f"{option} {name}: no metric of {role}s{suggest(name, sorted(known))}")
    return known[first]


def drops(role: Role, texts: Sequence[str]) -> dict[str, float]:
    """The smallest drop that matters, by metric, from texts such as `5` (all metrics in points) and `seconds=30`.

    A text that names its metric is stronger than one that does not, wherever it stands. That of a single utility metric
    is under the metric's own name, as in `utility.toy_topic_verb`.

    Raises:
        NftbenchError: a text is no such number, is negative, or names an unknown metric.
    """
    found = {name: MIN_DROP[one.unit] for name, one in METRICS[role].items()}
    for text in sorted(texts, key=lambda text: "=" in text):
        name, equals, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if not 0 <= value < float("inf"):
            raise NftbenchError(f"--min-drop {text}: write a number of points, or METRIC=NUMBER as in seconds=30")
        if equals:
            metric(role, name, "--min-drop")
            found[name] = value
        else:
            found |= {one.name: value for one in METRICS[role].values() if one.unit == "points"}
    return found
