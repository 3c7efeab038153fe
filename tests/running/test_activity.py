"""What workers say reaches the command, in few and short messages that never make a worker wait."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from types import SimpleNamespace

import pytest

from nftbench.planning.keys import base_key
from nftbench.running import activity, referee
from nftbench.running.workspace import Workspace


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Connection]:
    """The end of the pipe that the command reads; this process is the worker."""
    monkeypatch.setattr(activity, "_here", activity._Teller())
    here, there = multiprocessing.Pipe(duplex=False)
    activity.connect(there)
    yield here
    here.close()
    there.close()


def test_a_message_names_the_step_that_it_is_about(heard: Connection) -> None:
    activity.begin("protect abc")
    activity.tell("protects the model")
    activity.tell("x" * 10_000)
    assert activity.hear(heard) == [("protect abc", "protects the model"), ("protect abc", "x" * activity.LONGEST)]
    assert activity.hear(heard) == []


def test_steps_of_training_are_told_once_a_second(heard: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(activity, "time", SimpleNamespace(monotonic=lambda: now[0]))
    for step in range(1, 1001):
        now[0] += 0.01
        activity.tell_step("pre-trains", step, 1000)
    said = [words for _, words in activity.hear(heard)]
    assert 9 <= len(said) <= 11
    assert said[0].startswith("pre-trains: step 1")


def test_a_full_pipe_and_a_closed_one_stop_no_worker(heard: Connection) -> None:
    for _ in range(10_000):
        activity.tell("é" * activity.LONGEST)
    assert 10 < len(activity.hear(heard)) < 10_000  # whole messages, and none of the others
    heard.close()
    activity.tell("to nobody")


def test_without_a_pipe_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activity, "_here", activity._Teller())
    activity.begin("protect abc")
    activity.tell("protects the model")


@pytest.mark.parametrize("kind", ["releases", "runs"])
def test_a_worker_says_that_it_waits_until_another_process_has_made_what_it_needs(
    kind: str, heard: Connection, workspace: Callable[..., Workspace]
) -> None:
    here = workspace(defenses=["none"], fresh=True)
    (job,) = [job for job in here.plan.jobs() if job.seed == 0 and str(job.attack) == "none"]
    key = job.release if kind == "releases" else base_key(here.suite, 0, None, here.device)[:32]
    taken, said = threading.Event(), list[str]()

    def make() -> None:
        """Another run, which holds the lock until this one waits for it."""
        with here.store.lock(kind, key):
            taken.set()
            while activity.WAITS not in said and heard.poll(300):
                said.extend(words for _, words in activity.hear(heard))

    other = threading.Thread(target=make)
    other.start()
    assert taken.wait(300)
    referee.protect(here, job)
    other.join()
    assert said[-1] == activity.WAITS
    assert "protects the model" not in said
    after = [words for _, words in activity.hear(heard)]
    assert "protects the model" in after
    assert activity.WAITS not in after
