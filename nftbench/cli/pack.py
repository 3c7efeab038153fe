"""The verb `pack`: put the records of a finished folder into one compressed file."""

from __future__ import annotations

import typer

from nftbench.cli.options import RunFolder


def pack(
    folder: RunFolder,
) -> None:
    """Put the records in a folder into one compressed file, which every verb reads."""
    from nftbench.records.store import Store, default_cache

    store = Store(folder, default_cache())
    store.manifest()  # refuses a folder that no run wrote
    done = store.pack()
    sizes = f"{done.before:,} bytes before, {done.after:,} after"
    typer.echo(f"{folder}: {done.records:,} records packed, {done.files:,} of them from single files; {sizes}")
