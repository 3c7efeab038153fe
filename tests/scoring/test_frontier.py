"""The excess over the trivial frontier: numbers worked out by hand, and an independent implementation."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, strategies as st
from sklearn.isotonic import IsotonicRegression

from nftbench.scoring.frontier import (
    MEAN,
    BySeed,
    Family,
    Row,
    Variation,
    draw,
    excess,
    gaps_by_metric,
    heights,
    losses,
    mean_share,
    smallest,
)
from nftbench.scoring.rank_intervals import Heights, RankInterval, rank_intervals

METRIC = "minimal_pairs"
SEEDS = (0, 1, 2)


def by_seed(*values: float) -> BySeed:
    return dict(enumerate(values))


def row(name: str, suppression: Sequence[float], retention: Sequence[float], metric: str = METRIC) -> Row:
    return Row(name, by_seed(*suppression), {metric: by_seed(*retention)})


def height(released: Row, family: Family, metric: str) -> BySeed:
    """Above the curve at the row's own utility."""
    return heights(released, family, metric)[0]


WEAK = row("early_stop[fraction=0.8]", (1.0, 2.0, 3.0), (0.8, 0.9, 1.0))  # means 2 and 0.9
STRONG = row("early_stop[fraction=0.2]", (9.0, 10.0, 11.0), (0.4, 0.5, 0.6))  # means 10 and 0.5
STOPPED = Family("early_stop", (WEAK, STRONG), untrained=by_seed(50.0, 50.0, 50.0))


def test_between_two_doses_the_curve_is_a_straight_line() -> None:
    # Half-way between 0.9 and 0.5: the curve is at (2 + 10) / 2 = 6 points, and falls by 20 points a unit of retention.
    found = height(row("defense", (8.0, 8.0, 8.0), (0.7, 0.7, 0.7)), STOPPED, METRIC)
    assert statistics.fmean(found.values()) == pytest.approx(8 - 6)
    # Seed 0: 8 - (1 + 9) / 2 + 20 · (0.7 - (0.8 + 0.4) / 2) = 3 + 2.
    assert found[0] == pytest.approx(5)


def test_whoever_keeps_everything_is_measured_from_the_reference() -> None:
    found = height(row("defense", (4.0, 5.0, 6.0), (1.1, 1.0, 1.2)), STOPPED, METRIC)
    assert found == pytest.approx(by_seed(4.0, 5.0, 6.0))


def test_whoever_keeps_nothing_is_measured_from_the_untrained_model() -> None:
    found = height(row("defense", (40.0, 40.0, 40.0), (-0.1, 0.0, 0.0)), STOPPED, METRIC)
    assert found == pytest.approx(by_seed(-10.0, -10.0, -10.0))


def test_beyond_the_last_dose_of_a_family_without_an_end_nothing_is_said() -> None:
    released = row("defense", (40.0, 40.0, 40.0), (0.3, 0.3, 0.3))
    checkpoint = Family("noise", STOPPED.doses)
    assert heights(released, checkpoint, METRIC) == []
    found = excess(released, [STOPPED, checkpoint], {METRIC: None})
    assert found.interval is None
    assert found.reason == "outside the ladder: keeps less utility than any dose of noise"


def test_a_staircase_is_flat_up_to_the_next_dose() -> None:
    narrow = Family("narrow", (row("narrow", (3.0, 3.0, 3.0), (0.9, 0.9, 0.9)),), stairs=True)
    released = row("defense", (8.0, 8.0, 8.0), (0.95, 0.95, 0.95))
    assert height(released, narrow, METRIC) == pytest.approx(by_seed(8.0, 8.0, 8.0))  # more than narrow keeps
    released = row("defense", (8.0, 8.0, 8.0), (0.2, 0.2, 0.2))
    assert height(released, narrow, METRIC) == pytest.approx(by_seed(5.0, 5.0, 5.0))


def test_doses_out_of_order_are_pooled_by_the_precision_of_their_means() -> None:
    precise = row("a", (5.0, 6.0, 7.0), (0.70, 0.70, 0.70))  # variance of the mean 1/3
    vague = row("b", (1.0, 3.0, 5.0), (0.60, 0.60, 0.60))  # 4/3, and less suppression from a stronger dose
    knots = draw(Family("noise", (precise, vague)), METRIC, SEEDS)
    assert [knot.suppression for knot in knots] == pytest.approx([0.0, (4 * 6 + 3) / 5, (4 * 6 + 3) / 5])
    assert knots[1].taken == pytest.approx(by_seed((4 * 5 + 1) / 5, (4 * 6 + 3) / 5, (4 * 7 + 5) / 5))
    assert [knot.retention for knot in knots] == pytest.approx([1.0, 0.7, 0.6])


def test_the_least_flattering_metric_and_family_bind() -> None:
    two = {"bits": by_seed(0.9, 0.9, 0.9), "pairs": by_seed(0.5, 0.5, 0.5)}
    dose = Row("noise[scale=1]", by_seed(3.9, 4.0, 4.1), two)
    noise = Family("noise", (dose,), untrained=by_seed(50.0, 50.0, 50.0))
    released = Row("defense", by_seed(4.0, 5.0, 6.0), two)
    found = excess(released, [noise], {"bits": None, "pairs": None})
    assert found.interval is not None
    assert found.interval.value == pytest.approx(1.0)
    kept = Row("defense", by_seed(4.0, 5.0, 6.0), {"bits": by_seed(1.0, 1.0, 1.0), "pairs": by_seed(0.5, 0.5, 0.5)})
    certain = Variation(0.0, freedom=9)
    bound = excess(kept, [noise], {"bits": certain, "pairs": certain})
    assert bound.interval is not None
    assert bound.metric == "pairs"
    assert bound.interval.value == pytest.approx(1.0)
    by_mean = height(kept, noise, MEAN)
    assert statistics.fmean(by_mean.values()) == pytest.approx(5 - 4 * 0.25 / 0.3)
    alone = smallest([heights(kept, noise, MEAN)])
    assert bound.interval.low <= alone.low
    assert bound.interval.p >= alone.p


def three(**shares: float | tuple[float, ...]) -> dict[str, BySeed]:
    """The shares of three metrics at three seeds."""
    every = {"bits": 1.0, "pairs": 1.0, "tone": 1.0} | shares
    return {name: by_seed(*(one if isinstance(one, tuple) else (one,) * 3)) for name, one in every.items()}


METRICS = dict.fromkeys(("bits", "pairs", "tone"))
"""Three metrics of which it is not known how much they vary by chance."""
HALF = Row("early_stop", by_seed(9.0, 10.0, 11.0), three(bits=0.9, pairs=0.5, tone=0.4))  # 0.6 on average
HALVED = Family("early_stop", (HALF,), untrained=by_seed(50.0, 50.0, 50.0))


def test_no_metric_pays_for_another() -> None:
    shares = three(bits=(1.1, 1.2, 1.3), pairs=(0.6, 0.7, 0.8), tone=(1.2, 1.0, 0.8))
    # bits lose the 0.2 that they have above 1; the tone is 1 on average, and keeps its spread
    expected = [(0.9 + 0.6 + 1.2) / 3, (1.0 + 0.7 + 1.0) / 3, (1.1 + 0.8 + 0.8) / 3]
    assert mean_share(shares) == pytest.approx(by_seed(*expected))


def test_a_metric_alone_counts_where_the_row_shows_less_of_it_than_the_trivial_defense_of_the_same_mean() -> None:
    # Half-way to the dose by its mean of 0.8, where a trivial defense takes 5 and keeps 0.75 of the pairs.
    alike = Row("defense", by_seed(9.0, 10.0, 11.0), three(bits=0.95, pairs=0.75, tone=0.7))
    assert excess(alike, [HALVED], METRICS).metric == MEAN
    lost = Row("defense", by_seed(9.0, 10.0, 11.0), three(pairs=0.4))  # also 0.8; the metric's curve goes beyond 10
    found = excess(lost, [HALVED], METRICS)
    assert found.metric == "pairs"
    assert found.interval is not None
    assert found.interval.value == pytest.approx(10 - (10 + 40 * 0.2))
    vague = Row("defense", by_seed(9.0, 10.0, 11.0), three(pairs=(0.0, 0.4, 0.8)))
    by_mean = excess(vague, [HALVED], METRICS)
    assert by_mean.metric == MEAN
    assert by_mean.interval is not None
    assert by_mean.interval.value == pytest.approx(10 - 5)


def test_more_metrics_and_families_take_a_clearer_difference() -> None:
    lost = Row("defense", by_seed(9.0, 10.0, 11.0), three(pairs=(0.32, 0.4, 0.48)))  # t = 0.35 · √3 / 0.08 = 7.6
    gaps = gaps_by_metric(lost, HALVED, METRICS)
    assert losses(gaps, METRICS, 1 - 0.05 / 3) == {"pairs": True}  # Student's 5.2 at 2 degrees of freedom
    assert losses(gaps, METRICS, 1 - 0.05 / 21) == {}  # 14.4


def test_a_small_loss_is_clear_where_it_is_larger_than_undefended_models_differ_by() -> None:
    """However well the seeds agree: of many rows and metrics some agree by chance."""
    level = 1 - 0.05 / 3
    lost = Row("defense", by_seed(9.0, 10.0, 11.0), three(pairs=(0.69, 0.7, 0.71), tone=0.71))
    # It keeps 0.81 / 0.4 of the way to the dose by its mean of 0.8033, where 0.7542 of the pairs are left.
    loss = 0.5 + 0.5 * (statistics.fmean((1, 0.7, 0.71)) - 0.6) / 0.4 - 0.7
    gaps = gaps_by_metric(lost, HALVED, METRICS)
    assert losses(gaps, METRICS, level) == {"pairs": False}, "nothing is known of chance"
    quantile = float(scipy.stats.t(9).ppf(level))
    assert quantile == pytest.approx(2.51, abs=0.01)
    for near, clear in ((1.01, False), (0.99, True)):
        chance = Variation(loss * math.sqrt(3) / quantile * near, freedom=9)
        assert losses(gaps, METRICS | {"pairs": chance}, level) == {"pairs": clear}


def test_a_loss_of_a_tenth_is_clear_however_much_undefended_models_vary() -> None:
    """A weak seed, or a suite with two initialisations, must not hide a metric that is destroyed."""
    wild = dict.fromkeys(METRICS, Variation(2.0, freedom=1))
    lost = Row("defense", by_seed(9.0, 10.0, 11.0), three(pairs=0.4))
    assert losses(gaps_by_metric(lost, HALVED, wild), wild, 1 - 0.05 / 3) == {"pairs": True}
    assert excess(lost, [HALVED], wild) == excess(lost, [HALVED], METRICS)


def test_a_loss_that_may_be_chance_counts_for_the_lower_end_alone() -> None:
    # By its mean of 0.8 half-way to the dose, where 0.95 of the bits are left; on their curve at 8 points.
    small = Row("defense", by_seed(9.0, 10.0, 11.0), three(bits=0.92, pairs=0.78, tone=0.7))
    certain, doubtful = (excess(small, [HALVED], METRICS | {"bits": one}) for one in (Variation(0.0, 9), None))
    assert (certain.metric, doubtful.metric) == ("bits", MEAN)
    assert (certain.doubtful, doubtful.doubtful) == ((), ("bits",))
    assert certain.interval is not None
    assert doubtful.interval is not None
    assert (certain.interval.value, doubtful.interval.value) == pytest.approx((10 - 8, 10 - 5))
    assert doubtful.interval.high == pytest.approx(smallest([heights(small, HALVED, MEAN)]).high)
    assert (doubtful.interval.low, doubtful.interval.p) == (certain.interval.low, certain.interval.p)
    assert doubtful.heights.own == heights(small, HALVED, MEAN)[0]
    assert doubtful.heights.lowest == certain.heights.lowest


def test_with_one_seed_only_the_mean_counts() -> None:
    def first(one: Row) -> Row:
        return Row(one.name, {0: 10.0}, {metric: {0: shares[1]} for metric, shares in one.retention.items()})

    family = Family("early_stop", (first(HALF),), untrained={0: 50.0})
    found = excess(first(Row("defense", by_seed(9.0, 10.0, 11.0), three(pairs=0.4))), [family], METRICS)
    assert (found.metric, found.interval and found.interval.value) == (MEAN, pytest.approx(5.0))


def test_a_metrics_curve_ends_at_the_first_dose_that_keeps_nothing_of_it() -> None:
    gone = Row("early_stop[dose=1]", by_seed(19.0, 20.0, 21.0), three(bits=0.9, pairs=0.4, tone=(-0.02, 0.0, 0.03)))
    more = Row("early_stop[dose=2]", by_seed(29.0, 30.0, 31.0), three(bits=0.8, pairs=0.2, tone=(-0.03, 0.02, 0.0)))
    family = Family("early_stop", (HALF, gone, more), untrained=by_seed(50.0, 50.0, 50.0))
    assert [knot.suppression for knot in draw(family, "tone", SEEDS)] == pytest.approx([0.0, 10.0, 20.0])
    assert len(draw(family, MEAN, SEEDS)) == 5
    released = Row("defense", by_seed(25.0, 25.0, 25.0), three(tone=(-0.1, 0.0, 0.0)))
    assert height(released, family, "tone") == pytest.approx(by_seed(6.0, 5.0, 4.0))


def test_a_metric_that_counts_may_leave_a_row_outside_the_ladder() -> None:
    checkpoint = Family("noise", (HALF,))
    lost = Row("defense", by_seed(9.0, 10.0, 11.0), three(tone=0.1))  # less than 0.4; its mean of 0.7 is inside
    assert excess(lost, [checkpoint], METRICS).reason == "outside the ladder: keeps less of tone than any dose of noise"


def test_a_dose_is_judged_by_its_family_without_itself() -> None:
    found = excess(WEAK, [STOPPED], {METRIC: None})
    # Without it the curve runs straight from (1, 0) to (0.5, 10): at 0.9 it is at 2, where the dose is too.
    assert found.interval is not None
    assert found.interval.value == pytest.approx(2.0 - 2.0)


points = st.floats(-20, 60).map(lambda value: round(value, 2))
shares = st.floats(-0.2, 1.2).map(lambda value: round(value, 3))
of_seeds = st.lists(st.tuples(points, shares), min_size=3, max_size=3)


@given(st.lists(of_seeds, min_size=1, max_size=6), of_seeds, st.floats(1, 80))
def test_the_mean_is_the_suppression_less_the_curve(doses: Any, released: Any, untrained: float) -> None:
    def made(name: str, values: Any) -> Row:
        return row(name, [one for one, _ in values], [other for _, other in values])

    family = Family("noise", tuple(made(f"noise[scale={i}]", one) for i, one in enumerate(doses)),
                    by_seed(*[untrained] * 3))  # fmt: skip
    defense = made("defense", released)
    found = height(defense, family, MEAN)
    values = np.array(doses)
    values[:, :, 1] -= np.maximum(values[:, :, 1].mean(axis=1, keepdims=True) - 1, 0)
    expected = statistics.fmean(defense.suppression.values()) - curve(
        values, untrained, statistics.fmean(defense.retention[METRIC].values())
    )
    assert statistics.fmean(found.values()) == pytest.approx(expected, abs=1e-6)


def curve(doses: Any, untrained: float, kept: float) -> float:
    """The curve's suppression at a retention, by scikit-learn's isotonic regression and numpy's interpolation."""

    def fit(values: Any, least: float, most: float) -> Any:
        weights = 1 / np.maximum(values.var(axis=1, ddof=1) / values.shape[1], 1e-12)
        fitted = IsotonicRegression().fit_transform(np.arange(len(values)), values.mean(axis=1), sample_weight=weights)
        return np.clip(fitted, least, most)

    taken = np.concatenate([[0.0], fit(doses[:, :, 0], 0.0, untrained), [untrained]])
    lost = np.concatenate([[-1.0], fit(-doses[:, :, 1], -1.0, 0.0), [0.0]])
    at = -min(max(kept, 0.0), 1.0)
    # Of doses that keep equally much the strongest counts, which np.interp does not promise: take the last at or above.
    last = max(index for index in range(len(lost)) if lost[index] <= at)
    if last == len(lost) - 1:
        return float(taken[-1])
    share = (at - lost[last]) / (lost[last + 1] - lost[last])
    return float(taken[last] + share * (taken[last + 1] - taken[last]))


def anywhere(*values: float) -> Heights:
    """Heights of a row whose place is certain."""
    return Heights(*[by_seed(*values)] * 3)


def test_ranks_are_told_apart_only_where_seeds_agree() -> None:
    clear = anywhere(10.0, 10.5, 11.0, 10.2, 10.8)
    middle = anywhere(5.0, 5.5, 6.0, 5.2, 5.8)
    vague = anywhere(-20.0, 30.0, -10.0, 25.0, 0.0)
    assert rank_intervals([clear, middle]) == [RankInterval(1, 1), RankInterval(2, 2)]
    assert rank_intervals([clear, middle, vague]) == [RankInterval(1, 2), RankInterval(2, 3), RankInterval(1, 3)]
    assert rank_intervals([clear]) == [RankInterval(1, 1)]
    assert rank_intervals([clear, replace(clear)]) == [RankInterval(1, 2), RankInterval(1, 2)]
    later = Heights(*[{seed + 10: value for seed, value in middle.own.items()}] * 3)  # of another folder, merged
    assert rank_intervals([clear, later]) == [RankInterval(1, 2), RankInterval(1, 2)]


def test_a_row_that_may_lie_elsewhere_on_its_curve_is_not_told_from_others() -> None:
    clear = anywhere(10.0, 10.5, 11.0, 10.2, 10.8)
    middle = anywhere(5.0, 5.5, 6.0, 5.2, 5.8)
    assert rank_intervals([replace(clear, lowest=middle.own), middle]) == [RankInterval(1, 2), RankInterval(1, 2)]
    assert rank_intervals([clear, replace(middle, highest=clear.own)]) == [RankInterval(1, 2), RankInterval(1, 2)]


# ------------------------------------------------------------------------------------------------- where a curve jumps

EARLIER = row("short[fraction=0.2]", (5.0, 6.0, 7.0), (0.49, 0.51, 0.53))  # means 6 and 0.51
LATER = row("short[fraction=0.1]", (17.0, 18.0, 19.0), (0.51, 0.49, 0.47))  # 18 and 0.49: not told apart
JUMP = Family("short", (EARLIER, LATER), untrained=by_seed(50.0, 50.0, 50.0))


def test_where_the_curve_jumps_a_row_is_also_measured_from_the_stronger_dose() -> None:
    copy = row("copy", (17.0, 19.0, 18.0), (0.50, 0.54, 0.52))  # by its mean before the jump, where the curve is at 5.9
    found = excess(copy, [JUMP], {METRIC: None})
    assert found.interval is not None
    assert found.interval.value == pytest.approx(18 - 6 * 0.48 / 0.49)
    assert found.interval.low < 0 < found.interval.value
    assert found.interval.p == pytest.approx(0.5)  # that of 0, 1 and -1
    assert found.heights.lowest == pytest.approx(by_seed(0.0, 1.0, -1.0))
    assert statistics.fmean(found.heights.own.values()) == pytest.approx(found.interval.value)


def test_where_the_curve_jumps_a_row_is_also_measured_from_the_weaker_dose() -> None:
    weak = row("weak", (6.0, 6.5, 5.5), (0.44, 0.52, 0.48))  # by its mean beyond the jump
    found = excess(weak, [JUMP], {METRIC: None})
    assert found.interval is not None
    assert found.interval.value < -10
    assert found.interval.high > 0
    assert found.heights.highest == pytest.approx(by_seed(1.0, 0.5, -1.5))


def test_a_row_that_lies_clearly_before_the_jump_is_not_measured_from_beyond_it() -> None:
    before = row("before", (18.0, 18.0, 18.0), (0.61, 0.60, 0.62))
    (only,) = heights(before, JUMP, METRIC)
    assert statistics.fmean(only.values()) == pytest.approx(18 - 6 * 0.39 / 0.49)


def test_doses_that_every_seed_tells_apart_are_no_jump() -> None:
    # The gaps are 0.01, 0.02 and 0.06: 2.0 standard errors on average, where the t test needs 2.9.
    further = row("short[fraction=0.1]", (17.0, 18.0, 19.0), (0.48, 0.49, 0.47))
    family = Family("short", (EARLIER, further), untrained=by_seed(50.0, 50.0, 50.0))
    assert len(heights(row("copy", (17.0, 19.0, 18.0), (0.47, 0.51, 0.50)), family, METRIC)) == 1


def test_one_seed_tells_of_no_jump() -> None:
    doses = [Row(dose.name, {0: dose.suppression[0]}, {METRIC: {0: 0.5}}) for dose in (EARLIER, LATER)]
    family = Family("short", tuple(doses), untrained={0: 50.0})
    assert len(heights(Row("copy", {0: 18.0}, {METRIC: {0: 0.5}}), family, METRIC)) == 1


def test_each_of_the_stairs_is_a_jump() -> None:
    narrow = Family("narrow", (row("narrow", (3.0, 3.1, 2.9), (0.90, 0.92, 0.88)),), stairs=True)
    copy = row("copy", (3.0, 3.0, 3.0), (0.92, 0.89, 0.93))  # 0.913, so that its own step is that of the reference
    own, from_reference, from_narrow = heights(copy, narrow, METRIC)
    assert own == from_reference == pytest.approx(by_seed(3.0, 3.0, 3.0))
    assert from_narrow == pytest.approx(by_seed(0.0, -0.1, 0.1))
