"""Spreads against numpy, task by task."""

from __future__ import annotations

import numpy as np
import pytest

from nftbench.calibration import spread
from nftbench.calibration.proof import Run
from nftbench.contract import Point
from nftbench.errors import NftbenchError
from nftbench.records.record import CellId, Record
from nftbench.testing import tiny_suite
from tests.factories import record

ENDS = {("none", "topic"): (0.80, 0.84, 0.82), ("none", "tone"): (0.70, 0.71, 0.60),
        ("pmp", "topic"): (0.50, 0.56, 0.51), ("pmp", "tone"): (0.40, 0.42, 0.47)}  # fmt: skip


def runs(end: float, row: str) -> tuple[tuple[Point, ...], tuple[Point, ...]]:
    """A sweep whose best point is `end`, and two restarts, further apart for `pmp`; one that diverged has no score."""
    step = 0.02 if row == "pmp" else 0.01
    swept = (Point(0.1, 10, end - 0.2, None), Point(0.1, 20, end, None))
    again = (Point(0.1, 20, end - step, None, attack_seed=1), Point(0.1, 20, end + step, None, attack_seed=2))
    return swept, (*again, Point(0.1, 20, None, None, attack_seed=3))


def run_of(seeds: int = 3) -> Run:
    found: list[Record] = []
    for (row, task), ends in ENDS.items():
        for seed, end in list(enumerate(ends))[:seeds]:
            found.append(record(row, "none", task, seed, 0.3))
            curve, again = runs(end, row)
            found.append(record(row, "full", task, seed, end, curve=curve, restarts=again))
            found.append(record(row, "head", task, seed, end - 0.3, curve=curve[:1], restarts=()))
    planned = tuple(CellId.of(one) for one in found)
    return Run(tiny_suite(ranking=[]), planned, tuple(found))


def best_of(count: int, spread: float) -> float:
    """The standard deviation of the largest of so many normal numbers, by a simulation of its own."""
    return float(np.random.default_rng(1).normal(0, spread, (200_000, count)).max(1).std())


def test_every_row_and_task_has_its_spreads() -> None:
    found = {(one["row"], one["task"]): one for one in spread.judge([run_of()]).numbers["spreads"]}
    assert found.keys() == {*ENDS, ("none", spread.TOGETHER), ("pmp", spread.TOGETHER)}
    for (row, task), one in found.items():
        tasks = ("topic", "tone") if task == spread.TOGETHER else (task,)
        ends = 100 * np.mean([ENDS[row, one] for one in tasks], axis=0)
        assert one["attacked"] == pytest.approx(ends.mean())
        assert one["base_seeds"] == pytest.approx(ends.std(ddof=1))
        step = 2.0 if row == "pmp" else 1.0
        assert one["attack_seeds"] == pytest.approx(best_of(3, step) / len(tasks) ** 0.5, rel=0.05)
        assert one["sampling"] == pytest.approx(1.0 / len(tasks) ** 0.5)
    gaps = 100 * (np.array(ENDS["none", "tone"]) - np.array(ENDS["pmp", "tone"]))
    assert found["pmp", "tone"]["suppression"] == pytest.approx(gaps.std(ddof=1))
    assert found["none", "tone"]["suppression"] is None


def test_a_second_attack_as_strong_makes_the_best_of_all_vary_less() -> None:
    def records(*attacks: str) -> list[Record]:
        curve, again = runs(0.8, "none")
        return [record("none", name, "topic", 0, 0.8, curve=curve, restarts=again) for name in attacks]

    one, two = spread.best_of_runs(records("full")), spread.best_of_runs(records("full", "lora"))
    assert one is not None
    assert two is not None
    assert two < one
    assert two == pytest.approx(best_of(6, 1.0), rel=0.05)
    alone = [record("none", "full", "topic", 0, 0.8, curve=runs(0.8, "none")[0])]
    assert spread.best_of_runs(alone) is None


def test_the_order_of_attacks_changes_nothing() -> None:
    made = [
        record("none", name, "topic", 0, end, curve=runs(end, "none")[0], restarts=runs(end, row)[1])
        for name, end, row in (("full", 0.80, "none"), ("lora", 0.79, "pmp"), ("head", 0.78, "none"))
    ]
    assert spread.best_of_runs(made) == spread.best_of_runs(made[::-1])


def test_each_task_has_the_median_and_maximum_over_rows() -> None:
    by_task, every = spread.judge([run_of()]).tables
    assert [row[:2] for row in by_task.rows] == [("tone", "2"), ("topic", "2"), (spread.TOGETHER, "2")]
    none, pmp = (np.std(100 * np.array(ENDS[row, "topic"]), ddof=1) for row in ("none", "pmp"))
    assert by_task.rows[1][2] == f"{(none + pmp) / 2:.2f} ({max(none, pmp):.2f})"
    assert len(every.rows) == 6


def test_one_seed_has_no_spread() -> None:
    found = spread.judge([run_of(seeds=1)]).numbers["spreads"]
    assert {one["base_seeds"] for one in found} == {None}
    assert found[0]["attack_seeds"] > 0


def test_other_than_one_run_is_refused() -> None:
    with pytest.raises(NftbenchError, match="reads one run"):
        spread.judge([])
