"""The standard sweep on one release by the engine, and with the usual tools: cold processes, and one warm process."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from nftbench.training.sweep import sweep
from nftbench.training.trainer import Trainer
from tests.benchmarks import baseline
from tests.benchmarks.measure import Line, by_turns, cpu, cpu_of, ratio

ROUNDS, LEAST_COLD, LEAST_WARM = 3, 25, 3
TASK = "validated"
"""The task with its validation documents where lm-eval looks for what it scores."""


@pytest.fixture(scope="module")
def validated(bench: Any) -> Path:
    """A folder with a task file that has lm-eval score the validation documents."""
    from nftbench import tasks

    folder = bench.folder / "validated"
    folder.mkdir()
    text = (Path(tasks.__path__[0]) / "toy_topic.yaml").read_text(encoding="utf-8")
    text = text.replace("task: toy_topic", f"task: {TASK}").replace("test_split: test", "test_split: validation")
    (folder / f"{TASK}.yaml").write_text(text.replace("validation_split: validation\n", ""), encoding="utf-8")
    (folder / "toy.py").write_text("from nftbench.tasks.toy import *  # noqa: F403\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def environment(bench: Any) -> Mapping[str, str]:
    """One thread, no network."""
    return {
        **os.environ,
        "NFTBENCH_CACHE": str(bench.cache),
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONWARNINGS": "ignore",
    }


def run_engine(bench: Any) -> Any:
    return sweep(Trainer(0, bench.budget), bench.model, bench.task)


def rates_and_durations(bench: Any) -> tuple[int, tuple[int, ...]]:
    return len(bench.budget.learning_rates["adamw"]), bench.budget.durations[1:]


def cold_run(bench: Any, validated: Path, environment: Mapping[str, str], steps: int) -> float:
    """One run: a process that trains and saves, and one that scores."""
    out, log = bench.folder / f"cold-{steps}", bench.folder / f"cold-{steps}.log"
    python = [sys.executable, "-P"]
    train = [*python, baseline.__file__, "train", str(bench.release), "toy_topic", str(steps), "1e-3", str(out)]
    score = [*python, "-m", "lm_eval", "run", "--model", "hf", "--model_args", f"pretrained={out},dtype=float32"]
    score += ["--tasks", TASK, "--include_path", str(validated), "--batch_size", "128", "--device", "cpu"]
    return cpu_of(train, environment, log) + cpu_of(score, environment, log)


def test_against_fresh_processes(
    bench: Any, validated: Path, environment: Mapping[str, str], benchmark: Any, table: dict[str, Line]
) -> None:
    rates, durations = rates_and_durations(bench)
    assert len(run_engine(bench).curve) > rates * len(durations) >= 16
    cold_run(bench, validated, environment, durations[0])  # not counted: it brings the files into memory
    runs, engine = {}, []
    for steps in (*durations, -durations[0]):  # the first of them again, as a control
        runs[steps] = cold_run(bench, validated, environment, abs(steps))
        engine.append(cpu(lambda: run_engine(bench)))
    again = runs.pop(-durations[0]) / runs[durations[0]]
    total = rates * sum(runs.values())
    benchmark.pedantic(lambda: run_engine(bench), rounds=1)
    measured = ratio([total] * len(engine), engine)
    table["1 cold"] = Line(
        "fresh processes with Trainer and the lm-eval command line over the engine's sweep, CPU time",
        f"≥ {LEAST_COLD}×",
        str(measured),
        f"{ratio(engine[1:], engine[:-1])}; the processes {again:.3f}×",
        f"{rates} learning rates × durations {listed(durations)}, 2,000 validation documents; extrapolated: {rates} × "
        f"the {len(durations)} runs of one learning rate, {sum(runs.values()):.0f} s; "
        f"the engine {sorted(engine)[len(engine) // 2]:.1f} s",
    )
    assert measured.value >= LEAST_COLD


def test_against_one_warm_process(bench: Any, validated: Path, benchmark: Any, table: dict[str, Line]) -> None:
    from lm_eval.tasks import TaskManager

    from nftbench.tasks import toy

    rates, durations = rates_and_durations(bench)
    network, tokenizer = bench.model.network, bench.model.tokenizer
    rows = baseline.tokenized(tokenizer, toy.documents("topic")["train"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        manager = TaskManager(include_path=str(validated), include_defaults=False)
        score = baseline.evaluate(network, tokenizer, TASK, manager)
        assert score == bench.task.evaluate(network, bench.task.split("validation")).value

        def one_rate() -> None:
            for steps in durations:
                baseline.warm_run(network, tokenizer, rows, steps, 1e-3, bench.folder / "warm", TASK, manager)

        found = by_turns({"warm": one_rate, "engine": lambda: run_engine(bench)}, ROUNDS)
    benchmark.pedantic(lambda: run_engine(bench), rounds=1)
    warm, engine = found["warm"], found["engine"]
    measured = ratio([rates * one for one in warm], engine)
    table["2 warm"] = Line(
        "Trainer and lm_eval.simple_evaluate in one warm process over the engine's sweep, CPU time",
        f"≥ {LEAST_WARM}×",
        str(measured),
        f"{ratio(engine[1:], engine[:-1])}; the warm runs {ratio(warm[1:], warm[:-1]).value:.3f}×",
        f"the same runs; extrapolated: {rates} × the {len(durations)} runs of one learning rate, "
        f"{sorted(warm)[ROUNDS // 2]:.1f} s; data tokenized and tasks indexed beforehand, not counted",
    )
    assert measured.value >= LEAST_WARM


def listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
