"""The progress of a run: a live panel on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from nftbench.planning.plan import Job
from nftbench.records.record import Record
from nftbench.report import terminal
from nftbench.running.estimate import duration
from nftbench.running.executors import Event, Stage
from nftbench.scoring import Leaderboard

BOARD_SECONDS = 5.0
"""The shortest time between two updates of the live leaderboard."""
BOARD_SHARE = 0.02
"""The largest share of the time that is spent on scoring the live leaderboard."""

ScoreSoFar = Callable[[Sequence[Record]], Leaderboard]
"""A function from the records that are new since its last call to the leaderboard of all records so far."""


@contextlib.contextmanager
def display(
    jobs: Sequence[Job], workers: int, score: ScoreSoFar, console: Console
) -> Iterator[Callable[[Event], None]]:
    """Show a run of these jobs; yields the function that takes the run's events."""
    progress = Progress(jobs, workers)
    if not console.is_terminal:
        yield lambda event: _print(progress, event)
        return
    panel = _Panel(progress, score, console)
    # transient: the verb prints the last leaderboard when the run is over
    with Live(get_renderable=panel.render, console=console, refresh_per_second=2, transient=True):
        yield panel.add


class Progress:
    """The state of a run: counts of finished steps, the steps that run now, and an estimate of the time left.

    A step makes a release, or runs the job of one attack.
    """

    def __init__(self, jobs: Sequence[Job], workers: int) -> None:
        self.total, self.workers = len(jobs), workers
        self.done = self.failed = 0
        self.waiting = Counter(("attack", str(job.attack)) for job in jobs)
        self.waiting.update(("protect", name) for name, _ in {(str(job.defense), job.release) for job in jobs})
        self.running: dict[tuple[Stage, str], tuple[Job, float]] = {}
        self.spent: dict[tuple[str, str], list[float]] = {}

    def add(self, event: Event) -> float:
        """Count an event; returns the seconds that a finished step took, 0 for one that starts."""
        step = (event.stage, event.job.key)
        if event.kind == "started":
            self.running[step] = (event.job, time.monotonic())
            return 0.0
        _, started = self.running.pop(step, (event.job, time.monotonic()))
        seconds = time.monotonic() - started
        kind = _kind(event.stage, event.job)
        self.waiting[kind] -= 1
        self.spent.setdefault(kind, []).append(seconds)
        self.done += event.stage == "attack"
        self.failed += sum(record.status != "ok" for record in event.records)
        return seconds

    def seconds_left(self) -> float | None:
        """The estimated time for the rest of the run, in seconds; None if it cannot be estimated yet.

        A waiting step counts the mean time of finished steps of its kind, else of its stage.
        """
        left = 0.0
        for (stage, name), count in self.waiting.items():
            finished = self.spent.get((stage, name)) or [
                seconds for (other, _), each in self.spent.items() if other == stage for seconds in each
            ]
            if count and not finished:
                return None
            left += count * statistics.fmean(finished) if count else 0.0
        return left / self.workers


class _Panel:
    """The live display: counts, what runs now, the leaderboard of all records so far."""

    def __init__(self, progress: Progress, score: ScoreSoFar, console: Console) -> None:
        self.progress, self.score, self.console = progress, score, console
        self.started = self.next_ranking = time.monotonic()
        self.new_records: list[Record] = []
        self.ranking: RenderableType = Text()

    def add(self, event: Event) -> None:
        seconds = self.progress.add(event)
        if event.kind == "started":
            return
        self.new_records += event.records
        if any(record.status != "ok" for record in event.records):
            self.console.print(Text(_line(self.progress, event, seconds)))
        if self.new_records and time.monotonic() >= self.next_ranking:
            started = time.monotonic()
            self.ranking = terminal.ranking(self.score(self.new_records))
            self.new_records = []
            ended = time.monotonic()
            self.next_ranking = ended + max(BOARD_SECONDS, (ended - started) / BOARD_SHARE)

    def render(self) -> RenderableType:
        progress, now = self.progress, time.monotonic()
        left = progress.seconds_left()
        counts = f"{progress.done} of {progress.total} jobs done, {progress.failed} cells not ok"
        times = f"{duration(now - self.started)} so far, {f'about {duration(left)}' if left is not None else '?'} left"
        running = Table.grid(padding=(0, 2))
        # a copy, because the run goes on while this is drawn
        for (stage, _), (job, started) in list(progress.running.items()):
            running.add_row(Text(f"  {_title(stage, job)}"), Text(duration(now - started), style="dim"))
        return Group(Text(f"{counts} · {times}", style="bold"), running, self.ranking)


def _print(progress: Progress, event: Event) -> None:
    seconds = progress.add(event)
    # a release that is in the cache already takes no time and needs no line
    if event.kind == "finished" and (event.stage == "attack" or seconds >= 1):
        print(_line(progress, event, seconds), flush=True)


def _line(progress: Progress, event: Event, seconds: float) -> str:
    head = f"[{progress.done}/{progress.total}] {_title(event.stage, event.job)}"
    return f"{head}: {f'{_outcome(event.records)}, ' if event.stage == 'attack' else ''}{duration(seconds)}"


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


def _kind(stage: Stage, job: Job) -> tuple[str, str]:
    return stage, str(job.attack if stage == "attack" else job.defense)
