"""Decides which step of a run comes next. A job starts once the release that it attacks is made."""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from nftbench.errors import NftbenchError
from nftbench.planning.plan import Job
from nftbench.records.record import Record
from nftbench.running.executors.protocol import Executor, News, Stage, Step

if TYPE_CHECKING:
    from nftbench.running.workspace import Workspace

BUSY_SECONDS = 1.0
"""How long to wait before asking again for a job that another run holds."""


@dataclass(frozen=True)
class Event:
    """The start or end of a step, or what is being done for it now; for the display of progress.

    A step is `stopped` if a worker died while it ran. It will start again.
    """

    kind: Literal["started", "doing", "stopped", "finished"]
    stage: Stage
    job: Job
    records: tuple[Record, ...] = ()
    words: str = ""
    """What is being done."""
    failure: str = ""
    """Why a release could not be made, as in `oom (its process was killed)`. Jobs have failed records instead."""


def run(workspace: Workspace, jobs: Sequence[Job], executor: Executor) -> Iterator[Event]:
    """Run all jobs, as many at a time as the executor takes, and yield an event at the start and end of each step.

    Between these, there are events of what is being done for a step.

    Raises:
        NftbenchError: the executor cannot work here.
    """
    queue = _Queue(workspace, _steps(jobs))
    executor.open()
    try:
        while queue.is_left():
            yield from queue.begin(executor)
            for news in executor.news():
                yield from queue.take(news)
    finally:
        executor.close()


def _steps(jobs: Sequence[Job]) -> list[Step]:
    first: dict[str, Job] = {}
    for job in jobs:
        first.setdefault(job.release, job)
    releases = [Step((job.seed, 0, index), "protect", job) for index, job in enumerate(first.values())]
    return releases + [Step((job.seed, 1, index), "attack", job) for index, job in enumerate(jobs)]


class _Queue:
    """The steps that are left to run."""

    def __init__(self, workspace: Workspace, steps: Sequence[Step]) -> None:
        self.workspace = workspace
        self.ready: list[Step] = []
        """A heap."""
        self.busy: list[tuple[float, Step]] = []
        """A heap of steps to be tried again, each with the moment for it by the monotonic clock."""
        self.blocked: dict[str, list[Step]] = {}
        """Steps that wait for a release, by its key."""
        self.failed: dict[str, BaseException] = {}
        """Why releases could not be made, by their keys."""
        self.running = 0
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

    def is_left(self) -> bool:
        return bool(self.ready or self.busy or self.running)

    def begin(self, executor: Executor) -> Iterator[Event]:
        """Give the executor as many steps as it takes. Attacks on releases that could not be made fail at once."""
        while self.busy and self.busy[0][0] <= time.monotonic():
            heapq.heappush(self.ready, heapq.heappop(self.busy)[1])
        room = executor.room() if self.ready else 0
        begun: list[Step] = []
        while self.ready and len(begun) < room:
            step = heapq.heappop(self.ready)
            if step.stage == "attack" and step.job.release in self.failed:
                yield self.fail(step, self.failed[step.job.release])
            else:
                begun.append(step)
        if begun:
            self.running += len(begun)
            executor.begin(begun)

    def take(self, news: News) -> Iterator[Event]:
        """Take what has happened to a step. What waits for a release becomes ready when that has ended."""
        step = news.step
        if news.kind == "ended":
            self.running -= 1
            yield from self.end(step, news.records, news.error)
        else:
            yield Event(news.kind, step.stage, step.job, words=news.words)

    def end(self, step: Step, records: Sequence[Record] | None, error: BaseException | None) -> Iterator[Event]:
        if records is None and error is None:
            heapq.heappush(self.busy, (time.monotonic() + BUSY_SECONDS, step))
            return
        failure = ""
        if step.stage == "protect":
            if error is not None:
                self.failed[step.job.release] = error
                failure = _in_words(error)
            for freed in self.blocked.pop(step.job.release, []):
                heapq.heappush(self.ready, freed)
        elif error is not None:
            yield self.fail(step, error)
            return
        yield Event("finished", step.stage, step.job, tuple(records or ()), failure=failure)

    def fail(self, step: Step, error: BaseException) -> Event:
        """Write failed records for a job that could not run: its release cannot be made, or its process died.

        Raises:
            NftbenchError: not even these can be written, as on a full disk.
        """
        from nftbench.running import failures, referee

        status, reason = failures.status_of(error)
        try:
            records = referee.fail(self.workspace, step.job, status, reason)
        except OSError as failed:
            folder = self.workspace.store.results
            why = f"{failed.strerror or failed}; {reason}"
            raise NftbenchError(f"{folder}: no record can be written ({why}); every finished cell is kept") from failed
        return Event("finished", step.stage, step.job, tuple(records))


def _in_words(error: BaseException) -> str:
    from nftbench.running import failures

    status, reason = failures.status_of(error)
    return f"{status} ({reason})"
