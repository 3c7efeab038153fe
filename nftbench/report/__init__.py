"""Scores become a web page, leaderboard.md with pages of rows and ladder, CSV, JSON, LaTeX, figures, and tables in the
terminal.

Everything shown is first a `Table` of plain text (scoring/table.py); `markdown.py` and `terminal.py` show any such
table, those of nftbench.calibration too. Nothing is computed here.
"""

from __future__ import annotations

from pathlib import Path

from nftbench.records.store import write_atomically
from nftbench.report import csv, json, latex, page, web
from nftbench.scoring import Leaderboard


def write(leaderboard: Leaderboard, folder: Path, command: str) -> list[Path]:
    """Write `index.html`, `leaderboard.md`, `.csv`, `.json`, `.tex` and, under `defenses/`, pages into `folder`.

    A file is replaced whole or not at all.
    """
    (folder / "defenses").mkdir(parents=True, exist_ok=True)
    contents = {
        folder / "leaderboard.md": page.leaderboard(leaderboard, command),
        folder / "leaderboard.csv": csv.text(leaderboard),
        folder / "leaderboard.json": json.text(leaderboard, command),
        folder / "leaderboard.tex": latex.text(leaderboard),
        folder / "index.html": web.text([(leaderboard, command)]),
        **{folder / "defenses" / name: text for name, text in page.rows(leaderboard, command).items()},
    }
    for path, text in contents.items():
        write_atomically(path, text.encode())
    return list(contents)
