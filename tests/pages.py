"""Markdown as a reader sees it."""

from __future__ import annotations

import re


def rows(page: str, heading: str) -> list[list[str]]:
    """The cells of the first table under a heading, without the table's head."""
    section = page.split(f"# {heading}\n", 1)[1].split("\n#", 1)[0]
    table = re.findall(r"^\|.*\n\|(?: ---+ \|)+\n((?:\|.*\n?)+)", section, re.MULTILINE)[0]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()]
