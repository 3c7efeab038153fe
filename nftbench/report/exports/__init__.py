"""A leaderboard in other tools' formats, one file of code a format, and in experiment trackers.

All of them are made from `Results`, which no longer tell of the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nftbench.report.exports import benchmark_action, every_eval_ever, model_index
from nftbench.report.exports.results import Results, published

FORMATS: Mapping[str, Callable[[Results], dict[str, str]]] = {
    "every_eval_ever": every_eval_ever.files,
    "model-index": model_index.files,
    "customBiggerIsBetter": benchmark_action.files,
}
"""By name: the contents of the files, by their paths in the folder."""

__all__ = ["FORMATS", "Results", "published"]
