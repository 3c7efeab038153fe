"""NEW's numbers in the Bencher Metric Format (https://bencher.dev/docs/reference/bencher-metric-format/).

A benchmark for each row, with a measure for each metric: points, multiples, seconds or bytes, with the 95 % interval;
that of an excess is 98 %.
"""

from __future__ import annotations

import math

from nftbench.comparing import Comparison
from nftbench.report.comparison import lines
from nftbench.report.json import written

LONGEST_BENCHMARK, LONGEST_MEASURE = 1024, 64
"""Characters of a name that Bencher takes."""


def text(comparison: Comparison, only_changed: bool) -> str:
    """The file's content; rows without a number in NEW are left out."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for line in lines.shown(comparison, only_changed):
        if line.new is None:
            continue
        metric = {"value": lines.level(line, line.new.value)}
        if math.isfinite(line.new.low):
            metric |= {
                "lower_value": lines.level(line, line.new.low),
                "upper_value": lines.level(line, line.new.high),
            }
        found.setdefault(line.row[:LONGEST_BENCHMARK], {})[line.metric[:LONGEST_MEASURE]] = metric
    return written(found)
