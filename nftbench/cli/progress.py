"""What a run shows while it runs: a live panel on a terminal, plain lines elsewhere."""

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
"""The leaderboard so far is scored anew at most this often …"""
BOARD_SHARE = 0.02
"""… and takes at most this share of the time."""

Board = Callable[[Sequence[Record]], Leaderboard]
"""The leaderboard so far, told the records that are new since it was last asked."""


@contextlib.contextmanager
def shown(jobs: Sequence[Job], workers: int, board: Board, console: Console) -> Iterator[Callable[[Event], None]]:
    """Show a run of these jobs; what is yielded takes its events."""
    progress = Progress(jobs, workers)
    if not console.is_terminal:
        yield lambda event: _print(progress, event)
        return
    panel = _Panel(progress, board, console)
    with Live(get_renderable=panel.render, console=console, refresh_per_second=2):
        yield panel.add


class Progress:
    """What is done, what runs now, and how long the rest may take."""

    def __init__(self, jobs: Sequence[Job], workers: int) -> None:
        self.total, self.workers = len(jobs), workers
        self.done = self.failed = 0
        self.waiting = Counter(("attack", str(job.attack)) for job in jobs)
        self.waiting.update(("protect", name) for name, _ in {(str(job.defense), job.release) for job in jobs})
        self.running: dict[tuple[Stage, str], tuple[Job, float]] = {}
        self.spent: dict[tuple[str, str], list[float]] = {}

    def add(self, event: Event) -> float:
        """Take in an event; the seconds that a finished step took."""
        step = (event.stage, event.job.key)
        if event.kind == "started":
            self.running[step] = (event.job, time.monotonic())
            return 0.0
        _, begun = self.running.pop(step, (event.job, time.monotonic()))
        seconds = time.monotonic() - begun
        kind = _kind(event.stage, event.job)
        self.waiting[kind] -= 1
        self.spent.setdefault(kind, []).append(seconds)
        self.done += event.stage == "attack"
        self.failed += sum(record.status != "ok" for record in event.records)
        return seconds

    def seconds_left(self) -> float | None:
        """From the steps of this run: each kind of step takes as long as it took, or as its stage's others did."""
        left = 0.0
        for (stage, name), count in self.waiting.items():
            known = self.spent.get((stage, name)) or [
                seconds for (other, _), each in self.spent.items() if other == stage for seconds in each
            ]
            if count and not known:
                return None
            left += count * statistics.fmean(known) if count else 0.0
        return left / self.workers


class _Panel:
    """The live display: counts, what runs now, the leaderboard so far."""

    def __init__(self, progress: Progress, board: Board, console: Console) -> None:
        self.progress, self.board, self.console = progress, board, console
        self.begun = self.next_board = time.monotonic()
        self.news: list[Record] = []
        self.ranking: RenderableType = Text()

    def add(self, event: Event) -> None:
        seconds = self.progress.add(event)
        if event.kind == "started":
            return
        self.news += event.records
        if any(record.status != "ok" for record in event.records):
            self.console.print(Text(_line(self.progress, event, seconds)))
        if self.news and time.monotonic() >= self.next_board:
            begun = time.monotonic()
            self.ranking = terminal.ranking(self.board(self.news))
            self.news = []
            ended = time.monotonic()
            self.next_board = ended + max(BOARD_SECONDS, (ended - begun) / BOARD_SHARE)

    def render(self) -> RenderableType:
        progress, now = self.progress, time.monotonic()
        left = progress.seconds_left()
        counts = f"{progress.done} of {progress.total} jobs done, {progress.failed} cells not ok"
        times = f"{duration(now - self.begun)} so far, {f'about {duration(left)}' if left is not None else '?'} left"
        running = Table.grid(padding=(0, 2))
        for (stage, _), (job, begun) in list(progress.running.items()):  # the run goes on while this is drawn
            running.add_row(Text(f"  {_title(stage, job)}"), Text(duration(now - begun), style="dim"))
        return Group(Text(f"{counts} · {times}", style="bold"), running, self.ranking)


def _print(progress: Progress, event: Event) -> None:
    seconds = progress.add(event)
    # a release that lay in the cache already is no news
    if event.kind == "finished" and (event.stage == "attack" or seconds >= 1):
        print(_line(progress, event, seconds), flush=True)


def _line(progress: Progress, event: Event, seconds: float) -> str:
    head = f"[{progress.done}/{progress.total}] {_title(event.stage, event.job)}"
    return f"{head}: {f'{_found(event.records)}, ' if event.stage == 'attack' else ''}{duration(seconds)}"


def _found(records: Sequence[Record]) -> str:
    """`3 tasks, ok`, or how many are not and the first reason."""
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
