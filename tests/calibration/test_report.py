"""The page of a finding: names of plugins are escaped, and tables without rows are left out."""

from __future__ import annotations

import io
import json
from pathlib import Path

from rich.console import Console

from nftbench import calibration
from nftbench.calibration import Finding
from nftbench.scoring.table import Table

NAME = "evil[text=a|b<script>`x`*]"
SHOWN = "evil[text=a\\|b&lt;script>\\`x\\`\\*]"
FOUND = Finding(
    "tiny-null",
    tables=(Table("Rows", ("row", "points"), ((NAME, "1.0"),)), Table("Nothing", ("row",), ())),
    numbers={"rate": float("inf"), "interval": (1.0, -float("inf")), "nested": {"nan": float("nan")}},
    failures=(f"{NAME} is taken for a defense",),
)


def test_cells_and_failures_are_escaped_as_on_a_leaderboard(tmp_path: Path) -> None:
    calibration.write(FOUND, tmp_path, "null", "nftbench calibrate tiny --proof null")
    text = (tmp_path / "null.md").read_text(encoding="utf-8")
    assert f"| {SHOWN} | 1.0 |" in text
    assert f"- {SHOWN} is taken for a defense" in text
    assert "tiny-null: not valid" in text
    assert "Nothing" not in text
    assert text.endswith("The command:\n\n    nftbench calibrate tiny --proof null\n")


def test_numbers_without_bound_become_null(tmp_path: Path) -> None:
    calibration.write(FOUND, tmp_path, "null", "nftbench calibrate tiny --proof null")
    content = json.loads((tmp_path / "null.json").read_text(encoding="utf-8"))
    assert (content["rate"], content["interval"], content["nested"]) == (None, [1.0, None], {"nan": None})
    assert (content["valid"], content["failures"]) == (False, list(FOUND.failures))


def test_the_terminal_shows_names_as_they_are() -> None:
    console = Console(file=io.StringIO(), width=200, color_system=None)
    console.print(calibration.report(FOUND))
    assert NAME in console.file.getvalue()  # type: ignore[attr-defined]
