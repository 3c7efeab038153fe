"""A finding becomes a page, a JSON file, a picture and what the terminal shows."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from nftbench.calibration.proof import Finding
from nftbench.records.store import write_atomically
from nftbench.report.tables import Table
from nftbench.scoring.intervals import Interval


def report(found: Finding) -> RenderableType:
    """What was measured and the verdict, for the terminal."""
    shown: list[RenderableType] = []
    for table in found.tables:
        rich = RichTable(title=Text(table.title), title_justify="left")
        for name in table.header:
            rich.add_column(Text(name))
        for row in table.rows:
            rich.add_row(*map(Text, row))
        shown.append(rich)
    verdict = Text(_verdict(found), style="green" if found.valid else "red")
    return Group(*shown, verdict, *map(Text, found.failures), *map(Text, found.notes))


def write(found: Finding, folder: Path, proof: str, command: str) -> list[Path]:
    """Write `<proof>.md`, `<proof>.json` and the picture, if there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    picture = [found.draw(folder)] if found.draw is not None else []
    parts = [f"# {found.name}", _verdict(found), _listed(found.failures), _listed(found.notes)]
    parts += [_markdown(table) for table in found.tables]
    parts += [f"![{path.stem}]({path.name})" for path in picture]
    parts += [f"The command:\n\n    {command}"]
    about = {"name": found.name, "failures": found.failures, "notes": found.notes}
    content = _finite({"command": command, "valid": found.valid if found.verdict else None, **about, **found.numbers})
    texts = {
        folder / f"{proof}.md": "\n\n".join(filter(None, parts)) + "\n",
        folder / f"{proof}.json": json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
    }
    for path, text in texts.items():
        write_atomically(path, text.encode())
    return [*texts, *picture]


def interval(value: Interval) -> str:
    """`1.31 [-0.87, 3.49]`: two decimals, for what is compared with zero."""
    return f"{value.value:.2f} [{value.low:.2f}, {value.high:.2f}]"


def _finite(value: Any) -> Any:
    """JSON has no infinity: what is unbounded becomes null."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _verdict(found: Finding) -> str:
    if found.valid and not found.verdict:
        return f"{found.name}: reported"
    return f"{found.name}: {'valid' if found.valid else 'not valid'}"


def _listed(lines: tuple[str, ...]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _markdown(table: Table) -> str:
    rows = [table.header, ("---",) * len(table.header), *table.rows]
    return f"## {table.title}\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows)
