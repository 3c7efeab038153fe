"""A comparison as text: one file for each format. Nothing is computed here."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nftbench.comparing import Comparison
from nftbench.report.comparison import bencher, github, json, junit, markdown, table

FORMATS: Mapping[str, Callable[[Comparison, bool], str]] = {
    "table": table.text,
    "markdown": markdown.text,
    "json": json.text,
    "junit": junit.text,
    "github": github.text,
    "bencher": bencher.text,
}
"""By name: the text of a comparison; the second argument hides the lines that say that nothing changed."""
