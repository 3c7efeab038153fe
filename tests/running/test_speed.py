"""The measured speed of this machine's CPU, and what the forecast makes of it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from nftbench.planning.plan import plan
from nftbench.records.store import Store
from nftbench.running import estimate, forecast, speed
from nftbench.testing import tiny_suite


@pytest.mark.parametrize("large", [False, True])
def test_a_measurement_leaves_threads_and_random_numbers_alone(large: bool) -> None:
    threads = torch.get_num_threads()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    assert 0.05 < speed.slowness.__wrapped__(large=large) < 100
    assert torch.rand(1) == expected
    assert torch.get_num_threads() == threads


def test_the_fastest_round_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    now, pauses = [0.0], iter([9.0, *[5.0, 5.0] * (speed.ROUNDS - 1), 2.0, 4.0])

    def work() -> None:
        now[0] += next(pauses)

    monkeypatch.setattr(time, "thread_time", lambda: now[0])
    assert speed._fastest(work, 2) == 3.0


@pytest.mark.parametrize(("parameters", "factor"), [(80_000, 3.0), (20_000_000, 5.0)])
def test_a_slower_processor_takes_longer(
    parameters: int, factor: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small models by the speed of their steps, large ones by that of products; overhead is always small work."""
    whole = plan(tiny_suite())
    left = estimate.remaining(whole, Store(tmp_path, tmp_path), set())

    def total(**slowness: float) -> float:
        monkeypatch.setattr(speed, "slowness", lambda *, large: slowness["large" if large else "small"])
        return forecast.forecast(whole, left, parameters).total(1)

    reference = total(small=1.0, large=1.0)
    overhead = forecast.STEP_SECONDS * len(forecast.forecast(whole, left, parameters).left)
    expected = 3.0 * overhead + factor * (reference - overhead)
    assert total(small=3.0, large=5.0) == pytest.approx(expected)
