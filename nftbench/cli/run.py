"""The verbs `plan`, `run` and `reproduce`: a suite is planned, carried out and ranked."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from nftbench.cli import completion
from nftbench.cli.console import BAD_CELLS, complain, console
from nftbench.cli.options import FailOnClaims, LogTo, RunOptions, Seeds, Selection, SuiteName
from nftbench.errors import NftbenchError, suggest

if TYPE_CHECKING:
    from rich.console import RenderableType

    from nftbench.cli.execution import Work
    from nftbench.records.record import Record
    from nftbench.report.exports.trackers import Tracker
    from nftbench.scoring import Leaderboard


def plan(suite: SuiteName, selection: Selection, options: RunOptions) -> None:
    """Show the cells of a run, how many are done, and about how long the rest would take; run nothing."""
    from nftbench.cli import execution

    work = execution.prepare(suite, selection.in_array(), options, keep_salt=False)
    from nftbench.cli.overview import overview  # after the line that planning prints, because it loads torch
    from nftbench.records.store import planned

    manifest, found = work.whole.manifest(), work.store.records()
    records = planned(found, manifest)
    execution.compare_hardware(records.values(), work.part.device)
    count = execution.worker_count(work, options, records)
    console().print(overview(work.part, records, work.store, count))
    if work.salt is not None and work.salt.drawn:
        typer.echo("salt: not drawn yet; the keys of cells will depend on it")
    execution.tell_origin(work.store, found, records, manifest)


def run(
    context: typer.Context,
    suite: SuiteName,
    selection: Selection,
    options: RunOptions,
    force: Annotated[bool, typer.Option("--force", help="Delete the records of these cells first.")] = False,
    log_to: LogTo = None,
    fail_on_claims: FailOnClaims = False,
) -> None:
    """Run a suite, or what is left of it, and rank its defenses."""
    from nftbench.cli import execution
    from nftbench.report import terminal

    if log_to is not None:
        from nftbench.report.exports import trackers

        trackers.check(log_to)
    work = execution.prepare(suite, selection.in_array(), options)
    if force:
        work.store.forget([cell.key for cell in work.part.cells])
    _run(work, options, context.obj, terminal.summary, fail_on_claims, log_to)


def reproduce(
    context: typer.Context,
    paper: Annotated[
        str,
        typer.Argument(
            metavar="PAPER",
            help="The name of a paper's suite without `paper-`, as in pmp; nftbench list has them.",
            autocompletion=completion.paper,
        ),
    ],
    options: RunOptions,
    seeds: Seeds = None,
    fail_on_claims: FailOnClaims = False,
) -> None:
    """Run a paper's suite and show each of its claims beside what was measured."""
    from nftbench import suites
    from nftbench.cli import execution
    from nftbench.report import terminal

    if paper not in suites.papers():
        raise NftbenchError(f"no paper is named {paper!r}{suggest(paper, suites.papers())}")
    work = execution.prepare(f"paper-{paper}", Selection(seeds=seeds), options)
    _run(work, options, context.obj, terminal.claims, fail_on_claims)


def _run(
    work: Work,
    options: RunOptions,
    command: str,
    shown: Callable[[Leaderboard], RenderableType],
    fail_on_claims: bool,
    log_to: Tracker | None = None,
) -> None:
    """Carry out, show and publish, also after each base seed; ends in the exit code.

    Of several shares, the one that ends last publishes.
    """
    from nftbench.cli import execution
    from nftbench.records.count import complete_seeds
    from nftbench.report import terminal

    store = work.store
    if work.shard is not None:
        command = _of_all_shares(command)

    def after_seed(seed: int) -> None:
        if work.shard is not None:
            return
        manifest = store.manifest()
        records = store.planned(manifest)
        leaderboard = execution.rank(records, manifest, {seed, *complete_seeds(manifest, records)})
        execution.publish(leaderboard, records, store.results, command)
        typer.echo(f"seed {seed} is complete; the leaderboard so far, also in {store.results}:")
        console().print(terminal.ranking(leaderboard))

    records = execution.carry_out(work, options, command, after_seed)
    manifest = store.manifest()
    left = len(manifest.keys - records.keys())
    if work.shard is not None and left:
        typer.echo(
            f"shard {work.shard} is done; {left} cells of other shards have no record yet. "
            f"The leaderboard of those that have: nftbench report {store.results}"
        )
        raise typer.Exit(_exit_code(work, records))
    leaderboard = execution.rank(records, manifest)
    paths = execution.publish(leaderboard, records, store.results, command)  # before anything can fail to print
    console().print(shown(leaderboard))
    for path in paths:
        typer.echo(path)
    execution.export(store.results, log_to=log_to)
    code = _exit_code(work, records)
    if fail_on_claims and execution.claims_fail([leaderboard]):
        code = BAD_CELLS
    raise typer.Exit(code)


def _of_all_shares(command: str) -> str:
    """The command line without `--shard`: the manifest and the leaderboard are those of all shares."""
    words = shlex.split(command)
    if "--shard" in words:
        place = words.index("--shard")
        del words[place : place + 2]
    return shlex.join(word for word in words if not word.startswith("--shard="))


def _exit_code(work: Work, records: Mapping[str, Record]) -> int:
    """0, or 1 after a line about the cells that are not ok."""
    cells = work.part.cells
    bad = [cell for cell in cells if cell.key not in records or records[cell.key].status != "ok"]
    if not bad:
        return 0
    first, record = bad[0], records.get(bad[0].key)
    reason = f"{record.status} ({record.reason})" if record else "no record"
    title = f"{first.defense} × {first.attack} on {first.task}, seed {first.seed}"
    folder = work.store.results / "records"
    complain(f"{len(bad)} of {len(cells)} cells are not ok, first {title}: {reason}; records in {folder}")
    return BAD_CELLS
