"""Fakes are scored as the leaderboard scores rows; false positives, ranks and badges of undefended models."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from nftbench.calibration import null
from nftbench.calibration.proof import Finding
from nftbench.calibration.resampled import Choice, Fake, Pool
from nftbench.errors import NftbenchError
from nftbench.planning.plan import plan
from nftbench.records.record import CellId
from nftbench.scoring import score
from nftbench.scoring.intervals import Interval
from nftbench.scoring.rank_intervals import Heights, RankInterval
from nftbench.testing import tiny_suite
from tests.calibration.pools import MODELS, records, run_of
from tests.factories import RANKING, measurement
from tests.scoring import drawn

LADDER = {"early_stop": ["early_stop[fraction=0.9]", "early_stop"]}


def shares(found: Finding) -> Mapping[tuple[str, int], dict[str, Any]]:
    return {(one["what"], one["seeds"]): one for one in found.numbers["shares"]}


# ------------------------------------------------------------------------------------------------------------- fakes


@pytest.mark.parametrize("size", [3, 5])
def test_a_fake_is_scored_as_the_leaderboard_scores_a_row(size: int) -> None:
    """Records of a whole board in which the chosen models stand as a defense, and the others as the initialisations."""
    found = records(0)
    pool = Pool.of(run_of(found))
    (choice,) = pool.draw(size, random.Random(3))
    fake = pool.judge(choice)
    rows = as_a_board(choice)
    planned = [CellId.of(one) for one in rows]
    board = score(rows, ranking=RANKING, ladder=drawn.LADDER, initialisations=OTHERS, side_tables=(), planned=planned)
    row = next(one for one in board.scores if one.defense == "fake")
    assert row.excess.interval is not None
    assert (fake.excess.value, fake.excess.low, fake.excess.high) == pytest.approx(
        (row.excess.interval.value, row.excess.interval.low, row.excess.interval.high)
    )
    assert fake.heights.own == pytest.approx(row.excess.heights.own)
    assert fake.badge == row.utility.badge
    assert fake.over == (row.excess.metric, row.excess.family)


OTHERS = ("twin[index=7]", "twin[index=8]", "twin[index=9]")


def as_a_board(choice: Choice) -> list[Any]:
    chosen = [one for one in records(0) if one.seed in choice]
    found = [one for one in chosen if not one.defense.startswith("twin")]
    for seed, played in choice.items():
        for name, model in zip(("fake", *OTHERS), (played, *(m for m in MODELS[1:] if m != played)), strict=True):
            own = [one for one in chosen if one.seed == seed and one.defense == model]
            found += [
                replace(one, defense=name, key=f"{name}/{one.key}", release_sha256=name, row=drawn._row(name))
                for one in own
                if name == "fake" or one.role == "utility"
            ]
    return found


def test_planted_points_raise_the_whole_interval() -> None:
    pool = Pool.of(run_of(records(1)))
    (choice,) = pool.draw(5, random.Random(0))
    lower = {model: {seed: end - 7.0 for seed, end in pool.attacked[model].items()} for model in MODELS[1:]}
    planted, judged = pool.judge(choice).raised(7.0), replace(pool, attacked={**pool.attacked, **lower}).judge(choice)
    for one in ("value", "low", "high"):
        assert getattr(planted.excess, one) == pytest.approx(getattr(judged.excess, one))
    for one in ("own", "lowest", "highest"):
        assert getattr(planted.heights, one) == pytest.approx(getattr(judged.heights, one))
    assert planted.badge == judged.badge


def test_the_rows_of_a_board_are_different_models_at_every_seed() -> None:
    pool = Pool.of(run_of(records(2)))
    for _ in range(20):
        board = pool.draw(5, random.Random(1), rows=4)
        assert len({frozenset(one) for one in board}) == 1
        assert all(len({one[seed] for one in board} | {"none"}) == 5 for seed in board[0])


def test_a_run_of_two_models_holds_no_fakes() -> None:
    run = run_of([one for one in records(3) if not one.defense.startswith("twin[index=")])
    with pytest.raises(NftbenchError, match="needs three undefended models at each seed, and this run has 1"):
        Pool.of(run)


def test_models_that_gain_nothing_beyond_scratch_have_no_score() -> None:
    found = [
        replace(one, attacked=measurement(0.95), validation=measurement(0.95)) if one.attack == "scratch" else one
        for one in records(2)
    ]
    with pytest.raises(NftbenchError, match="no task on which the undefended model ends clearly above scratch"):
        Pool.of(run_of(found))


def test_models_that_know_nothing_have_no_score() -> None:
    ignorant = [
        replace(one, unattacked=floor, attacked=floor)
        if one.role == "utility" and (floor := replace(one.unattacked, value=one.unattacked.floor))  # type: ignore[union-attr, type-var]
        else one
        for one in records(2)
    ]
    pool = Pool.of(run_of(ignorant))
    with pytest.raises(NftbenchError, match="undefended models are above the floor on no utility metric"):
        pool.judge(*pool.draw(3, random.Random(0)))


# ------------------------------------------------------------------------------------------------------------- judge


def test_undefended_models_pass() -> None:
    found = null.judge(tiny_suite(), run_of(records(4)), sample=40)
    assert found.failures == ()
    kept = [shares(found)[f"utility: {badge}", 5]["interval"]["value"] for badge in ("keeps", "cannot tell", "loses")]
    assert sum(kept) == pytest.approx(1.0)
    assert shares(found)["ranks of equal rows are covered", 5]["interval"]["high"] >= 0.95  # as the proof judges it
    assert shares(found)["false positives", 3]["fakes"] == 160
    assert sum(share for _, _, share in found.numbers["binding"]) == pytest.approx(1.0)
    assert {metric for metric, _, _ in found.numbers["binding"]} <= {"mean", *drawn.METRICS}
    assert found.numbers["attacked"]["none"].keys() == set(range(7))


def test_models_that_are_worth_less_are_false_positives() -> None:
    """As they would be found if an undefended model were hard to fine-tune by itself."""
    worse = [
        replace(one, attacked=lowered, validation=lowered)
        if one.defense in MODELS[1:] and one.attack == "full" and one.attacked
        and (lowered := replace(one.attacked, value=one.attacked.value - 0.1))
        else one
        for one in records(5)
    ]  # fmt: skip
    found = null.judge(tiny_suite(), run_of(worse), sample=20)
    assert any("of the fakes with 5 seeds have an effect, at most 1.0 % may" in one for one in found.failures)
    assert not any("3 seeds" in one for one in found.failures)


def board(*effects: float, noise: float = 0.0) -> list[Fake]:
    draw = np.random.default_rng(0)
    heights = [{seed: effect + noise * draw.normal() for seed in range(5)} for effect in effects]
    return [
        Fake({}, Interval(effect), Heights(one, one, one), "keeps", effect)
        for effect, one in zip(effects, heights, strict=True)
    ]


def test_rows_with_equal_effects_share_their_ranks() -> None:
    assert null.true_ranks(board(0.0, 0.0, 4.0, 8.0)) == [
        RankInterval(3, 4), RankInterval(3, 4), RankInterval(2, 2), RankInterval(1, 1),
    ]  # fmt: skip
    assert null.covered(board(0.0, 0.0, 4.0, 8.0)) == [True] * 4
    assert null.covered(board(0.0, 0.0, 0.0, noise=3.0)) == [True] * 3
    told_apart = [replace(one, planted=0.0) for one in board(0.0, 4.0)]
    assert null.covered(told_apart) == [False, False]


def test_twins_of_the_same_weights_are_a_failure() -> None:
    same = [replace(one, release_sha256=f"{one.seed}") if one.defense in MODELS[:2] else one for one in records(5)]
    found = null.judge(tiny_suite(), run_of(same))
    assert "seed 0: none and twin[index=1] have the same weights" in found.failures


def test_a_missing_cell_is_a_failure() -> None:
    run = run_of(records(6))
    found = null.judge(tiny_suite(), replace(run, records=run.records[1:]))
    assert len(found.failures) == 1
    assert found.failures[0].endswith(": missing")


def test_a_test_score_that_cannot_be_trusted_is_a_failure() -> None:
    """A cell may have a record that does not count: here one far above what it chose by."""
    read = [
        replace(one, validation=replace(one.attacked, value=0.2))
        if (one.defense, one.attack, one.seed) == ("none", "full", 2) and one.attacked
        else one
        for one in records(6)
    ]
    (failure,) = null.judge(tiny_suite(), run_of(read)).failures
    assert "first none × full on words, seed 2: test score" in failure


def test_the_interval_of_a_share_is_students_where_each_board_is_of_one_seed() -> None:
    values = [0.0, 0.05, 0.02, 0.01, 0.04]
    boards = [
        [Fake({seed: "twin"}, Interval(float(index < round(100 * value))), Heights(), "keeps")]
        for seed, value in enumerate(values)
        for index in range(100)
    ]
    found = null.share("x", 1, boards, lambda one: [fake.excess.value > 0 for fake in one]).interval
    low, high = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
    assert found.value == pytest.approx(np.mean(values))
    assert (found.low, found.high) == pytest.approx((max(0.0, low), high))
    assert null.jackknife(0.0, [0.0] * 8) == Interval(0.0, 0.0, 1.0, 8)


# ------------------------------------------------------------------------------------------------------------- suite


def test_the_derived_suite_attacks_one_model_more_than_the_reference_has_initialisations(cache: object) -> None:
    suite = tiny_suite(
        seeds=[3, 4], attacks=["full", "lora", "head"], ladder=LADDER, ladder_attacks=["full"], initialisations=3
    )
    whole = plan(null.derive(suite, (), ()))
    twins = [f"twin[index={index}]" if index > 1 else "twin" for index in (1, 2, 3)]
    assert whole.suite.seeds == (3, 4, 0, 1, 2, 5, 6, 7)
    assert list(whole.initialisations) == twins
    attacked = {(str(cell.defense), str(cell.attack)) for cell in whole.cells if str(cell.attack) != "none"}
    doses = LADDER["early_stop"]
    assert attacked == {*itertools.product(["none", *twins, *doses], ["full"]), ("none", "scratch")}
    assert whole.suite.ranking == suite.ranking  # the level of the ranking
    assert {CellId.of(cell).seed for cell in whole.cells} == set(whole.suite.seeds)
    with pytest.raises(NftbenchError, match="tiny has no ladder"):
        null.derive(tiny_suite(), (), ())


@pytest.mark.slow
def test_false_positives_are_rare_in_runs_drawn_at_random() -> None:
    """Over runs, each with a ladder and models of its own."""
    rates, covered = [], []
    for seed in range(12):
        found = shares(null.judge(tiny_suite(), run_of(records(100 + seed, seeds=8)), sample=60))
        rates.append(found["false positives", 5]["interval"]["value"])
        covered.append(found["ranks of equal rows are covered", 5]["interval"]["value"])
    assert np.mean(rates) <= null.LIMIT
    assert np.mean(covered) >= null.COVERAGE
