"""What a run shows: a line for each finished job, counts, and an estimate of the time left."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Sequence
from itertools import chain

import pytest
from rich.console import Console

from nftbench.cli import progress
from nftbench.planning.plan import Job
from nftbench.records.record import Cell, Record
from nftbench.records.spec import Spec
from nftbench.running.executors import Event
from nftbench.scoring import Leaderboard
from tests import factories


def job(defense: str, attack: str) -> Job:
    cells = (Cell(Spec(defense), Spec(attack), Spec("topic"), 0, f"{defense}-{attack}", defense),)
    return Job(Spec(defense), Spec(attack), 0, cells)


JOBS = [job(defense, attack) for defense in ("none", "pmp") for attack in ("none", "full")]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds by the clock, in a list of one."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def events(
    clock: list[float], stage: str, done: Job, seconds: float, records: Sequence[Record] = ()
) -> Iterator[Event]:
    yield Event("started", stage, done)  # type: ignore[arg-type]
    clock[0] += seconds
    yield Event("finished", stage, done, tuple(records))  # type: ignore[arg-type]


def board(_: Sequence[Record]) -> Leaderboard:
    return factories.scored(factories.suite())


def test_elsewhere_than_on_a_terminal_each_finished_step_is_a_line(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    ok = factories.record("pmp", "full", "topic", 0, 0.8)
    with progress.display(JOBS, 1, board, Console(file=io.StringIO())) as show:
        for event in chain(
            events(clock, "protect", JOBS[0], 0.1),
            events(clock, "protect", JOBS[2], 75.0),
            events(clock, "attack", JOBS[0], 4.2, [ok, ok, ok]),
            events(clock, "attack", JOBS[3], 1.0, [ok, factories.failed(ok)]),
            events(clock, "attack", JOBS[1], 0.5),
        ):
            show(event)
    assert capsys.readouterr().out.splitlines() == [
        "[0/4] pmp release seed 0: 1 min 15 s",
        "[1/4] none none seed 0: 3 tasks, ok, 4.2 s",
        "[2/4] pmp full seed 0: 2 tasks, 1 failed (boom), 1.0 s",
        "[3/4] none full seed 0: no cells left to do, 0.5 s",
    ]


def test_progress_counts_steps_and_estimates_the_time_left(clock: list[float]) -> None:
    counts = progress.Progress(JOBS, workers=2)
    assert counts.seconds_left() is None
    steps = [("protect", JOBS[0], 10.0), ("attack", JOBS[0], 2.0), ("attack", JOBS[1], 6.0)]
    for stage, done, seconds in steps:
        for event in events(
            clock, stage, done, seconds, [factories.failed(factories.record("none", "full", "t", 0, 1))]
        ):
            counts.add(event)
    assert (counts.done, counts.failed) == (2, 3)
    assert counts.seconds_left() == pytest.approx((10 + 2 + 6) / 2)  # pmp's release, its two attacks
    counts.add(Event("started", "attack", JOBS[2]))
    assert [running.attack.name for running, _ in counts.running.values()] == ["none"]


def test_on_a_terminal_a_panel_shows_what_runs_and_the_leaderboard(clock: list[float]) -> None:
    asked: list[int] = []

    def counting(news: Sequence[Record]) -> Leaderboard:
        asked.append(len(news))
        return board(news)

    terminal = Console(file=io.StringIO(), width=160, force_terminal=True, color_system=None)
    one = factories.record("none", "none", "topic", 0, 0.3)
    with progress.display(JOBS, 1, counting, terminal) as show:
        for event in chain(events(clock, "attack", JOBS[0], 2.0, [one]), events(clock, "attack", JOBS[1], 2.0, [one])):
            show(event)
        assert asked == [1]  # not again within BOARD_SECONDS
        clock[0] += progress.BOARD_SECONDS
        for event in events(clock, "attack", JOBS[2], 2.0, [one]):
            show(event)
        assert asked == [1, 2]
        show(Event("started", "attack", JOBS[3]))
        clock[0] += 3
    shown = terminal.file.getvalue()  # type: ignore[attr-defined]
    assert "3 of 4 jobs done, 0 cells not ok · 14.0 s so far" in shown
    assert "pmp full seed 0  3.0 s" in shown
    assert "holds" in shown  # the verdict on pmp, in the ranking


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4.23, "4.2 s"), (59.99, "1 min 00 s"), (200, "3 min 20 s"), (3599.7, "1 h 00 min"), (7500, "2 h 05 min")],
)
def test_a_duration_is_shown_in_its_largest_units(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text
