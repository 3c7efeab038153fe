"""Markdown of tables, lists and paragraphs. Text of plugins and errors is escaped here, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nftbench.scoring.table import Table


def joined(parts: Iterable[str]) -> str:
    """A page of these parts; empty ones are left out."""
    return "\n\n".join(part for part in parts if part) + "\n"


def section(table: Table, level: str = "##") -> str:
    """A table under its title; empty where it has no rows."""
    if not table.rows:
        return ""
    ruler = f"| {' | '.join('---' for _ in table.header)} |"
    lines = [_line(table.header), ruler, *map(_line, table.rows)]
    return f"{level} {escaped(table.title)}\n\n" + "\n".join(lines)


def items(lines: Sequence[str], bold: bool = False) -> str:
    """A list with one item a line."""
    return "\n".join(f"- **{escaped(line)}**" if bold else f"- {escaped(line)}" for line in lines)


def commands(lines: Iterable[str]) -> str:
    """Command lines as a block of code."""
    return "\n".join(f"    {line}" for line in lines)


def link_text(text: str) -> str:
    """Text of a link, which must not be ended by a bracket of its own."""
    return escaped(text).replace("[", "\\[").replace("]", "\\]")


def escaped(text: str) -> str:
    """The text on one line, shown as it is: no column, tag or emphasis begins in it."""
    flat = one_line(text)
    for character in "\\`*|":
        flat = flat.replace(character, f"\\{character}")
    return flat.replace("<", "&lt;")


def one_line(text: str) -> str:
    """Line breaks and repeated blanks become one blank."""
    return " ".join(text.split())


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(escaped(cell) for cell in cells)} |"
