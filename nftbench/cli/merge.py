"""The verb `merge`: folders of one suite, from one or several machines, become one."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from nftbench.cli.console import BAD_CELLS, complain
from nftbench.errors import NftbenchError

if TYPE_CHECKING:
    from nftbench.records.merging import Merged


def merge(
    context: typer.Context,
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="FOLDER...", file_okay=False, help="Run folders, packed or not."),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", file_okay=False, help="The new folder.", show_default=False)
    ],
    keep: Annotated[
        Literal["first", "last"] | None,
        typer.Option(
            "--keep",
            help="Where folders contradict each other, take the `first` or the `last` one. Default: stop, and name the "
            "contradictions.",
        ),
    ] = None,
) -> None:
    """Put the records of several folders of one suite into a new folder, which every verb reads."""
    from nftbench.records import merging
    from nftbench.records.store import Store, default_cache

    if out.resolve() == Path.cwd():
        raise NftbenchError(f"--out {out}: is the folder where you are, and cannot be replaced; name a new one")
    if out.is_dir() and any(out.iterdir()):
        raise NftbenchError(f"--out {out}: is not empty; merge into a new folder")
    sources = [merging.read(Store(folder, default_cache()), str(folder)) for folder in folders]
    merged = merging.merge(sources, keep)
    _write(merged, out, context.obj)
    for text in merged.notes:
        typer.echo(text)
    for text in merged.left_out:
        complain(text)
    cells = len(merged.manifest.keys)
    typer.echo(f"{out}: {len(merged.records)} of {cells} cells recorded; rank them with nftbench report {out}")
    if merged.left_out:
        raise typer.Exit(BAD_CELLS)


def _write(merged: Merged, out: Path, command: str) -> None:
    """Write the folder beside its place, and move it there once it is complete."""
    from nftbench.records.store import Store, default_cache

    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.absolute().parent))
    try:
        store = Store(draft, default_cache())
        for record in merged.records:
            store.write(record)
        if merged.salt is not None and merged.manifest.salt is None:
            store.keep_salt(merged.salt)
        store.write_manifest(replace(merged.manifest, command=command))
        draft.chmod(0o755)
        draft.replace(out)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
