"""What the command's own process spends on a run: with each engine, in a simulated large cluster, and on a resume.

`python tests/benchmarks/engines.py PART …` prints a row of a table for each part: `simulation`, `local`, `ray`,
`slurm`, `resume`. Jobs are stubs that return at once; scheduling, processes, submission and display are real.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from nftbench.cli import workers
from nftbench.cli.progress import Progress, _line
from nftbench.planning.plan import Job, Plan
from nftbench.records.count import Count
from nftbench.records.record import Cell, Record, Row
from nftbench.records.spec import Spec
from nftbench.records.store import Store
from nftbench.running.executors import local, ray, slurm, steps
from nftbench.running.executors.protocol import Executor, News, Stage, Step
from nftbench.running.forecast import Forecast, Step as Expected
from nftbench.running.workspace import Workspace
from nftbench.testing import tiny_suite

TASKS = 5


def planned(seeds: int, rows: int, attacks: int) -> Plan:
    """A plan of `seeds` × `rows` × `attacks` jobs with five cells each."""
    defenses = [Spec("none"), *(Spec(f"d{row}") for row in range(1, rows))]
    cells = tuple(
        Cell(
            row, Spec(f"a{attack}"), Spec(f"t{task}"), seed, f"{seed}-{row}-{attack}-{task}" + "0" * 40, f"r{seed}{row}"
        )
        for seed in range(seeds)
        for row in defenses
        for attack in range(attacks)
        for task in range(TASKS)
    )
    releases = {(str(row), seed): f"r{seed}{row}" for row in defenses for seed in range(seeds)}
    described = {row: Row("posttrain", False, "none") for row in defenses}
    return Plan(tiny_suite(), cells, (), releases=releases, rows=described)


class Simulated:
    """An executor whose steps take random simulated times, in the order of which they end."""

    def __init__(self, workers: int) -> None:
        self.workers, self.now, self.chance = workers, 0.0, random.Random(0)
        self.running: list[tuple[float, Step]] = []
        self.begun: list[News] = []

    def open(self) -> None: ...

    def close(self) -> None: ...

    def room(self) -> int:
        return self.workers - len(self.running)

    def begin(self, steps: Sequence[Step]) -> None:
        for step in steps:
            heapq.heappush(self.running, (self.now + self.chance.expovariate(1 / 600), step))
            self.begun.append(News("started", step))

    def news(self) -> Sequence[News]:
        told, self.begun = self.begun, []
        self.now, step = heapq.heappop(self.running)
        return [*told, News("ended", step)]


def drive(whole: Plan, executor: Executor, store: Store) -> tuple[float, float]:
    """Run a plan as the command does, with its display; returns the CPU and wall seconds of this process."""
    jobs = whole.jobs()
    left = {job.key: Expected("attack", str(job.attack), 60.0, len(job.cells)) for job in jobs}
    left |= {job.release: Expected("protect", str(job.defense), 60.0) for job in jobs}
    progress = Progress(Count(len(whole.cells), 0, 0), Forecast(left), len(jobs), 500)
    begun, wall = time.process_time(), time.perf_counter()
    with Path(os.devnull).open("w") as screen:
        for event in steps.run(Workspace(whole, store), jobs, executor):
            seconds = progress.add(event)
            if event.kind == "finished":
                print(_line(progress, event, seconds), file=screen)
    assert progress.done == len(whole.cells)
    return time.process_time() - begun, time.perf_counter() - wall


def simulation(folder: Path) -> Iterator[str]:
    for seeds in (5, 10, 20):
        code = f"import sys; sys.argv = ['', '{folder}']; import engines; engines.simulate({seeds})"
        yield from subprocess.run(
            [sys.executable, "-c", code], cwd=Path(__file__).parent, check=True, capture_output=True, text=True
        ).stdout.splitlines()


def simulate(seeds: int) -> None:
    """One size, in a process of its own, whose memory is its own, too."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    whole = planned(seeds, 20, 50)
    spent, _ = drive(whole, Simulated(500), Store(Path(sys.argv[1]), Path(sys.argv[1])))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000
    print(f"{len(whole.cells):,} cells, 500 workers: {1000 * spent / len(whole.cells):.3f} ms a cell; {grown:.0f} MB")


def nothing(*_: Any) -> list[Record]:
    """A stub in the place of a worker's work."""
    return []


class Nothing:
    """A stub in the place of a SLURM job's work."""

    def __call__(self, parcel: Path, stage: Stage, job: Job) -> list[Record]:
        return []


def engine(folder: Path, name: str) -> Iterator[str]:
    whole, store = planned(2, 4, 25), Store(folder / name, folder / "cache")
    workspace = Workspace(whole, store)
    executor: Executor
    with contextlib.ExitStack() as stack:
        if name == "local":
            workers.start_server()
            local._perform = nothing
            executor = local.LocalExecutor(workspace, 4)
        elif name == "ray":
            ray._perform = nothing
            executor = ray.RayExecutor(workspace, None, 4, 1e8)
        else:
            sys.path.insert(0, str(Path(__file__).parents[2]))
            from tests import slurm_cluster

            os.environ |= stack.enter_context(slurm_cluster.cluster(folder / "slurm"))
            slurm.Work = Nothing  # type: ignore[misc, assignment]
            executor = slurm.SlurmExecutor(workspace, slurm.Settings(), None, 1e8)
        spent, wall = drive(whole, executor, store)
    cells = len(whole.cells)
    yield f"{name}, {cells:,} cells, {len(whole.jobs())} jobs: {1000 * spent / cells:.2f} ms a cell; {wall:.0f} s wall"


def resume(folder: Path) -> Iterator[str]:
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from nftbench import suites
    from nftbench.planning.plan import plan
    from tests.benchmarks.test_harness import settled

    content = json.loads(tiny_suite().model_dump_json(exclude_none=True))
    content |= {
        "defenses": ["none", "early_stop[fraction=0.5]", *(f"noise[scale={place / 100}]" for place in range(1, 26))],
        "attacks": ["none", "scratch", "full", "head", *(f"lora[rank={rank}]" for rank in range(1, 22))],
        "tasks": ["toy_topic", "toy_tone", "toy_agreement"],
        "seeds": list(range(5)),
    }
    path = folder / "many.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    cells = settled(plan(suites.read(str(path))), Store(folder / "many", folder / "cache"))
    script = str(Path(__file__).with_name("resume.py"))
    command = [sys.executable, "-P", script, "run", str(path), "--out", str(folder / "many")]
    for _ in range(2):  # the first one draws the figures
        done = subprocess.run([*command, "--cache", str(folder / "cache")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    beyond, imports = map(float, done.stdout.splitlines()[-1].split())
    yield f"resume of {cells:,} finished cells: {beyond:.2f} s beyond imports, which take {imports:.2f} s"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as given:
        place = Path(given).resolve()
        for part in sys.argv[1:]:
            rows = {"simulation": simulation, "resume": resume}.get(part)
            for row in rows(place) if rows else engine(place, part):
                print(row, flush=True)
