"""The script of `make gpu`: its time, its seeds, its tables; and that what it compares takes the same steps."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from nftbench import suites
from nftbench.device import CPU
from nftbench.models import networks
from nftbench.running.executors import steps
from nftbench.running.executors.local import LocalExecutor
from tests.gpu import run as script, throughput
from tests.gpu.throughput import REAL, TINY, Bench, Line

# ---------------------------------------------------------------------------------------------------------------- time


def test_time_is_shared_and_what_a_part_leaves_over_goes_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, limits = [0.0], {}
    monkeypatch.setattr(script.time, "monotonic", lambda: now[0])

    def part(name: str, takes: float, says: str) -> Callable[[Any, float], str]:
        def action(_: Any, limit: float) -> str:
            limits[name] = limit
            now[0] += takes
            return says

        return action

    ways = {"tests": part("tests", 20, "done"), "throughput": part("throughput", 170, "exit code 1")}
    monkeypatch.setattr(script, "PARTS", {**ways, "suite": part("suite", 300, "done")})
    plan = script.Plan(("tests", "throughput", "suite"), 600, tmp_path / "out", None, False)
    assert script.run(plan) == 1
    assert limits["tests"] == pytest.approx(90)
    assert limits["throughput"] == pytest.approx(580 * 0.3 / 0.85)
    assert limits["suite"] == pytest.approx(600 - 20 - 170)
    lines = (tmp_path / "out" / "summary.txt").read_text().splitlines()
    assert [line.partition(" after")[0] for line in lines] == ["tests: done", "throughput: exit code 1", "suite: done"]


def test_a_command_that_takes_too_long_is_stopped_with_all_that_it_started(tmp_path: Path) -> None:
    child = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    begun = time.monotonic()
    assert script.call([sys.executable, "-c", parent], 2, tmp_path / "log") == "stopped, its time was up"
    assert time.monotonic() - begun < 20
    number = int((tmp_path / "log").read_text())
    assert wait_for(lambda: not alive(number))


def alive(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for(true: Callable[[], bool]) -> bool:
    """Whether something is true within ten seconds."""
    return any(true() or time.sleep(0.1) for _ in range(100))


@pytest.mark.parametrize(("code", "said"), [(0, "done"), (3, "exit code 3")])
def test_how_a_command_ended(tmp_path: Path, code: int, said: str) -> None:
    assert script.call([sys.executable, "-c", f"print('x'); raise SystemExit({code})"], 60, tmp_path / "log") == said
    assert (tmp_path / "log").read_text() == "x\n"


def test_without_a_gpu_nothing_is_run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(script, "run", None)
    assert script.main([]) == 2
    assert "nothing was measured" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------------------- seeds


def test_a_seed_is_complete_if_all_its_cells_have_a_record(workspace: Callable[..., Any], tmp_path: Path) -> None:
    here = workspace(seeds=[0, 1, 2], tasks=["toy_topic"])
    assert script.seeds_in(here.store.results) == set()
    here.store.write_manifest(here.plan.manifest())
    assert script.seeds_in(here.store.results) == set()
    jobs = [job for job in here.plan.jobs() if job.seed in (0, 2)]
    for _ in steps.run(here, jobs, LocalExecutor(here, 1)):
        pass
    assert script.seeds_in(here.store.results) == {0, 2}
    (lost,) = [path for path in (here.store.results / "records").glob("*.json") if '"seed": 2' in path.read_text()][:1]
    lost.unlink()
    assert script.seeds_in(here.store.results) == {0}


@pytest.mark.parametrize(("done", "following"), [(set(), 0), ({0, 1}, 2), ({1}, 0), ({0, 1, 2, 3, 4}, None)])
def test_the_next_seed_is_the_first_that_lacks(
    monkeypatch: pytest.MonkeyPatch, done: set[int], following: int | None
) -> None:
    monkeypatch.setattr(script, "seeds_in", lambda folder: done)
    assert script.next_seed(Path("results")) == following


@pytest.mark.slow
def test_seeds_that_are_brought_back_add_up(workspace: Callable[..., Any], tmp_path: Path) -> None:
    results = tmp_path / "published" / "wiki-gpu"
    results.parent.mkdir()
    for seed in (0, 1):
        here = workspace(seeds=[0, 1], results=f"brought-{seed}/wiki-gpu")
        here.store.write_manifest(here.plan.manifest())
        for _ in steps.run(here, [job for job in here.plan.jobs() if job.seed == seed], LocalExecutor(here, 1)):
            pass
        assert script.add(tmp_path / f"brought-{seed}", results) == 0
        assert script.seeds_in(results) == set(range(seed + 1))
    assert (results / "records.jsonl.xz").exists()
    assert (results / "leaderboard.md").exists()
    assert script.add(tmp_path / "nothing", results) == 2
    assert script.seeds_in(results) == {0, 1}


def test_the_suite_is_as_small_as_a_loan_of_a_gpu_wants_and_can_be_ranked() -> None:
    suite = suites.read(script.SUITE)
    assert len(suite.seeds) == 5, "a rank needs five"
    assert {"none", "random_mask", "pmp[discovery_steps=100]"} == set(suite.defenses)
    assert {"early_stop", "noise"} <= suite.ladder.keys()


# ---------------------------------------------------------------------------------------------------------- throughput


def test_a_measurement_that_fails_leaves_a_line_and_the_next_one_follows(tmp_path: Path) -> None:
    path, seen = tmp_path / "table.md", []

    def good(bench: Bench) -> Iterator[Line]:
        yield Line("first", "≥ 1", "2", "")

    def bad(bench: Bench) -> Iterator[Line]:
        yield Line("half", "", "", "")
        seen.append(path.read_text())
        raise RuntimeError("no such\nkernel")

    throughput.measure(Bench(CPU, TINY), path, [good, bad, good])
    assert "| first | ≥ 1 | 2 |  |" in seen[0], "the table is there before the next measurement"
    assert path.read_text().count("| first |") == 2
    assert "| bad |  | failed | RuntimeError: no such kernel |" in path.read_text()


@pytest.mark.parametrize(
    ("measurement", "count"),
    [
        (throughput.sixteen_rates, 3),
        (throughput.sixteen_updates, 3),
        (throughput.sixteen_scores, 2),
        (throughput.fine_tuning, 3),
        (throughput.ceiling, 1),
        (throughput.pretraining, 3),
    ],
)
@pytest.mark.slow
def test_every_measurement_runs(measurement: Callable[[Bench], Iterator[Line]], count: int) -> None:
    lines = list(measurement(Bench(CPU, TINY)))
    assert len(lines) == count
    assert all(line.measured and "measured without" not in line.how for line in lines)


def test_plain_pytorch_takes_the_engine_s_steps() -> None:
    """Otherwise their times could not be compared."""
    bench = Bench(CPU, TINY)
    sweep, runs = throughput.sweeping(bench, bench.build(TINY.small, throughput.LENGTH), count=3)
    stacked = sweep.at_once(runs)
    for run, plain, ended in zip(runs, throughput.by_hand(sweep, runs), stacked, strict=True):
        for network in (sweep.alone(run).network(), ended.network()):
            for name, weight in network.named_parameters():
                torch.testing.assert_close(weight, plain.get_parameter(name), rtol=1e-3, atol=1e-5, msg=name)


def test_the_flops_of_a_token_are_those_of_the_matrices_and_of_attention() -> None:
    """For the 124 M parameters of GPT-2, counted matrix by matrix: forward twice a weight, backward twice as much."""
    fields = {**REAL.large, "vocab_size": 50304, "n_positions": 1024}
    with torch.device("meta"):
        network = networks.build(fields, None, 0, "meta").network
    assert sum(weight.numel() for weight in network.parameters()) == pytest.approx(124.5e6, rel=0.01)
    layer = 3 * 768 * 768 + 768 * 768 + 2 * 4 * 768 * 768
    matrices = 12 * layer + 768 * 50304
    attention = 12 * 2 * 2 * 1024 * 768  # scores and mixed values, each a product of width 768 with 1024 positions
    expected = 3 * (2 * matrices + attention)
    assert throughput.token_flops(network, 1024) == pytest.approx(expected, rel=2e-3)
