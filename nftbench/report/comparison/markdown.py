"""A comparison as Markdown, for a comment on a pull request and for the summary of a job."""

from __future__ import annotations

import re

from nftbench.comparing import Comparison
from nftbench.report import markdown
from nftbench.report.comparison import lines

ALERTS = {"regressed": "CAUTION", "suspect": "WARNING", "passed": "TIP", "nothing comparable": "WARNING"}
"""The kind of GitHub's alert for each outcome."""


def marker(comparison: Comparison) -> str:
    """The hidden first line, by which a later comment replaces an earlier one of the same gate."""
    gate = filter(None, (comparison.suite, comparison.settings.name))
    return f"<!-- nftbench-compare:{':'.join(re.sub(r'[^A-Za-z0-9_.]+', '-', one) for one in gate)} -->"


def text(comparison: Comparison, only_changed: bool) -> str:
    """The marker, the answer, a table, and where both sides come from."""
    sides = [
        f"{name}: {one.path}, suite {one.suite}"
        + (f", commit {', '.join(commit[:12] for commit in one.origin.commits)}" if one.origin.commits else "")
        + (f", {', '.join(one.origin.processors)}" if one.origin.processors else "")
        for name, one in (("BASE", comparison.base), ("NEW", comparison.new))
    ]
    full = lines.in_full(comparison)
    alert = f"> [!{ALERTS[comparison.outcome]}]\n> {markdown.escaped(lines.headline(comparison))}"
    return markdown.joined(
        [
            f"{marker(comparison)}\n{alert}",
            markdown.escaped(lines.untested(comparison)),
            markdown.section(lines.table(comparison, only_changed), "###"),
            markdown.escaped(lines.sight(comparison)),
            markdown.escaped(lines.test(comparison)),
            markdown.items([*sides, *comparison.notes]),
            f"<details><summary>Rows in full</summary>\n\n{markdown.items(full)}\n\n</details>" if full else "",
        ]
    )
