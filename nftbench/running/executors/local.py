"""Worker processes on this machine.

They are forked from a server process that has imported the heavy modules once, and end with the process that started
them.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import time
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from nftbench.planning import registry
from nftbench.planning.plan import Job
from nftbench.records import leases
from nftbench.records.record import Record
from nftbench.running import activity, isolation
from nftbench.running.executors import worker
from nftbench.running.executors.protocol import LISTEN_SECONDS, News, Stage, Step, name_of

if TYPE_CHECKING:
    from nftbench.running.workspace import Workspace

Records = list[Record] | None


class LocalExecutor:
    """So many worker processes on this machine."""

    def __init__(self, workspace: Workspace, workers: int) -> None:
        self.workspace, self.workers = workspace, workers
        self.waiting: deque[Step] = deque()
        self.running: dict[Future[Records], Step] = {}
        self.suspects: deque[Step] = deque()
        """Steps that ran when a worker died. Each is tried again alone, to find the one that kills its worker."""
        self.tried: Step | None = None
        """The suspect that runs now."""
        self.over: queue.SimpleQueue[Future[Records]] = queue.SimpleQueue()
        self.unsaid: list[News] = []
        self.heard, self.told = multiprocessing.get_context("forkserver").Pipe(duplex=False)
        self.name = f"worker-{uuid.uuid4()}"
        """The beginning of the names of the workers' signs of life."""
        self.looked = time.monotonic()

    def open(self) -> None:
        self.pool = self.start()

    def close(self) -> None:
        for process in list(self.pool._processes.values()):  # at its end, Python would wait for the steps under way
            process.kill()
        self.pool.shutdown(wait=False, cancel_futures=True)
        self.heard.close()
        self.told.close()

    def room(self) -> int:
        return 0 if self.suspects or self.tried else self.workers - len(self.running) - len(self.waiting)

    def begin(self, steps: Sequence[Step]) -> None:
        self.waiting.extend(steps)
        self.fill()

    def news(self) -> Sequence[News]:
        for future in self.ended():
            if future not in self.running:  # of a pool that a worker's death has broken
                continue
            error = future.exception()
            if isinstance(error, BrokenProcessPool):
                self.survive()
                continue
            step = self.running.pop(future)
            self.tried = None
            self.unsaid.append(News("ended", step, records=None if error else future.result(), error=error))
        self.listen()
        self.end_silent_workers()
        self.fill()
        told, self.unsaid = self.unsaid, []
        return told

    def start(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(isolation.PRELOADED)
        given = (self.workspace, registry.added_files(), self.told, self.name)
        return ProcessPoolExecutor(self.workers, context, _enter_worker, given)

    def fill(self) -> None:
        """Give steps to workers: one suspect at a time, or else as many steps as there are workers."""
        while steps := self.suspects or self.waiting:
            alone = bool(self.suspects or self.tried)
            if len(self.running) >= (1 if alone else self.workers):
                return
            step = steps.popleft()
            try:
                future = self.pool.submit(_perform, step.stage, step.job)
            except BrokenProcessPool:  # a worker died since the last step ended
                steps.appendleft(step)
                self.survive()
                continue
            self.tried = step if alone else None
            self.running[future] = step
            self.unsaid.append(News("started", step))
            future.add_done_callback(self.over.put)

    def ended(self) -> Iterator[Future[Records]]:
        """The futures that are done, those of a broken pool last. It waits if there is nothing else to say."""
        found: list[Future[Records]] = []
        with contextlib.suppress(queue.Empty):
            found.append(self.over.get(timeout=0 if self.unsaid else LISTEN_SECONDS))
            while True:
                found.append(self.over.get_nowait())
        found = [future for future in found if not future.cancelled()]
        yield from sorted(found, key=lambda future: isinstance(future.exception(), BrokenProcessPool))

    def survive(self) -> None:
        """Start a new pool after a worker died. Each step under way is tried again alone; one that dies alone fails."""
        steps = list(self.running.values())
        self.running.clear()
        self.tried = None
        self.pool.shutdown(wait=False, cancel_futures=True)
        self.pool = self.start()
        if len(steps) == 1:
            died = isolation.KilledError("the worker process died; the system may have run out of memory")
            self.unsaid.append(News("ended", steps[0], error=died))
        else:
            self.suspects += steps
            self.unsaid += [News("stopped", step) for step in steps]

    def listen(self) -> None:
        """Note what the workers have said since the last time about steps that run."""
        running = {step.name: step for step in self.running.values()}
        for name, words in activity.hear(self.heard):
            if name in running:
                self.unsaid.append(News("doing", running[name], words=words))

    def end_silent_workers(self) -> None:
        """Kill workers that have given no sign of life for too long: they hang, and with them the run would."""
        store = self.workspace.store
        if time.monotonic() - self.looked < store.expiry / leases.BEATS:
            return
        self.looked = time.monotonic()
        for number in store.silent_workers(self.name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)


def _perform(stage: Stage, job: Job) -> Records:
    activity.begin(name_of(stage, job))
    return worker.perform(_given[0], stage, job)


def _enter_worker(workspace: Workspace, plugins: Sequence[str], told: Connection, name: str) -> None:
    """Make the plugin files known, and end with the run."""
    activity.connect(told)
    for path in plugins:
        registry.add_file(path)
    _given.append(workspace)
    workspace.store.give_signs_of_life(f"{name}-{os.getpid()}")
    isolation.end_with_parent()


_given: list[Workspace] = []
"""The workspace, in a worker."""
