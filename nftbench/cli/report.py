"""The verb `report`: rank again from the records in a folder."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from nftbench.cli.console import BAD_CELLS, complain, console
from nftbench.cli.options import FailOnClaims


def report(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", file_okay=False, help="A folder that run wrote, as `runs/<suite>`.")
    ],
    fail_on_claims: FailOnClaims = False,
) -> None:
    """Rank the defenses again from the records in a folder."""
    from nftbench.cli import execution
    from nftbench.records.store import Store, default_cache
    from nftbench.report import terminal

    store = Store(folder, default_cache())
    manifest = store.manifest()
    records = execution.planned_records(store, manifest)
    leaderboard = execution.rank(records, manifest)
    command = manifest.command or f"nftbench report {shlex.quote(str(folder))}"
    paths = execution.publish(leaderboard, records, folder, command, redraw=True)  # before anything can fail to print
    console().print(terminal.summary(leaderboard))
    execution.name_left_out(store, manifest)
    execution.compare_sources(records, store)
    for path in paths:
        typer.echo(path)
    if fail_on_claims and (failed := execution.failed_claims(leaderboard)):
        complain(f"{len(failed)} claim{'s' * (len(failed) > 1)} fail{'s' * (len(failed) == 1)}: {'; '.join(failed)}")
        raise typer.Exit(BAD_CELLS)
