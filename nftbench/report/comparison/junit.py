"""A comparison as JUnit XML: a test suite for each metric, a test case for each row.

What fails the gate is a failure, or an error where the number is missing. What is worse and fails no gate passes, with
a sentence as its output. What could not be judged is skipped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from nftbench.comparing import Comparison, Line
from nftbench.comparing.verdicts import FAILING, WORSE
from nftbench.report.comparison import lines

UNFIT = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot hold, however they are written."""


def text(comparison: Comparison, only_changed: bool) -> str:
    """The file's content."""
    shown = lines.shown(comparison, only_changed)
    kinds = [_kind(line, comparison) for line in shown]
    root = ElementTree.Element("testsuites", {"name": f"nftbench compare {_fit(comparison.suite)}", **_totals(kinds)})
    for metric in dict.fromkeys(line.metric for line in shown):
        own = [line for line in shown if line.metric == metric]
        totals = _totals([_kind(line, comparison) for line in own])
        suite = ElementTree.SubElement(root, "testsuite", {"name": _fit(metric), **totals, "time": "0"})
        for line in own:
            _case(suite, line, _kind(line, comparison))
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _case(suite: ElementTree.Element, line: Line, kind: str | None) -> None:
    case = ElementTree.SubElement(suite, "testcase", {"classname": _fit(line.row), "name": line.metric, "time": "0"})
    said = _fit(lines.sentence(line, line.row))
    if kind == "skipped":
        ElementTree.SubElement(case, "skipped", {"message": said})
    elif kind is not None:
        ElementTree.SubElement(case, kind, {"message": said, "type": line.verdict}).text = said
    elif line.verdict in WORSE:
        ElementTree.SubElement(case, "system-out").text = said


def _kind(line: Line, comparison: Comparison) -> str | None:
    """The element that says how a case ended; None where it passed."""
    if line.verdict in FAILING[comparison.settings.fail_on]:
        return "error" if line.verdict == "missing" else "failure"
    return "skipped" if line.verdict in ("underpowered", "incomparable", "new") else None


def _totals(kinds: Sequence[str | None]) -> dict[str, str]:
    counts = {"failures": "failure", "errors": "error", "skipped": "skipped"}
    return {"tests": str(len(kinds)), **{name: str(kinds.count(kind)) for name, kind in counts.items()}}


def _fit(said: str) -> str:
    return UNFIT.sub("\ufffd", said)
