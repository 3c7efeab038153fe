"""A comparison as JSON, under published names: every line with its test, both sides' origins, outcome, exit code."""

from __future__ import annotations

from nftbench.comparing import Comparison
from nftbench.report.comparison import lines
from nftbench.report.json import written

FORMAT = 1


def text(comparison: Comparison, only_changed: bool) -> str:
    """The file's content. The ends of an interval that has none are null, and so is a drop that no test could see."""
    return written(
        {
            "format": FORMAT,
            "suite": comparison.suite,
            "base": comparison.base,
            "new": comparison.new,
            "as": comparison.settings.role,
            "alpha": comparison.settings.alpha,
            "fail_on": comparison.settings.fail_on,
            "rows": lines.shown(comparison, only_changed),
            "counts": comparison.counts,
            "detectable": comparison.detectable,
            "notes": comparison.notes,
            "outcome": comparison.outcome,
            "exit": comparison.exit_code,
        }
    )
