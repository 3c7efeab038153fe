"""Scores become leaderboard.md with a page for each defense, CSV, JSON and LaTeX, and a table in the terminal."""

from __future__ import annotations

from pathlib import Path

from nftbench.records.store import write_atomically
from nftbench.report import markdown, tables
from nftbench.scoring.score import Leaderboard


def write(leaderboard: Leaderboard, folder: Path, command: str) -> list[Path]:
    """Write `leaderboard.md`, `.csv`, `.json`, `.tex` and a page for each row under `defenses/` into `folder`; each is
    there whole or not at all."""
    (folder / "defenses").mkdir(parents=True, exist_ok=True)
    contents = {
        folder / "leaderboard.md": markdown.page(leaderboard, command),
        folder / "leaderboard.csv": tables.csv(leaderboard),
        folder / "leaderboard.json": tables.json(leaderboard, command),
        folder / "leaderboard.tex": tables.latex(leaderboard),
        **{folder / "defenses" / name: text for name, text in markdown.pages(leaderboard, command).items()},
    }
    for path, text in contents.items():
        write_atomically(path, text.encode())
    return list(contents)
