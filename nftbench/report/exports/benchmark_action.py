"""`customBiggerIsBetter`: JSON that github-action-benchmark draws over time and compares with earlier commits.

Its README (https://github.com/benchmark-action/github-action-benchmark) describes the entries.
"""

from __future__ import annotations

import math

from nftbench.report.exports.results import Results
from nftbench.report.json import written
from nftbench.scoring.intervals import Interval, in_percent
from nftbench.scoring.scores import Score
from nftbench.scoring.table import number


def files(results: Results) -> dict[str, str]:
    """One file. Names are specifications and not labels, which change if another row is added."""
    entries = [
        _entry(f"{score.defense}: {name}", unit, value, score)
        for score in results.rows
        if score.kind != "reference"
        for name, unit, value in (
            ("suppression", "points", score.resistance.suppression),
            ("excess", "points", score.excess.interval),
            ("utility kept", "percent", in_percent(score.utility.retention) if score.utility.retention else None),
        )
        if value is not None
    ]
    return {"customBiggerIsBetter.json": written(entries)}


def _entry(name: str, unit: str, value: Interval, score: Score) -> dict[str, str | float]:
    entry: dict[str, str | float] = {"name": name, "unit": unit, "value": float(number(value.value, 3))}
    if math.isfinite(value.low) and math.isfinite(value.high):
        entry["range"] = f"[{number(value.low, 3)}, {number(value.high, 3)}]"
    badge = f", utility: {score.utility.badge}" if score.utility.badge else ""
    seeds = f"{value.count} base seed{'s' * (value.count > 1)}"
    return entry | {"extra": f"{seeds}, {100 * value.confidence:.0f} % interval{badge}"}
