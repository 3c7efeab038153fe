"""Recovery of secrets: the referee's scores over seeds, which guesses beat chance, and what they are worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from nftbench.records.record import Record
from nftbench.report import page
from nftbench.scoring.side_tables.mask_value import MaskRow, MaskValue
from tests.factories import TASKS, failed, record, scored, scratch, sweep

SEEDS = 5
UNAUTHORISED = (0.50, 0.52, 0.51, 0.49, 0.50)
AUTHORISED = (0.70, 0.73, 0.70, 0.71, 0.69)
RECOVERED = (0.60, 0.64, 0.61, 0.58, 0.60)


def guesses(attack: str, auc: Sequence[float], scores: Sequence[float] = RECOVERED, **changes: object) -> list[Record]:
    return [
        record("mask", attack, task, seed, score, **{
            "knowledge": ("method", "data"),
            "recovery": {"roc_auc": area, "iou": area - 0.1, "mcc": 2 * area - 1, "density": 0.6},
            **changes,
        })
        for task in TASKS
        for seed, (area, score) in enumerate(zip(auc, scores, strict=True))
    ]  # fmt: skip


def owner(scores: Sequence[float] = AUTHORISED) -> list[Record]:
    return [
        record("mask", "authorized", task, seed, score, knowledge=("secret",))
        for task in TASKS
        for seed, score in enumerate(scores)
    ]


def rows_of(*more: list[Record], undefended: float = 0.8) -> list[Record]:
    count = len(UNAUTHORISED)
    base = [*sweep("none", (undefended,) * count), *scratch([0.4] * count), *sweep("mask", UNAUTHORISED)]
    return [one for records in (base, *more) for one in records]


def table(*more: list[Record]) -> dict[str, MaskRow]:
    return {row.attack: row for row in scored(rows_of(*more)).side_table(MaskValue).rows}


def test_metrics_are_means_over_seeds_beside_what_knows_nothing() -> None:
    auc = (0.80, 0.84, 0.82, 0.83, 0.81)
    row = table(guesses("magnitude", auc))["magnitude"]
    found = row.metrics["roc_auc"]
    bounds = stats.t.interval(0.95, SEEDS - 1, loc=np.mean(auc), scale=stats.sem(auc))
    assert (found.value, found.low, found.high) == pytest.approx((np.mean(auc), *bounds))
    assert found.count == SEEDS  # the tasks of a release share its guess
    assert row.chance == pytest.approx({"roc_auc": 0.5, "iou": 0.6 / 1.4, "mcc": 0.0})
    assert (row.defense, row.knowledge, row.finds) == ("mask", ("method", "data"), True)


def test_chance_is_what_a_guess_that_knows_nothing_scores() -> None:
    """Expectations under a random choice of as many weights as the mask marks, drawn."""
    generator, share = np.random.default_rng(0), 0.6
    truth = generator.permutation(np.arange(10_000) < share * 10_000)
    guess = generator.permutation(truth)
    row = table(guesses("magnitude", (0.5,) * SEEDS))["magnitude"]
    assert row.chance["iou"] == pytest.approx((truth & guess).sum() / (truth | guess).sum(), abs=0.02)
    assert row.metrics["density"].value == pytest.approx(share)


def test_only_the_estimator_of_the_leaking_channel_finds_the_secret() -> None:
    leaks = (0.70, 0.72, 0.69, 0.71, 0.73)
    generator = np.random.default_rng(1)
    blind = {f"estimator{number}": (0.5 + generator.normal(0, 0.003, SEEDS)).tolist() for number in range(9)}
    found = table(guesses("magnitude", leaks), *(guesses(name, auc) for name, auc in blind.items()))
    assert {name for name, row in found.items() if row.finds} == {"magnitude"}
    assert found["estimator0"].finds is False


def test_many_blind_guesses_are_corrected_for() -> None:
    """Of a hundred tables of ten estimators without a clue at most about five in a hundred claim a find."""
    generator, wrong = np.random.default_rng(2), 0
    for _ in range(40):
        blind = 0.5 + generator.normal(0, 0.01, (10, SEEDS))
        records = [guesses(f"estimator{number}", auc.tolist()) for number, auc in enumerate(blind)]
        wrong += any(row.finds for row in table(*records).values())
    assert wrong <= 4  # 1 expected at one-sided 2.5 %; more than 4 less likely than 1 in 200


def test_mask_value_recovered_is_fiellers_ratio() -> None:
    row = table(guesses("magnitude", (0.8,) * SEEDS), owner())["magnitude"]
    gained, worth = (100 * (np.array(one) - np.array(UNAUTHORISED)) for one in (RECOVERED, AUTHORISED))
    assert row.outcome == "measured"
    assert row.value is not None
    assert row.value.value == pytest.approx(gained.mean() / worth.mean())
    for end in (row.value.low, row.value.high):  # where a paired t test just tells gained from end · worth
        assert stats.ttest_1samp(gained - end * worth, 0).pvalue == pytest.approx(0.05, abs=1e-6)
    for shown, scores in (
        (row.unauthorised, UNAUTHORISED),
        (row.recovered, RECOVERED),
        (row.authorised, AUTHORISED),
    ):
        assert shown is not None
        assert shown.value == pytest.approx(100 * np.mean(scores))
    assert row.gap is not None
    assert row.gap.value == pytest.approx(worth.mean())


@pytest.mark.parametrize(
    ("leave", "outcome"),
    [
        ((0.50, 0.53, 0.52, 0.48, 0.50), "not distinguishable"),
        ((0.40, 0.42, 0.41, 0.39, 0.41), "worth nothing"),
    ],
)
def test_without_a_gap_there_is_no_share_of_it(leave: Sequence[float], outcome: str) -> None:
    row = table(guesses("magnitude", (0.8,) * SEEDS), owner(leave))["magnitude"]
    assert (row.outcome, row.value) == (outcome, None)
    assert row.recovered is not None


def test_without_the_owner_or_with_a_failed_cell_nothing_is_measured() -> None:
    assert table(guesses("magnitude", (0.8,) * SEEDS))["magnitude"].outcome == "not measured"
    broken = owner()
    broken[0] = failed(broken[0])
    row = table(guesses("magnitude", (0.8,) * SEEDS), broken)["magnitude"]
    assert (row.outcome, row.authorised, row.value) == ("not measured", None, None)
    assert row.metrics["roc_auc"].value == pytest.approx(0.8)  # the guess is scored all the same


def test_one_seed_has_no_interval() -> None:
    records = [one for one in rows_of(guesses("magnitude", (0.9,) * SEEDS), owner()) if one.seed == 0]
    (row,) = scored(records).side_table(MaskValue).rows
    assert (row.finds, row.outcome, row.value) == (None, "not distinguishable", None)


def test_an_attack_that_knows_the_secret_is_left_out() -> None:
    """Nor does a cell that failed."""
    leaking = [replace(one, recovery={"roc_auc": 1.0}) for one in owner()]
    broken = [failed(one) for one in guesses("magnitude", (0.9,) * SEEDS)]
    assert table(leaking, broken) == {}


def test_the_report_shows_mask_values() -> None:
    board = scored(rows_of(guesses("magnitude[batches=2]", (0.80, 0.84, 0.82, 0.83, 0.81)), owner()))
    metrics, worth = board.side_table(MaskValue).tables()
    (line,) = metrics.rows
    assert line[:4] == ("mask", "magnitude[batches=2]", "method+data", "0.820 [0.800, 0.840]")
    assert line[metrics.header.index("IoU")] == "0.720 [0.700, 0.740] (0.429)"
    assert line[-1] == "yes"
    assert worth.rows[0][2:5] == ("50.4 [49.0, 51.8]", "60.6 [57.9, 63.3]", "70.6 [68.7, 72.5]")
    assert worth.rows[0][-1].startswith("50.5 [")
    text = page.leaderboard(board, "nftbench run tiny")
    assert "## What the guessed masks are worth" in text
    assert "- **Recovery of secrets**:" in text
    assert "Recovery of secrets" not in page.leaderboard(scored(rows_of()), "nftbench run tiny")
