"""A comparison for the terminal, or for a log."""

from __future__ import annotations

import io

from rich.console import Console

from nftbench.comparing import Comparison
from nftbench.report import terminal
from nftbench.report.comparison import lines

WIDTH = 160


def text(comparison: Comparison, only_changed: bool, width: int = WIDTH) -> str:
    """The answer first, then a table, and what the reader has to know. A terminal too narrow for it gets sentences."""
    shown = lines.table(comparison, only_changed)
    drawn = io.StringIO()
    if shown.rows:
        Console(file=drawn, width=WIDTH).print(terminal.plain(shown, whole=("verdict", "change")))
    body = drawn.getvalue().rstrip()
    if max(map(len, body.splitlines()), default=0) > width:
        names = lines.names(comparison)
        body = "\n".join(lines.sentence(line, names[line.row]) for line in lines.shown(comparison, only_changed))
    answer = [lines.headline(comparison), lines.untested(comparison)]
    parts = [*answer, body, lines.sight(comparison), lines.test(comparison)]
    return (
        "\n".join(
            part
            for part in (*parts, *lines.in_full(comparison), *(f"Note: {note}" for note in comparison.notes))
            if part
        )
        + "\n"
    )
