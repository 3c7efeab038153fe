"""The verb `report`: rank again from the records in folders."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nftbench.cli import completion
from nftbench.cli.console import BAD_CELLS, console
from nftbench.cli.options import FailOnClaims, LogTo
from nftbench.errors import NftbenchError

if TYPE_CHECKING:
    from nftbench.records.manifest import Manifest
    from nftbench.records.record import Record
    from nftbench.records.store import Store
    from nftbench.scoring import Leaderboard


class Format(StrEnum):
    """Another tool's format. It is a class because typer takes no list of literals."""

    every_eval_ever = "every_eval_ever"
    model_index = "model-index"
    custom_bigger_is_better = "customBiggerIsBetter"


def report(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="FOLDER...",
            file_okay=False,
            help="Folders that run wrote, as `runs/<suite>`.",
            autocompletion=completion.folder,
        ),
    ],
    html: Annotated[
        Path | None,
        typer.Option(metavar="DIR", file_okay=False, help="Also write one page of all folders, with tabs, to DIR."),
    ] = None,
    formats: Annotated[
        list[Format] | None,
        typer.Option(
            "--format",
            help="Also write every folder's results in another tool's format, into the folder: `every_eval_ever` "
            "(records of that database), `model-index` (YAML for the README of each release) or "
            "`customBiggerIsBetter` (JSON for github-action-benchmark); repeatable.",
        ),
    ] = None,
    log_to: LogTo = None,
    fail_on_claims: FailOnClaims = False,
) -> None:
    """Rank the defenses again from the records in folders."""
    from nftbench.cli import execution
    from nftbench.records.store import Store, default_cache, write_atomically
    from nftbench.report import web

    if log_to is not None:
        from nftbench.report.exports import trackers

        trackers.check(log_to)
    # All are read, and may be refused, before the first is written.
    read = [_Read.of(Store(folder, default_cache())) for folder in folders]
    boards, paths = [], []
    for one in read:
        board, command, written = _again(one)
        boards.append((board, command))
        paths += [*written, *execution.export(one.store.results, formats or (), log_to)]
    if html is not None:
        html.mkdir(parents=True, exist_ok=True)
        write_atomically(html / "index.html", web.text(boards, [str(folder) for folder in folders]).encode())
        paths.append(html / "index.html")
    for path in paths:
        typer.echo(path)
    if fail_on_claims and execution.claims_fail(board for board, _ in boards):
        raise typer.Exit(BAD_CELLS)


@dataclass(frozen=True)
class _Read:
    """What a folder holds: the plan of its last run, all records, and those that the plan names."""

    store: Store
    manifest: Manifest
    found: Mapping[str, Record]
    planned: Mapping[str, Record]

    @classmethod
    def of(cls, store: Store) -> _Read:
        """Read a folder, unless its plan has no record: an empty leaderboard would replace that of earlier settings.

        Raises:
            NftbenchError: there is no planned record, or no manifest.
        """
        from nftbench.records.store import planned

        manifest, found = store.manifest(), store.records()
        read = cls(store, manifest, found, planned(found, manifest))
        if not read.planned:
            why = f"; {len(found)} in it are of other settings or code" if found else ": no cell is done yet"
            raise NftbenchError(f"{store.results}: holds no record of any planned cell{why}")
        return read


def _again(read: _Read) -> tuple[Leaderboard, str, list[Path]]:
    """Rank one folder, write its reports and show its tables; the leaderboard, its command and what was written."""
    from nftbench.cli import execution
    from nftbench.report import terminal

    folder = read.store.results
    leaderboard = execution.rank(read.planned, read.manifest)
    command = read.manifest.command or f"nftbench report {shlex.quote(str(folder))}"
    # before anything can fail to print
    paths = execution.publish(leaderboard, read.planned, folder, command, redraw=True)
    console().print(terminal.summary(leaderboard))
    execution.tell_origin(read.store, read.found, read.planned, read.manifest)
    return leaderboard, command, paths
