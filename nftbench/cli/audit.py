"""The verb `audit`: a protected checkpoint and its undefended twin become a protection card."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from nftbench.cli.console import BAD_CELLS, complain
from nftbench.cli.options import Limit, RunOptions, Seeds, Selection
from nftbench.errors import NftbenchError

if TYPE_CHECKING:
    from nftbench.cli.execution import Work
    from nftbench.records.record import Record
    from nftbench.report.card import Card, Subject
    from nftbench.running.preflight import Checkpoint
    from nftbench.suites.schema import Suite

CONTROLS: Mapping[str, Sequence[float]] = {
    "noise": (0.05, 0.1, 0.3),
    "reinit": (0.01, 0.1, 0.3),
    "prune": (0.1, 0.3, 0.5),
    "quantize": (6, 4, 3),
}
"""Trivial changes of the twin, the weakest dose first. Between two doses a curve is drawn, so that the release is
compared at its own utility."""
OWN_KEYS = ("defenses", "ladder", "initialisations", "yardsticks", "claims", "benign")
"""Keys of a suite that an audit sets itself."""

FailOn = Literal["refuted", "unproven"]


def audit(
    context: typer.Context,
    release: Annotated[
        str,
        typer.Argument(metavar="RELEASE", help="The protected checkpoint: a folder or a hub id.", show_default=False),
    ],
    reference: Annotated[
        str,
        typer.Option(
            "--reference", metavar="TWIN", help="Its undefended twin: a folder or a hub id.", show_default=False
        ),
    ],
    options: RunOptions,
    suite: Annotated[
        str, typer.Option("--suite", metavar="SUITE", help="The suite whose attacks, tasks and budget are used.")
    ] = "audit",
    seeds: Seeds = None,
    limit: Limit = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Check both checkpoints, show the costs, and run nothing.")
    ] = False,
    fail_on: Annotated[
        FailOn | None,
        typer.Option(
            "--fail-on",
            help="End with exit code 1 if the protection is refuted, or if it is not shown to hold (`unproven`). "
            "Default: the verdict does not count.",
        ),
    ] = None,
) -> None:
    """Attack a protected checkpoint beside its undefended twin, and write a protection card."""
    from nftbench.cli import execution
    from nftbench.report.card import Subject
    from nftbench.running import preflight

    protected, twin = preflight.examine(release), preflight.examine(reference)
    _refuse_same(protected, twin)
    for one in (protected, twin):
        typer.echo(f"{one.place}: {one.architecture}, {one.parameters / 1e6:.3g} M parameters, {one.words} words")
    subject = Subject(release, reference, protected.architecture, protected.parameters)
    changed = replace(
        options,
        changes=[*(options.changes or ()), *changes(_asked(suite, options), subject)],
        out=options.out
        or Path("runs") / f"audit-{re.sub(r'[^A-Za-z0-9.-]+', '_', subject.name).strip('.') or 'release'}",
    )
    work = execution.prepare(suite, Selection(seeds=seeds, limit=limit), changed, keep_salt=not plan)
    workers = _costs(work, changed, protected, twin)
    if plan:
        return
    records = execution.carry_out(work, replace(changed, jobs=workers), context.obj)
    card = _publish(work, records, subject, context.obj)
    raise typer.Exit(_exit_code(work, records, card, fail_on))


def _asked(name: str, options: RunOptions) -> Suite:
    """The suite with the command line's changes, which may not touch what an audit sets itself."""
    from nftbench import suites

    for change in options.changes or ():
        if (key := change.partition("=")[0].partition(".")[0]) in OWN_KEYS:
            raise NftbenchError(f"--set {change}: an audit sets {key} itself")
    return suites.read(name, options.suite_changes())


def _refuse_same(release: Checkpoint, twin: Checkpoint) -> None:
    """Refuse a twin with the release's own weights, beside which there is nothing to measure."""
    from nftbench.models import networks

    folders = [Path(one.place) for one in (release, twin)]
    same = release.place == twin.place
    if not same and release.parameters == twin.parameters and all(folder.is_dir() for folder in folders):
        same = networks.tensors_sha256(folders[0]) == networks.tensors_sha256(folders[1])
    if same:
        raise NftbenchError(
            f"{release.place} and --reference {twin.place} hold the same weights; the twin is the model without the "
            "protection"
        )


def changes(suite: Suite, subject: Subject) -> list[str]:
    """The changes that make an audit of a suite, in the form of `--set`.

    Raises:
        NftbenchError: the suite reads no text, or none of its utility tasks can be measured on a foreign checkpoint.
    """
    if suite.corpus.source == "none":
        raise NftbenchError(f"--suite {suite.name}: reads no text, and a checkpoint is a language model")
    utility = [task for task in suite.utility if not _reads_blocks(task)]
    if not utility:
        raise NftbenchError(
            f"--suite {suite.name}: its utility tasks are all measured on text in the suite's own tokens; add another "
            "with --set 'utility=[…]'"
        )
    ladder = {
        change: [f"altered[path={_quoted(subject.reference)},change={change},dose={dose:g}]" for dose in doses]
        for change, doses in CONTROLS.items()
    }
    found = {
        "defenses": [subject.row],
        "ladder": ladder,
        "initialisations": 1,
        "utility": utility,
        "yardsticks": [],
        "claims": [],
        "benign": [],
    }
    return [f"{key}={json.dumps(value)}" for key, value in found.items()]


def _quoted(place: str) -> str:
    """A path as a parameter's value in a spec."""
    from nftbench.records.spec import Spec

    return str(Spec("", (("path", place),)))[len("[path=") : -1]


def _reads_blocks(task: str) -> bool:
    """Whether a utility task reads text in the suite's own tokens, which a checkpoint's tokenizer does not share."""
    from nftbench.methods import BlockTask
    from nftbench.planning import registry
    from nftbench.records.spec import Spec

    plugin = registry.find("tasks", Spec.parse(task).name)
    return not plugin.is_text and issubclass(registry.load(plugin), BlockTask)


def _costs(work: Work, options: RunOptions, release: Checkpoint, twin: Checkpoint) -> int:
    """Show what is left to do and what it takes; returns the number of workers.

    Raises:
        NftbenchError: memory or disk do not suffice.
    """
    from nftbench.cli import workers
    from nftbench.records.store import settled
    from nftbench.running import estimate, forecast, preflight

    plan, store = work.part, work.store
    records = store.planned(work.whole.manifest())
    left = estimate.remaining(plan, store, settled(plan.cells, records))
    own = estimate.parameters_of(plan.suite)
    sizes = {
        spec: release.parameters if dict(spec.parameters).get("reference") is not None else twin.parameters
        for spec in {cell.defense for cell in plan.cells}
    }
    left = replace(left, given=sizes)  # also of checkpoints on the hub, whose plugin does not ask there
    count = preflight.workers_that_fit(
        options.jobs, workers.count(None, plan.device), max(1.0, estimate.memory_bytes(left, own, 1)), plan.device
    )
    preflight.check_disk(estimate.disk_bytes(plan, left, own), store.cache)
    typer.echo(f"cells: {len(left.cells)} of {len(plan.cells)} are left")
    typer.echo(f"time: {forecast.time_line(plan, store, left, own, count)}")
    typer.echo(f"memory: {estimate.memory_line(left, own, count)}")
    typer.echo(f"disk: {estimate.disk_line(plan, store, left, own)}")
    return count


def _publish(work: Work, records: Mapping[str, Record], subject: Subject, command: str) -> Card:
    """Write the leaderboard and the card, and print the verdict."""
    from nftbench.cli import execution
    from nftbench.records.store import write_atomically
    from nftbench.report import card as cards

    folder, manifest = work.store.results, work.store.manifest()
    board = execution.rank(records, manifest)
    paths = execution.publish(board, records, folder, command)
    found = cards.card(board, manifest, list(records.values()), subject, command)
    pages = {"card.md": cards.as_markdown(found), "card.html": cards.as_html(found)}
    for name, text in pages.items():
        write_atomically(folder / name, text.encode())
    typer.echo(found.answer)
    for path in (*(folder / name for name in pages), *paths):
        typer.echo(path)
    return found


def _exit_code(work: Work, records: Mapping[str, Record], card: Card, fail_on: FailOn | None) -> int:
    bad = sum(cell.key not in records or records[cell.key].status != "ok" for cell in work.part.cells)
    if bad:
        complain(f"{bad} of {len(work.part.cells)} cells are not ok; card.md says what is missing")
        return BAD_CELLS
    failed = {
        None: False,
        "refuted": card.verdict == "refuted",
        "unproven": card.verdict not in ("holds", "holds at a cost"),
    }
    return BAD_CELLS if failed[fail_on] else 0
