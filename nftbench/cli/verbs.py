"""The verbs: list, info, plan, run, reproduce, report, calibrate, lm-eval. Each imports what it needs when called.

Bad input is one line on stderr and exit code 2; a run in which a cell is not ok ends with 1, an interrupted one
with 130.
"""

from __future__ import annotations

import gc
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from nftbench.errors import NftbenchError, suggest

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from nftbench.calibration import Measured, Read
    from nftbench.planning.plan import Plan
    from nftbench.planning.registry import Kind, Plugin
    from nftbench.records.record import Record
    from nftbench.records.store import Store
    from nftbench.scoring.score import Leaderboard
    from nftbench.suites.schema import Suite

BAD_CELLS, BAD_INPUT, INTERRUPTED = 1, 2, 130
PIPE_WIDTH = 160
FIGURES = ("frontier.png", "attacks.png", "budget.png")
"""What nftbench.report.figures draws; importing it to ask would load matplotlib."""
UNKNOWN = "which code and which base weights they came from is unknown"
"""What is said of records that 0.1 wrote."""
WORKER_BYTES = 2 * 1024**3
"""Memory that one worker process may need: torch and transformers alone take half a gigabyte."""

# Without rich's markup typer's help costs half as much and can be piped.
app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

SuiteName = Annotated[str, typer.Argument(metavar="SUITE", help="A suite of nftbench, or the path of a YAML file.")]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Records; default: runs/<suite>.")]
Jobs = Annotated[int | None, typer.Option("--jobs", min=1, help="Worker processes; default: one a core, 1 on cuda.")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:<n>.")]
Data = Annotated[
    Path | None,
    typer.Option("--data", metavar="DIR", exists=True, file_okay=False, help="Local data; default: the hub."),
]
Limit = Annotated[
    int | None, typer.Option("--limit", min=1, help="At most so many documents a split; such runs are never ranked.")
]
Cache = Annotated[
    Path | None,
    typer.Option("--cache", metavar="DIR", help="Models and data; default: $NFTBENCH_CACHE or ~/.cache/nftbench."),
]
Plugins = Annotated[
    list[str] | None, typer.Option("--plugin", metavar="FILE", help="Add the plugins in a file; repeatable.")
]
Changes = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the suite; repeatable.")
]
_VARIANTS = "a name without brackets is all of its variants in the suite"
Defenses = Annotated[str | None, typer.Option("--defenses", metavar="A,B[x=1]", help=f"Only these; {_VARIANTS}.")]
Attacks = Annotated[str | None, typer.Option("--attacks", metavar="A,B[x=1]", help=f"Only these; {_VARIANTS}.")]
Tasks = Annotated[str | None, typer.Option("--tasks", metavar="A,B", help=f"Only these; {_VARIANTS}.")]
Seeds = Annotated[str | None, typer.Option("--seeds", metavar="0,1", help="Only these base seeds.")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            code = app(words, prog_name="nftbench", standalone_mode=False, obj=shlex.join(["nftbench", *words]))
        except (NftbenchError, OSError) as error:
            return _say(str(error), BAD_INPUT)
        except typer.TyperException as error:
            return _say(error.format_message(), BAD_INPUT)
    if code == INTERRUPTED:  # what typer makes of Ctrl-C
        _say("interrupted; every finished record stays, and the same command goes on from there", INTERRUPTED)
    return int(code or 0)


@app.callback(invoke_without_command=True)
def nftbench(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    """How much a claim of non-fine-tunability is worth: defenses, attacks and one protocol."""
    if version:
        from nftbench import __version__

        typer.echo(__version__)
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


# ------------------------------------------------------------------------------------------------------- list, info


@app.command("list")
def list_(
    kind: Annotated[
        str | None, typer.Argument(metavar="[defenses|attacks|tasks|yardsticks|suites]", help="Only this.")
    ] = None,
) -> None:
    """List the defenses, attacks, tasks, yardsticks and suites that there are."""
    from nftbench.planning.registry import KINDS

    kinds = (*KINDS, "suites")
    if kind is not None and kind not in kinds:
        raise NftbenchError(f"list {kind}: no such kind{suggest(kind, kinds)}")
    for which in [kind] if kind is not None else kinds:
        lines = _listing(which)
        width = max((len(name) for name, _ in lines), default=0)
        typer.echo("\n".join([which, *(f"  {name:{width}}  {about}".rstrip() for name, about in lines)]))


def _listing(kind: str) -> list[tuple[str, str]]:
    """Names with a line about each; where it comes from, if not from nftbench."""
    from nftbench import suites
    from nftbench.planning import registry

    if kind == "suites":
        return [(name, suites.read(name).about.split("\n", 1)[0]) for name in suites.names()]
    plugins = registry.available(kind).values()  # type: ignore[arg-type]  # the caller has looked
    return [
        (plugin.name, plugin.about + (f" ({plugin.origin})" if plugin.path and plugin.origin != "nftbench" else ""))
        for plugin in plugins
    ]


@app.command()
def info(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A defense, attack, task, yardstick or suite.")],
    plugin: Plugins = None,
) -> None:
    """Show what a plugin is: paper, parameters, what it claims or knows; or the settings of a suite."""
    from nftbench.cli import info as descriptions
    from nftbench.planning import registry

    for file in plugin or ():
        registry.add_file(file)
    typer.echo(descriptions.describe(name))


# -------------------------------------------------------------------------------------------------------- plan, run


@dataclass(frozen=True)
class Request:
    """What a command line asks of a suite: the arguments that `plan` and `run` share, by their names there."""

    suite: str
    defenses: str | None
    attacks: str | None
    tasks: str | None
    seeds: str | None
    out: Path | None
    device: str
    data: Path | None
    limit: int | None
    plugin: list[str] | None
    changes: list[str] | None
    cache: Path | None

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Request:
        """Out of a verb's arguments, which typer wants spelled out for each verb."""
        return cls(**{field.name: arguments[field.name] for field in fields(cls)})

    @property
    def filters(self) -> Mapping[Kind, Sequence[str]]:
        return {
            "defenses": _listed("--defenses", self.defenses),
            "attacks": _listed("--attacks", self.attacks),
            "tasks": _listed("--tasks", self.tasks),
        }

    @property
    def base_seeds(self) -> Sequence[int]:
        parts = _listed("--seeds", self.seeds)
        for part in parts:
            if not part.isdecimal():
                raise NftbenchError(f"--seeds {self.seeds}: {part!r} is not a seed; write 0,1,2")
        return [int(part) for part in parts]


@dataclass(frozen=True)
class Work:
    """What a request comes to: the whole plan, the part that its filters leave, and where the records go."""

    whole: Plan
    part: Plan
    store: Store


@app.command()
def plan(
    suite: SuiteName,
    defenses: Defenses = None,
    attacks: Attacks = None,
    tasks: Tasks = None,
    seeds: Seeds = None,
    out: Out = None,
    jobs: Jobs = None,
    device: Device = "cpu",
    data: Data = None,
    limit: Limit = None,
    plugin: Plugins = None,
    changes: Changes = None,
    cache: Cache = None,
) -> None:
    """Show what a run would do, and about how long it would take; runs nothing."""
    work = _prepare(Request.of(locals()))
    from nftbench.planning import older_keys
    from nftbench.running import estimate  # not before: it loads torch

    older = older_keys.older_records(work.whole, work.store)
    _console().print(estimate.overview(work.part, work.store, _workers(jobs, device), older))
    if older:
        typer.echo(f"a run will take over {len(older)} records of nftbench 0.1; {UNKNOWN}")
    _tell_sources({**_planned(work.store, work.whole.manifest()), **older}, work.store)


@app.command()
def run(
    context: typer.Context,
    suite: SuiteName,
    defenses: Defenses = None,
    attacks: Attacks = None,
    tasks: Tasks = None,
    seeds: Seeds = None,
    out: Out = None,
    jobs: Jobs = None,
    device: Device = "cpu",
    data: Data = None,
    limit: Limit = None,
    plugin: Plugins = None,
    changes: Changes = None,
    force: Annotated[bool, typer.Option("--force", help="Forget the records of these cells first.")] = False,
    cache: Cache = None,
) -> None:
    """Run a suite, or what is left of it, and rank its defenses."""
    from nftbench.report import terminal

    work = _prepare(Request.of(locals()))
    if force:
        from nftbench.planning.older_keys import older_keys

        keys, older = [cell.key for cell in work.part.cells], older_keys(work.part)
        work.store.forget([*keys, *older.values()])
    raise typer.Exit(_run(work, jobs, plugin or (), context.obj, terminal.summary))


@app.command()
def reproduce(
    context: typer.Context,
    paper: Annotated[
        str,
        typer.Argument(
            metavar="PAPER", help="What a suite is named after `paper-`: pmp, dlr-lock, …; nftbench list has them."
        ),
    ],
    seeds: Seeds = None,
    out: Out = None,
    jobs: Jobs = None,
    device: Device = "cpu",
    data: Data = None,
    plugin: Plugins = None,
    changes: Changes = None,
    cache: Cache = None,
) -> None:
    """Run a paper's suite and show each of its claims beside what was measured."""
    from nftbench import suites
    from nftbench.report import terminal

    papers = [name.removeprefix("paper-") for name in suites.names() if name.startswith("paper-")]
    if paper not in papers:
        raise NftbenchError(f"no paper is named {paper!r}{suggest(paper, papers)}")
    whole: dict[str, Any] = dict.fromkeys(("defenses", "attacks", "tasks", "limit"))
    work = _prepare(Request.of({**locals(), **whole, "suite": f"paper-{paper}"}))
    raise typer.Exit(_run(work, jobs, plugin or (), context.obj, terminal.claims))


def _run(
    work: Work, jobs: int | None, plugins: Sequence[str], command: str, shown: Callable[[Leaderboard], RenderableType]
) -> int:
    """Carry out, show, publish; the exit code."""
    records = _carry_out(work, jobs, plugins, command)
    board = _board(records, work.store.manifest())
    _console().print(shown(board))
    for path in _publish(board, records, work.store.results, command):
        typer.echo(path)
    return _verdict(work, records)


@app.command()
def report(folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What run wrote: runs/<suite>.")]) -> None:
    """Rank the defenses again from the records in a folder."""
    from nftbench.records.store import Store, default_cache
    from nftbench.report import terminal

    store = Store(folder, default_cache())
    manifest = store.manifest()
    records = _planned(store, manifest)
    board = _board(records, manifest)
    _console().print(terminal.summary(board))
    _tell_sources(records, store)
    command = manifest.get("command") or f"nftbench report {shlex.quote(str(folder))}"
    for path in _publish(board, records, folder, command, redraw=True):
        typer.echo(path)


def _publish(
    board: Leaderboard, records: Mapping[str, Record], folder: Path, command: str, redraw: bool = False
) -> list[Path]:
    """Write the reports, and draw the figures if the scores have changed or one is missing: that takes seconds."""
    from nftbench import report as reports

    scores, pictures = folder / "leaderboard.json", [folder / name for name in FIGURES]
    before = scores.read_bytes() if scores.exists() else b""
    written = reports.write(board, folder, command)
    if not redraw and scores.read_bytes() == before and all(path.exists() for path in pictures):
        return [*written, *pictures]
    from nftbench.report import figures

    return [*written, *figures.write(board, list(records.values()), folder)]


def _prepare(request: Request) -> Work:
    """Read the suite, add what the request names beyond it, plan, narrow. Planning imports plugins, and they torch, so
    a line says at once that something happens.

    Raises:
        NftbenchError: whatever is wrong with the request; nothing has been written.
    """
    from nftbench import suites
    from nftbench.planning import registry
    from nftbench.planning.plan import narrow, plan as planned

    _use_cache(request.cache)
    _check_device(request.device)
    filters, seeds = request.filters, request.base_seeds
    suite = suites.read(request.suite, request.changes or ())
    _check_corpus(suite, request.data)
    added = [plugin for file in request.plugin or () for plugin in registry.add_file(file)]
    store = _store(request.out, suite.name)
    there = len([*store.results.glob("records/*.json")])
    typer.echo(f"{suite.name}: planning; {there} records in {store.results}")
    suite = _extended(suite, added, filters)
    whole = planned(suite, device=request.device, data=request.data, limit=request.limit)
    defenses, attacks, tasks = (filters[kind] for kind in ("defenses", "attacks", "tasks"))
    return Work(whole, narrow(whole, defenses=defenses, attacks=attacks, tasks=tasks, seeds=seeds), store)


def _store(out: Path | None, name: str) -> Store:
    from nftbench.records.store import Store, default_cache

    return Store(out or Path("runs") / name, default_cache())


def _use_cache(cache: Path | None) -> None:
    """Through the environment, for the generators of task documents and the workers look there too."""
    if cache is not None:
        os.environ["NFTBENCH_CACHE"] = str(cache.resolve())


def _check_device(device: str) -> None:

    kind, _, number = device.partition(":")
    if device == "cpu":
        return
    if kind != "cuda" or (":" in device and not number.isdecimal()):
        raise NftbenchError(f"--device {device}: no such device{suggest(device, ('cpu', 'cuda'))}")
    import torch

    if int(number or 0) >= torch.cuda.device_count():
        raise NftbenchError(
            f"--device {device}: torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices"
        )


def _check_corpus(suite: Suite, data: Path | None) -> None:
    """Missing text is known before anything runs; it would fail every cell."""
    if suite.corpus.source != "text":
        return
    if data is None:
        raise NftbenchError(f"{suite.name}: its pre-training text is local: give the folder with --data")
    for place in (suite.corpus.train, suite.corpus.heldout):
        if place is not None and not any(data.glob(place)):
            raise NftbenchError(f"{suite.name}: corpus: no file matches {data / place}")


def _check_model(suite: Suite) -> None:
    """A model that cannot be built would fail every cell."""
    from nftbench.running import estimate

    estimate.parameters_of(suite)


def _extended(suite: Suite, added: Sequence[Plugin], filters: Mapping[Kind, Sequence[str]]) -> Suite:
    """The suite with the plugins of --plugin files, and with what the filters name that it does not list."""
    from nftbench.planning import registry
    from nftbench.planning.plan import asked, exact

    for kind in registry.KINDS:
        wanted, files = filters.get(kind, ()), [plugin.name for plugin in added if plugin.kind == kind]
        if not wanted and not files:
            continue
        listed = getattr(suite, kind)
        present = {asked(kind, text) for text in (*listed, *(suite.utility if kind == "tasks" else ()))}
        names = {spec.name for spec in present}
        specs = {text: asked(kind, text) for text in wanted}
        new = [text for text, spec in specs.items() if (spec not in present if exact(text) else text not in names)]
        names |= {spec.name for spec in specs.values()}
        new += [name for name in files if name not in names]
        suite = suite.model_copy(update={kind: (*listed, *new)})
    return suite


def _carry_out(work: Work, jobs: int | None, plugins: Sequence[str], command: str) -> dict[str, Record]:
    """Run what is not settled; every record of the whole plan, by key."""
    from nftbench.planning import older_keys
    from nftbench.records.store import SETTLED

    store: Store = work.store
    manifest = {**work.whole.manifest(), "command": command}
    gc.freeze()  # what is imported stays; else collections while records are read walk all of torch, a quarter second
    taken = older_keys.take_over(work.whole, store)
    if taken:
        typer.echo(f"{taken} records of nftbench 0.1 taken over; {UNKNOWN}")
    records = _planned(store, manifest)
    _tell_sources(records, store)
    settled = {cell.key for cell in work.part.cells if cell.key in records and records[cell.key].status in SETTLED}
    todo = [job for job in work.part.jobs() if any(cell.key not in settled for cell in job.cells)]
    if todo:
        _check_model(work.whole.suite)
    cells = f"{len(work.part.cells)} cells, {len(settled)} settled"
    typer.echo(f"{work.whole.suite.name}: {cells}; {len(todo)} jobs to run")
    store.write_manifest(manifest)
    if not todo:
        return records
    from nftbench.cli import progress as display
    from nftbench.running import executors
    from nftbench.running.workspace import Workplace

    def board(news: Sequence[Record]) -> Leaderboard:
        records.update((record.key, record) for record in news)
        return _board(records, manifest)

    workers = min(_workers(jobs, work.part.device), len(todo))
    place = Workplace(work.whole, store, command)
    files = [str(Path(file).resolve()) for file in plugins]
    if workers > 1:
        _start_server()
    try:
        with display.shown(todo, workers, board, _console()) as show:
            for event in executors.run(place, todo, workers, files):
                show(event)
    except KeyboardInterrupt:
        _stop_workers()
        raise
    return _planned(store, manifest)


def _workers(jobs: int | None, device: str) -> int:
    """One a core, for a cell computes on one thread, if memory allows; on cuda one, whose cell has the card alone."""
    if jobs is not None:
        return jobs
    if device != "cpu":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(cores, memory // WORKER_BYTES))


def _start_server() -> None:
    """Start the process that workers are forked from. It and they inherit that Ctrl-C is ignored: it is ours to handle,
    and they would all speak at once."""
    import multiprocessing
    from multiprocessing import forkserver

    multiprocessing.get_context("forkserver").set_forkserver_preload(["nftbench.running.referee"])
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, handler)


def _stop_workers() -> None:
    """At exit the interpreter would wait for their cells, and the server would still fork a worker asked of it."""
    import multiprocessing
    from multiprocessing import forkserver

    server = getattr(forkserver, "_forkserver", None)  # the standard library has no public way to stop it
    pid = getattr(server, "_forkserver_pid", None)
    if pid is not None:
        os.kill(pid, signal.SIGKILL)
    for process in multiprocessing.active_children():
        process.terminate()


def _planned(store: Store, manifest: Mapping[str, Any]) -> dict[str, Record]:
    """The records that the manifest names, by key; records of other settings may lie beside them."""
    keys = {key for *_, key in [*_of(manifest, "cells", store), *manifest.get("readings", ())]}
    return {key: record for key, record in store.records().items() if key in keys}


def _board(records: Mapping[str, Record], manifest: Mapping[str, Any]) -> Leaderboard:
    from nftbench.scoring.score import score
    from nftbench.suites.schema import PaperClaim

    suite = manifest["suite"]
    return score(
        list(records.values()),
        utility_bar=suite["utility_bar"],
        ranking=frozenset(suite["ranking"]),
        about=suite.get("about", ""),
        planned=[(defense, attack, task, seed) for defense, attack, task, seed, _ in manifest["cells"]],
        claims=[PaperClaim.model_validate(claim) for claim in manifest.get("claims", ())],
        skips=manifest.get("skips", ()),
    )


def _verdict(work: Work, records: Mapping[str, Record]) -> int:
    """Exit code of a run; says how many cells are not ok and where."""
    cells = work.part.cells
    bad = [cell for cell in cells if cell.key not in records or records[cell.key].status != "ok"]
    if not bad:
        return 0
    first, record = bad[0], records.get(bad[0].key)
    why = f"{record.status} ({record.reason})" if record else "no record"
    place = f"{first.defense} × {first.attack} on {first.task}, seed {first.seed}"
    where = work.store.results / "records"
    return _say(f"{len(bad)} of {len(cells)} cells are not ok, first {place}: {why}; records in {where}", BAD_CELLS)


# ------------------------------------------------------------------------------------------------ calibrate, lm-eval


@app.command()
def calibrate(
    context: typer.Context,
    suite: SuiteName,
    proof: Annotated[
        str, typer.Option("--proof", metavar="NAME", help="null, dose, shams, oracle, power, attacks or spread.")
    ] = "calibration",
    defenses: Annotated[
        str | None, typer.Option("--defenses", metavar="A,B[x=1]", help="Rows to be tried; default: of --plugin files.")
    ] = None,
    attacks: Annotated[
        str | None, typer.Option("--attacks", metavar="A,B[x=1]", help="Instead of those that the proof chooses.")
    ] = None,
    shams: Annotated[Path | None, typer.Option("--shams", metavar="DIR", help="Add the plugins in a folder.")] = None,
    finished: Annotated[
        list[Path] | None,
        typer.Option("--from", metavar="DIR", help="Judge this finished run, and run nothing; power reads two."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Default: runs/<suite>-<proof>.")] = None,
    jobs: Jobs = None,
    device: Device = "cpu",
    data: Data = None,
    plugin: Plugins = None,
    changes: Changes = None,
    cache: Cache = None,
) -> None:
    """Prove that a suite finds what is there and nothing else; without --proof, that its tasks can tell anything."""
    from nftbench import calibration as validity, suites
    from nftbench.planning import registry
    from nftbench.planning.plan import plan as planned

    _use_cache(cache)
    _check_device(device)
    chosen, proved = validity.find(proof), suites.read(suite, changes or ())
    _check_heeded(context, proof, chosen, again=bool(finished))
    inside = sorted(map(str, shams.glob("[!_]*.py"))) if shams is not None else []
    if shams is not None and not inside:
        raise NftbenchError(f"--shams {shams}: no plugin files there")
    files = [*(plugin or ()), *inside]
    added = [one.name for file in files for one in registry.add_file(file) if one.kind == "defenses"]
    if isinstance(chosen, validity.Read):
        store = _store(out, f"{proved.name}-{proof}")
        found = chosen.judge(
            [validity.Run.read(folder, store.cache) for folder in finished or chosen.folders(proved.name)]
        )
    elif finished:
        store = _store(out, f"{proved.name}-{proof}")
        found = chosen.again(proved, proof, [validity.Run.read(folder, store.cache) for folder in finished])
    else:
        rows, few = _listed("--defenses", defenses) or added, _listed("--attacks", attacks)
        derived = chosen.derive(proved, rows, few)
        _check_corpus(derived, data)
        whole = chosen.needed(planned(derived, device=device, data=data))
        store = _store(out, derived.name)
        records = _carry_out(Work(whole, whole, store), jobs, files, context.obj)
        found = chosen.found(proved, validity.Run.of(whole, records))
    _console().print(validity.report(found))
    for path in validity.write(found, store.results, proof, context.obj):
        typer.echo(path)
    raise typer.Exit(0 if found.valid else BAD_CELLS)


def _check_heeded(context: typer.Context, proof: str, chosen: Measured | Read, again: bool) -> None:
    """Refuse an option of which the proof takes no notice; `again`: it judges records that are there."""
    from nftbench.calibration import Read

    ignored: tuple[str, ...] = ()
    if isinstance(chosen, Read) or again:
        ignored += ("attacks", "jobs", "device", "data")
    if isinstance(chosen, Read) or again or not chosen.tries:
        ignored += ("defenses", "shams")
    if isinstance(chosen, Read):
        ignored += ("plugin", "changes")
    for option in context.command.params:
        source = context.get_parameter_source(option.name or "")
        if option.name in ignored and source is not None and source.name == "COMMANDLINE":
            raise NftbenchError(f"--proof {proof}{' with --from' if again else ''} takes no {option.opts[0]}")


@app.command(
    "lm-eval",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def lm_eval(context: typer.Context) -> None:
    """Pass all arguments on to lm-eval, which then knows nftbench's tasks and architectures."""
    from lm_eval.__main__ import cli_evaluate

    import nftbench.models.networks  # noqa: F401 (registers the architectures that defenses add)
    from nftbench import tasks

    words = list(context.args)
    if words and words[0] in ("run", "ls", "validate"):
        # First, so that an --include_path among the arguments has the last word.
        words[1:1] = ["--include_path", tasks.__path__[0]]
    sys.argv = ["lm-eval", *words]
    cli_evaluate()


# ----------------------------------------------------------------------------------------------------------- reading


def _listed(option: str, text: str | None) -> list[str]:
    """Parts between commas, where the option is given."""
    from nftbench.records.spec import split

    parts = split(text or "")
    if text is not None and not parts:
        raise NftbenchError(f"{option} {text!r} names nothing; leave it out for the whole suite")
    return parts


def _of(manifest: Mapping[str, Any], key: str, store: Store) -> Any:
    try:
        return manifest[key]
    except (KeyError, TypeError):
        raise NftbenchError(f"{store.results / 'manifest.json'}: {key!r} is missing; nftbench run writes it") from None


# ----------------------------------------------------------------------------------------------------------- telling


def _console() -> Console:
    """Standard output; wide enough for tables where it is not a terminal."""
    from rich.console import Console

    found = Console()
    return found if found.is_terminal else Console(width=PIPE_WIDTH)


def _tell_sources(records: Mapping[str, Record], store: Store) -> None:
    """One line on how many of these cells come from other code than today's."""
    from nftbench.planning import code_origin

    line = code_origin.comparison(records.values(), store.cache)
    if line is not None:
        typer.echo(line)


def _say(message: str, code: int) -> int:
    """One line on stderr; hands back the exit code."""
    print(f"nftbench: {' '.join(message.split())}", file=sys.stderr)
    return code


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    _say(f"warning: {message}", 0)
