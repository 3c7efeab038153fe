"""The verb `audit`: a protected checkpoint and its undefended twin become a protection card."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from nftbench.cli import completion
from nftbench.cli.console import BAD_CELLS, complain
from nftbench.cli.options import Limit, RunOptions, Seeds, Selection
from nftbench.errors import NftbenchError

if TYPE_CHECKING:
    from nftbench.cli.execution import Work
    from nftbench.records.record import Record
    from nftbench.report.card import Card, Subject
    from nftbench.running.preflight import Checkpoint
    from nftbench.suites.schema import Suite

CONTROLS: Mapping[str, Sequence[str]] = {
    "noise": ("noise[scale=0.02]", "noise[scale=0.05]", "noise[scale=0.1]", "noise[scale=0.3]"),
    "interpolate": ("interpolate[share=0.05]", "interpolate[share=0.1]", "interpolate[share=0.3]"),
    "prune": ("prune[share=0.1]", "prune[share=0.2]", "prune[share=0.4]"),
    "quantize": ("quantize[bits=8]", "quantize[bits=5]", "quantize[bits=4]"),
}
"""Trivial changes of the twin, the weakest dose first. Between two doses a curve is drawn, so that the release is
compared at its own utility."""
OWN_KEYS = ("model", "defenses", "ladder", "initialisations", "yardsticks", "claims", "benign")
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
        str,
        typer.Option(
            "--suite",
            metavar="SUITE",
            help="The suite whose attacks, tasks and budget are used.",
            autocompletion=completion.suite,
        ),
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
    from nftbench.cli import execution, heartbeat
    from nftbench.planning import pinning

    for place in (release, reference):  # a wrong name is told before the seconds that importing PyTorch takes
        pinning.is_on_hub(place)
    with heartbeat.still("audit: looking at both checkpoints"):
        from nftbench.report.card import Subject
        from nftbench.running import preflight

        protected, twin = preflight.examine(release), preflight.examine(reference)
        _refuse_same(protected, twin)
    for one in (protected, twin):
        typer.echo(f"{one.place}: {_model(one)}")
    subject = Subject(release, reference, protected.architecture, protected.parameters, _unlike(protected, twin))
    if subject.unlike:
        typer.echo(f"note: {subject.unlike}")
    if limit is not None:
        typer.echo(
            "note: with --limit the card has no scores; for fewer documents that count, --set "
            f"budget.max_test_documents={limit}"
        )
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
    for change in options.changes or ():
        if (key := change.partition("=")[0].partition(".")[0]) in OWN_KEYS:
            raise NftbenchError(f"--set {change}: an audit sets {key} itself")
    return options.suite(name)


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


def _unlike(release: Checkpoint, twin: Checkpoint) -> str:
    """What a publisher has to know who named the wrong twin. Some protections change the architecture or add weights,
    so it is no reason to refuse."""
    one, other = map(_model, (release, twin))
    if one == other and release.parameters == twin.parameters:
        return ""
    return (
        f"The release is {one}, and its twin {other}: unless the protection itself changed that, the twin is another "
        "model, and the numbers say nothing of the protection."
    )


def _model(one: Checkpoint) -> str:
    return f"{one.architecture}, {one.parameters / 1e6:.3g} M parameters, {one.words} words"


def changes(suite: Suite, subject: Subject) -> list[str]:
    """The changes that make an audit of a suite, in the form of `--set`.

    The twin is the base, and the release is a row beside trivial changes of it.

    Raises:
        NftbenchError: the suite reads no text.
    """
    if suite.corpus.source == "none":
        raise NftbenchError(f"--suite {suite.name}: its models read no text, and a checkpoint is a language model")
    found = {
        "model": {"path": subject.reference},
        "defenses": [subject.row],
        "ladder": CONTROLS,
        "initialisations": 1,
        "yardsticks": [],
        "claims": [],
        "benign": [],
    }
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in found.items()]


def _costs(work: Work, options: RunOptions, release: Checkpoint, twin: Checkpoint) -> int:
    """Show what is left to do and what it takes; returns the number of workers.

    Raises:
        NftbenchError: memory or disk do not suffice.
    """
    from nftbench.cli import execution, overview
    from nftbench.records.store import settled
    from nftbench.running import estimate

    plan, store = work.part, work.store
    records = store.planned(work.whole.manifest())
    left = estimate.remaining(plan, store, settled(plan.cells, records))
    own = twin.parameters
    sizes = {spec: release.parameters for spec in {cell.defense for cell in plan.cells} if spec.name == "checkpoint"}
    left = replace(left, given=sizes)  # also of checkpoints on the hub, whose plugin does not ask there
    count = execution.workers_that_fit(work, options, left, own)
    typer.echo(f"cells: {len(left.cells)} of {len(plan.cells)} are left")
    for line in overview.costs(plan, records, store, left, own, count):
        typer.echo(line)
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
