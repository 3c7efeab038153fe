"""A finding becomes a page, a JSON file, a picture and what the terminal shows."""

from __future__ import annotations

from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from nftbench.calibration.proof import Finding
from nftbench.records.store import write_atomically
from nftbench.report import json, markdown, terminal


def report(found: Finding) -> RenderableType:
    """What was measured and the verdict, for the terminal."""
    verdict = Text(_verdict(found), style="green" if found.valid else "red")
    return Group(*map(terminal.plain, found.tables), verdict, *map(Text, found.failures), *map(Text, found.notes))


def write(found: Finding, folder: Path, proof: str, command: str) -> list[Path]:
    """Write `<proof>.md`, `<proof>.json` and the picture, if there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [found.draw(folder)] if found.draw is not None else []
    page = [
        f"# {markdown.escaped(found.name)}",
        markdown.escaped(_verdict(found)),
        markdown.items(found.failures),
        markdown.items(found.notes),
        *map(markdown.section, found.tables),
        *(f"![{path.stem}]({path.name})" for path in pictures),
        "The command:",
        markdown.commands([command]),
    ]
    content = {
        "command": command,
        "valid": found.valid if found.verdict else None,
        "name": found.name,
        "failures": found.failures,
        "notes": found.notes,
        **found.numbers,
    }
    texts = {folder / f"{proof}.md": markdown.joined(page), folder / f"{proof}.json": json.written(content)}
    for path, text in texts.items():
        write_atomically(path, text.encode())
    return [*texts, *pictures]


def _verdict(found: Finding) -> str:
    if found.valid and not found.verdict:
        return f"{found.name}: reported"
    return f"{found.name}: {'valid' if found.valid else 'not valid'}"
