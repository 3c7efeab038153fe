"""What the harness adds to a cell, by an attack and a task that do nothing; what resuming a finished suite costs."""

from __future__ import annotations

import dataclasses
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from nftbench import suites
from nftbench.contract import Cost, Measurement, Point
from nftbench.device import CPU
from nftbench.models import networks
from nftbench.planning import registry
from nftbench.planning.plan import Plan, plan
from nftbench.records.record import Record
from nftbench.records.store import Store
from nftbench.running import provenance
from nftbench.running.executors import steps
from nftbench.running.executors.local import LocalExecutor
from nftbench.running.releases import make_release
from nftbench.running.workspace import Workspace, forget_tasks, load_task
from tests.benchmarks.measure import Line, Ratio, cpu, ratio

IDLE = """
from nftbench.contract import Measurement, Outcome, Point

@dataclass(frozen=True)
class Idle(Attack):
    index: int = 0

    def adapt(self, prepared, task, context):
        points = tuple(Point(0.001, step, 0.5, 1.0, 1.0) for step in range(20))
        found = Measurement("acc", 0.5, 0.01, 2000, 0.25, loss=1.0)
        return Outcome(prepared.model.network, found, points[5], points, points[:3])
"""
NOTHING = """
from nftbench.contract import Measurement

@dataclass(frozen=True)
class Nothing(Task):
    index: int = 0
    trainable = True

    def load(self, context):
        return self

    def split(self, name):
        return ()

    def evaluate(self, network, split):
        return Measurement("acc", 0.5, 0.01, 2000, 0.25, loss=1.0)
"""
ATTACKS, TASKS, ROUNDS = 40, 5, 3
MOST_MILLISECONDS, MOST_SECONDS = 5, 0.5

Plugin = Callable[[str, str], Path]


def test_a_cell(bench: Any, plugin: Plugin, tmp_path: Path, benchmark: Any, table: dict[str, Line]) -> None:
    plugin("idle", IDLE)
    plugin("nothing", NOTHING)
    content = {
        **bench.content,
        "attacks": ["none", *(f"idle[index={index}]" for index in range(1, ATTACKS + 1))],
        "tasks": [f"nothing[index={index}]" for index in range(1, TASKS + 1)],
        "utility": ["bits_per_token"],
    }
    whole = plan(suites.parse(content))
    jobs = [job for job in whole.jobs() if job.attack.name == "idle"]
    folder = make_release(Workspace(whole, Store(tmp_path, bench.cache)), jobs[0].defense, 0, jobs[0].release)

    def once(results: Path) -> None:
        workspace = Workspace(whole, Store(results, bench.cache))
        for _ in steps.run(workspace, jobs, LocalExecutor(workspace, 1)):
            pass

    def load() -> None:
        for _ in jobs:
            networks.load(folder, attacker=True)

    once(tmp_path / "warm")
    load()
    found: list[tuple[float, float, float, float]] = []
    for index in range(ROUNDS):
        begun = time.perf_counter()
        spent = cpu(lambda index=index: once(tmp_path / f"results-{index}"))
        wall = time.perf_counter() - begun
        found.append((spent, cpu(load), cpu(load), wall))
    cells = sum(len(job.cells) for job in jobs)
    records = Store(tmp_path / "results-0", bench.cache).records()
    assert len(records) == cells == ATTACKS * TASKS
    assert {record.status for record in records.values()} == {"ok"}
    benchmark.pedantic(lambda: once(tmp_path / "last"), rounds=1)
    added = [1000 * (spent - loading) / cells for spent, loading, _, _ in found]
    control: Ratio = ratio([one for _, one, _, _ in found], [other for _, _, other, _ in found])
    cell = bench.workspace.plan.cells[0]
    task = cpu(lambda: (forget_tasks(), load_task(bench.workspace, cell.task, cell.seed, bench.model)))
    table["6 cell"] = Line(
        "added by the harness to a cell, beyond loading the model, CPU time",
        f"≤ {MOST_MILLISECONDS} ms",
        f"{statistics.median(added):.2f} ms [{min(added):.2f}, {max(added):.2f}]",
        f"{control} (loading, twice)",
        f"{cells} cells of an attack and a task that do nothing, {TASKS} a job: claim, release checked, deep copy, "
        f"provenance, record with fsync; {1000 * found[0][3] / cells:.1f} ms a cell on the wall with loading; "
        f"not in it: a text task's documents, {task:.2f} s once a task, seed and process",
    )


def settled(whole: Plan, store: Store) -> int:
    """A record for each cell, as large as the real ones."""
    points = tuple(Point(0.001, step, 0.5, 1.0, 1.0) for step in range(20))
    score = Measurement("acc", 0.5, 0.01, 2000, 0.25, loss=1.0)
    origin = provenance.collect(whole.suite, CPU, "nftbench run", 1.0)
    for number, cell in enumerate(whole.cells):
        attack: Any = registry.create("attacks", str(cell.attack))
        value = dataclasses.replace(score, value=0.4 + (number * 7919 % 1000) / 5000)
        record = Record(
            key=cell.key,
            suite=whole.suite.name,
            defense=str(cell.defense),
            attack=str(cell.attack),
            task=str(cell.task),
            seed=cell.seed,
            row=whole.rows[cell.defense],
            knowledge=tuple(sorted(attack.knowledge)),
            status="ok",
            role=whole.role(cell),
            uses_release=attack.uses_release,
            trains=attack.trains,
            unattacked=score,
            validation=value if whole.role(cell) == "ranked" else None,
            attacked=value,
            picked=points[5] if attack.trains else dataclasses.replace(points[0], step=0),
            curve=points,
            restarts=points[:3],
            cost=Cost(100, 1.0, 1e6, 0.01, 1000, 1000) if attack.trains else None,
            provenance=origin,
        )
        store.write(record)
    return len(whole.cells)


def test_resuming(bench: Any, tmp_path: Path, benchmark: Any, table: dict[str, Line]) -> None:
    content = {
        **bench.content,
        "defenses": ["none", "early_stop[fraction=0.5]", "noise", "reinit", "narrow", "random_mask"],
        "attacks": [
            "none",
            "scratch",
            "full",
            "full[optimizer=sgd]",
            "full[optimizer=muon]",
            "lora",
            "lora[rank=4]",
            "head",
        ],
        "tasks": ["toy_topic", "toy_tone", "toy_agreement"],
        "utility": ["bits_per_token", "toy_agreement_pronoun"],
        "budget": {
            **bench.content["budget"],
            "learning_rates": {name: [1e-3, 4e-3] for name in ("adamw", "sgd", "muon")},
        },
        "seeds": list(range(8)),
    }
    path = tmp_path / "thousand.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    whole = plan(suites.read(str(path)))
    cells = settled(whole, Store(tmp_path / "results", bench.cache))
    assert cells >= 1000
    command = [
        sys.executable,
        "-P",
        str(Path(__file__).with_name("resume.py")),
        "run",
        str(path),
        "--out",
        str(tmp_path / "results"),
    ]
    command += ["--cache", str(bench.cache)]

    def once() -> tuple[float, float]:
        done = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        beyond, imports = done.stdout.splitlines()[-1].split()
        return float(beyond), float(imports)

    once()
    found = [once() for _ in range(2 * ROUNDS)]
    benchmark.pedantic(once, rounds=1)
    beyond = sorted(one for one, _ in found)
    pairs: Ratio = ratio([one for one, _ in found[::2]], [one for one, _ in found[1::2]])
    table["7 resume"] = Line(
        "resuming a finished suite, beyond imports, CPU time",
        f"≤ {MOST_SECONDS} s",
        f"{statistics.median(beyond):.2f} s [{beyond[0]:.2f}, {beyond[-1]:.2f}]",
        str(pairs),
        f"`nftbench run` on {cells:,} records in a fresh process: plan, read, score, leaderboard; "
        f"imports take {statistics.median(one for _, one in found):.2f} s",
    )
