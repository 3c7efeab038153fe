"""Two runs on one folder under a hundred faults: no record is lost or doubled, and the leaderboard is the same.

The attacks and tasks are stubs that take no time. Everything around them is real: bases, releases, processes, locks,
records.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nftbench.cli import execution
from nftbench.planning import registry
from nftbench.planning.plan import plan
from nftbench.records import leases
from nftbench.records.store import Store
from nftbench.testing import tiny_suite
from tests.conftest import PLUGIN
from tests.running.driven import Cells, assert_same, files, finish, found_in, start
from tests.sessions import session

Bare = Callable[[Any], Any]

STUBS = """
from nftbench import Attack, Measurement, Outcome, Point, Task

@dataclass(frozen=True)
class Idle(Attack):
    index: int = 0

    def adapt(self, prepared, task, context):
        import time
        time.sleep(0.05)
        points = tuple(Point(0.001, step, 0.5, 1.0, 1.0) for step in range(3))
        found = Measurement("acc", 0.5, 0.01, 2000, 0.25, loss=1.0)
        return Outcome(prepared.model.network, found, points[2], points, points[:1])
"""
CHANGES: dict[str, Any] = {
    "defenses": ["none", "early_stop", "random_mask"],
    "attacks": ["none", *(f"idle[index={index}]" for index in range(1, 61))],
    "tasks": ["toy_topic", "toy_tone"],
    "seeds": [0, 1],
}
EXPIRY = 3.0
FAULTS = 100


@pytest.fixture
def stubs(tmp_path: Path) -> Iterator[Path]:
    """The file of the stubs, known here as with --plugin."""
    path = tmp_path / "idle.py"
    path.write_text(PLUGIN + STUBS)
    with registry.added(), registry.importing_added():
        registry.add_file(path)
        yield path


@pytest.fixture
def expected(stubs: Path, tmp_path: Path) -> Cells:
    """The records of a run that nothing disturbs."""
    finish(start(tmp_path / "calm", tmp_path / "calm-cache", 2, CHANGES, plugins=[stubs]), 1200)
    found = found_in(tmp_path / "calm")
    assert {one.status for one in found.values()} == {"ok"}
    return found


def scores(results: Path, cache: Path) -> list[object]:
    """What the leaderboard says of each defense."""
    manifest = plan(tiny_suite(**CHANGES)).manifest()
    board = execution.rank(Store(results, cache).planned(manifest), manifest)
    return [(one.defense, one.standing, one.excess, one.claim, one.flags) for one in board.scores]


@dataclass
class Faults:
    """Two runs on one folder, and what is done to them."""

    results: Path
    cache: Path
    plugins: list[Path]
    chance: random.Random

    def __post_init__(self) -> None:
        self.runs = [self.run(), self.run()]
        self.before = 0

    def run(self) -> subprocess.Popen[str]:
        process = start(self.results, self.cache, 2, CHANGES, expiry=EXPIRY, plugins=self.plugins)
        assert process.stdout is not None
        return process

    def wait_for_progress(self) -> None:
        """Wait until a record or a model has been made since the last time, and a moment more. Start what has ended."""
        end = time.monotonic() + 60
        while (made := self.made()) <= self.before and time.monotonic() < end:
            for index, run in enumerate(self.runs):
                if run.poll() is not None:
                    self.clear(run)
                    self.runs[index] = self.run()
            time.sleep(0.02)
        self.before = made
        time.sleep(self.chance.uniform(0, 0.3))

    def made(self) -> int:
        kinds = ("corpora", "bases", "releases", "secrets", "protections")
        artifacts = [path for kind in kinds for path in (self.cache / kind).glob("[!.]*")]
        return len(files(self.results)) + len(artifacts)

    def strike(self) -> str:
        """Do something to one process of one run; returns what."""
        run = self.chance.choice(self.runs)
        kind = self.chance.choices(["any", "driver", "hang", "clock"], [70, 10, 10, 10])[0]
        if kind == "clock":
            for path in (self.results / leases.FOLDER).glob("*.lease"):
                moment = time.time() + self.chance.uniform(-1e8, 1e8)
                with contextlib.suppress(FileNotFoundError):
                    os.utime(path, (moment, moment))
            return kind
        victims = [run.pid] if kind == "driver" else session(run.pid)
        if kind == "hang":  # a worker, which holds a lease of its own
            victims = [
                int(path.stem.rpartition("-")[2])
                for path in (self.results / leases.FOLDER).glob("worker-*.lease")
                if int(path.stem.rpartition("-")[2]) in victims
            ]
        if not victims:
            return "nothing"
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.chance.choice(victims), signal.SIGSTOP if kind == "hang" else signal.SIGKILL)
        return kind

    def clear(self, run: subprocess.Popen[str]) -> None:
        """Wait for the processes of a run that has ended. One that hangs is ended: nobody would, without its driver."""
        end = time.monotonic() + 60
        while left := session(run.pid):
            if time.monotonic() > end - 30:
                for process in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process, signal.SIGKILL)
            assert time.monotonic() < end, "a run's processes outlive it"
            time.sleep(0.05)
        run.communicate()


@pytest.mark.slow
def test_a_hundred_faults_lose_and_double_nothing(expected: Cells, stubs: Path, tmp_path: Path, bare: Bare) -> None:
    results, cache = tmp_path / "results", tmp_path / "cache"
    faults = Faults(results, cache, [stubs], random.Random(1))
    done: list[str] = []
    doubled: dict[str, bytes] = {}
    while len(done) < FAULTS:
        faults.wait_for_progress()
        if (kind := faults.strike()) != "nothing":
            done.append(kind)
        for name, content in files(results).items():
            if b'"status": "ok"' in content:
                doubled.setdefault(name, content)
    for run in faults.runs:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        faults.clear(run)
    print({kind: done.count(kind) for kind in set(done)}, f"{len(doubled)} records by then", file=sys.stderr)
    finish(start(results, cache, 2, CHANGES, expiry=EXPIRY, plugins=[stubs]), 1200)
    now = files(results)
    assert all(now[name] == content for name, content in doubled.items()), "a finished record was written again"
    assert_same(results, expected, bare)
    assert scores(results, cache) == scores(tmp_path / "calm", cache)


@pytest.mark.slow
def test_a_worker_that_hangs_is_ended_and_its_job_done_by_another(
    expected: Cells, stubs: Path, tmp_path: Path, bare: Bare
) -> None:
    results = tmp_path / "results"
    run = start(results, tmp_path / "cache", 2, CHANGES, expiry=EXPIRY, plugins=[stubs])
    end = time.monotonic() + 600
    while not any(path.name.startswith("jobs-") for path in (results / leases.FOLDER).glob("*.lease")):
        assert time.monotonic() < end
        time.sleep(0.01)
    worker = next(iter((results / leases.FOLDER).glob("worker-*.lease")))
    number = int(worker.stem.rpartition("-")[2])
    os.kill(number, signal.SIGSTOP)
    finish(run, 1200)
    assert not Path(f"/proc/{number}").exists()
    assert_same(results, expected, bare)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small file system")
def test_a_disk_that_fills_and_is_freed(expected: Cells, stubs: Path, tmp_path: Path, bare: Bare) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], check=False)
    if mounted.returncode != 0:
        pytest.skip("no file system can be mounted here")
    try:
        results = disk / "results"
        run = start(results, tmp_path / "cache", 2, CHANGES, expiry=EXPIRY, plugins=[stubs])
        end = time.monotonic() + 600
        while len(files(results)) < 30:
            assert time.monotonic() < end
            time.sleep(0.01)
        with contextlib.suppress(OSError), (disk / "filled").open("wb") as filled:
            while True:
                filled.write(bytes(4096))
                filled.flush()
        _, err = run.communicate(timeout=600)
        assert run.returncode != 0 or {one.status for one in found_in(results).values()} != {"ok"}, "it never was full"
        assert run.returncode == 0 or "No space left" in err, err
        (disk / "filled").unlink()
        finish(start(results, tmp_path / "cache", 2, CHANGES, expiry=EXPIRY, plugins=[stubs]), 600)
        assert_same(results, expected, bare)
        assert scores(results, tmp_path) == scores(tmp_path / "calm", tmp_path)
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
