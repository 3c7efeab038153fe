"""Runs jobs in worker processes. A job starts once the release that it attacks is made.

Workers are the referee's: they import neither defenses nor attacks, about which the plan knows enough. They are forked
from a server process that has imported the heavy modules once, and end with the process that started them.
"""

from __future__ import annotations

import heapq
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait as wait_for_end
from typing import TYPE_CHECKING, Literal

from nftbench.planning import registry
from nftbench.planning.plan import Job
from nftbench.records.record import Record
from nftbench.running import activity, isolation

if TYPE_CHECKING:
    from nftbench.running.workspace import Workspace

BUSY_SECONDS = 1.0
"""How long to wait before asking again for a job that another run holds."""
LISTEN_SECONDS = 0.5
"""How long to wait for the end of a step before asking again what the workers say."""

Stage = Literal["protect", "attack"]


@dataclass(frozen=True)
class Event:
    """The start or end of a step, or what is being done for it now; for the display of progress."""

    kind: Literal["started", "doing", "finished"]
    stage: Stage
    job: Job
    records: tuple[Record, ...] = ()
    words: str = ""
    """What is being done."""


@dataclass(frozen=True, order=True)
class _Step:
    """A release to make or a job to run. Steps run in the order of seeds, releases before attacks."""

    order: tuple[int, int, int]
    stage: Stage
    job: Job


def run(workspace: Workspace, jobs: Sequence[Job], workers: int) -> Iterator[Event]:
    """Run all jobs, as many at a time as there are workers, and yield an event at the start and end of each step.

    Between these, there are events of what the workers say that they do.
    """
    yield from _Pool(workspace, _steps(jobs), workers).run()


def _steps(jobs: Sequence[Job]) -> list[_Step]:
    first: dict[str, Job] = {}
    for job in jobs:
        first.setdefault(job.release, job)
    releases = [_Step((job.seed, 0, index), "protect", job) for index, job in enumerate(first.values())]
    return releases + [_Step((job.seed, 1, index), "attack", job) for index, job in enumerate(jobs)]


def _perform(workspace: Workspace, stage: Stage, job: Job) -> list[Record] | None:
    from nftbench.running import referee

    activity.begin(_step_name(stage, job))
    if stage == "protect":
        referee.protect(workspace, job)
        return []
    return referee.execute(workspace, job)


def _step_name(stage: Stage, job: Job) -> str:
    return f"{stage} {job.key}"


def _failed_records(workspace: Workspace, job: Job, error: BaseException) -> list[Record]:
    """Failed records for a job that could not run: its release cannot be made, or its process died."""
    from nftbench.running import failures, referee

    if isinstance(error, BrokenProcessPool):
        return referee.fail(workspace, job, "oom", "the worker process died; the system may have run out of memory")
    return referee.fail(workspace, job, *failures.status_of(error))


class _Pool:
    """The worker processes, and the steps that are left to run."""

    def __init__(self, workspace: Workspace, steps: Sequence[_Step], workers: int) -> None:
        self.workspace, self.workers = workspace, workers
        self.ready: list[_Step] = []
        self.blocked: dict[str, list[_Step]] = {}
        to_make = {step.job.release for step in steps if step.stage == "protect"}
        leaders: dict[str, str] = {}
        for step in sorted(steps):
            release = step.job.release
            if step.stage == "attack":
                self.blocked.setdefault(release, []).append(step)
                continue
            # A release takes its reference's. Where that is no step of its own, the first release makes it on its way.
            reference = workspace.reference(step.job.defense, step.job.seed)[1] or release
            leader = reference if reference in to_make else leaders.setdefault(reference, release)
            if leader == release:
                heapq.heappush(self.ready, step)
            else:  # a worker would only wait for the leader
                self.blocked.setdefault(leader, []).append(step)
        self.failed: dict[str, BaseException] = {}
        self.running: dict[Future[list[Record] | None], _Step] = {}
        self.suspects: list[_Step] = []
        self.heard, self.told = multiprocessing.get_context("forkserver").Pipe(duplex=False)

    def run(self) -> Iterator[Event]:
        self.pool = self.start()
        try:
            while self.ready or self.running or self.suspects:
                yield from self.submit()
                yield from self.collect()
        finally:
            self.pool.shutdown(wait=False, cancel_futures=True)
            self.heard.close()
            self.told.close()

    def start(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(isolation.PRELOADED)
        return ProcessPoolExecutor(self.workers, context, _enter_worker, (registry.added_files(), self.told))

    def submit(self) -> Iterator[Event]:
        """Give steps to workers. After a worker died, the steps under way run alone, to find the one that kills it."""
        room = 1 if self.suspects else self.workers
        while len(self.running) < room and (self.ready or self.suspects):
            step = self.suspects.pop(0) if self.suspects else heapq.heappop(self.ready)
            if step.stage == "attack" and step.job.release in self.failed:
                records = _failed_records(self.workspace, step.job, self.failed[step.job.release])
                yield Event("finished", step.stage, step.job, tuple(records))
                continue
            try:
                self.running[self.pool.submit(_perform, self.workspace, step.stage, step.job)] = step
            except BrokenProcessPool:  # a worker died since the last step finished
                heapq.heappush(self.ready, step)
                yield from self.survive()
                return
            yield Event("started", step.stage, step.job)

    def collect(self) -> Iterator[Event]:
        """Wait for steps to finish; the attacks on a finished release become ready."""
        if not self.running:
            return
        done, _ = wait(self.running, LISTEN_SECONDS, FIRST_COMPLETED)
        yield from self.listen()
        broken = [future for future in done if isinstance(future.exception(), BrokenProcessPool)]
        if broken:
            yield from self.survive()
            return
        for future in done:
            step = self.running.pop(future)
            error = future.exception()
            if error is None and (records := future.result()) is None:
                time.sleep(BUSY_SECONDS)  # another run holds the job
                heapq.heappush(self.ready, step)
                continue
            yield from self.finish(step, error, [] if error is not None else records or [])

    def listen(self) -> Iterator[Event]:
        """What the workers have said since the last time about steps that run."""
        running = {_step_name(step.stage, step.job): step for step in self.running.values()}
        for name, words in activity.hear(self.heard):
            if name in running:
                yield Event("doing", running[name].stage, running[name].job, words=words)

    def finish(self, step: _Step, error: BaseException | None, records: Sequence[Record]) -> Iterator[Event]:
        if step.stage == "protect":
            if error is not None:
                self.failed[step.job.release] = error
            for freed in self.blocked.pop(step.job.release, []):
                heapq.heappush(self.ready, freed)
        elif error is not None:
            records = _failed_records(self.workspace, step.job, error)
        yield Event("finished", step.stage, step.job, tuple(records))

    def survive(self) -> Iterator[Event]:
        """Start a new pool after a worker died. Each step under way is tried again alone; one that dies alone fails."""
        steps = list(self.running.values())
        self.running.clear()
        self.pool.shutdown(wait=False, cancel_futures=True)
        self.pool = self.start()
        if len(steps) == 1:
            yield from self.finish(steps[0], BrokenProcessPool("the worker process died"), [])
        else:
            self.suspects += steps


def _enter_worker(plugins: Sequence[str], told: Connection) -> None:
    """Make the plugin files known, and end with the parent: a killed run must leave no worker that goes on writing."""
    activity.connect(told)
    for path in plugins:
        registry.add_file(path)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch(sentinel: int, end: Callable[[int], None]) -> None:
        wait_for_end([sentinel])
        end(1)

    threading.Thread(target=watch, args=(parent.sentinel, os._exit), daemon=True).start()
