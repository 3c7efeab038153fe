"""The verb `check`: whether plugin files keep the contract, without pytest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from nftbench.cli.console import BAD_CELLS
from nftbench.cli.options import Data

if TYPE_CHECKING:
    from nftbench.testing.file import Examined


def check(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE...",
            help="Plugin files, or folders with an `__init__.py`. Parameters may follow, as in `mine.py[strength=2]`.",
        ),
    ],
    data: Data = None,
) -> None:
    """Check plugin files on tiny models, and say what to change where one breaks the contract."""
    from nftbench.cli import heartbeat, workers
    from nftbench.planning import registry, task_files
    from nftbench.planning.plugin_paths import plugin_path

    paths = [plugin_path(file) for file in files]  # all are refused before the first is checked
    for path in paths:  # before the import of torch, which takes seconds
        if path.suffix == ".yaml":
            task_files.settings(path)
        else:
            registry.kinds_in(path / "__init__.py" if path.is_dir() else path)
    broken = 0
    with heartbeat.still("check: running on tiny models, each plugin in a process of its own") as heart:
        from nftbench.testing.file import check_file

        workers.start_server()
        for file, path in zip(files, paths, strict=True):
            heart.say(f"{path}:")
            for found in check_file(file, data):
                heart.say(_listed(found))
                broken += len(found.broken)
    raise typer.Exit(BAD_CELLS if broken else 0)


def _listed(found: Examined) -> str:
    """Each promise in a line, and what to change where it is broken."""
    lines = [found.title]
    for one in found.promises:
        lines.append(f"  {'broken' if one.problem else 'kept  '}  {one.statement}")
        lines += [f"          {one.problem}"] if one.problem else []
    count, bad = len(found.promises), len(found.broken)
    if bad:
        # A check ends early only at a promise without which nothing else can be tried.
        rest = f"what rests on {'it' if bad == 1 else 'them'} may not have been checked"
        lines.append(f"{bad} of {count} promises broken; {rest}")
    else:
        lines.append(f"all {count} promises kept")
    return "\n".join(lines)
