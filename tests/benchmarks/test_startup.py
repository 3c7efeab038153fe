"""What it costs to start: CPU time of a fresh process beyond a bare interpreter, best of several. For the table alone:
seconds depend on the machine, so they fail nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.benchmarks.measure import Line, cpu_of

ROUNDS = 7


def best(arguments: Sequence[str], log: Path) -> float:
    """The least of several: whatever else the machine does can only add to it."""
    return min(cpu_of([sys.executable, *arguments], os.environ, log) for _ in range(ROUNDS))


@pytest.mark.parametrize(
    ("what", "arguments", "most"),
    [
        ("nftbench list", ["-P", "-m", "nftbench", "list"], 0.5),
        ("nftbench --help", ["-P", "-m", "nftbench", "--help"], 0.5),
        ("import nftbench", ["-P", "-c", "import nftbench"], 0.15),
    ],
)
def test_startup(table: dict[str, Line], tmp_path: Path, what: str, arguments: list[str], most: float) -> None:
    bare = best(["-P", "-c", "pass"], tmp_path / "log")
    again = best(["-P", "-c", "pass"], tmp_path / "log")
    beyond = best(arguments, tmp_path / "log") - bare
    table[f"startup {what}"] = Line(
        f"`{what}`, CPU beyond a bare interpreter",
        f"≤ {most:g} s",
        f"{beyond:.3f} s",
        f"{again - bare:+.3f} s",
        f"best of {ROUNDS} processes",
    )
