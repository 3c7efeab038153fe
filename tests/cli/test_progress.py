"""What a run shows: a line for each finished job, counts, and an estimate of the time left."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Iterator, Sequence
from itertools import chain

import pytest
from rich.console import Console

from nftbench.cli import heartbeat, progress
from nftbench.planning.plan import Job
from nftbench.records.count import Count
from nftbench.records.record import Cell, Record
from nftbench.records.spec import Spec
from nftbench.running import activity
from nftbench.running.executors.steps import Event
from nftbench.running.forecast import Forecast, Step, base_step
from nftbench.scoring import Leaderboard
from tests import factories


def job(defense: str, attack: str) -> Job:
    """A job of two cells."""
    cells = tuple(
        Cell(Spec(defense), Spec(attack), Spec(task), 0, f"{defense}-{attack}-{task}", defense)
        for task in ("topic", "tone")
    )
    return Job(Spec(defense), Spec(attack), 0, cells)


JOBS = [job(defense, attack) for defense in ("none", "pmp") for attack in ("none", "full")]


def forecast() -> Forecast:
    """A base of 100 s, two releases of 10 s, four jobs of 2 × 5 s."""
    releases = {job.release: Step("protect", str(job.defense), 10.0) for job in JOBS}
    jobs = {job.key: Step("attack", str(job.attack), 5.0, 2) for job in JOBS}
    return Forecast({base_step(0): Step("base", "", 100.0), **releases, **jobs})


def progress_of(workers: int = 1) -> progress.Progress:
    """Eight cells are planned, and none is done."""
    return progress.Progress(Count(8, 0, 0), forecast(), len(JOBS), workers)


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
    with progress.display(progress_of(), board, Console(file=io.StringIO())) as show:
        for event in chain(
            events(clock, "protect", JOBS[0], 0.1),
            events(clock, "protect", JOBS[2], 75.0),
            events(clock, "attack", JOBS[0], 4.0, [ok, ok]),
            events(clock, "attack", JOBS[3], 6.0, [ok, factories.failed(ok)]),
            events(clock, "attack", JOBS[1], 0.5),
        ):
            show(event)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("] ")[2] for line in lines] == [
        "pmp release seed 0: 1 min 15 s",
        "none none seed 0: 2 tasks, ok, 4.0 s",
        "pmp full seed 0: 2 tasks, 1 failed (boom), 6.0 s",
        "none full seed 0: no cells left to do, 0.5 s",
    ]
    assert [line.partition(", about")[0] for line in lines] == [
        "[0/8 cells done",
        "[2/8 cells done",
        "[3/8 cells done, 1 failed",
        "[5/8 cells done, 1 failed",
    ]


def test_a_log_that_is_silent_says_what_runs(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    state = progress_of()
    heart = heartbeat.Heartbeat()
    for event in (
        Event("started", "protect", JOBS[0]),
        Event("doing", "protect", JOBS[0], words="pre-trains the undefended model of seed 0: step 3 of 9"),
    ):
        state.add(event)
    clock[0] += 13.0
    heart.beat(lambda: f"{state.head()} {state.now()}")
    assert capsys.readouterr().out == (
        "[0/8 cells done, 0/2 models made, about 2 min 27 s left] running: none release seed 0 "
        "(pre-trains the undefended model of seed 0: step 3 of 9, 13.0 s)\n"
    )


def test_models_that_are_made_count_before_any_cell_is_done(clock: list[float]) -> None:
    """The first cells of `small` come after ten minutes in which `0/1161 cells done` looked like no progress."""
    state = progress_of()
    heads = [state.head()]
    for job in (JOBS[0], JOBS[2]):
        for event in events(clock, "protect", job, 5.0):
            state.add(event)
        heads.append(state.head())
    assert [head.partition(", about")[0] for head in heads] == [
        "[0/8 cells done, 0/2 models made",
        "[0/8 cells done, 1/2 models made",
        "[0/8 cells done",
    ]


def test_the_time_left_is_there_from_the_start_and_follows_what_is_measured(clock: list[float]) -> None:
    state = progress_of(workers=2)
    assert state.outlook() == "4 jobs to run, about 1 min 50 s with 2 workers"
    assert state.seconds_left() == pytest.approx(max((100 + 2 * 10 + 4 * 10) / 2, 100))
    for event in events(clock, "protect", JOBS[0], 50.0):  # it makes the base on its way
        state.add(event)
    # of 110 s predicted for both, so that all others are expected to take as much less, too
    assert state.seconds_left() == pytest.approx((10 + 4 * 10) * (50 / 110) / 2)
    ok = factories.record("none", "none", "topic", 0, 1)
    for event in events(clock, "attack", JOBS[0], 40.0, [ok, ok]):
        state.add(event)
    assert (state.done, state.failed) == (2, 0)
    # attack `none` took 40 s, and so `full` is expected to take as long; releases still take half
    assert state.seconds_left() == pytest.approx((3 * 40 + 10 * 50 / 110) / 2)
    state.add(Event("started", "attack", JOBS[2]))
    before = state.seconds_left()
    clock[0] += 30
    assert state.seconds_left() == pytest.approx(before - 15)
    clock[0] += 1000
    assert state.seconds_left() >= progress_of().forecast.seconds(Step("attack", "none", 1.0))


RECORDED = (
    (173.97, "started", ""),
    (181.60, "doing", "makes the text of seed 0"),
    (184.16, "doing", "protects the model"),
    (195.34, "doing", "examines the release"),
    (548.41, "finished", ""),
)
"""Seconds of the first release of a run on a given base of 5 million parameters, on a machine with much other work. Its
worker read the base, which takes no time, and checked the release."""


def test_a_base_that_is_only_read_does_not_make_all_else_seem_slow(clock: list[float]) -> None:
    """1.4 s are predicted for the base and 2.5 s for a release. Other releases cannot take longer than both have."""
    steps = {job.release: Step("protect", str(job.defense), 2.5) for job in JOBS}
    state = progress.Progress(Count(8, 0, 0), Forecast({base_step(0): Step("base", "", 1.4), **steps}), len(JOBS), 1)
    for moment, kind, words in RECORDED:
        clock[0] = moment
        state.add(Event(kind, "protect", JOBS[0], words=words))  # type: ignore[arg-type]
    took = RECORDED[-1][0] - RECORDED[0][0]
    assert state.seconds_left() == pytest.approx(took * 2.5 / (1.4 + 2.5))
    assert state.seconds_left() < took


def test_waiting_for_another_process_is_no_work(clock: list[float]) -> None:
    """Two runs share a cache. This one waits 400 s for the base, and 300 s until a release has been made."""
    state = progress_of()
    state.add(Event("started", "protect", JOBS[0]))
    state.add(Event("doing", "protect", JOBS[0], words=activity.WAITS))
    clock[0] += 400
    assert state.seconds_left() == pytest.approx(100 + 2 * 10 + 4 * 10)
    state.add(Event("doing", "protect", JOBS[0], words="protects the model"))
    clock[0] += 5
    state.add(Event("finished", "protect", JOBS[0]))
    # 5 s for a release of 10, and nothing is known about bases
    assert state.seconds_left() == pytest.approx((10 + 4 * 10) / 2)
    state.add(Event("started", "protect", JOBS[2]))
    state.add(Event("doing", "protect", JOBS[2], words=activity.WAITS))
    clock[0] += 300
    assert state.add(Event("finished", "protect", JOBS[2])) == 300
    assert state.seconds_left() == pytest.approx(4 * 10 / 2)


def test_a_job_whose_release_failed_has_no_time_of_its_own(clock: list[float]) -> None:
    state = progress_of()
    failed = factories.failed(factories.record("pmp", "full", "topic", 0, 1))
    state.add(Event("finished", "attack", JOBS[3], (failed, failed)))
    assert (state.done, state.failed) == (0, 2)
    assert state.seconds_left() == pytest.approx(100 + 2 * 10 + 3 * 10)


def test_a_release_that_could_not_be_made_is_said_and_not_counted_as_made(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    state = progress_of()
    with progress.display(state, board, Console(file=io.StringIO())) as show:
        show(Event("started", "protect", JOBS[0]))
        clock[0] += 1747
        show(Event("finished", "protect", JOBS[0], failure="oom (its process was killed)"))
    assert state.made == 0
    assert "release seed 0: not made, oom (its process was killed), 29 min 07 s" in capsys.readouterr().out


@pytest.mark.parametrize("terminal", [False, True])
def test_a_step_whose_worker_died_is_said_and_runs_no_more(clock: list[float], terminal: bool) -> None:
    """Two models of 135 million weights began again after 20 minutes, and the log did not say that or why."""
    state, shown = progress_of(), Console(file=io.StringIO(), width=200, force_terminal=terminal, color_system=None)
    with contextlib.redirect_stdout(shown.file), progress.display(state, board, shown) as show:
        show(Event("started", "attack", JOBS[3]))
        clock[0] += 1200
        show(Event("stopped", "attack", JOBS[3]))
        assert not state.running
        left = state.seconds_left()
        show(Event("started", "attack", JOBS[3]))
        assert state.seconds_left() == left, "what it did before is lost"
    (line,) = (line for line in shown.file.getvalue().splitlines() if "a worker died" in line)  # type: ignore[attr-defined]
    assert line.endswith(
        "pmp full seed 0: stopped after 20 min 00 s (a worker died; the system may have run out of memory), starts "
        "again alone"
    )


def test_on_a_terminal_a_panel_shows_what_runs_and_the_leaderboard(clock: list[float]) -> None:
    asked: list[int] = []

    def counting(news: Sequence[Record]) -> Leaderboard:
        asked.append(len(news))
        return board(news)

    terminal = Console(file=io.StringIO(), width=160, force_terminal=True, color_system=None)
    one = factories.record("none", "none", "topic", 0, 0.3)
    with progress.display(progress_of(), counting, terminal) as show:
        for event in chain(events(clock, "attack", JOBS[0], 2.0, [one]), events(clock, "attack", JOBS[1], 2.0, [one])):
            show(event)
        assert asked == [1]  # not again within BOARD_SECONDS
        clock[0] += progress.BOARD_SECONDS
        for event in events(clock, "attack", JOBS[2], 2.0, [one]):
            show(event)
        assert asked == [1, 2]
        show(Event("started", "attack", JOBS[3]))
        show(Event("doing", "attack", JOBS[3], words="attacks the release"))
        clock[0] += 3
    shown = terminal.file.getvalue()  # type: ignore[attr-defined]
    assert "[6/8 cells done, 0/2 models made, about" in shown
    assert "14.0 s so far" in shown
    assert "pmp full seed 0 (attacks the release, 3.0 s)" in shown
    assert "holds" in shown  # the verdict on pmp, in the ranking


def test_the_panel_has_no_ranking_before_a_defense_has_a_record(clock: list[float]) -> None:
    """A run begins with its references and trivial defenses, and a table without rows would tell nothing."""
    one = factories.record("none", "none", "topic", 0, 0.3)
    terminal = Console(file=io.StringIO(), width=160, force_terminal=True, color_system=None)
    with progress.display(progress_of(), lambda records: factories.scored(records), terminal) as show:
        for event in events(clock, "attack", JOBS[0], 2.0, [one]):
            show(event)
    shown = terminal.file.getvalue()  # type: ignore[attr-defined]
    assert "[2/8 cells done" in shown
    assert "suppression" not in shown


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4.23, "4.2 s"), (59.99, "1 min 00 s"), (200, "3 min 20 s"), (3599.7, "1 h 00 min"), (7500, "2 h 05 min")],
)
def test_a_duration_is_shown_in_its_largest_units(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text
