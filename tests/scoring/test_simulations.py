"""What the score does over many runs: false positives, power, and how often intervals and ranks cover the truth.

Every simulation draws the numbers of whole suites, with the noise of published records, and calls the functions that
score them. A short run tells too few cases for a rate of one per cent, so the rates below hold for all rows together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import pytest
from scipy.stats import binom

from nftbench.scoring.frontier import MEAN, Family, Row, Variation, excess
from nftbench.scoring.intervals import EXCESS_CONFIDENCE, beats_zero
from nftbench.scoring.rank_intervals import rank_intervals
from nftbench.scoring.scores import Excess
from nftbench.scoring.utility_badge import MetricUtility, badge
from tests.scoring.drawn import (
    BEST,
    DOSES,
    EVERYTHING,
    LARGEST_NOISE,
    METRICS,
    MODEL,
    NOISE,
    SCRATCH,
    Shares,
    Truth,
    kept,
    trivial,
)

pytestmark = pytest.mark.slow
INITIALISATIONS = 4


Ladder = Mapping[str, Sequence[Truth]]
STANDARD: Ladder = {name: [trivial(one, name) for one in fractions] for name, fractions in DOSES.items()}


def drawn(truths: Mapping[str, Truth], generator: np.random.Generator, seeds: int, ladder: Ladder) -> dict[str, Excess]:
    """The excess of each row of one run."""
    spread = LARGEST_NOISE[:, None]
    reference = generator.normal(0, MODEL, seeds)
    undefended = 1 + spread * generator.normal(0, 1, (INITIALISATIONS, len(METRICS), seeds))
    whole = undefended.mean(axis=0)

    def row(name: str, truth: Truth) -> Row:
        taken = truth.suppression + reference + generator.normal(0, MODEL, seeds)
        retention = np.broadcast_to(truth.retention, (seeds, len(METRICS))).T
        shares = (retention + spread * generator.normal(0, 1, (len(METRICS), seeds))) / whole
        by_metric = {metric: dict(enumerate(each)) for metric, each in zip(METRICS, shares.tolist(), strict=True)}
        return Row(name, dict(enumerate(taken.tolist())), by_metric)

    untrained = dict(enumerate((BEST - SCRATCH + reference).tolist()))
    families = [
        Family(name, tuple(row(f"{name} {index}", one) for index, one in enumerate(doses)), untrained)
        for name, doses in ladder.items()
    ]
    freedom = (INITIALISATIONS - 1) * seeds
    variance = (undefended / whole).var(axis=0, ddof=1).mean(axis=1)
    known = {metric: Variation(float(one) ** 0.5, freedom) for metric, one in zip(METRICS, variance, strict=True)}
    return {name: excess(row(name, truth), families, known) for name, truth in truths.items()}


def runs(truths: Mapping[str, Truth], count: int, seeds: int = 5, ladder: Ladder = STANDARD) -> list[dict[str, Excess]]:
    generator = np.random.default_rng(0)
    return [drawn(truths, generator, seeds, ladder) for _ in range(count)]


def but(**shares: float) -> Shares:
    """Everything but these metrics, of which so much is kept."""
    return np.array([shares.get(metric, 1.0) for metric in METRICS])


def found(every: Sequence[Mapping[str, Excess]], row: str) -> float:
    """In what share of runs the row has an effect, by itself."""
    return float(
        np.mean([beats_zero(one[row].interval.p, EXCESS_CONFIDENCE) for one in every if one[row].interval is not None])
    )


# ------------------------------------------------------------------------------------------------- null fakes, cheaters


def test_null_fakes_are_seldom_taken_for_defenses() -> None:
    """Undefended models and models on the curves, most of them between two doses: at most 1 % at five seeds."""
    fakes = {"undefended": Truth(0.0), "copy": Truth(0.0)}
    fakes |= {f"short {one}": trivial(one) for one in (0.9, 0.7, 0.17, 0.05)}
    fakes |= {f"early_stop {one}": trivial(one, "early_stop") for one in (0.9, 0.4, 0.15, 0.05)}
    every = runs(fakes, 60)
    assert np.mean([found(every, row) for row in fakes]) <= 0.01


def test_an_undefended_model_is_seldom_taken_for_a_defense() -> None:
    """By itself: the mean over all rows above would hide a rate of four per cent.

    At the level's rate of 1 %, a hundredth of such simulations has more hits than the bound; at 4 % nearly all have.
    """
    count = 1000
    hits = count * found(runs({"undefended": Truth(0.0)}, count), "undefended")
    assert hits <= binom.ppf(0.99, count, 0.01)


def test_between_two_doses_a_chord_costs_at_most_a_point() -> None:
    """A curve is straight between its doses and the truth is not: so much may a model on the true path gain."""
    for family, fractions in DOSES.items():
        between = [trivial(float(one), family) for one in np.geomspace(min(fractions), 1.0, 200)]
        assert max(one.excess({family: fractions}) for one in between) <= 1.0
        assert np.mean([max(0.0, one.excess()) for one in between]) <= 0.1


CHEATERS = {
    "no tone": Truth(18.0, but(tone=0.0)),
    "half the tone": Truth(9.0, but(tone=0.5)),
    "no topic": Truth(20.0, but(object=0.0, verb=0.0)),
    "pays with agreement": Truth(6.0, but(verb=0.8, agreement=1.3)),
    "a little of everything": Truth(2.0, EVERYTHING - 0.02),
}
"""Who destroys just what a task needs takes all that the task gains: 18 points of three tasks' mean for the tone."""


def test_who_destroys_one_metric_or_pays_with_another_has_no_effect() -> None:
    every = runs(CHEATERS, 50)
    for row in CHEATERS:
        assert found(every, row) <= 0.02, row
    assert np.mean([one["no tone"].metric == "tone" for one in every]) == 1


def test_who_destroys_another_metric_at_each_seed_has_no_effect() -> None:
    """No metric is lost at all seeds, so a test over the seeds finds none of these losses.

    Each row takes the mean of what its seeds take: a destroyed tone 18 points, agreement 13.2, the topic 20. Before
    each seed was judged by itself, the first had an effect in 95 % of runs and the last in 45 %.
    """
    tone, agreement, topic = but(tone=0.0), but(agreement=0.0), but(object=0.0, verb=0.0)
    rows = {
        "tone and agreement": Truth(16.1, np.array([tone, agreement] * 2 + [tone])),
        "half of each": Truth(8.0, np.array([but(tone=0.5), but(agreement=0.5)] * 2 + [but(tone=0.5)])),
        "tone and topic": Truth(18.8, np.array([tone, topic] * 2 + [tone])),
        "a fifth of tone and topic": Truth(
            3.8, np.array([but(tone=0.8), but(object=0.8, verb=0.8)] * 2 + [but(tone=0.8)])
        ),
        "tone at four of five": Truth(14.4, np.array([tone] * 4 + [but()])),
    }
    every = runs(rows, 50)
    for row in rows:
        assert found(every, row) <= 0.02, row


def test_what_is_above_everything_pays_for_nothing() -> None:
    """A metric that is raised does not change the excess of a row that loses others."""
    plain, raised = (
        np.mean([one["row"].interval.value for one in runs({"row": truth}, 40) if one["row"].interval])
        for truth in (Truth(8.0, but(verb=0.97)), Truth(8.0, but(verb=0.97, agreement=1.3)))
    )
    assert raised <= plain + 0.5


@pytest.mark.parametrize("gap", [0.0, 0.01, 0.02, 0.04])
def test_where_a_curve_jumps_noise_does_not_decide(gap: float) -> None:
    """Two doses keep nearly as much, and the stronger takes 12 points more. A copy of it has no effect. What is on the
    curve before both is not refuted. Four points above the stronger one are found in half of the runs."""

    def truth(points: float, share: float) -> Truth:
        return Truth(points, EVERYTHING * share)

    doses = ((1, 0.9), (4, 0.7), (6, 0.5 + gap), (18, 0.5), (20, 0.2))
    rows = {"copy": truth(18, 0.5), "before": truth(6, 0.52 + gap), "above": truth(22, 0.5)}
    every = runs(rows, 100, ladder={"jump": [truth(*one) for one in doses]})
    assert found(every, "copy") <= 0.02
    assert found(every, "above") >= 0.4
    refuted = [one["before"].interval.high <= 0 for one in every if one["before"].interval]
    assert np.mean(refuted) <= 0.05


def test_near_the_end_of_the_ladder_a_destroyed_model_has_no_effect() -> None:
    """Three doses keep nothing, and so does the untrained model, from which nothing can be taken.

    The share is 1.7 %, and was 29 % when a row was measured at its own utility alone. A row is told from zero by tests
    at 5 %, so it cannot be nothing.
    """
    doses = [Truth(10.0, EVERYTHING * 0.5), *(Truth(points, EVERYTHING * 0) for points in (17.0, 20.0, 22.0))]
    every = runs({"destroyed": Truth(20.0, EVERYTHING * 0)}, 300, ladder={"floor": doses})
    assert found(every, "destroyed") <= 0.03


# --------------------------------------------------------------------------------------------------------------- power


def test_four_points_are_found_in_four_of_five_runs() -> None:
    every = runs({"four": Truth(4.0), "on the curve": Truth(trivial(0.7).suppression + 4, kept(0.7))}, 100)
    assert found(every, "four") >= 0.8
    assert found(every, "on the curve") >= 0.8


def test_three_seeds_find_ten_points() -> None:
    assert found(runs({"ten": Truth(10.0)}, 60, seeds=3), "ten") >= 0.8


def test_a_perfect_copy_counts_by_its_mean() -> None:
    """No metric that is unlucky binds in its place, but for the five per cent that the tests allow."""
    every = runs({"copy": Truth(8.0)}, 100)
    assert np.mean([one["copy"].metric == MEAN for one in every]) >= 0.93
    assert abs(np.mean([one["copy"].interval.value for one in every if one["copy"].interval]) - 8.0) <= 1.0


@pytest.mark.parametrize("seeds", [3, 5])
def test_a_single_metric_that_is_low_by_chance_refutes_no_perfect_copy(seeds: int) -> None:
    """Of many rows, metrics and families, some have seeds that agree by chance. A t test alone measures 2 % of copies
    from such a metric, and some of them 15 points below zero."""
    copies = {f"copy {index}": Truth(0.0) for index in range(4)}
    every = [copy for one in runs(copies, 200, seeds) for copy in one.values()]
    assert np.mean([one.metric != MEAN for one in every]) <= 0.005
    assert np.mean([one.interval is not None and one.interval.value < -4 for one in every]) <= 0.002


@pytest.mark.parametrize(("seeds", "share"), [(5, 0.75), (8, 0.95)])
def test_most_perfect_copies_keep_utility(seeds: int, share: float) -> None:
    generator = np.random.default_rng(0)

    def metric(noise: float) -> MetricUtility:
        own, others = generator.normal(100, 100 * noise, seeds), generator.normal(100, 100 * noise, (seeds, 4))
        return MetricUtility(dict(enumerate(own)), dict(enumerate(others.tolist())), dict.fromkeys(range(seeds), 0.0))

    assert np.mean([badge([metric(noise) for noise in NOISE]) == "keeps" for _ in range(400)]) >= share


# ------------------------------------------------------------------------------------------------------------ coverage

ROWS = {
    "undefended": (Truth(0.0), ""),
    "curve": (trivial(0.7), ""),
    "small": (Truth(3.0), ""),
    "large": (Truth(8.0), ""),
    "far": (Truth(trivial(0.15).suppression + 15, kept(0.15)), "object"),
    "half the tone": (Truth(9.0, but(tone=0.5)), "tone"),
}
"""Rows with the metric that truly counts beside the mean. In none of them another one is nearly lower than the mean."""


@cache
def boards() -> tuple[dict[str, float], list[dict[str, Excess]]]:
    """The true excess of each row, and what was found in each run."""
    true = {row: truth.excess(metrics=[metric] if metric else []) for row, (truth, metric) in ROWS.items()}
    return true, runs({row: truth for row, (truth, _) in ROWS.items()}, 80)


def test_intervals_cover_the_true_excess() -> None:
    true, every = boards()
    rates = {
        row: np.mean(
            [each.low <= true[row] <= each.high for each in (one[row].interval for one in every) if each is not None]
        )
        for row in ROWS
    }
    assert np.mean(list(rates.values())) >= 0.95
    assert min(rates.values()) >= 0.95 - 2 * np.sqrt(0.05 * 0.95 / len(every)), rates


def test_rank_intervals_cover_the_true_rank() -> None:
    true, every = boards()
    covered = dict.fromkeys(ROWS, 0)
    for one in every:
        for row, ranks in zip(ROWS, rank_intervals([one[row].heights for row in ROWS]), strict=True):
            better = sum(other > true[row] + 1e-9 for other in true.values())
            worse = sum(other < true[row] - 1e-9 for other in true.values())
            covered[row] += ranks.first <= 1 + better and ranks.last >= len(true) - worse
    assert min(covered.values()) / len(every) >= 0.95 - 2 * np.sqrt(0.05 * 0.95 / len(every)), covered
