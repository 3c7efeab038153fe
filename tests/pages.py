"""Markdown as a reader sees it."""

from __future__ import annotations

import re


def rows(page: str, heading: str, which: int = 0) -> list[list[str]]:
    """The cells of a table under a heading, without the table's head."""
    section = page.split(f"# {heading}\n", 1)[1].split("\n#", 1)[0]
    table = re.findall(r"^\|.*\n\|(?: ---+ \|)+\n((?:\|.*\n?)+)", section, re.MULTILINE)[which]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()]
