"""Power: the share of fakes in which a planted effect is found, beside what the oracle's strengths show."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from nftbench.calibration import null, power
from nftbench.calibration.proof import Run
from nftbench.calibration.resampled import Pool
from nftbench.errors import NftbenchError
from nftbench.records.record import CellId
from tests.calibration.pools import oracle_run, records, run_of


@pytest.fixture(scope="module")
def runs() -> tuple[Run, Run]:
    return run_of(records(0)), oracle_run(weak=2.0, strong=12.0)


def test_the_judge_reads_both_runs_in_any_order(runs: tuple[Run, Run]) -> None:
    null_run, graded = runs
    found = power.judge([graded, null_run], sample=60)
    assert found.name == "tiny-power"
    least = found.numbers["smallest"]
    assert least[3] > least[5] > 0
    low, high = found.numbers["without_each_seed"][5]
    assert low <= high
    by_row = {(one["row"], one["seeds"]): one for one in found.numbers["detections"]}
    assert list(by_row) == [("weak", 3), ("strong", 3), ("weak", 5), ("strong", 5)]
    strong, weak = by_row["strong", 5], by_row["weak", 5]
    assert (strong["subsets"], strong["found"], by_row["strong", 3]["subsets"]) == (1, 1, 10)
    assert strong["predicted"] > 0.99 > weak["predicted"]
    assert strong["excess"] == pytest.approx(12, abs=3)


def test_the_smallest_effect_is_found_in_four_fakes_of_five(runs: tuple[Run, Run]) -> None:
    fakes = power.drawn(Pool.of(runs[0]), 5, 100)
    lows = power.lower_ends(fakes)
    least = power.smallest(lows)
    assert power.power(lows, least + 1e-9) == pytest.approx(0.8)
    assert power.power(lows, least - 1e-9) < 0.8
    assert np.mean([one.raised(least + 1e-9).excess.low > 0 for one in fakes]) == pytest.approx(0.8)
    assert power.power(lows, 0.0) == np.mean([one.excess.low > 0 for one in fakes])


def test_an_effect_that_needs_too_many_points_is_a_failure() -> None:
    found = power.judge([run_of(records(1, noise=40.0)), oracle_run(strong=12.0)], sample=40)
    (failure,) = found.failures
    assert failure.startswith("with 5 seeds the smallest effect found with 80 % power is ")
    assert failure.endswith("points, at most 4 may be")


def test_power_needs_one_run_of_each_proof(runs: tuple[Run, Run]) -> None:
    null_run, graded = runs
    for few in ([null_run], [graded], [null_run, null_run, graded]):
        with pytest.raises(NftbenchError, match="reads one run of the proof"):
            power.judge(few)


def test_a_missing_cell_is_a_failure(runs: tuple[Run, Run]) -> None:
    null_run, graded = runs
    lost = replace(null_run, planned=(*null_run.planned, CellId("none", "lora", "topic", 0)))
    (failure,) = power.judge([lost, graded]).failures
    assert "none × lora on topic, seed 0" in failure


@pytest.mark.slow
def test_what_is_predicted_from_fakes_is_found_in_new_runs() -> None:
    """The smallest effect of a large pool, planted in runs that are drawn anew: models, ladder and reference.

    Pools of 24 seeds differ by 0.26 points in it, one standard deviation, which is 10 % of power. 240 seeds are enough.
    """
    lows = power.lower_ends(power.drawn(Pool.of(run_of(records(7, seeds=240))), 5, 300))
    least = power.smallest(lows)
    found = [oracle_run(1000 + seed, row=least) for seed in range(60)]
    seen = sum(power.excesses(run)["row"].low > 0 for run in found)
    assert stats.binomtest(seen, len(found), power.POWER).pvalue > 0.01
    assert least <= power.LIMIT
    assert power.power(lows, 0.0) <= null.LIMIT
