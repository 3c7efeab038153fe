"""The dose judge: a dose that is ranked is a failure, one that pays with utility or equals its control is none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from nftbench.calibration import dose
from nftbench.calibration.proof import Finding, Run
from nftbench.planning.plan import plan
from nftbench.records.record import CellId, Record
from nftbench.testing import tiny_suite
from tests.factories import scratch, sweep

SUITE = tiny_suite(defenses=["none", "early_stop[fraction=0.9]"], seeds=[0, 1, 2])
SEEDS = (0.80, 0.82, 0.84)
HONEST = {fraction: (0.3 * (1 - fraction), 0.5 + 0.25 * fraction) for fraction in dose.FRACTIONS}
"""By dose: what it takes from the attacker, and its utility; 0.75 of a floor of 0.25 is whole."""


def judged(doses: Mapping[float, tuple[float, float]]) -> Finding:
    noise = (0.001, -0.002, 0.001)
    records: list[Record] = [*sweep("none", SEEDS), *scratch([0.22] * 3)]  # on the line of the honest doses
    for fraction, (taken, utility) in doses.items():
        ends = [end - taken + error for end, error in zip(SEEDS, noise, strict=True)]
        records += sweep(dose.spec(fraction), ends, utility=utility)
    planned = [CellId.of(one) for one in records]
    return dose.judge(SUITE, Run(dose.derive(SUITE, (), ()), tuple(planned), tuple(records)))


def test_the_derived_suite_holds_every_dose_once() -> None:
    derived = dose.derive(SUITE, (), ())
    assert derived.defenses == (
        "none",
        "early_stop[fraction=0.9]",
        *(f"early_stop[fraction=0.{tenth}]" if tenth != 5 else "early_stop" for tenth in range(1, 9)),
    )
    assert derived.pretraining.checkpoints == dose.FRACTIONS  # 0.5 was among them
    assert derived.ranking == frozenset({"method"})  # all that its attacks know: linear_probe is told the method
    assert len(plan(derived).cells) == 3 * (
        10 * (2 + 4) + 1
    )  # two utilities and tasks unattacked, four attacks, scratch


def test_doses_that_pay_with_utility_are_not_taken_for_defenses() -> None:
    found = judged(HONEST)
    assert found.failures == ()
    rows = {one["fraction"]: one for one in found.numbers["doses"]}
    assert rows[0.5]["suppression"]["value"] == pytest.approx(15.0)
    assert rows[0.5]["retention"]["value"] == pytest.approx((0.625 - 0.25) / 0.5)
    assert rows[0.5]["excess"]["value"] == pytest.approx(0.0, abs=1e-6)  # it lies on the line of the others
    assert rows[0.5]["standing"] == "preliminary"


@pytest.mark.parametrize("taken", [0.20, 0.09])
def test_a_dose_that_is_ranked_is_a_failure(taken: float) -> None:
    found = judged({**HONEST, 0.8: (taken, 0.75), 0.9: (0.01, 0.75)})
    (failure,) = found.failures
    assert "early_stop[fraction=0.8] is taken for a defense: preliminary" in failure
    assert f"{100 * taken - 1:.1f}" in failure  # beyond the weaker dose, which keeps as much


def test_a_dose_like_another_has_no_effect() -> None:
    assert judged({**HONEST, 0.8: (0.01, 0.75), 0.9: (0.01, 0.75)}).failures == ()


def test_a_missing_dose_is_a_failure() -> None:
    doses = {**HONEST}
    del doses[0.3]
    records = sweep("none", SEEDS)
    derived = dose.derive(SUITE, (), ())
    planned = [CellId(row, "none", "pairs", seed) for row in derived.defenses for seed in range(3)]
    (failure,) = dose.judge(SUITE, Run(derived, tuple(planned), tuple(records))).failures
    assert failure.startswith("27 of 30 cells have no result")


def test_the_curve_is_drawn(tmp_path: Path) -> None:
    found = judged(HONEST)
    assert found.draw is not None
    path = found.draw(tmp_path)
    assert path == tmp_path / "dose.png"
    image = matplotlib.image.imread(path)
    assert image.shape[0] > 300
    assert float(np.std(image[..., :3])) > 0.01  # not blank
