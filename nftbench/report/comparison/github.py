"""A comparison as GitHub's workflow commands: an annotation for each line that regressed, is missing or is suspect.

It is an error where it fails the gate, and otherwise a warning.
"""

from __future__ import annotations

from nftbench.comparing import Comparison, Line
from nftbench.comparing.verdicts import FAILING, WORSE
from nftbench.report.comparison import lines


def text(comparison: Comparison, only_changed: bool) -> str:
    """The commands, and last a notice with the answer. Annotations are few: GitHub shows ten of each kind."""
    names = lines.names(comparison)
    failing = FAILING[comparison.settings.fail_on]
    found = [
        _annotation("error" if line.verdict in failing else "warning", line, names[line.row])
        for line in comparison.lines
        if line.verdict in WORSE
    ]
    said = (f"{lines.headline(comparison)}.", lines.untested(comparison), lines.sight(comparison))
    headline = _data(" ".join(filter(None, said)))
    return "\n".join([*found, f"::notice title=nftbench compare::{headline}"]) + "\n"


def _annotation(level: str, line: Line, row: str) -> str:
    title = _property(f"{row}: {line.metric} {line.verdict}")
    return f"::{level} title={title}::{_data(lines.sentence(line, row))}"


def _data(said: str) -> str:
    """Text after a command; a line break would end it, and what follows could be a command of its own."""
    return said.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(said: str) -> str:
    return _data(said).replace(":", "%3A").replace(",", "%2C")
