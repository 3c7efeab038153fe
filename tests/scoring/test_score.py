"""Every formula against numbers worked out by hand, the rules of the game, and the error rate of the verdict."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

from nftbench.contract import Claim, Cost, Point
from nftbench.records.record import CellId, Record
from nftbench.scoring import Leaderboard, Score
from nftbench.scoring.cost_to_break import Multiple, cost_to_break, median_multiple
from nftbench.scoring.grid import knowledge_name
from nftbench.scoring.intervals import Interval, beats_zero, difference, holm, mean, p_above, ratio, weakest
from nftbench.scoring.points import points, preference
from nftbench.suites.schema import Family
from nftbench.terms import Knowledge
from tests import factories
from tests.factories import (
    COST,
    DEFENDED,
    TASKS,
    curve,
    failed,
    measurement,
    record,
    row,
    scored,
    scratch,
    suite,
    sweep,
)


def of(board: Leaderboard, defense: str) -> Score:
    return next(one for one in board.scores if one.defense == defense)


def suppressions(score: Score) -> list[Interval | None]:
    """Every number of a row that speaks for the defense."""
    return [score.resistance.suppression, score.excess.interval, score.recipes.suppression, score.claim.excess]


# ------------------------------------------------------------------------------------------------------- statistics


def test_mean_is_students_interval() -> None:
    # m = 3, s = 1, t(2) = 4.30265: 3 ± 4.30265 / √3
    found = mean([2.0, 3.0, 4.0])
    assert (found.value, found.count) == (3.0, 3)
    assert found.low == pytest.approx(3 - 2.48414, abs=1e-4)
    assert found.high == pytest.approx(3 + 2.48414, abs=1e-4)
    assert found.p == pytest.approx(stats.ttest_1samp([2, 3, 4], 0, alternative="greater").pvalue)


def test_difference_is_paired_by_seed() -> None:
    found = difference([3.0, 5.0, 7.0], [1.0, 2.0, 3.0])  # differences 2, 3, 4
    paired = stats.ttest_rel([3, 5, 7], [1, 2, 3]).confidence_interval()
    assert (found.low, found.high) == pytest.approx((paired.low, paired.high))
    assert found.p == pytest.approx(stats.ttest_rel([3, 5, 7], [1, 2, 3], alternative="greater").pvalue)


def test_p_above_a_bound_is_that_of_the_shifted_values() -> None:
    values = [1.02, 1.08, 1.05, 1.09]
    expected = stats.ttest_1samp(values, 1.03, alternative="greater").pvalue
    assert p_above(mean(values), 1.03) == pytest.approx(expected)
    assert [p_above(mean([1.08] * count), 1.03) for count in (1, 3)] == [1.0, 0.0]


def test_one_seed_has_no_interval_and_equal_seeds_have_one_of_no_width() -> None:
    assert mean([4.0]) == Interval(4.0, -math.inf, math.inf, 1, 1.0)
    assert difference([4.0], [1.0]) == Interval(3.0, -math.inf, math.inf, 1, 1.0)
    assert difference([2.0] * 3, [2.0] * 3) == Interval(0.0, 0.0, 0.0, 3, 1.0)
    assert difference([2.0] * 3, [1.0] * 3) == Interval(1.0, 1.0, 1.0, 3, 0.0)


def test_a_shared_float_error_is_no_effect() -> None:
    assert 0.1 + 0.2 > 0.3
    assert difference([0.1 + 0.2] * 5, [0.3] * 5) == Interval(0.0, 0.0, 0.0, 5, 1.0)


def test_weakest_has_to_beat_every_control() -> None:
    strong, vague = Interval(5.0, 4.0, 6.0, 5, 0.001), Interval(7.0, -1.0, 15.0, 5, 0.04)
    assert weakest([strong, vague]) == Interval(5.0, -1.0, 6.0, 5, 0.04)


def test_ratio_is_fiellers_interval() -> None:
    """By the definition: the θ at which a paired t test does not tell the mean of first - θ · second from zero."""
    first, second = [3.0, 4.5, 4.0, 5.0], [9.0, 11.0, 10.0, 12.0]
    found = ratio(first, second)
    assert found is not None
    assert found.value == pytest.approx(16.5 / 42)
    thetas = np.linspace(-1, 2, 30001)
    p_values = stats.ttest_1samp(np.array(first) - thetas[:, None] * np.array(second), 0, axis=1).pvalue
    inside = thetas[p_values >= 0.05]
    assert (found.low, found.high) == pytest.approx((inside.min(), inside.max()), abs=2e-4)
    assert found.count == 4
    assert found.p == pytest.approx(stats.ttest_1samp(first, 0, alternative="greater").pvalue)


def test_ratio_by_what_cannot_be_told_from_zero_is_none() -> None:
    assert ratio([1.0, 2.0, 3.0], [1.0, -1.0, 2.0]) is None
    assert ratio([1.0], [2.0]) is None
    assert ratio([1.0, 1.0], [2.0, 2.0]) == Interval(0.5, 0.5, 0.5, 2, 0.0)
    assert ratio([0.0, 0.0], [2.0, 2.0]) == Interval(0.0, 0.0, 0.0, 2, 1.0)
    negative = ratio([1.0, 2.0, 3.0], [-4.0, -5.0, -6.0])
    assert negative is not None
    assert negative.p == pytest.approx(stats.ttest_1samp([1, 2, 3], 0, alternative="less").pvalue)


pairs = st.lists(st.tuples(st.floats(-50, 50), st.floats(-50, 50)), min_size=2, max_size=6)


@settings(max_examples=100)
@given(pairs)
def test_at_the_ends_of_a_ratio_the_t_test_changes_its_answer(values: list[tuple[float, float]]) -> None:
    first, second = np.array([[round(a, 3), round(b, 3)] for a, b in values]).T
    second += 60  # far from zero, mostly
    found = ratio(list(first), list(second))
    if found is None:
        test = stats.ttest_1samp(second, 0)
        assert test.pvalue >= 0.05 - 1e-9
        return
    assert found.low - 1e-6 <= found.value <= found.high + 1e-6
    for end in (found.low, found.high):
        gaps = first - end * second
        reach = stats.t.ppf(0.975, len(gaps) - 1) * gaps.std(ddof=1) / math.sqrt(len(gaps))
        assert abs(gaps.mean()) == pytest.approx(reach, abs=1e-5 * (1 + abs(end)))


def test_holm_by_hand() -> None:
    # sorted .01 .02 .04 -> 3 × .01, max(.03, 2 × .02), max(.04, .04)
    assert holm([0.02, 0.01, 0.04]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_never_lowers_a_p_value_and_keeps_the_order(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    assert all(p <= new <= 1 for p, new in zip(p_values, adjusted, strict=True))
    assert sorted(adjusted) == [new for _, new in sorted(zip(p_values, adjusted, strict=True))]


# ---------------------------------------------------------------------------------------------------------- formulas


def test_points() -> None:
    assert points(measurement(0.83)) == pytest.approx(83.0)
    assert points(measurement(1.5, higher=False)) == -150.0


def test_preference_looks_at_validation_then_loss_then_steps_and_never_at_test() -> None:
    def one(value: float, loss: float | None, step: int, test: float) -> Record:
        found = record("pmp", "full", "topic", 0, value, picked=Point(0.1, step, value, loss))
        return replace(found, validation=measurement(value, loss=loss), attacked=measurement(test))

    best = one(0.8, 0.5, 50, 0.1)
    for worse in (one(0.7, 0.1, 1, 0.9), one(0.8, 0.6, 1, 0.9), one(0.8, 0.5, 60, 0.9), one(0.8, math.nan, 1, 0.9)):
        assert preference(best) > preference(worse)


def test_scores_by_hand() -> None:
    board = scored(suite())
    pmp, stopped, none = (of(board, name) for name in ("pmp", "early_stop", "none"))
    assert board.problems == ()
    # means over five seeds: undefended 82, early_stop 72, pmp 52
    assert pmp.resistance.attacked is not None
    assert pmp.resistance.attacked.value == pytest.approx(52.0)
    assert pmp.resistance.suppression is not None
    assert pmp.resistance.suppression.value == pytest.approx(30.0)
    assert pmp.resistance.suppression.count == 5
    assert stopped.resistance.suppression is not None
    assert stopped.resistance.suppression.value == pytest.approx(10.0)
    assert none.resistance.suppression is not None
    assert none.resistance.suppression.value == 0.0
    assert pmp.excess.interval is not None
    assert pmp.excess.interval.value == pytest.approx(20.0)
    assert (pmp.excess.family, pmp.excess.metric, pmp.excess.reason) == ("early_stop", "mean", None)
    assert pmp.resistance.gain is not None
    assert pmp.resistance.gain.value == pytest.approx(22.0)
    assert pmp.resistance.protected_fraction == pytest.approx(30 / 42)
    assert pmp.utility.retention is not None
    assert pmp.utility.retention.value == 1.0
    assert pmp.recipes.best == "full"
    assert pmp.recipes.suppression is not None
    assert pmp.recipes.suppression.value == pytest.approx(30.0)
    assert (pmp.standing.group, pmp.standing.rank, pmp.claim.verdict) == ("ranked", 1, "holds")
    assert (stopped.standing.group, none.standing.group) == ("control", "control")
    assert (stopped.standing.rank, stopped.claim.verdict, none.excess.interval) == (None, None, None)
    # judged without itself, early_stop keeps everything and takes 10 points more than the reference
    assert stopped.excess.interval is not None
    assert stopped.excess.interval.value == pytest.approx(10.0)
    # S by seed: 30 29 29 31 31, standard deviation 1
    assert pmp.resistance.seed_spread == pytest.approx(1.0)


def test_worst_task_and_per_task_numbers() -> None:
    records = suite(3)
    records = [
        replace(one, attacked=measurement(0.6), validation=measurement(0.6))
        if (one.defense, one.attack, one.task) == ("pmp", "full", "topic")
        else one
        for one in records
    ]
    pmp = of(scored(records), "pmp")
    assert pmp.resistance.worst_task is not None
    assert pmp.resistance.worst_task.task == "topic"
    assert pmp.resistance.worst_task.suppression is not None
    assert pmp.resistance.worst_task.suppression.value == pytest.approx(82 - 60)
    assert pmp.resistance.worst_task.unattacked == pytest.approx(30)
    assert pmp.resistance.worst_task.attack == "full"


def test_scratch_is_in_every_attackers_set() -> None:
    records = [*suite(3, defended=(0.35, 0.35, 0.35))]
    pmp = of(scored(records), "pmp")
    assert pmp.resistance.attacked is not None
    assert pmp.resistance.attacked.value == pytest.approx(40.0)  # scratch ends at 0.4, full at 0.35
    assert pmp.resistance.tasks[0].attack == "scratch"


def test_attack_none_is_in_every_attackers_set() -> None:
    records = [*sweep("none", (0.8,) * 3), *sweep("pmp", (0.4,) * 3, unattacked=0.5)]
    pmp = of(scored(records), "pmp")
    assert pmp.resistance.attacked is not None
    assert pmp.resistance.attacked.value == pytest.approx(50.0)
    assert pmp.resistance.gain is not None
    assert pmp.resistance.gain.value == 0.0


def test_tasks_without_headroom_are_left_out_before_any_defense_is_looked_at() -> None:
    flat = [replace(one, task="flat", key=one.key + "flat") for one in suite(3) if one.task == "topic"]
    flat = [
        replace(one, attacked=measurement(0.4), validation=measurement(0.4))
        if one.attack in ("full", "scratch") and one.defense == "none"
        else one
        for one in flat
    ]
    board = scored([*suite(3), *flat])
    assert [row.task for row in board.headroom if not row.kept] == ["flat"]
    assert any("flat" in problem and "scratch" in problem for problem in board.problems)
    assert of(board, "pmp").resistance.suppression == of(scored(suite(3)), "pmp").resistance.suppression
    assert [task.task for task in of(board, "pmp").resistance.tasks] == list(TASKS)


@pytest.mark.parametrize(
    ("scratch", "kept"),
    [
        ((0.5, 0.5, 0.5), True),
        ((0.8, 0.81, 0.82), False),  # above scratch at every seed, by 1.0 ± 0.0 points: within noise
        ((0.6, 0.9, 0.5), False),  # 15 points above in the mean, which chance does too
        ((0.75, 0.76, 0.13), True),  # above at every seed: that one gap is far larger hides no weakness
        ((0.95, 0.95, 0.95), False),
        ((0.5,), True),
        ((0.8,), False),
    ],
)
def test_headroom_is_a_gap_beyond_noise_and_chance(scratch: tuple[float, ...], kept: bool) -> None:
    undefended = (0.81, 0.82, 0.83)[: len(scratch)]
    records = [
        replace(one, attacked=measurement(value), validation=measurement(value))
        if (one.defense, one.attack) in (("none", "full"), ("none", "scratch"))
        and (value := (undefended if one.attack == "full" else scratch)[one.seed]) is not None
        else one
        for one in suite(len(scratch))
    ]
    board = scored(records)
    assert {one.kept for one in board.headroom} == {kept}
    for one in board.headroom:
        assert one.gap is not None
        assert one.gap.value == pytest.approx(100 * (sum(undefended) - sum(scratch)) / len(scratch))
    assert of(board, "pmp").resistance.suppression is None or kept
    assert any("is not clearly better than scratch" in problem for problem in board.problems) != kept


def test_one_lucky_seed_of_the_undefended_model_hides_no_weakness() -> None:
    """A row trains better than the undefended model on a task where the gap at one seed is far above the others."""
    gaps = (0.06, 0.08, 0.07, 0.05, 0.42)
    weak = [
        replace(one, attacked=measurement(value), validation=measurement(value))
        if one.task == "topic" and (value := _topic(one, gaps[one.seed])) is not None
        else one
        for one in suite(5)
    ]
    board = scored(weak)
    assert all(one.kept for one in board.headroom)
    worst = of(board, "pmp").resistance.worst_task
    assert worst is not None
    assert worst.task == "topic"
    assert of(board, "pmp").claim.verdict == "not shown"
    assert of(scored(suite(5)), "pmp").claim.verdict == "holds"


def _topic(one: Record, gap: float) -> float | None:
    ends = {("none", "scratch"): 0.4, ("none", "full"): 0.4 + gap, ("pmp", "full"): 0.9}
    return ends.get((one.defense, one.attack))


def test_a_task_without_scratch_beside_others_that_have_it_is_named() -> None:
    board = scored([one for one in suite(5) if (one.attack, one.task) != ("scratch", "topic")])
    assert "topic has no scratch: its headroom is not known" in board.problems


def test_retention_is_the_mean_share_and_the_least_metric_is_named() -> None:
    bits = [
        record(defense, "none", "bits", seed, value, role="utility", attacked=measurement(value, floor=7, higher=False))
        for defense, values in {"none": (3.0,) * 3, "early_stop": (3.0,) * 3, "pmp": (3.4, 2.6, 3.8)}.items()
        for seed, value in enumerate(values)
    ]
    bits = [replace(one, unattacked=None, validation=None) for one in bits]
    pmp = of(scored([*suite(3), *bits]), "pmp")
    assert pmp.utility.least == "bits"
    assert pmp.utility.by_metric["bits"].value == pytest.approx((0.9 + 1.1 + 0.8) / 3)
    assert pmp.utility.retention is not None
    assert pmp.utility.retention.value == pytest.approx(((0.9 + 1.1 + 0.8) / 3 + 1.0) / 2)
    assert pmp.utility.by_metric["minimal_pairs"].value == 1.0
    assert pmp.utility.badge == "cannot tell"


@pytest.mark.parametrize(("score", "noise"), [(0.30, "20%"), (0.34, "11%"), (0.36, None)])
def test_a_utility_metric_of_which_the_reference_knows_little_is_said_to_be_noisy(
    score: float, noise: str | None
) -> None:
    """BLiMP on a small model: 53 % where chance is 50, with a standard error of 0.9. Trained for 2 % of the steps, it
    kept 109 %. Here the standard error is one point, above a floor of 25."""
    near = [
        replace(one, attacked=measurement(score)) if (one.role, one.seed) == ("utility", 1) else one for one in suite()
    ]
    said = f"utility metric minimal_pairs is noisy: its standard error is {noise} of what the undefended model knows"
    assert scored(near).problems == ((said,) if noise else ())


def test_utility_metric_on_which_the_reference_is_at_its_floor_is_left_out() -> None:
    dead = [
        record(defense, "none", "dead", seed, 0.25, role="utility", unattacked=measurement(0.25))
        for defense in ("none", "early_stop", "pmp")
        for seed in range(3)
    ]
    board = scored([*suite(3), *dead])
    assert any("dead" in problem for problem in board.problems)
    assert list(of(board, "pmp").utility.by_metric) == ["minimal_pairs"]
    assert of(board, "pmp").utility.badge == "keeps"


def test_another_reference_has_no_ladder() -> None:
    records = [*suite(5), *sweep("twin", (0.9,) * 5, claim=None), *sweep("checkpoint", (0.8,) * 5, reference="twin")]
    score = of(scored(records), "checkpoint")
    assert score.resistance.suppression is not None
    assert score.resistance.suppression.value == pytest.approx(10.0)
    assert score.excess.reason == "no trivial defense of the ladder is measured against twin"
    assert (score.standing.group, of(scored(records), "twin").kind) == ("unranked", "reference")
    assert of(scored(records), "pmp").standing.group == "ranked"


def test_best_single_recipe_is_picked_on_validation() -> None:
    records = suite(3)
    for defense in ("none", "pmp", "early_stop"):
        for seed in range(3):
            records.append(record(defense, "lora", "pairs", seed, 0.55))
            records.append(record(defense, "lora", "topic", seed, 0.45))
    pmp = of(scored(records), "pmp")
    assert pmp.recipes.best == "full"  # 52.7 on both against lora's 50
    assert pmp.resistance.attacked is not None
    assert pmp.resistance.attacked.value == pytest.approx((55 + (50 + 53 + 55) / 3) / 2)
    assert pmp.recipes.suppression is not None
    assert pmp.recipes.suppression.value == pytest.approx(82 - 158 / 3)


def test_authorised_gain_is_scored_apart() -> None:
    owner = [record("pmp", "authorized", task, seed, 0.9, knowledge=("secret",)) for task in TASKS for seed in range(3)]
    pmp = of(scored([*suite(3), *owner]), "pmp")
    assert pmp.authorized_gain is not None
    assert pmp.authorized_gain.value == pytest.approx(60.0)
    assert pmp.resistance.suppression == of(scored(suite(3)), "pmp").resistance.suppression
    assert "secret" not in "".join(pmp.by_knowledge.suppression)


def everywhere(attack: str, value: float, *rows: str, **changes: object) -> list[Record]:
    """An attack on each of the rows, on all tasks and three seeds."""
    return [
        record(defense, attack, task, seed, value, **changes)
        for defense in rows or ("none", "early_stop", "pmp")
        for task in TASKS
        for seed in range(3)
    ]


def test_a_column_for_each_knowledge_level() -> None:
    sibling = everywhere("diff", 0.78, knowledge=("sibling",))
    pmp = of(scored([*suite(3), *sibling]), "pmp")
    assert list(pmp.by_knowledge.suppression) == ["release alone", "sibling", "method+data"]
    assert pmp.by_knowledge.suppression["sibling"] is not None
    assert pmp.by_knowledge.suppression["sibling"].value == pytest.approx(82 - 78)
    assert pmp.by_knowledge.suppression["method+data"] == pmp.resistance.suppression
    assert pmp.resistance.suppression is not None
    assert pmp.resistance.suppression.value == pytest.approx(82 - 158 / 3)
    assert pmp.by_knowledge.untested == ()
    assert knowledge_name({"data", "method"}) == "method+data"


def test_a_level_that_no_attack_on_the_row_uses_in_full_is_untested() -> None:
    """It is not withstood because attackers who know less did not get through."""
    records = [
        *suite(3),
        *everywhere("diff", 0.4, "none", "pmp", knowledge=("base",)),
        *everywhere("replayed", 0.4, "none", knowledge=("method", "sibling")),
        *everywhere("rewritten", 0.4, knowledge=("method",)),
    ]
    planned = [CellId.of(one) for one in records]
    board = scored(records, planned=planned)
    pmp, stopped, none = (of(board, name) for name in ("pmp", "early_stop", "none"))
    assert pmp.by_knowledge.untested == ("method+sibling",)
    assert stopped.by_knowledge.untested == ("base", "method+sibling")
    assert none.by_knowledge.untested == ()  # the reference withstands nothing by definition
    assert list(pmp.by_knowledge.suppression) == ["release alone", "base", "method", "method+data"]
    assert set(none.by_knowledge.suppression) >= {"method+sibling"}


def test_what_a_level_grants_may_be_used_by_several_attacks() -> None:
    both = [*everywhere("rewritten", 0.4, knowledge=("method",)), *everywhere("watched", 0.4, knowledge=("sibling",))]
    claimed = claiming([*suite(3), *both], Claim(frozenset({"method", "sibling"})))
    assert of(scored(claimed), "pmp").by_knowledge.suppression["method+sibling"] is not None
    looked = [replace(one, trains=False) if one.attack == "watched" else one for one in claimed]
    assert of(scored(looked), "pmp").by_knowledge.untested == ("sibling", "method+sibling")  # looking on tests nothing


def test_a_level_at_which_cells_are_missing_is_unknown_and_not_untested() -> None:
    records = [*suite(3), *everywhere("diff", 0.4, knowledge=("base",))]
    planned = [CellId.of(one) for one in records]
    left = [one for one in records if (one.defense, one.attack) != ("pmp", "diff")]
    pmp = of(scored(left, planned=planned), "pmp")
    assert pmp.by_knowledge.untested == ()
    assert pmp.by_knowledge.suppression["base"] is None


def test_attacks_written_against_a_row_are_named() -> None:
    records = [
        *suite(3),
        *everywhere("rewritten", 0.4, knowledge=("method",), against=("pmp", "other")),
        *everywhere("authorized", 0.4, "pmp", knowledge=("secret",), against=("pmp",)),
    ]
    broken = [failed(one) for one in everywhere("broken", 0.4, "pmp", against=("pmp",))]
    assert of(scored([*records, *broken]), "pmp").by_knowledge.adaptive == ("rewritten",)
    assert of(scored(records), "early_stop").by_knowledge.adaptive == ()


def on_text(value: float) -> list[Record]:
    """Training from scratch on public text first."""
    return [
        record("none", "scratch[text=true]", task, seed, value, knowledge=("data",))
        for task in TASKS
        for seed in range(3)
    ]


def test_scratch_on_text_is_open_to_everyone_and_is_not_the_floor() -> None:
    plain, both = scored(suite(3)), scored([*suite(3), *on_text(0.6)])
    assert both.headroom == plain.headroom
    floor, text = of(plain, "pmp"), of(both, "pmp")
    assert text.resistance.attacked is not None
    assert text.resistance.attacked.value == pytest.approx(60.0)  # full ends at 50, 53, 55
    assert text.resistance.tasks[0].attack == "scratch[text=true]"
    # of the 82 - 40 points that there are above scratch, what the best attack of all leaves
    assert text.resistance.protected_fraction == pytest.approx((82 - 60) / (82 - 40))
    assert floor.resistance.protected_fraction == pytest.approx((82 - 158 / 3) / (82 - 40))
    assert text.flags == floor.flags  # it is not skipped on the row, for it is run beside the reference alone


def test_scratch_on_text_alone_leaves_headroom_unknown() -> None:
    left = [one for one in suite(3) if one.attack != "scratch"]
    board = scored([*left, *on_text(0.99)])
    assert {(row.scratch, row.kept) for row in board.headroom} == {(None, True)}
    assert any("no scratch row" in problem for problem in board.problems)


def test_excess_beyond_the_control_that_a_defense_names_is_scored() -> None:
    records = [*suite(3), *sweep("random_mask", (0.6,) * 3)]
    records = [replace(one, row=row("pmp", control="random_mask")) if one.defense == "pmp" else one for one in records]
    pmp = of(scored(records), "pmp")
    assert pmp.resistance.beyond_control is not None
    assert pmp.resistance.beyond_control.value == pytest.approx(60 - 158 / 3)


def test_attack_spread_is_the_standard_deviation_of_restarts() -> None:
    restarts = (Point(0.1, 10, 0.50, None), Point(0.1, 10, 0.52, None, attack_seed=1), Point(0.1, 10, None, None))
    records = [replace(one, restarts=restarts) if one.attack == "full" else one for one in suite(3)]
    assert of(scored(records), "pmp").resistance.attack_spread == pytest.approx(math.sqrt(2))


# ----------------------------------------------------------------------------------------------------- cost to break


def test_cost_to_break_by_hand() -> None:
    # undefended gains 50 points from 30: half is 55, first at step 20; 90 % is 75, first at step 30
    theirs = record("none", "full", "topic", 0, 0.8, curve=curve(0.3, 0.5, 0.6, 0.8), cost=COST)
    prepared = replace(COST, preparation_steps=7, preparation_flops=2000.0, preparation_seconds=5.0)
    prepared = replace(prepared, peak_memory_bytes=3000)
    mine = record("pmp", "full", "topic", 0, 0.6, curve=curve(0.3, 0.3, 0.4, 0.45, 0.6), cost=prepared)
    half = cost_to_break([theirs], [mine], 30.0, 0.5)
    assert half["steps"] == Multiple((7 + 40) / 20)
    assert half["flops"] == Multiple((2000 + 40 * 100) / (20 * 100))
    assert half["seconds"] == Multiple((5 + 40 * 0.5) / (20 * 0.5))
    assert half["memory"] == Multiple(3.0)
    most = cost_to_break([theirs], [mine], 30.0, 0.9)
    assert most["steps"] == Multiple(47 / 30, censored=True)
    assert str(most["steps"]) == "> 1.57×"
    assert str(half["steps"]) == "2.35×"


def test_cost_to_break_is_that_of_the_cheapest_attack() -> None:
    """The one that ends highest may prepare for long, and would make the defense look dear."""
    theirs = record("none", "full", "topic", 0, 0.8, curve=curve(0.3, 0.8), cost=COST)
    plain = record("pmp", "full", "topic", 0, 0.7, curve=curve(0.3, 0.4, 0.7), cost=COST)
    healed = replace(COST, preparation_steps=200, preparation_flops=2e4, preparation_seconds=100.0)
    healed = replace(healed, peak_memory_bytes=500)
    best = record("pmp", "heal", "topic", 0, 0.79, curve=curve(0.5, 0.79), cost=healed)
    half = cost_to_break([theirs], [plain, best], 30.0, 0.5)
    assert (half["steps"], half["flops"], half["memory"]) == (Multiple(2.0), Multiple(2.0), Multiple(0.5))
    # only the healed one reaches 75; where nothing does, the largest budget was too little
    assert cost_to_break([theirs], [plain, best], 30.0, 0.9)["steps"] == Multiple(21.0)
    short = replace(best, curve=curve(0.5, 0.7))
    assert cost_to_break([theirs], [plain, short], 30.0, 0.9)["steps"] == Multiple(21.0, censored=True)


def test_an_attack_without_steps_bounds_the_cost_from_above() -> None:
    theirs = record("none", "full", "topic", 0, 0.8, curve=curve(0.3, 0.8), cost=COST)
    slow = record("pmp", "full", "topic", 0, 0.8, curve=curve(0.3, 0.4, 0.8), cost=COST)
    probe = record("pmp", "probe", "topic", 0, 0.8, curve=curve(0.3, 0.8), cost=Cost(steps=10, seconds=1.0))
    half = cost_to_break([theirs], [slow, probe], 30.0, 0.5)
    assert half["steps"] == Multiple(2.0, at_most=True)
    assert str(half["steps"]) == "≤ 2×"
    assert cost_to_break([theirs], [probe], 30.0, 0.5) == {}  # broken, and nobody knows at what cost
    assert cost_to_break([probe], [slow], 30.0, 0.5) == {}
    both = cost_to_break([theirs, probe], [theirs, probe], 30.0, 0.5)
    assert both["steps"] == Multiple(1.0)  # the undefended model takes what it takes


def test_cost_to_break_is_unknown_where_nothing_is_gained_or_recorded() -> None:
    flat = record("none", "full", "topic", 0, 0.3, curve=curve(0.3, 0.3), cost=COST)
    assert cost_to_break([flat], [flat], 30.0, 0.5) == {}
    assert cost_to_break([replace(flat, cost=None)], [flat], 30.0, 0.5) == {}
    assert cost_to_break([], [], 30.0, 0.5) == {}
    hole = replace(flat, curve=(Point(0.1, 0, None, None), Point(0.1, 10, math.nan, None)))
    assert cost_to_break([hole], [flat], 30.0, 0.5) == {}


climbs = st.lists(st.integers(0, 100), min_size=1, max_size=4)


@settings(max_examples=80)
@given(st.lists(climbs, min_size=1, max_size=3), st.lists(st.tuples(climbs, st.integers(0, 50)), max_size=4))
def test_one_more_attack_never_raises_the_cost_to_break(
    undefended: list[list[int]], defended: list[tuple[list[int], int]]
) -> None:
    theirs = [record("none", "full", "topic", 0, 0.5, curve=curve(0.3, *(v / 100 for v in c)), cost=COST)
              for c in undefended]  # fmt: skip
    mine = [
        record("pmp", "a", "topic", 0, 0.5, curve=curve(0.3, *(value / 100 for value in climb)),
               cost=replace(COST, preparation_steps=extra))
        for climb, extra in defended
    ]  # fmt: skip
    # in points as the scores have them: 100 · 0.58 is a little less than 58
    reach, own = ([[100 * (value / 100) for value in climb] for climb in climbs]
                   for climbs in (undefended, [climb for climb, _ in defended]))  # fmt: skip
    best = max(30.0, *itertools.chain(*reach))
    target = 30 + 0.5 * (best - 30)
    fewer: Multiple | None = None
    for count in range(1, len(mine) + 1):
        found = cost_to_break(theirs, mine[:count], 30.0, 0.5).get("steps")
        if best <= 30:
            assert found is None
            continue
        # by hand: the least preparation + steps among the attacks that get there
        firsts = [10 * (1 + next(i for i, v in enumerate(c) if v >= target)) for c in reach if max(c) >= target]
        costs = [extra + 10 * (1 + next(i for i, v in enumerate(climb) if v >= target))
                 for climb, (_, extra) in zip(own[:count], defended[:count], strict=True)
                 if max(climb) >= target]  # fmt: skip
        spent = costs or [extra + 10 * len(climb) for climb, extra in defended[:count]]
        wanted = (min(costs) if costs else max(spent)) / min(firsts)
        assert found == Multiple(pytest.approx(wanted), censored=not costs)  # type: ignore[arg-type]
        if fewer is not None and not fewer.censored:
            assert not found.censored
            assert found.value <= fewer.value
        fewer = found


def test_the_median_of_multiples_keeps_their_bounds() -> None:
    over, far = Multiple(4.0, censored=True), Multiple(9.0, censored=True)
    assert median_multiple([]) is None
    assert median_multiple([Multiple(1.0), Multiple(3.0), over]) == Multiple(3.0)
    assert median_multiple([Multiple(1.0), far, over]) == over
    assert median_multiple([Multiple(1.0), Multiple(2.0)]) == Multiple(1.0)
    # what may be less pulls the median down only from at or above it
    less = Multiple(9.0, at_most=True)
    assert median_multiple([Multiple(1.0), Multiple(3.0), less]) == Multiple(3.0, at_most=True)
    assert median_multiple([Multiple(1.0, at_most=True), Multiple(3.0), Multiple(9.0)]) == Multiple(3.0)


def test_cost_to_break_is_the_median_over_tasks_and_seeds() -> None:
    curves = {"none": curve(0.3, 0.8), "early_stop": curve(0.3, 0.8), "pmp": curve(0.3, 0.35, 0.56)}
    records = [replace(one, curve=curves[one.defense], cost=COST) if one.attack == "full" else one for one in suite(3)]
    board = scored(records)
    assert of(board, "pmp").cost_to_break["steps"] == {0.5: Multiple(2.0), 0.9: Multiple(2.0, censored=True)}
    assert of(board, "early_stop").cost_to_break["flops"] == {0.5: Multiple(1.0), 0.9: Multiple(1.0)}


# -------------------------------------------------------------------------------------------------- status and seeds


@pytest.mark.parametrize("status", ["failed", "oom", "timeout", "nonfinite"])
@pytest.mark.parametrize("defense", ["pmp", "none", "early_stop"])
def test_a_failed_cell_makes_the_row_incomplete_and_is_never_resistance(status: str, defense: str) -> None:
    records = suite()
    index = next(i for i, one in enumerate(records) if (one.defense, one.attack) == (defense, "full"))
    records[index] = failed(records[index], status)
    pmp = of(scored(records), "pmp")
    assert (pmp.standing.group, pmp.standing.rank, pmp.claim.verdict) == ("unranked", None, "untested")
    assert f"{defense} × full on pairs, seed 0: {status} (boom)" in pmp.standing.reasons[0]
    assert pmp.excess.interval is None


def test_limited_and_unfinished_records_are_no_results() -> None:
    for change in (
        {"limited": True},
        {"attacked": measurement(math.nan)},
        {"attacked": None},
        {"validation": None},
        {"validation": measurement(math.inf)},
    ):
        records = suite(3)
        index = next(i for i, one in enumerate(records) if (one.defense, one.attack) == ("pmp", "full"))
        records[index] = replace(records[index], **change)
        assert of(scored(records), "pmp").standing.group == "unranked", change
        assert of(scored(records), "pmp").resistance.suppression is None, change


def test_a_missing_cell_makes_the_row_incomplete() -> None:
    records = suite()
    planned = [CellId.of(one) for one in records]
    left = [one for one in records if (one.defense, one.attack, one.seed) != ("pmp", "full", 4)]
    for plan in (planned, None):
        pmp = of(scored(left, planned=plan), "pmp")
        assert pmp.standing.group == "unranked"
        assert "seed 4: missing" in pmp.standing.reasons[0]
        assert pmp.resistance.suppression is not None
        assert pmp.resistance.suppression.count == 4  # what has run so far is shown
    board = scored(left, planned=planned)
    assert (board.origin.records, board.origin.planned) == (len(left), len(planned))


@pytest.mark.parametrize("seeds", [{4}, set(range(5))], ids=["one seed", "a whole task"])
def test_a_cell_that_the_plan_itself_lacks_is_missing(seeds: set[int]) -> None:
    """Folders that were merged may leave such holes. On a task without attacks only those from scratch would count."""
    gone = {CellId("pmp", "full", "topic", seed) for seed in seeds}
    left = [one for one in suite() if CellId.of(one) not in gone]
    pmp = of(scored(left, planned=[CellId.of(one) for one in left]), "pmp")
    assert pmp.standing.group == "unranked"
    assert pmp.incomplete == tuple(f"{cell}: missing" for cell in sorted(gone))


def test_rows_that_are_planned_on_fewer_tasks_lack_nothing() -> None:
    """Initialisations are attacked on no task, and doses on no benign one."""
    benign = [record("none", "full", "benign", seed, 0.8, role="benign") for seed in range(5)]
    benign += [record("pmp", "full", "benign", seed, 0.8, role="benign") for seed in range(5)]
    twin = [one for one in sweep("twin", [0.8] * 5) if one.role == "utility"]
    records = [*suite(), *benign, *(replace(one, row=row("twin", trivial=True)) for one in twin)]
    board = scored(records, planned=[CellId.of(one) for one in records], initialisations=["twin"])
    assert of(board, "pmp").standing.group == "ranked"
    assert all(one.incomplete == () for one in board.scores)
    assert of(board, "pmp").resistance == of(scored(suite()), "pmp").resistance, "benign tasks do not count"


def lora(values: dict[str, float]) -> list[Record]:
    return [
        record(defense, "lora", task, seed, value)
        for defense, value in values.items()
        for task in TASKS
        for seed in range(5)
    ]


def test_a_narrowed_run_shows_what_row_and_reference_share_and_never_ranks_it() -> None:
    records = [*suite(), *lora({"none": 0.85, "early_stop": 0.8, "pmp": 0.84})]
    planned = [CellId.of(one) for one in records]
    narrowed = [one for one in records if one.attack == "full" and one.defense in ("none", "pmp")]
    pmp = of(scored(narrowed, planned=planned), "pmp")
    assert (pmp.resistance.suppression, pmp.excess.interval, pmp.standing.group, pmp.claim.verdict) == (
        None,
        None,
        "unranked",
        "untested",
    )
    assert pmp.resistance.partial is not None
    assert pmp.resistance.partial.suppression.value == pytest.approx(30.0)
    assert (pmp.resistance.partial.attacks, pmp.resistance.partial.tasks) == (("full",), TASKS)
    assert "partial: by full on pairs, topic alone" in pmp.standing.reasons
    assert of(scored(records, planned=planned), "pmp").resistance.partial is None


def test_an_attack_that_one_of_the_two_lacks_is_no_part_of_a_partial_suppression() -> None:
    """Else the reference would be beaten by an attack that this row was spared."""
    records = [*suite(), *lora({"none": 0.9, "early_stop": 0.9, "pmp": 0.9})]
    planned = [CellId.of(one) for one in records]
    spared = [one for one in records if (one.defense, one.attack) != ("pmp", "lora")]
    partial = of(scored(spared, planned=planned), "pmp").resistance.partial
    assert partial is not None
    assert partial.suppression.value == pytest.approx(30.0)
    assert partial.attacks == ("full", "none", "scratch")
    short = [one for one in spared if (one.defense, one.attack, one.task) != ("pmp", "full", "topic")]
    partial = of(scored(short, planned=planned), "pmp").resistance.partial
    assert partial is not None
    assert partial.tasks == ("pairs",)


@pytest.mark.parametrize("defense", ["pmp", "none"])
def test_nothing_partial_is_said_where_an_attack_failed_or_none_fine_tuned(defense: str) -> None:
    records = [*suite(), *lora({"none": 0.9, "early_stop": 0.9, "pmp": 0.9})]
    planned = [CellId.of(one) for one in records]
    index = next(i for i, one in enumerate(records) if (one.defense, one.attack) == (defense, "lora"))
    broken = [failed(one) if i == index else one for i, one in enumerate(records)]
    left = [one for one in broken if (one.attack, one.seed) != ("full", 4)]
    assert of(scored(left, planned=planned), "pmp").resistance.partial is None
    looked = [one for one in records if one.defense != defense or one.attack == "none"]
    assert of(scored(looked, planned=planned), "pmp").resistance.partial is None


def test_an_attack_that_only_the_reference_withstood_is_missing() -> None:
    records = [*suite(), *(record("none", "lora", task, seed, 0.8) for task in TASKS for seed in range(5))]
    assert "pmp × lora on pairs, seed 0: missing" in of(scored(records), "pmp").standing.reasons[0]


def test_a_planned_row_without_records_matters_only_on_the_ladder() -> None:
    records = suite()
    planned = [CellId.of(one) for one in records] + [CellId("noise", "full", "topic", 0)]
    assert of(scored(records, planned=planned), "pmp").standing.group == "ranked"
    ladder = {"early_stop": Family(doses=("early_stop",)), "noise": Family(doses=("noise",))}
    board = scored(records, planned=planned, ladder=ladder)
    reason = "the ladder is incomplete: noise × full on topic, seed 0: missing"
    assert of(board, "pmp").standing.reasons == (f"no excess: {reason}",)
    assert board.problems == (reason,)


def test_records_outside_the_plan_are_left_out() -> None:
    records = suite()
    planned = [CellId.of(one) for one in records]
    board = scored([*records, record("pmp", "head", "topic", 7, 0.1)], planned=planned)
    assert board.problems == ("1 records outside the plan are left out",)
    assert of(board, "pmp") == of(scored(records, planned=planned), "pmp")


def test_cells_recorded_twice_or_on_other_weights_do_not_count() -> None:
    records = suite()
    twice = [*records, replace(records[-1], key="other")]
    assert "recorded twice" in of(scored(twice), "pmp").standing.reasons[0]
    assert of(scored([*records, records[-1]]), "pmp").standing.group == "ranked"
    mixed = [replace(one, release_sha256=f"{one.attack}") if one.defense == "pmp" else one for one in records]
    assert "different weights" in of(scored(mixed), "pmp").standing.reasons[0]


@pytest.mark.parametrize(
    ("count", "standing", "verdict"),
    [(1, "unranked", "untested"), (2, "unranked", "untested"), (3, "preliminary", "not shown"), (5, "ranked", "holds")],
)
def test_a_rank_takes_five_seeds_and_so_does_a_claim_that_holds(count: int, standing: str, verdict: str) -> None:
    pmp = of(scored(suite(count)), "pmp")
    assert pmp.standing.group == standing
    assert pmp.claim.verdict == verdict
    if count == 1:
        assert pmp.resistance.suppression == Interval(pytest.approx(30.0))  # type: ignore[arg-type]
        assert any("1 base seed:" in reason for reason in pmp.standing.reasons)


def test_scores_without_variance_are_ranked_and_judged() -> None:
    values = {"none": 0.8, "early_stop": 0.8, "pmp": 0.8, "mask": 0.5}
    board = scored([*scratch([0.4] * 5), *(one for row, value in values.items() for one in sweep(row, (value,) * 5))])
    assert of(board, "pmp").claim.verdict == "refuted"
    assert of(board, "mask").claim.verdict == "holds"
    assert of(board, "pmp").excess.interval == Interval(0.0, 0.0, 0.0, 5, 1.0, confidence=0.98)
    assert [of(board, name).standing.rank for name in ("mask", "pmp")] == [1, 2]


def test_other_library_versions_are_not_ranked_together() -> None:
    records = suite()
    records[-1] = replace(records[-1], provenance={"versions": {"torch": "2.10.0"}})
    board = scored(records)
    assert any("torch 2.10.0, 2.9.0" in problem for problem in board.problems)
    assert (of(board, "pmp").standing.group, of(board, "pmp").claim.verdict) == ("unranked", "untested")


def test_other_code_and_machines_are_said_and_still_ranked() -> None:
    def made(commit: str | None, processor: str, threads: int) -> dict[str, object]:
        return {**factories.VERSIONS, "commit": commit, "hardware": {"processor": processor, "threads": threads}}

    records = [replace(one, provenance=made("a" * 40, "Xeon", 1)) for one in suite()]
    assert scored(records).problems == ()
    records[0] = replace(records[0], provenance=made("a" * 40 + "-dirty", "Xeon", 2))
    board = scored(records)
    (problem,) = board.problems
    assert problem == f"records differ in commit ({'a' * 12}, {'a' * 12}-dirty), threads (1, 2): compare them with care"
    assert of(board, "pmp").standing.group == "ranked"
    records[0] = replace(records[0], provenance=made(None, "Epyc", 1))
    assert "unknown), processor (Epyc, Xeon)" in scored(records).problems[0]


def test_task_aware_rows_are_not_ranked() -> None:
    records = [replace(one, row=replace(one.row, task_aware=True)) if one.defense == "pmp" else one for one in suite()]
    assert of(scored(records), "pmp").standing.group == "unranked"


def test_without_records_nothing_is_scored_and_without_a_reference_nothing_is_ranked() -> None:
    assert scored([]).scores == ()
    pmp = of(scored(sweep("pmp", (0.5,) * 5)), "pmp")
    assert pmp.resistance.suppression is None
    assert pmp.standing.group == "unranked"
    assert "none: no records" in pmp.standing.reasons[0]


# ----------------------------------------------------------------------------------------------------------- verdict


def claiming(records: list[Record], claim: Claim | None) -> list[Record]:
    return [replace(one, row=replace(one.row, claim=claim)) if one.defense == "pmp" else one for one in records]


def test_a_row_without_a_claim_has_no_verdict_and_is_ranked() -> None:
    pmp = of(scored(claiming(suite(), None)), "pmp")
    assert (pmp.claim.verdict, pmp.claim.p, pmp.standing.group) == (None, None, "ranked")


def test_a_claim_that_no_attack_tried_is_untested_never_withstood() -> None:
    unattacked = [one for one in suite() if one.attack != "full"]
    assert of(scored(unattacked), "pmp").claim.verdict == "untested"
    sibling_only = [replace(one, knowledge=("sibling",)) if one.attack == "full" else one for one in suite()]
    assert of(scored(sibling_only), "pmp").claim.verdict == "untested"
    assert of(scored(claiming(suite(), Claim(adaptation="merging"))), "pmp").claim.verdict == "untested"


def test_a_row_that_nothing_fine_tunes_has_no_suppression() -> None:
    records = [one for one in suite() if (one.defense, one.attack) != ("pmp", "full")]
    planned = [CellId.of(one) for one in records]
    pmp = of(scored(records, planned=planned), "pmp")
    assert (pmp.resistance.suppression, pmp.excess.interval, pmp.standing.group, pmp.claim.verdict) == (
        None,
        None,
        "unranked",
        "untested",
    )
    assert set(pmp.by_knowledge.suppression.values()) == {None}
    assert all(task.suppression is None for task in pmp.resistance.tasks)


def test_a_claim_holds_only_against_attackers_who_use_what_it_grants() -> None:
    """Attackers who know less have not got through, and those of whom it speaks did not come."""
    wide = Claim(frozenset({"method", "data"}))
    assert of(scored(claiming(suite(), wide)), "pmp").claim.verdict == "untested"
    rewritten = [
        record(defense, "rewritten", task, seed, 0.5, knowledge=("data", "method"))
        for defense in ("none", "early_stop", "pmp")
        for task in TASKS
        for seed in range(5)
    ]
    assert of(scored(claiming([*suite(), *rewritten], wide)), "pmp").claim.verdict == "holds"
    # one who knows less and does get through refutes it all the same
    weak = suite(5, defended=(0.8, 0.82, 0.84, 0.81, 0.83))
    assert of(scored(claiming(weak, wide)), "pmp").claim.verdict == "refuted"


def test_a_claim_about_probes_is_judged_by_probes() -> None:
    probes = [
        record(defense, "probe", task, seed, value, adaptation="linear_probe")
        for defense, value in {"none": 0.6, "early_stop": 0.6, "pmp": 0.4}.items()
        for task in TASKS
        for seed in range(5)
    ]
    tuned = [*sweep("none", (0.8,) * 5), *sweep("early_stop", (0.8,) * 5), *sweep("pmp", (0.8,) * 5), *probes]
    assert of(scored(claiming(tuned, Claim(adaptation="linear_probe"))), "pmp").claim.verdict == "holds"
    assert of(scored(claiming(tuned, Claim())), "pmp").claim.verdict == "refuted"


@pytest.mark.parametrize(("knowledge", "verdict"), [("data", "holds"), ("method", "refuted")])
def test_a_claim_is_judged_at_its_own_level_and_the_method_is_public(knowledge: Knowledge, verdict: str) -> None:
    strong = [
        record(defense, "rescale", task, seed, 0.8, knowledge=(knowledge,))
        for defense in ("none", "early_stop", "pmp")
        for task in TASKS
        for seed in range(5)
    ]
    records = [*suite(), *strong]
    assert of(scored(claiming(records, Claim())), "pmp").claim.verdict == verdict
    assert of(scored(claiming(records, Claim(frozenset({knowledge})))), "pmp").claim.verdict == "refuted"


# -------------------------------------------------------------------------------------------------------- properties

scores = st.lists(st.floats(0.3, 0.95).map(lambda value: round(value, 3)), min_size=3, max_size=3)


@settings(max_examples=40)
@given(scores, scores, scores, st.randoms(use_true_random=False))
def test_the_order_of_records_never_changes_scores(
    undefended: list[float], stopped: list[float], defended: list[float], shuffler: random.Random
) -> None:
    records = [*sweep("none", undefended), *scratch([0.2] * 3), *sweep("early_stop", stopped), *sweep("pmp", defended)]
    mixed = shuffler.sample(records, len(records))
    assert scored(mixed) == scored(records)


@settings(max_examples=60)
@given(scores, scores, scores, st.integers(0, 2), st.sampled_from(TASKS), st.sampled_from(["full", "lora", "none"]))
def test_a_failed_attack_never_raises_suppression(
    undefended: list[float], defended: list[float], second: list[float], seed: int, task: str, attack: str
) -> None:
    records = [*sweep("none", undefended), *scratch([0.2] * 3), *sweep("pmp", defended)]
    for defense in ("none", "pmp"):
        records += [record(defense, "lora", task, index, second[index]) for task in TASKS for index in range(3)]
    index = next(
        i
        for i, one in enumerate(records)
        if (one.defense, one.attack, one.task, one.seed) == ("pmp", attack, task, seed)
    )
    before = of(scored(records), "pmp")
    after = of(scored([failed(one) if i == index else one for i, one in enumerate(records)]), "pmp")
    assert after.resistance.partial is None
    for old, new in zip(suppressions(before), suppressions(after), strict=True):
        assert new is None or (old is not None and new.value <= old.value)
    assert after.standing.group == "unranked"
    assert after.claim.verdict == "untested"


@settings(max_examples=40)
@given(scores, scores, scores)
def test_one_more_attack_never_lowers_what_the_attacker_reaches(
    undefended: list[float], defended: list[float], more: list[float]
) -> None:
    records = [*sweep("none", undefended), *sweep("pmp", defended)]
    before = of(scored(records), "pmp")
    for defense in ("none", "pmp"):
        records += [record(defense, "lora", task, seed, more[seed]) for task in TASKS for seed in range(3)]
    after = of(scored(records), "pmp")
    assert before.resistance.attacked is not None
    assert after.resistance.attacked is not None
    assert after.resistance.attacked.value >= before.resistance.attacked.value - 1e-9


# -------------------------------------------------------------------------------------------------------- simulation


def excess(attacked: Sequence[float], controls: Sequence[Sequence[float]]) -> Interval:
    return weakest([difference(control, attacked) for control in controls])


def wrong_verdicts(
    draws: int, seeds: int, rows: int, controls: int, spread: float, generator: np.random.Generator
) -> int:
    """How often some row is said to hold although no row does anything: base seeds `spread`, and each run varies."""
    wrong = 0
    for _ in range(draws):
        base = generator.normal(80, spread, seeds)
        attacked = (base + generator.normal(0, 1.5, (rows + controls, seeds))).tolist()
        p_values = [excess(mine, attacked[rows:]).p for mine in attacked[:rows]]
        wrong += any(beats_zero(p) for p in holm(p_values))
    return wrong


@pytest.mark.parametrize(("rows", "controls", "spread"), [(1, 1, 0.0), (4, 1, 0.0), (4, 3, 3.0)])
def test_without_an_effect_the_verdict_is_wrong_in_at_most_one_draw_in_twenty(
    rows: int, controls: int, spread: float
) -> None:
    draws = 2000
    wrong = wrong_verdicts(draws, 5, rows, controls, spread, np.random.default_rng(7))
    assert wrong / draws <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / draws)


def test_an_interval_of_95_percent_covers_the_truth_in_95_percent_of_draws() -> None:
    generator = np.random.default_rng(11)
    draws = generator.normal(0, 1, (2000, 2, 5)).tolist()
    covered = sum(gap.low <= 0 <= gap.high for gap in (difference(*pair) for pair in draws))
    assert covered / 2000 >= 0.95 - 2 * math.sqrt(0.05 * 0.95 / 2000)


def test_an_effect_is_found() -> None:
    generator = np.random.default_rng(3)
    found = 0
    for _ in range(200):
        base = generator.normal(80, 1, 5)
        attacked = [(base + shift + generator.normal(0, 1, 5)).tolist() for shift in (0, -2, -10)]
        found += beats_zero(holm([excess(attacked[2], attacked[:2]).p])[0])
    assert found > 190


def test_records_without_an_effect_seldom_make_a_claim_hold() -> None:
    generator = np.random.default_rng(5)
    wrong = 0
    for _ in range(60):
        base = generator.normal(0.8, 0.03, 5)
        runs = (base + generator.normal(0, 0.015, (4, 5))).tolist()
        records = [
            one
            for name, run in zip(("none", "early_stop", "pmp", "mask"), runs, strict=True)
            for one in sweep(name, run)
        ]
        wrong += any(one.claim.verdict == "holds" for one in scored(records).scores)
    assert wrong <= 6  # 3 expected at most; beyond 6 less likely than 4 %


def test_without_the_ladder_no_row_is_ranked_and_no_claim_holds() -> None:
    """It shows suppression, but not that it is worth more than stopping early."""
    none, mask = (0.8, 0.81, 0.79, 0.8, 0.8), (0.5, 0.52, 0.49, 0.5, 0.51)
    alone = of(scored([*sweep("none", none), *scratch([0.4] * 5), *sweep("mask", mask)]), "mask")
    assert (alone.standing.group, alone.claim.verdict) == ("unranked", "untested")
    assert alone.standing.reasons == ("no excess: the ladder is incomplete: early_stop: not in the plan",)


@pytest.mark.parametrize("on_row", [0.3, None], ids=["weak", "declined"])
def test_an_added_attack_counts_against_defenses_and_not_on_what_they_are_compared_with(on_row: float | None) -> None:
    """Its author could have made it strong everywhere but on a defense of the author's own."""
    rows = {one.defense: one.row for one in suite()}

    def attacked(defense: str, value: float) -> list[Record]:
        cells = [record(defense, "lora", task, seed, value) for task in TASKS for seed in range(5)]
        return [replace(one, row=rows[defense]) for one in cells]

    def excess(records: list[Record]) -> float | None:
        planned = [CellId.of(one) for one in records]
        board = scored(records, planned=planned, added=["lora"])
        (pmp,) = (one for one in board.scores if one.defense == "pmp")
        assert not pmp.incomplete
        assert pmp.standing.group == "ranked"
        return pmp.excess.interval.value if pmp.excess.interval else None

    usual = [*suite(), *attacked("none", 0.95), *attacked("early_stop", 0.95)]
    own = attacked("pmp", on_row) if on_row is not None else []
    before = excess(suite())
    assert before is not None
    assert excess([*usual, *own]) == before
    lost = [failed(one) for defense in rows for one in attacked(defense, 0.95)]
    assert excess([*suite(), *lost]) == before, "it fails, and takes no row's rank"
    broken = excess([*usual, *attacked("pmp", 0.9)])
    assert broken is not None
    assert broken < before - 10


def test_an_added_attack_covers_no_claim_and_removes_no_doubt() -> None:
    """The author of a defense could add a weak one that names all that the claim grants."""
    wide = Claim(frozenset({"method", "data"}))
    rewritten = [
        record(defense, "rewritten", task, seed, 0.5, knowledge=("data", "method"), against=("pmp",))
        for defense in ("none", "early_stop", "pmp")
        for task in TASKS
        for seed in range(5)
    ]
    records = claiming([*suite(), *rewritten], wide)
    listed, added = of(scored(records), "pmp"), of(scored(records, added=["rewritten"]), "pmp")
    assert (listed.claim.verdict, added.claim.verdict) == ("holds", "untested")
    assert (listed.by_knowledge.adaptive, added.by_knowledge.adaptive) == (("rewritten",), ())
    missing = [one for one in records if (one.defense, one.attack) != ("pmp", "rewritten")]
    planned = [CellId.of(one) for one in records]
    assert of(scored(missing, planned=planned, added=["rewritten"]), "pmp").claim.verdict == "untested"


def beside_the_suite(attack: str, by: float, **changes: Any) -> list[Record]:
    """Cells of an attack on `pmp` that ends `by` above `full`, on both splits unless `changes` say otherwise."""
    return [
        record("pmp", attack, task, seed, value + by, **changes)
        for task in TASKS
        for seed, value in enumerate(DEFENDED)
    ]


def test_an_added_attack_pushes_no_better_one_out() -> None:
    """If data are public, its author may know the documents by which the referee chooses, and cram these alone."""
    crammed = beside_the_suite("crammed", -0.2, validation=measurement(0.99))
    alone, beside = (of(scored(some, added=["crammed"]), "pmp") for some in (suite(), [*suite(), *crammed]))
    assert beside.excess == alone.excess
    assert beside.claim == alone.claim
    assert of(scored([*suite(), *crammed]), "pmp").resistance.attacked != alone.resistance.attacked, "the test can fail"


OF_ITSELF: Mapping[str, Mapping[str, Any]] = {
    "edge": {"at_edge": True},
    "head_alone": {"retried": "head"},
    "part": {"trained_weights": "part"},
}


@pytest.mark.parametrize("doubt", OF_ITSELF)
def test_what_an_added_attack_says_of_itself_takes_no_rank(doubt: str) -> None:
    """Its author could take the ranks of all other defenses."""
    records = [*suite(), *beside_the_suite("mine", 0.05, **OF_ITSELF[doubt])]
    row = of(scored(records, added=["mine"]), "pmp")
    assert row.standing.group == "ranked"
    assert row.excess.interval.value == pytest.approx(of(scored(suite()), "pmp").excess.interval.value - 5)
    assert doubt in {flag.name for flag in of(scored(records), "pmp").flags}, "the test can fail"


def test_an_added_attack_leaves_out_no_task() -> None:
    """It may train from scratch for as long as it likes. Where nothing else does, it would be the floor."""
    records = [one for one in suite() if one.attack != "scratch"]
    longer = [record("none", "mine", task, seed, 0.95, uses_release=False) for task in TASKS for seed in range(5)]
    board = scored([*records, *longer], added=["mine"])
    assert [one.kept for one in board.headroom] == [True] * len(TASKS)
    assert not any(one.kept for one in scored([*records, *longer]).headroom), "the test can fail"
