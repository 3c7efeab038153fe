"""The verbs `compare` and `baseline`: regression tests of results, as a gate for CI."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from nftbench.cli import completion
from nftbench.cli.console import complain, console
from nftbench.cli.options import RunFolder
from nftbench.errors import NftbenchError

if TYPE_CHECKING:
    from nftbench.comparing import Comparison

SIDE = "A folder that run wrote, a published folder, a baseline file, or a leaderboard.json."


class Format(StrEnum):
    """How a comparison is written. It is a class because typer takes no list of literals."""

    table = "table"
    markdown = "markdown"
    json = "json"
    junit = "junit"
    github = "github"
    bencher = "bencher"


ENDINGS = {".md": Format.markdown, ".json": Format.json, ".xml": Format.junit}
"""The format of a file that no `--format` names."""


def compare(
    base: Annotated[Path, typer.Argument(metavar="BASE", help=SIDE, autocompletion=completion.folder)],
    new: Annotated[
        Path, typer.Argument(metavar="NEW", help="The same; what is judged.", autocompletion=completion.folder)
    ],
    metric: Annotated[
        str | None,
        typer.Option(
            "--metric",
            metavar="A,B",
            help="What to test: `excess`, `suppression`, `retention`, `utility` (each metric by itself), `attacked`, "
            "`cost_to_break`, `seconds`, `memory`. Default: `suppression,retention`; with `--as attack`, `attacked`.",
        ),
    ] = None,
    rows: Annotated[
        str | None,
        typer.Option(
            "--rows",
            metavar="A,B[x=1]",
            help="Only these rows, controls too. Default: all rows that are no controls.",
            autocompletion=completion.plugins("defenses"),
        ),
    ] = None,
    subject: Annotated[
        Literal["defense", "attack"],
        typer.Option(
            "--as",
            help="`defense`: rows are defenses, and less suppression is a regression. `attack`: rows are attacks, and "
            "a lower attacked score is one.",
        ),
    ] = "defense",
    min_drop: Annotated[
        list[str] | None,
        typer.Option(
            "--min-drop",
            metavar="POINTS",
            help="The smallest drop that matters: points, or for one metric as in `seconds=30`; repeatable. Default: 5 "
            "points, and 25 percent of costs.",
        ),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option("--alpha", metavar="P", help="Error rate over all tests together, on both sides; default: 0.02."),
    ] = None,
    fail_on: Annotated[
        Literal["regressed", "suspect", "never"],
        typer.Option(
            "--fail-on", help="The mildest verdict that ends with exit code 1: `regressed`, `suspect` or `never`."
        ),
    ] = "regressed",
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            envvar="GITHUB_JOB",
            show_envvar=False,
            metavar="GATE",
            help="What tells this gate from others of the suite: each has its own comment on a pull request. Default: "
            "under GitHub Actions the id of the job.",
        ),
    ] = None,
    only_changed: Annotated[
        bool, typer.Option("--only-changed", help="Do not show rows that held or are underpowered.")
    ] = False,
    formats: Annotated[
        list[Format] | None,
        typer.Option(
            "--format",
            help="How to write the comparison: `table`, `markdown`, `json`, `junit`, `github` (annotations) or "
            "`bencher`; repeatable. Default: what the file of `--out` ends with, as in `.md`, `.json` or `.xml`; "
            "else `table`.",
        ),
    ] = None,
    out: Annotated[
        list[Path] | None,
        typer.Option(
            "--out",
            metavar="FILE",
            dir_okay=False,
            help="File for the format at the same place; repeatable. Default: print.",
        ),
    ] = None,
) -> None:
    """Compare two runs of a suite row by row, and fail where one regressed."""
    from nftbench.cli.options import parts
    from nftbench.comparing import Settings, compare as compared, sides
    from nftbench.comparing.comparison import ALPHA

    files = out or []
    chosen = formats or [ENDINGS.get(file.suffix, Format.table) for file in files] or [Format.table]
    if len(files) > len(chosen):
        raise NftbenchError(f"--out {files[-1]}: name a --format for each --out")
    settings = Settings(
        subject,
        tuple(parts("--metric", metric)),
        tuple(parts("--rows", rows)),
        tuple(min_drop or ()),
        ALPHA if alpha is None else alpha,
        fail_on,
        name or "",
    )
    comparison = compared(sides.read(base), sides.read(new), settings)
    _write(comparison, chosen, files, only_changed)
    raise typer.Exit(comparison.exit_code)


def _write(comparison: Comparison, formats: list[Format], files: list[Path], only_changed: bool) -> None:
    """Write every format to its file, or print it; under GitHub Actions also the summary and annotations."""
    from nftbench.records.store import write_atomically
    from nftbench.report.comparison import FORMATS, table

    for index, one in enumerate(formats):
        if index < len(files):
            files[index].parent.mkdir(parents=True, exist_ok=True)
            write_atomically(files[index], FORMATS[one.value](comparison, only_changed).encode())
        elif one is Format.table:
            typer.echo(table.text(comparison, only_changed, console().width), nl=False)
        else:
            typer.echo(FORMATS[one.value](comparison, only_changed), nl=False)
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        try:
            with Path(summary).open("a", encoding="utf-8") as file:
                file.write(FORMATS["markdown"](comparison, only_changed))
        except OSError as error:  # what was compared says whether the gate fails
            complain(f"GITHUB_STEP_SUMMARY: {summary}: {error.strerror}; the job has no summary")
    if os.environ.get("GITHUB_ACTIONS") == "true" and Format.github not in formats:
        typer.echo(FORMATS["github"](comparison, only_changed), nl=False, err=True)


def baseline(
    folder: RunFolder,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", dir_okay=False, help="Default: `nftbench-baseline-<suite>.jsonl.xz` here."
        ),
    ] = None,
) -> None:
    """Freeze a run's results in one small file, to commit and to compare with."""
    from nftbench.comparing import baseline as baselines, sides
    from nftbench.records.record import CellId
    from nftbench.records.store import PACK, write_atomically

    if out is not None and out.name == PACK:
        raise NftbenchError(f"--out {out}: every run's pack has this name; choose another")
    side = sides.read(folder)
    assert isinstance(side, sides.Recorded)  # a folder is never a board
    path = out or Path(f"nftbench-baseline-{side.suite}.jsonl.xz")
    content = baselines.frozen(side.manifest, side.records, side.origin)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)
    typer.echo(f"{path}: {len(side.records):,} records of suite {side.suite}, {len(content):,} bytes")
    missing = {cell.id for cell in side.manifest.cells} - {CellId.of(one) for one in side.records}
    if missing:
        typer.echo(
            f"{len(missing)} planned cells have no record yet; a row is compared without the seeds that lack cells"
        )
