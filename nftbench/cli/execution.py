"""How a suite is run from the command line: `prepare` plans it, `carry_out` runs it, `publish` writes the reports."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from nftbench.cli import heartbeat, local_data
from nftbench.cli.console import complain, console
from nftbench.cli.options import RunOptions, Selection
from nftbench.errors import NftbenchError

if TYPE_CHECKING:
    from nftbench.cli.progress import Progress
    from nftbench.cli.salt import Salt
    from nftbench.device import Device
    from nftbench.planning.plan import Job, Plan
    from nftbench.planning.registry import Kind, Plugin
    from nftbench.planning.shards import Shard
    from nftbench.records.manifest import Manifest
    from nftbench.records.record import Record
    from nftbench.records.store import Store
    from nftbench.report.exports.trackers import Tracker
    from nftbench.running.estimate import Left
    from nftbench.running.executors.protocol import Executor
    from nftbench.running.workspace import Workspace
    from nftbench.scoring import Leaderboard
    from nftbench.suites.schema import Suite

FIGURES = tuple(f"{name}.{kind}" for name in ("frontier", "attacks", "budget") for kind in ("png", "svg"))
"""The files that nftbench.report.figures writes. The list is here because importing that module loads matplotlib."""

PUBLIC_SALT = "public salt: defenses could be tuned on these grammars before they were ranked on them"


@dataclass(frozen=True)
class Work:
    """A planned run: the plan of the whole suite, the selected part of it, the store for records, and the salt."""

    whole: Plan
    part: Plan
    store: Store
    salt: Salt | None
    shard: Shard | None = None
    """Which share of the selected part this is; None where it is all of it."""


# ---------------------------------------------------------------------------------------------------------- prepare


def prepare(suite_name: str, selection: Selection, options: RunOptions, *, keep_salt: bool = True) -> Work:
    """Read a suite, add plugins that only the command line names, plan it, and select a part.

    With `keep_salt`, the folder of results then holds the salt of the toy language.

    Planning imports nftbench's plugins, and these import torch, so a line is printed before that and while it lasts.

    Raises:
        NftbenchError: something in the command line is wrong; nothing has been written.
    """
    with heartbeat.still(f"{suite_name}: reading the suite, planning"):
        return _prepare(suite_name, selection, options, keep_salt)


def _prepare(suite_name: str, selection: Selection, options: RunOptions, keep_salt: bool) -> Work:
    from nftbench import suites
    from nftbench.cli.salt import plan_with_salt
    from nftbench.planning import registry, shards
    from nftbench.planning.plan import check_seeds, narrow, plan
    from nftbench.records.spec import Spec

    use_cache(options.cache, options.cache_size)
    device = available_device(options.device)
    names, seeds, shard = selection.names(), selection.base_seeds(), selection.share()
    suite = options.suite(suite_name)
    check_seeds(suite, seeds)
    added = [plugin for file in options.plugin or () for plugin in registry.add_file(file)]
    registry.check_readable(added, options.data)
    for plugin in added:
        if plugin.is_trusted:
            typer.echo(f"{plugin}: the referee runs its code, with your rights")
    store = open_store(options.out, suite.name)
    check_folder(store, suite.name)
    ask_apart(store, options.data)
    suite = _with_additions(suite, added, names)
    local_data.check(suite, options.data)
    typer.echo(f"{suite.name}: planning; {store.contents()} in {store.results}")

    def select(whole: Plan) -> Plan:
        return narrow(whole, defenses=names["defenses"], attacks=names["attacks"], tasks=names["tasks"], seeds=seeds)

    # In the suite's own file: whoever adds an attack could list it with --set.
    listed = {Spec.parse(text).name for text in suites.read(suite_name).attacks}

    def planned(salted: Suite) -> Plan:
        whole = plan(salted, device=device, data=options.data, limit=selection.limit)
        from_outside = {spec.name for spec in whole.attacks if not registry.find("attacks", spec.name).is_trusted}
        whole = replace(whole, added=tuple(sorted(from_outside - listed)))
        check_given(whole, store)
        select(whole)  # refuses filters that match nothing, before a salt is written
        return whole

    check_vocabulary(suite)
    check_base(suite)
    whole, salt = plan_with_salt(suite, store, planned, keep=keep_salt)
    part = select(whole)
    return Work(whole, shards.share(part, shard) if shard else part, store, salt, shard)


def open_store(out: Path | None, name: str) -> Store:
    """The store with its records in `out`, or in runs/`name`."""
    from nftbench.records.store import Store, default_cache

    return Store(out or Path("runs") / name, default_cache())


def check_folder(store: Store, name: str, kin: Collection[str] = ()) -> None:
    """Refuse a folder of results that belongs to another suite: its plan would be replaced.

    Args:
        name: the suite that is to be run.
        kin: other suites in whose folders it may go on.

    Raises:
        NftbenchError: names the folder's suite.
    """
    before = store.earlier_manifest()
    if before is None or before.suite.name in {name, *kin}:
        return
    own = before.suite.name
    raise NftbenchError(
        f"{store.results}: holds the suite {own}, and this is {name}: choose another folder with --out, or run {own} "
        f"there (for the same suite under a new name, add --set name={own})"
    )


def ask_apart(store: Store, data: Path | None) -> None:
    """Let added defenses and attacks say about themselves what a plan needs, each in a process of its own."""
    from nftbench.cli import workers
    from nftbench.planning import facts
    from nftbench.running.describing import Describer

    describer = Describer(store, data)

    def ask(plugin: Plugin, text: str, question: facts.Question, argument: Any) -> bytes:
        workers.start_server()
        return describer(plugin, text, question, argument)

    facts.describe_by(ask)


def use_cache(cache: Path | None, size: str | None) -> None:
    """Set the cache folder in the environment, where workers and the generators of task documents read it too, and its
    largest size. They stay until the command line ends.

    Raises:
        NftbenchError: the size is none.
    """
    from nftbench.records import disk_budget

    if cache is not None:
        os.environ["NFTBENCH_CACHE"] = str(cache.resolve())
    if size is not None:
        os.environ[disk_budget.VARIABLE] = size
    disk_budget.budget()


def available_device(text: str) -> Device:
    """The device that --device names.

    Raises:
        NftbenchError: it is no device, or this machine lacks it.
    """
    from nftbench.device import Device

    device = Device.parse(text)
    if device.kind == "cuda":
        import torch

        if (device.index or 0) >= torch.cuda.device_count():
            raise NftbenchError(
                f"--device {text}: torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices"
            )
    return device


def check_base(suite: Suite) -> None:
    """Refuse a given base on which every cell would fail.

    Raises:
        NftbenchError: it cannot be read, or does not suit the suite.
    """
    if suite.given is not None:
        from nftbench import suites
        from nftbench.running import preflight  # which loads torch

        try:
            note = preflight.check_base(suite)
        except NftbenchError as error:
            if suite.name in suites.names() and not Path(suite.given.path).exists():
                told = f"{error}. About {suite.name}: {suite.about}"  # which says where the weights come from
                raise NftbenchError(told) from None
            raise
        if note is not None:
            typer.echo(note)


def check_given(whole: Plan, store: Store) -> None:
    """Refuse a given release on which every cell would fail, and a given base that cannot read the suite's prompts.

    Raises:
        NftbenchError: one cannot be read, or does not suit the suite.
    """
    from nftbench.planning.plan import given_path

    if whole.suite.given is not None or any(given_path(spec) is not None for spec in whole.defenses):
        from nftbench.running import preflight  # which loads torch

        preflight.check_given(whole)
        preflight.check_prompts(whole, store)


def check_vocabulary(suite: Suite) -> None:
    """Refuse tasks in a natural language where models can read only the words of the toy language.

    Raises:
        NftbenchError: a task comes with lm-eval, and the suite's text is the toy language.
    """
    from nftbench.planning import registry
    from nftbench.records.spec import Spec

    if suite.corpus.source != "toy" or suite.given is not None:
        return
    for text in (*suite.tasks, *suite.benign, *suite.utility):
        if registry.find("tasks", Spec.parse(text).name).origin == "lm-eval":
            raise NftbenchError(
                f"{suite.name}: {text} is in a natural language, and the suite's models know the words of the toy "
                "language alone; choose a suite of real text, such as wiki"
            )


def _with_additions(suite: Suite, added: Sequence[Plugin], names: Mapping[Kind, Sequence[str]]) -> Suite:
    """The suite with the plugins of --plugin files, and with the selected plugins that it does not list."""
    from nftbench.planning import registry
    from nftbench.planning.plan import filter_spec, initialisations, names_one_spec
    from nftbench.records.spec import Spec

    for kind in registry.KINDS:
        selected, from_files = names.get(kind, ()), [plugin.name for plugin in added if plugin.kind == kind]
        if not selected and not from_files:
            continue
        for text in selected:
            registry.find(kind, Spec.parse(text).name)  # a wrong name is told before planning imports torch
        listed: tuple[str, ...] = getattr(suite, kind)
        also = {"defenses": (*suite.doses, *initialisations(suite)), "tasks": suite.utility}.get(kind, ())
        present = {filter_spec(kind, text) for text in (*listed, *also)}
        present_names = {spec.name for spec in present}
        specs = {text: filter_spec(kind, text) for text in selected}
        new = [
            text
            for text, spec in specs.items()
            if (spec not in present if names_one_spec(text) else text not in present_names)
        ]
        covered = present_names | {spec.name for spec in specs.values()}
        new += [name for name in from_files if name not in covered]
        suite = suite.model_copy(update={kind: (*listed, *new)})
    return suite


# -------------------------------------------------------------------------------------------------------- carry out


def carry_out(
    work: Work, options: RunOptions, command: str, after_seed: Callable[[int], None] = lambda seed: None
) -> dict[str, Record]:
    """Run every selected cell that is not settled; returns all records of the whole plan by key.

    `after_seed` is called with each base seed whose cells are all done, unless it is the last one.
    """
    from nftbench.records.store import planned
    from nftbench.records.versions import with_results

    store, suite = work.store, work.whole.suite
    before, manifest = store.earlier_manifest(), work.whole.manifest(command)
    with heartbeat.still(f"{suite.name}: reading records"), _uncollected():
        found = store.records()
        manifest = replace(manifest, versions=before.versions if before is not None else ())
        manifest = replace(manifest, versions=with_results(manifest, found.values()))
        records = planned(found, manifest)
        tell_origin(store, found, records, manifest)
        compare_hardware(records.values(), work.part.device)
        jobs = _open_jobs(work.part, records)
        progress = _progress(work, options, jobs, records) if jobs else None
    typer.echo(f"{_counted(work, records)}; {progress.outlook() if progress else 'nothing is left to run'}")
    manifest = _with_salt(manifest, work, before, bool(jobs))
    store.write_manifest(manifest)
    if progress is None:
        return records
    _say_isolation()
    _run_jobs(work, jobs, options, manifest, records, progress, after_seed)
    return store.planned(manifest)


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Without garbage collections; and no later one looks at what is there in the end: modules, and thousands of
    records, which stay as long as the process. Walking all of torch alone takes a quarter second."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _counted(work: Work, records: Mapping[str, Record]) -> str:
    """The suite's name and its cells, as `small: 34 of 1161 cells done`."""
    from nftbench.records.count import count

    whole, part = work.whole, work.part
    counted = count([cell.key for cell in part.cells], records)
    some = f" (a part of the suite's {len(whole.cells)})" if len(part.cells) < len(whole.cells) else ""
    share = f", shard {work.shard}" if work.shard else ""
    return f"{whole.suite.name}{share}: {counted}{some}"


def _progress(work: Work, options: RunOptions, jobs: Sequence[Job], records: Mapping[str, Record]) -> Progress:
    """The progress of a run before it begins.

    Raises:
        NftbenchError: the suite's model cannot be built: every cell would fail.
    """
    from nftbench.cli.progress import Progress
    from nftbench.records.count import count
    from nftbench.records.store import settled
    from nftbench.running import estimate, forecast

    part = work.part
    left = estimate.remaining(part, work.store, settled(part.cells, records))
    expected = forecast.forecast(part, left, estimate.parameters_of(part.suite), records.values())
    number = min(worker_count(work, options, records), len(jobs))
    return Progress(count([cell.key for cell in part.cells], records), expected, len(jobs), number)


def _with_salt(manifest: Manifest, work: Work, before: Manifest | None, computes: bool) -> Manifest:
    """The manifest with the salt, if it is public. What is computed from now on could be tuned for such a salt."""
    if work.salt is None or not work.salt.public:
        return manifest
    return replace(manifest, salt=work.salt.text, public_salt=computes or (before is not None and before.public_salt))


def _say_isolation() -> None:
    """Say where this system cannot hide secrets and test documents from plugins."""
    from nftbench.running import isolation

    if isolation.kind() == "process":
        typer.echo("isolation: process; without Landlock (Linux 5.13), plugins could read the cache and its secrets")


def compare_hardware(records: Iterable[Record], device: Device) -> None:
    """Say, before any work, where the folder's records come from another processor than this one."""
    from nftbench.running.hardware import hardware, other_hardware

    note = other_hardware(records, hardware(device))
    if note is not None:
        typer.echo(note)


def _open_jobs(part: Plan, records: Mapping[str, Record]) -> list[Job]:
    """The jobs of the cells that are not settled.

    Workers look at single files only, and a settled record may be in the pack.
    """
    from nftbench.records.store import settled

    keys = settled(part.cells, records)
    return replace(part, cells=tuple(cell for cell in part.cells if cell.key not in keys)).jobs()


def worker_count(work: Work, options: RunOptions, records: Mapping[str, Record]) -> int:
    """How many workers a run has. On a given base, which may be large, as many as memory allows.

    Raises:
        NftbenchError: not even one fits into memory, or fewer than were asked for; or the releases do not fit on disk.
    """
    from nftbench.cli import workers
    from nftbench.records.store import settled
    from nftbench.running import estimate

    plan = work.part
    if options.executor != "local":
        return options.jobs or len(plan.cells)  # as many as the cluster has room for
    if plan.suite.given is None:
        return workers.count(options.jobs, plan.device)
    left = estimate.remaining(plan, work.store, settled(plan.cells, records))
    return workers_that_fit(work, options, left, estimate.parameters_of(plan.suite))


def workers_that_fit(work: Work, options: RunOptions, left: Left, parameters: int) -> int:
    """How many workers memory allows for what is left, on a base with so many parameters.

    Raises:
        NftbenchError: as `worker_count`.
    """
    from nftbench.cli import workers
    from nftbench.running import estimate, preflight

    plan, store = work.part, work.store
    needed = functools.partial(estimate.memory_bytes, left, parameters)
    usual = workers.count(options.jobs, plan.device)
    most_for = estimate.most_for(left, parameters)
    number = preflight.workers_that_fit(options.jobs, usual, needed, plan.device, most_for)
    least, passing = (count(plan, left, parameters, number) for count in (estimate.least_bytes, estimate.passing_bytes))
    preflight.check_disk(estimate.disk_bytes(plan, left, parameters), least, passing, store.cache)
    return number


def _run_jobs(
    work: Work,
    jobs: Sequence[Job],
    options: RunOptions,
    manifest: Manifest,
    records: Mapping[str, Record],
    progress: Progress,
    after_seed: Callable[[int], None],
) -> None:
    """Run the jobs and show their progress, with the leaderboard so far, which begins from `records`.

    It is that of the complete base seeds, once there is one: a seed that has only begun leaves no row an excess.
    """
    from nftbench.cli import stopping
    from nftbench.cli.progress import display
    from nftbench.records.count import complete_seeds
    from nftbench.running.executors import steps
    from nftbench.running.workspace import Workspace

    planned = {cell.key for cell in work.part.cells}
    done = planned & records.keys()
    stopping.tell(len(done), len(planned), progress.made, progress.releases)
    so_far, left = dict(records), Counter(job.seed for job in jobs)

    def leaderboard(new: Sequence[Record]) -> Leaderboard:
        so_far.update((record.key, record) for record in new)
        return rank(so_far, manifest, complete_seeds(manifest, so_far) or None)

    workspace = Workspace(work.whole, work.store, manifest.command, options.trust_code)
    executor = _executor(work, options, workspace, progress.workers)
    with display(progress, leaderboard, console()) as show, work.store.together():
        for event in steps.run(workspace, jobs, executor):
            show(event)
            done |= {record.key for record in event.records}
            stopping.tell(len(done), len(planned), progress.made, progress.releases)
            if event.kind == "finished" and event.stage == "attack":
                left[event.job.seed] -= 1
                if not left[event.job.seed] and left.total():
                    after_seed(event.job.seed)


def _executor(work: Work, options: RunOptions, workspace: Workspace, count: int) -> Executor:
    """What carries out the steps of a run, ready to be opened. A signal that ends the command closes it."""
    from nftbench.cli import stopping, workers
    from nftbench.records.store import settled
    from nftbench.running import estimate
    from nftbench.running.executors import local, ray, slurm

    if options.executor == "local":
        workers.start_server()
        return local.LocalExecutor(workspace, count)
    plan = work.part
    left = estimate.remaining(plan, work.store, settled(plan.cells, work.store.planned(plan.manifest())))
    memory = estimate.memory_bytes(left, estimate.parameters_of(plan.suite), 1)
    executor: Executor
    if options.executor == "ray":
        executor = ray.RayExecutor(workspace, options.address, options.jobs, memory)
    else:
        path = options.parallel_config
        settings = slurm.Settings.read(path) if path is not None else slurm.Settings()
        executor = slurm.SlurmExecutor(workspace, settings, options.jobs, memory)
    stopping.before_the_end(executor.close)
    return executor


# ---------------------------------------------------------------------------------------------------- rank, publish


def tell_origin(store: Store, found: Mapping[str, Record], records: Mapping[str, Record], manifest: Manifest) -> None:
    """Say how many of the records found in a folder belong to no cell of the plan, so that they do not count; and how
    many of the planned `records` come from other code than today's."""
    from nftbench.planning import code_origin
    from nftbench.records.unplanned import unplanned

    if left_out := str(unplanned(found.values(), manifest)):
        typer.echo(
            f"records in {store.results} that do not count: {left_out}. They stay: with the settings and the code that "
            "made them they count again (nftbench merge adds another folder's)"
        )
    if line := code_origin.comparison(records.values(), store.cache):
        typer.echo(line)


def rank(records: Mapping[str, Record], manifest: Manifest, seeds: Collection[int] | None = None) -> Leaderboard:
    """The leaderboard of a manifest's records; with `seeds`, of a run that was planned for these base seeds alone."""
    from nftbench.records.count import count
    from nftbench.records.versions import dropped
    from nftbench.scoring import score

    suite = manifest.suite
    counted = {cell.seed for cell in manifest.cells} if seeds is None else seeds
    board = score(
        [record for record in records.values() if record.seed in counted],
        ranking=frozenset(suite.ranking),
        ladder=manifest.ladder,
        initialisations=manifest.initialisations,
        about=suite.about,
        planned=[cell.id for cell in manifest.cells if cell.seed in counted],
        claims=manifest.claims,
        skips=manifest.skips,
        added=manifest.added,
        left_out=manifest.left_out,
        dropped=dropped(manifest, records.values()),
    )
    problems = (*board.problems, PUBLIC_SALT) if manifest.public_salt else board.problems
    counted_cells = count([cell.key for cell in (*manifest.cells, *manifest.readings) if cell.seed in counted], records)
    return replace(
        board,
        problems=problems,
        labels=suite.labels,
        own_labels=manifest.labels,
        added_defenses=manifest.added_defenses,
        origin=replace(
            board.origin,
            records=counted_cells.recorded,
            planned=counted_cells.cells,
            provenance=replace(board.origin.provenance, salt=_salt(manifest)),
        ),
    )


def _salt(manifest: Manifest) -> Literal["drawn", "public"] | None:
    if manifest.suite.corpus.source != "toy":
        return None
    return "public" if manifest.public_salt else "drawn"


def claims_fail(boards: Iterable[Leaderboard]) -> bool:
    """Whether a paper's claim does not hold or is not measured, or a defense's is refuted. One line names these."""
    from nftbench.scoring.side_tables.paper_claims import PaperClaims

    failed = []
    for board in boards:
        failed += [
            f"{one.claim.says}: {one.outcome}"
            for one in board.side_table(PaperClaims).rows
            if one.outcome in ("does not hold", "not distinguishable", "not measured")
        ]
        failed += [f"{one.defense}: its claim is refuted" for one in board.scores if one.claim.verdict == "refuted"]
    if failed:
        complain(f"{len(failed)} claim{'s' * (len(failed) > 1)} fail{'s' * (len(failed) == 1)}: {'; '.join(failed)}")
    return bool(failed)


def publish(
    leaderboard: Leaderboard, records: Mapping[str, Record], folder: Path, command: str, redraw: bool = False
) -> list[Path]:
    """Write the reports and return their paths. Figures take seconds, so they are drawn only where the scores have
    changed, where one is missing, or with `redraw`."""
    from nftbench import report

    scores, pictures = folder / "leaderboard.json", [folder / name for name in FIGURES]
    before = scores.read_bytes() if scores.exists() else b""
    with heartbeat.still(f"{leaderboard.suite}: writing the leaderboard and its figures"):
        written = report.write(leaderboard, folder, command)
        if not redraw and scores.read_bytes() == before and all(path.exists() for path in pictures):
            return [*written, *pictures]
        from nftbench.report import figures

        return [*written, *figures.write(leaderboard, list(records.values()), folder)]


def export(folder: Path, formats: Iterable[str] = (), log_to: Tracker | None = None) -> list[Path]:
    """Write a folder's results in other tools' formats, log them with a tracker, and return the files' paths."""
    from nftbench.records.store import Store, default_cache, write_atomically
    from nftbench.report.exports import FORMATS, published, trackers

    if not formats and log_to is None:
        return []
    store = Store(folder, default_cache())
    manifest = store.manifest()
    command = manifest.command or f"nftbench report {folder.name}"
    results = published(manifest, store.planned(manifest).values(), command, rank)
    paths = []
    for name in formats:
        for file, text in FORMATS[name](results).items():
            path = folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, text.encode())
            paths.append(path)
    if log_to is not None:
        trackers.log(results, log_to)
        typer.echo(f"{folder}: logged with {log_to}")
    return paths
