"""Records do not depend on how jobs run: one worker or two, killed and resumed, two runs at once, workers that die."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nftbench.planning.plan import plan
from nftbench.records import leases
from nftbench.records.store import Store
from nftbench.running import referee
from nftbench.running.executors import steps
from nftbench.running.executors.local import LocalExecutor
from nftbench.running.workspace import Workspace
from nftbench.testing import tiny_suite
from tests.running.driven import CHANGES, assert_same, files, finish, found_in, start
from tests.sessions import session

MakeWorkspace = Callable[..., Workspace]
WriteFile = Callable[[str, str], Path]
RunAll = Callable[..., dict[tuple[str, str, str, int], Any]]
Bare = Callable[[Any], Any]


def kill_and_resume(folder: Path, moments: list[float], expected: dict[Any, Any], bare: Bare) -> None:
    """`moments`: shares of the cells after which, with a jitter, the run is killed."""
    results, cache = folder / "results", folder / "cache"
    kept: dict[str, bytes] = {}
    for moment in moments:
        process = start(results, cache, 2)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        end = time.monotonic() + 120
        while len(files(results)) < moment * len(expected) and process.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.005)
        time.sleep(random.uniform(0, 0.3))
        os.kill(process.pid, signal.SIGKILL)
        process.wait(30)
        end = time.monotonic() + 60  # a server killed while it imports torch ends when that is done
        while session(process.pid):
            assert time.monotonic() < end, f"orphans: {session(process.pid)}"
            time.sleep(0.02)
        before = files(results)
        time.sleep(0.3)
        assert files(results) == before, "somebody goes on writing after the kill"
        assert all(before.get(name) == content for name, content in kept.items()), "a finished record was touched"
        kept = before
        process.stdout.close()
        process.stderr.close()
    lines = finish(start(results, cache, 2)).split()
    assert lines.count("started") == lines.count("finished")
    after = files(results)
    assert all(after.get(name) == content for name, content in kept.items())
    assert_same(results, expected, bare)
    here = Workspace(plan(tiny_suite(**CHANGES)), Store(results, cache))
    assert not [one for event in steps.run(here, here.plan.jobs(), LocalExecutor(here, 1)) for one in event.records]
    assert files(results) == after, "a finished run writes nothing"


def test_two_workers_that_are_killed_and_resumed_give_the_same_bits_as_one(
    undisturbed: dict[Any, Any], tmp_path: Path, bare: Bare
) -> None:
    kill_and_resume(tmp_path, [0.0, 0.5], undisturbed, bare)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_kill_9_many_times(seed: int, undisturbed: dict[Any, Any], tmp_path: Path, bare: Bare) -> None:
    chance = random.Random(seed)
    moments = sorted(chance.uniform(0, 0.95) for _ in range(6))
    kill_and_resume(tmp_path, moments, undisturbed, bare)


def test_two_runs_at_once_neither_lose_nor_double_a_cell(
    undisturbed: dict[Any, Any], tmp_path: Path, bare: Bare
) -> None:
    changes = {**CHANGES, "seeds": [0]}
    expected = {place: one for place, one in undisturbed.items() if one.seed == 0}
    both = [start(tmp_path / "results", tmp_path / "cache", 1, changes) for _ in range(2)]
    out = [finish(one) for one in both]
    assert_same(tmp_path / "results", expected, bare)
    written = [int(line.split()[2]) for one in out for line in one.splitlines() if line.startswith("finished attack")]
    assert sum(written) == len(expected), "each cell was written by one of the two"


def test_a_worker_that_dies_costs_only_its_own_cells(
    workspace: MakeWorkspace, plugin: WriteFile, run_all: RunAll
) -> None:
    plugin(
        "dies",
        "@dataclass(frozen=True)\nclass Dies(Attack):\n    def adapt(self, prepared, task, context):\n"
        "        import os\n        os._exit(9)\n",
    )
    here = workspace(attacks=["none", "full", "dies"], defenses=["none", "early_stop"], tasks=["toy_topic"])
    found = run_all(here, workers=2)
    assert len(found) == len(here.plan.cells)
    for (_, attack, *_), record in found.items():
        assert record.status == ("failed" if attack == "dies" else "ok"), record
        assert attack != "dies" or "ended by itself with exit code 9" in (record.reason or "")


def test_a_worker_that_dies_between_two_submits_costs_only_its_own_cells(
    workspace: MakeWorkspace, plugin: WriteFile
) -> None:
    """A display takes its time with an event; meanwhile a worker dies, and the next submit meets a broken pool."""
    plugin(
        "dies",
        "@dataclass(frozen=True)\nclass Dies(Attack):\n    def adapt(self, prepared, task, context):\n"
        "        import os\n        os._exit(9)\n",
    )
    here = workspace(attacks=["none", "dies", "full"])
    for event in steps.run(here, here.plan.jobs(), LocalExecutor(here, 3)):
        if event.kind == "started" and str(event.job.attack) == "dies" and event.stage == "attack":
            time.sleep(3)
    found = found_in(here.store.results)
    assert len(found) == len(here.plan.cells)
    assert all(record.status == ("failed" if attack == "dies" else "ok") for (_, attack, *_), record in found.items())


def test_steps_that_a_dead_worker_interrupts_are_said_to_stop_and_start_again(workspace: MakeWorkspace) -> None:
    """As when the system runs out of memory: one worker is killed, and the steps of both begin again."""
    here = workspace(attacks=["none"], defenses=["none"], tasks=["toy_topic"], seeds=[0, 1])
    told, executor = list[tuple[str, int]](), LocalExecutor(here, 2)
    for event in steps.run(here, here.plan.jobs(), executor):
        if event.stage == "protect" and event.kind != "doing":
            told.append((event.kind, event.job.seed))
            if len(told) == 2:
                os.kill(next(iter(executor.pool._processes)), signal.SIGKILL)
    for seed in (0, 1):
        kinds = [kind for kind, told_seed in told if told_seed == seed]
        assert kinds == ["started", "stopped", "started", "finished"]
    assert [record.status for record in found_in(here.store.results).values()] == ["ok"] * len(here.plan.cells)


def test_a_run_that_is_given_up_ends_its_workers(workspace: MakeWorkspace, plugin: WriteFile) -> None:
    """As when no record can be written any more. Python would wait at its end until their steps are done."""
    plugin(
        "sleeps",
        "@dataclass(frozen=True)\nclass Sleeps(Attack):\n    def adapt(self, prepared, task, context):\n"
        "        import time\n        time.sleep(600)\n",
    )
    here = workspace(attacks=["none", "sleeps"], tasks=["toy_topic"])
    run = steps.run(here, here.plan.jobs(), LocalExecutor(here, 1))
    for event in run:
        if event.kind == "doing" and str(event.job.attack) == "sleeps" and "attacks" in event.words:
            break
    (worker,) = (here.store.results / leases.FOLDER).glob("worker-*.lease")
    run.close()  # type: ignore[attr-defined]
    process = Path("/proc") / worker.stem.rpartition("-")[2]
    end = time.monotonic() + 30
    while process.exists():
        assert time.monotonic() < end, "a worker outlives its run"
        time.sleep(0.02)


def test_a_bad_defense_in_a_worker_fails_alone(workspace: MakeWorkspace, plugin: WriteFile, run_all: RunAll) -> None:
    plugin(
        "breaks",
        "@dataclass(frozen=True)\nclass Breaks(Defense):\n    stage: ClassVar = 'posttrain'\n"
        "    def protect(self, model, context):\n        raise ValueError('out of ideas')\n",
    )
    found = run_all(workspace(defenses=["none", "breaks"], attacks=["none", "full"]), workers=2)
    assert len(found) == 6
    for (defense, *_), record in found.items():
        assert record.status == ("failed" if defense == "breaks" else "ok")
        assert defense != "breaks" or (record.reason or "").startswith("ValueError: out of ideas")


def test_events_say_what_starts_and_finishes(workspace: MakeWorkspace) -> None:
    here = workspace(attacks=["none", "full"], defenses=["none", "early_stop"])
    events = [event for event in steps.run(here, here.plan.jobs(), LocalExecutor(here, 1)) if event.kind != "doing"]
    told = [(event.kind, event.stage, str(event.job.defense), str(event.job.attack)) for event in events]
    assert told[:2] == [("started", "protect", "none", "none"), ("finished", "protect", "none", "none")]
    finished = [event for event in events if event.kind == "finished" and event.stage == "attack"]
    assert sum(len(event.records) for event in finished) == len(here.plan.cells)
    again = list(steps.run(here, here.plan.jobs(), LocalExecutor(here, 1)))
    assert sum(len(event.records) for event in again) == 0, "nothing is left to do"


def test_a_record_that_cannot_be_written_fails_its_own_cells_only(
    workspace: MakeWorkspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error outside the plugins' own methods: a folder stands in the place of a record's file for a while."""
    here, fail = workspace(attacks=["none", "full", "head"]), referee.fail
    (blocked,) = (here.store.path(cell) for cell in here.plan.cells if cell.attack.name == "full")
    blocked.mkdir(parents=True)

    def unblocked(*given: Any) -> Any:
        blocked.rmdir()
        return fail(*given)

    monkeypatch.setattr(referee, "fail", unblocked)
    for _ in steps.run(here, here.plan.jobs(), LocalExecutor(here, 1)):
        pass
    found = found_in(here.store.results)
    assert {attack: record.status for (_, attack, *_), record in found.items()} == {
        "none": "ok",
        "full": "failed",
        "head": "ok",
    }
    assert "IsADirectoryError" in found["none", "full", "toy_topic", 0].reason
