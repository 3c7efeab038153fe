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


def restarts(seed: int, row: str) -> tuple[Point, ...]:
    """Three restarts, further apart for `pmp` and for later seeds; one that diverged has no score."""
    step = (0.02 if row == "pmp" else 0.01) * (1 + seed)
    scores = (0.5 - step, 0.5, 0.5 + step)
    return (*(Point(0.1, 10, score, None, attack_seed=1) for score in scores), Point(0.1, 10, None, None))


def run_of(seeds: int = 3) -> Run:
    found: list[Record] = []
    for (row, task), ends in ENDS.items():
        for seed, end in list(enumerate(ends))[:seeds]:
            found.append(record(row, "none", task, seed, 0.3))
            found.append(record(row, "full", task, seed, end, restarts=restarts(seed, row)))
            found.append(record(row, "head", task, seed, end - 0.1, restarts=()))
    planned = tuple(CellId.of(one) for one in found)
    return Run(tiny_suite(ranking=[]), planned, tuple(found))


def test_every_row_and_task_has_its_spreads() -> None:
    found = {(one["row"], one["task"]): one for one in spread.judge([run_of()]).numbers["spreads"]}
    assert found.keys() == ENDS.keys()
    for (row, task), one in found.items():
        ends = 100 * np.array(ENDS[row, task])
        assert one["attacked"] == pytest.approx(ends.mean())
        assert one["base_seeds"] == pytest.approx(ends.std(ddof=1))
        step = 2.0 if row == "pmp" else 1.0
        assert one["attack_seeds"] == pytest.approx(np.sqrt(np.mean([(step * seed) ** 2 for seed in (1, 2, 3)])))
        assert one["sampling"] == pytest.approx(1.0)
    gaps = 100 * (np.array(ENDS["none", "tone"]) - np.array(ENDS["pmp", "tone"]))
    assert found["pmp", "tone"]["suppression"] == pytest.approx(gaps.std(ddof=1))
    assert found["none", "tone"]["suppression"] is None


def test_each_task_has_the_mean_and_maximum_over_rows() -> None:
    by_task, every = spread.judge([run_of()]).tables
    assert [row[:2] for row in by_task.rows] == [("tone", "2"), ("topic", "2")]
    none, pmp = (np.std(100 * np.array(ENDS[row, "topic"]), ddof=1) for row in ("none", "pmp"))
    assert by_task.rows[1][2] == f"{(none + pmp) / 2:.2f} ({max(none, pmp):.2f})"
    assert len(every.rows) == 4


def test_one_seed_has_no_spread() -> None:
    found = spread.judge([run_of(seeds=1)]).numbers["spreads"]
    assert {one["base_seeds"] for one in found} == {None}
    assert found[0]["attack_seeds"] > 0


def test_other_than_one_run_is_refused() -> None:
    with pytest.raises(NftbenchError, match="reads one run"):
        spread.judge([])
