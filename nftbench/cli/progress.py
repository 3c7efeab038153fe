"""The progress of a run: a live panel on a terminal, plain lines elsewhere.

Both say how many cells are done, what runs now and when it will be over. The panel holds the leaderboard so far; a log
gets one after each base seed.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from nftbench.cli import heartbeat
from nftbench.errors import shortened
from nftbench.planning.plan import Job
from nftbench.records.count import Count
from nftbench.records.record import Record
from nftbench.records.store import SETTLED
from nftbench.report import terminal
from nftbench.running import activity
from nftbench.running.estimate import duration
from nftbench.running.executors.protocol import Stage
from nftbench.running.executors.steps import Event
from nftbench.running.forecast import Forecast, about, base_step
from nftbench.scoring import Leaderboard

BOARD_SECONDS = 5.0
"""The shortest time between two updates of the live leaderboard."""
BOARD_SHARE = 0.02
"""The largest share of the time that is spent on scoring the leaderboard so far, or on estimating the time left."""

MOST_SHOWN = 16
"""The most steps that are named among those that run."""

ScoreSoFar = Callable[[Sequence[Record]], Leaderboard]
"""A function from the records that are new since its last call to the leaderboard of all records so far."""


@contextlib.contextmanager
def display(progress: Progress, score: ScoreSoFar, console: Console) -> Iterator[Callable[[Event], None]]:
    """Show a run; yields the function that takes the run's events."""
    if console.is_terminal:
        panel = _Panel(progress, _SoFar(score), console)
        # transient: the verb prints the last leaderboard when the run is over
        with Live(get_renderable=panel.render, console=console, refresh_per_second=2, transient=True):
            yield panel.add
        return
    with heartbeat.doing(lambda: f"{progress.head()} {progress.now()}") as heart:
        yield lambda event: _print(progress, heart, event)


@dataclass
class Running:
    """A step that runs."""

    stage: Stage
    job: Job
    started: float
    """By the monotonic clock."""
    words: str = ""
    """What its worker says that it does."""
    said: float = 0.0
    """When its worker said so."""
    waited: float = 0.0
    """For how many seconds it waited for other processes before that."""

    def __str__(self) -> str:
        words = f"{self.words}, " if self.words else ""
        return f"{_title(self.stage, self.job)} ({words}{duration(time.monotonic() - self.started)})"

    @property
    def waits(self) -> bool:
        """Whether another process makes what it needs."""
        return self.words == activity.WAITS

    def says(self, words: str, now: float) -> None:
        """Take what its worker does from now on."""
        self.waited += now - self.said if self.waits else 0.0
        self.words, self.said = words, now

    def worked(self, now: float) -> float:
        """For how many seconds it has run without waiting."""
        return now - self.started - self.waited - (now - self.said if self.waits else 0.0)


class Progress:
    """The state of a run: how many cells are done, the steps that run now, and how long the rest takes.

    A step makes a release, or runs a job.

    Args:
        count: the cells before the run begins.
        forecast: the steps that the run consists of.
        jobs: how many of them are jobs.
    """

    def __init__(self, count: Count, forecast: Forecast, jobs: int, workers: int) -> None:
        self.jobs = jobs
        self.cells, self.done, self.failed = count.cells, count.done, 0
        self.releases, self.made = sum(step.stage == "protect" for step in forecast.left.values()), 0
        """The releases that were missing at first, and how many are made by now: no cell is done before its release."""
        self.forecast, self.workers = forecast, workers
        self.running: dict[str, Running] = {}
        self.left, self.estimate_again = 0.0, 0.0
        """The estimated seconds until the end, and when they are estimated again by the monotonic clock."""

    def add(self, event: Event) -> float:
        """Take an event; returns the seconds that a step took which is over now, 0 for all others."""
        key, now = _key(event), time.monotonic()
        if event.kind == "started":
            self.running[key] = Running(event.stage, event.job, now)
            return 0.0
        if event.kind == "doing":
            self.running[key].says(event.words, now)
            return 0.0
        step = self.running.pop(key, None)
        if event.kind == "finished":
            self._finish(event, step, now)
        return now - step.started if step else 0.0

    def _finish(self, event: Event, step: Running | None, now: float) -> None:
        """Count what a finished step has done, and learn from the time that it took."""
        key = _key(event)
        # Not measured: a job whose release could not be made, and a step that waited until another process had done it.
        measured = step.worked(now) if step and not step.waits else None
        if event.stage == "protect":  # the first release of a seed makes its base, or waits until it is made
            base = base_step(event.job.seed)
            made = step is not None and not step.waited and not step.waits and not event.failure
            self.made += key in self.forecast.left and not event.failure
            self.forecast = self.forecast.after([key, base] if made else [base], measured if made else None)
        self.forecast = self.forecast.after([key], None if event.failure else measured)
        if event.stage == "attack":
            failed = sum(record.status not in SETTLED for record in event.records)
            self.failed += failed
            self.done += len(event.job.cells) - failed

    def seconds_left(self) -> float:
        """The estimated time until the run is over. It is not estimated more often than it may take time."""
        begun = time.monotonic()
        if begun >= self.estimate_again:
            self.left = self._seconds_left()
            ended = time.monotonic()
            self.estimate_again = ended + (ended - begun) / BOARD_SHARE
        return self.left

    def _seconds_left(self) -> float:
        now, spent = time.monotonic(), dict[str, float]()
        for key, step in list(self.running.items()):  # a copy, because the run goes on while this is shown
            base = base_step(step.job.seed)
            makes_base = step.stage == "protect" and base in self.forecast.left
            spent[base if makes_base else key] = step.worked(now)
        return self.forecast.total(self.workers, spent)

    def outlook(self) -> str:
        """What is to be done, before it begins: `249 jobs to run, about 25 min with 2 workers`."""
        jobs = f"{self.jobs} job{'s' * (self.jobs > 1)} to run"
        return f"{jobs}, {about(self.forecast, self.workers)}"

    def head(self) -> str:
        """`[34/1161 cells done, 12/36 models made, about 25 min left]`; without the models, once all are made."""
        failed = f", {self.failed} failed" if self.failed else ""
        made = f", {self.made}/{self.releases} models made" if self.made < self.releases else ""
        left = f", about {duration(self.seconds_left())} left" if self.forecast.left else ""
        return f"[{self.done}/{self.cells} cells done{failed}{made}{left}]"

    def now(self) -> str:
        """What runs now, in one line."""
        steps = list(self.running.values())  # a copy, because the run goes on while this is shown
        return f"running: {shortened([*map(str, steps)], MOST_SHOWN, '; ')}" if steps else "the workers start"


class _SoFar:
    """The leaderboard of all records so far, which is not scored more often than it may take time."""

    def __init__(self, score: ScoreSoFar) -> None:
        self.score = score
        self.new: list[Record] = []
        self.next = time.monotonic()

    def add(self, records: Sequence[Record]) -> Leaderboard | None:
        """Take new records; the leaderboard if it is time for it."""
        self.new += records
        if not self.new or time.monotonic() < self.next:
            return None
        started = time.monotonic()
        board = self.score(self.new)
        self.new = []
        ended = time.monotonic()
        self.next = ended + max(BOARD_SECONDS, (ended - started) / BOARD_SHARE)
        return board


class _Panel:
    """The live display: counts, what runs now, the leaderboard of all records so far."""

    def __init__(self, progress: Progress, so_far: _SoFar, console: Console) -> None:
        self.progress, self.so_far, self.console = progress, so_far, console
        self.started = time.monotonic()
        self.ranking: RenderableType = Text()

    def add(self, event: Event) -> None:
        seconds = self.progress.add(event)
        if event.kind in ("started", "doing"):
            return
        if event.kind == "stopped" or event.failure or any(record.status != "ok" for record in event.records):
            self.console.print(Text(_line(self.progress, event, seconds)))
        board = self.so_far.add(event.records)
        if board is not None and (table := terminal.ranking(board)).rows:  # at first there are controls alone
            self.ranking = table

    def render(self) -> RenderableType:
        progress = self.progress
        so_far = f"{duration(time.monotonic() - self.started)} so far"
        running = Table.grid(padding=(0, 2))
        steps = list(progress.running.values())  # a copy, because the run goes on while this is drawn
        for step in steps[:MOST_SHOWN]:
            running.add_row(Text(f"  {step}"))
        if len(steps) > MOST_SHOWN:
            running.add_row(Text(f"  and {len(steps) - MOST_SHOWN} more"))
        return Group(Text(f"{progress.head()} {so_far}", style="bold"), running, self.ranking)


def _print(progress: Progress, heart: heartbeat.Heartbeat, event: Event) -> None:
    seconds = progress.add(event)
    # a release that is in the cache already takes no time and needs no line
    finished = event.kind == "finished" and (event.stage == "attack" or seconds >= 1 or event.failure)
    if finished or event.kind == "stopped":
        heart.say(_line(progress, event, seconds))


def _line(progress: Progress, event: Event, seconds: float) -> str:
    head = f"{progress.head()} {_title(event.stage, event.job)}"
    if event.kind == "stopped":
        why = "a worker died; the system may have run out of memory"
        return f"{head}: stopped after {duration(seconds)} ({why}), starts again alone"
    outcome = f"not made, {event.failure}" if event.failure else ""
    if event.stage == "attack":
        outcome = _outcome(event.records)
    return f"{head}: {f'{outcome}, ' if outcome else ''}{duration(seconds)}"


def _outcome(records: Sequence[Record]) -> str:
    """`3 tasks, ok`, or the number that failed with the first reason."""
    if not records:
        return "no cells left to do"
    tasks = f"{len(records)} task{'s' * (len(records) > 1)}"
    bad = [record for record in records if record.status != "ok"]
    if not bad:
        return f"{tasks}, ok"
    counts = Counter(record.status for record in bad)
    return f"{tasks}, {', '.join(f'{count} {status}' for status, count in counts.items())} ({bad[0].reason})"


def _title(stage: Stage, job: Job) -> str:
    return f"{job.defense} {job.attack if stage == 'attack' else 'release'} seed {job.seed}"


def _key(event: Event) -> str:
    return event.job.key if event.stage == "attack" else event.job.release
