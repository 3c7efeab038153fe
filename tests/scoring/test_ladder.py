"""The excess on whole leaderboards: an independent implementation, and the rules about what a ladder may lack."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings, strategies as st
from scipy import stats
from sklearn.isotonic import IsotonicRegression

from nftbench.records.record import CellId, Record
from nftbench.scoring import Leaderboard, Score
from nftbench.scoring.frontier import Family as Curves, Row, excess, smallest
from nftbench.scoring.intervals import Interval
from nftbench.suites.schema import Family
from tests.factories import DEFENDED, TASKS, UNDEFENDED, failed, measurement, record, scored, scratch, suite, sweep
from tests.scoring import drawn
from tests.scoring.drawn import LADDER, Truth, kept, trivial


def of(board: Leaderboard, defense: str = "pmp") -> Score:
    return next(one for one in board.scores if one.defense == defense)


# ------------------------------------------------------------------------------------- an independent implementation


def oracle(records: Sequence[Record]) -> dict[str, Any]:
    """By row: value, ends, p and heights (own, lowest, highest) of the excess, with numpy and scikit-learn.

    Validation and test scores are the same in these records, so the best attack is the one that ends highest.
    """
    rows = sorted({one.defense for one in records if not one.defense.startswith("twin[")})
    count = 1 + max(one.seed for one in records)

    def value(one: Record) -> float:
        measured = one.attacked
        assert measured is not None
        return (100 if measured.higher_is_better else -100) * measured.value

    def ends(row: str) -> Any:
        best = np.full(count, -math.inf)
        for one in records:
            if one.role == "ranked" and (one.defense == row or one.attack == "scratch"):
                best[one.seed] = max(best[one.seed], value(one))
        return best

    def utility(row: str, metric: str) -> Any:
        found = {one.seed: value(one) for one in records if (one.defense, one.task) == (row, metric)}
        return np.array([found[seed] for seed in range(count)])

    undefended = ("none", *drawn.INITIALISATIONS)
    full = {metric: np.mean([utility(row, metric) for row in undefended], axis=0) for metric in drawn.METRICS}
    floor = {metric: -500.0 if metric == "bits" else 50.0 for metric in drawn.METRICS}
    taken = {row: ends("none") - ends(row) for row in rows}
    share = {
        (row, metric): (utility(row, metric) - floor[metric]) / (full[metric] - floor[metric])
        for row in rows
        for metric in drawn.METRICS
    }
    scatter = {  # of one model, pooled over the seeds
        metric: math.sqrt(
            np.mean(
                np.var([utility(row, metric) for row in undefended], axis=0, ddof=1)
                / (full[metric] - floor[metric]) ** 2
            )
        )
        for metric in drawn.METRICS
    }
    scratch_ends = np.array([value(one) for one in records if one.attack == "scratch"])
    untrained = ends("none") - scratch_ends

    def fitted(values: Any, low: float, high: float) -> Any:
        """By dose and seed: pooled doses as their weighted mean, clipped ones as the bound."""
        weights = 1 / np.maximum(values.var(axis=1, ddof=1) / count, 1e-12)
        means = IsotonicRegression().fit_transform(np.arange(len(values)), values.mean(axis=1), sample_weight=weights)
        out = np.empty_like(values)
        for at, level in enumerate(means):
            block = np.isclose(means, level, rtol=0, atol=1e-12)
            out[at] = np.average(values[block], axis=0, weights=weights[block])
            if not low <= level <= high:
                out[at] = np.clip(level, low, high)
        return out

    share |= {
        (row, "mean"): np.mean(
            [
                share[row, metric] - max(share[row, metric].mean() - 1, 0)  # what is beyond 100 % pays for nothing
                for metric in drawn.METRICS
            ],
            axis=0,
        )
        for row in rows
    }

    def curve(doses: Any, metric: str) -> Any:
        falling = -fitted(-np.array([share[dose, metric] for dose in doses]), -1.0, 0.0)
        return np.vstack([np.ones(count), falling, np.zeros(count)])

    def place(keep: Any, at: float) -> tuple[int, float]:
        j = int(np.flatnonzero(keep.mean(axis=1) >= min(at, 1.0))[-1])
        if j == len(keep) - 1:
            return j, 1.0
        return j, (min(at, 1.0) - keep[j + 1].mean()) / (keep[j].mean() - keep[j + 1].mean())

    def end(values: Any, side: int) -> float:
        """The lower end (-1) or the upper end (1) of Student's interval of 98 %."""
        return float(values.mean() + side * stats.t.ppf(0.99, count - 1) * values.std(ddof=1) / math.sqrt(count))

    def above_zero(values: Any) -> float:
        """One-sided p against a mean of zero or less."""
        if np.ptp(values) < 1e-12:
            return 0.0 if values.mean() > 0 else 1.0
        return float(stats.ttest_1samp(values, 0, alternative="greater").pvalue)

    def alike(own: Any, other: Any) -> bool:
        gaps = own - other
        if np.abs(gaps).max() < 1e-12:
            return True
        return abs(np.sign(gaps).sum()) < count and stats.ttest_rel(own, other).pvalue >= 0.1

    def above(taken_here: Any, own: Any, keep: Any, climb: Any) -> list[Any]:
        """The height at the row's own utility, and then those above both ends of each jump that it may lie on."""
        jumps = [
            end
            for at in range(len(keep) - 1)
            if np.abs(own - keep[at + 1]).max() > 1e-12
            and alike(keep[at], keep[at + 1])
            and alike(own, keep[at])
            and alike(own, keep[at + 1])
            for end in (at, at + 1)
        ]
        ends = [taken_here - climb[at] for at in jumps]
        j, w = place(keep, own.mean())
        if j == len(keep) - 1:
            return [taken_here - climb[j], *ends]
        slope = (climb[j + 1].mean() - climb[j].mean()) / (keep[j].mean() - keep[j + 1].mean())
        lost = own - w * keep[j] - (1 - w) * keep[j + 1]
        return [taken_here - w * climb[j] - (1 - w) * climb[j + 1] + slope * lost * (own.mean() < 1), *ends]

    found = {}
    tests = len(drawn.METRICS) * len(LADDER)
    chance_at_a_seed = stats.t.ppf(1 - 0.05 / tests, count * (len(undefended) - 1))
    for row in rows:
        every, doubtful = [], []
        for family in LADDER.values():
            doses = [dose for dose in family.doses if dose != row]
            rising = fitted(np.array([taken[dose] for dose in doses]), 0.0, untrained.mean())
            climb = np.vstack([np.zeros(count), rising, untrained])
            j, w = place(curve(doses, "mean"), share[row, "mean"].mean())
            below, lost = {"mean": every}, {}
            for metric in drawn.METRICS:
                keep = curve(doses, metric)
                matched = w * keep[j] + (1 - w) * keep[min(j + 1, len(keep) - 1)]
                shown = stats.ttest_rel(share[row, metric], matched, alternative="less").pvalue
                deviations = (share[row, metric] - matched).mean() * math.sqrt(count) / scatter[metric]
                chance = stats.t.cdf(deviations, count * (len(undefended) - 1))
                if shown < 0.05 / tests:
                    clear = chance < 0.05 / tests or (matched - share[row, metric]).mean() > 0.1
                    below[metric] = every if clear else doubtful
                by_turns = chance_at_a_seed * math.sqrt(2) * scatter[metric]
                lost[metric] = matched - share[row, metric] > max(by_turns, 0.1)

            def ended(metric: str, doses: Any = doses) -> Any:
                """The curve of a metric, up to the first dose that keeps nothing of it."""
                keep = curve(doses, metric)
                nothing = [above_zero(each) >= 0.05 for each in keep[1:-1]]
                keep = keep[: 2 + nothing.index(True)] if any(nothing) else keep
                keep[-1] = 0.0
                return keep

            for metric, counted in below.items():
                keep = curve(doses, metric) if metric == "mean" else ended(metric)
                counted.append(above(taken[row], share[row, metric], keep, climb))
            if any(each.any() for each in lost.values()):
                worst = above(taken[row], share[row, "mean"], curve(doses, "mean"), climb)[0].copy()
                for metric, seeds in lost.items():
                    keep = ended(metric)
                    for seed in np.flatnonzero(seeds):
                        j, w = place(keep, share[row, metric][seed])
                        far = climb[min(j + 1, len(keep) - 1)]
                        worst[seed] = min(worst[seed], taken[row][seed] - w * climb[j][seed] - (1 - w) * far[seed])
                doubtful.append([worst])
        least = min(every, key=lambda one: one[0].mean())
        low = min(end(values, -1) for one in (*every, *doubtful) for values in one)
        lowest = min((*least, *(values for one in doubtful for values in one)), key=lambda values: end(values, -1))
        highest = max(least, key=lambda values: end(values, 1))
        near = [  # curves that a paired t test cannot tell from the least
            max(end(values, 1) for values in one)
            for one in every
            if np.abs(one[0] - least[0]).max() < 1e-12 or stats.ttest_rel(one[0], least[0]).pvalue >= 0.05
        ]
        high = max(end(highest, 1), sorted(near)[len(near) // 2])
        p = max(above_zero(values) for one in (*every, *doubtful) for values in one)
        found[row] = (least[0].mean(), low, high, p, least[0], lowest, highest)
    return found


ROWS = {
    "pmp": Truth(9.0, kept(0.5)),
    "mask": Truth(6.0),
    "sham": trivial(0.25),
    "twin": Truth(0.0),
    "weak": Truth(1.0, kept(0.15)),
    "destroyer": Truth(9.0, np.array([1, 1, 1, 0.4, 0.0, 1, 1])),
    "by turns": Truth(9.0, np.array([[1, 1, 1, seed % 2, 1 - seed % 2, 1, 1] for seed in range(5)])),
}


@pytest.mark.parametrize("number", range(6))
def test_excess_and_ranks_are_those_of_an_independent_implementation(number: int) -> None:
    records = drawn.records(ROWS, np.random.default_rng(number), noise=2.0)
    board, expected = drawn.board(records), oracle(records)
    assert {one.defense for one in board.scores} == set(expected)
    for one in board.scores:
        if one.kind == "reference":
            continue
        value, low, high, p, *heights = expected[one.defense]
        interval = one.excess.interval
        assert interval is not None
        assert (interval.value, interval.low, interval.high) == pytest.approx((value, low, high), abs=1e-6)
        assert interval.p == pytest.approx(p, abs=1e-9)
        for ours, other in zip(
            (one.excess.heights.own, one.excess.heights.lowest, one.excess.heights.highest), heights, strict=True
        ):
            assert [*ours.values()] == pytest.approx(other, abs=1e-6)
    ranked = [one for one in board.scores if one.standing.group == "ranked"]
    own, lowest, highest = ({one.defense: expected[one.defense][at] for one in ranked} for at in (4, 5, 6))

    def p_value(first: str, second: str) -> float:
        """That the two are alike, wherever on their curves they lie."""
        upper, lower = (first, second) if own[first].mean() > own[second].mean() else (second, first)
        apart = stats.ttest_rel(lowest[upper], highest[lower], alternative="greater").pvalue
        return max(float(stats.ttest_rel(own[upper], own[lower]).pvalue), 2 * float(apart))

    for one in ranked:
        others = [other for other in own if other != one.defense]
        p_values = [p_value(one.defense, other) for other in others]
        order = sorted(range(len(others)), key=lambda at: p_values[at])
        told: list[str] = []
        for step, at in enumerate(order):  # Holm: stop at the first that cannot be told apart
            if p_values[at] * (len(others) - step) > 0.02:
                break
            told.append(others[at])
        better = sum(own[other].mean() > own[one.defense].mean() for other in told)
        assert one.standing.ranks is not None
        assert (one.standing.ranks.first, one.standing.ranks.last) == (1 + better, len(ranked) - len(told) + better)
        assert one.standing.rank == 1 + sum(own[other].mean() > own[one.defense].mean() for other in others)


def test_the_curves_can_be_drawn() -> None:
    board = drawn.board(drawn.records({}, np.random.default_rng(0), noise=0.0))
    assert len(board.frontier) == len(LADDER) * (1 + len(drawn.METRICS))
    curve = next(one for one in board.frontier if (one.family, one.metric) == ("short", "mean"))
    assert (curve.reference, curve.knots[0], curve.knots[-1][0]) == ("none", (1.0, 0.0), 0.0)
    assert curve.knots[-1][1] == pytest.approx(drawn.BEST - drawn.SCRATCH, abs=2)
    assert [row for row, _, _ in curve.doses] == list(LADDER["short"].doses)
    shares = [trivial(one).retention.mean() for one in drawn.DOSES["short"]]
    assert [retention for _, retention, _ in curve.doses] == pytest.approx(shares, abs=1e-6)
    ends = next(one for one in board.frontier if (one.family, one.metric) == ("short", "agreement"))
    assert ends.knots[-1] == (0.0, curve.knots[-3][1])  # the dose 0.1 is the first that keeps nothing of it


# ------------------------------------------------------------------------------------------------------------- edges


def test_a_missing_dose_leaves_nobody_an_excess_and_is_said_once() -> None:
    records = drawn.records(ROWS, np.random.default_rng(1))
    planned = [CellId.of(one) for one in records]
    lost = CellId("short[dose=2]", "full", drawn.ATTACKED, 3)
    for broken in (
        [one for one in records if CellId.of(one) != lost],
        [failed(one) if CellId.of(one) == lost else one for one in records],
    ):
        board = scored(broken, planned=planned, ladder=LADDER, initialisations=drawn.INITIALISATIONS)
        assert all(one.excess.interval is None for one in board.scores)
        assert board.frontier == ()
        (problem,) = (one for one in board.problems if "ladder" in one)
        assert problem.startswith("the ladder is incomplete: short[dose=2] × full on words, seed 3: ")
        assert of(board).standing.reasons == (f"no excess: {problem}",)
        assert (of(board).standing.group, of(board).claim.verdict) == ("unranked", "untested")
        assert of(board).incomplete == ()  # its own cells are all there


@pytest.mark.parametrize("row", ["twin[index=2]", "early_stop[dose=0]"])
def test_a_missing_utility_of_a_dose_or_an_initialisation_is_missed_too(row: str) -> None:
    records = drawn.records(ROWS, np.random.default_rng(1))
    planned = [CellId.of(one) for one in records]
    left = [one for one in records if CellId.of(one) != CellId(row, "none", "tone", 0)]
    board = scored(left, planned=planned, ladder=LADDER, initialisations=drawn.INITIALISATIONS)
    assert of(board).excess.reason == f"the ladder is incomplete: {row} × none on tone, seed 0: missing"


def test_an_initialisation_that_is_not_planned_is_missed_as_well() -> None:
    left = [one for one in drawn.records(ROWS, np.random.default_rng(1)) if one.defense != "twin[index=2]"]
    assert of(drawn.board(left)).excess.reason == "the ladder is incomplete: twin[index=2]: not in the plan"


def test_an_initialisation_without_attacks_is_no_row_and_its_utility_counts() -> None:
    records = drawn.records({"pmp": Truth(9.0)}, np.random.default_rng(2))
    board = drawn.board(records)
    assert not any(one.defense.startswith("twin[") for one in board.scores)
    alone = scored(records, ladder=LADDER, planned=[CellId.of(one) for one in records if one.defense[:5] != "twin["])
    assert of(board).utility.retention != of(alone).utility.retention


def test_a_suite_without_a_ladder_is_scored_and_not_ranked() -> None:
    board = scored(suite(), ladder={})
    assert of(board).resistance.suppression is not None
    assert of(board).excess.reason == "the suite has no ladder of trivial defenses to measure from"
    assert of(board).standing.group == "unranked"
    assert of(board).claim.verdict == "untested"
    assert board.problems == ()


def test_without_scratch_a_row_below_the_last_dose_is_outside_the_ladder() -> None:
    records = [one for one in suite() if one.attack != "scratch" and one.defense != "pmp"]
    records += sweep("pmp", (0.3,) * 5, utility=0.5)
    reason = "outside the ladder: keeps less utility than any dose of early_stop"
    assert of(scored(records)).excess.reason == reason
    assert of(scored([*records, *scratch([0.4] * 5)])).excess.interval is not None


def test_a_staircase_needs_no_end() -> None:
    records = [one for one in suite() if one.attack != "scratch" and one.defense != "pmp"]
    records += sweep("pmp", (0.3,) * 5, utility=0.5)
    found = of(scored(records, ladder={"steps": Family(doses=("early_stop",), stairs=True)})).excess.interval
    assert found is not None
    assert found.value == pytest.approx(72 - 30)


def test_a_dose_is_judged_without_itself_and_has_no_rank() -> None:
    board = drawn.board(drawn.records(ROWS, np.random.default_rng(3), noise=0.0))
    dose = of(board, "early_stop[dose=2]")
    assert dose.excess.interval is not None
    assert (dose.standing.group, dose.standing.rank, dose.claim.verdict) == ("control", None, None)
    assert dose.excess.family == "short"  # the other family takes more at the same utility
    assert dose.excess.interval.value < -5


def test_the_claim_of_a_probe_is_untested_where_the_ladder_has_no_probes() -> None:
    from nftbench.contract import Claim

    probes = [
        record(row, "probe", task, seed, value, adaptation="linear_probe")
        for row, value in (("none", 0.6), ("pmp", 0.4))
        for task in TASKS
        for seed in range(5)
    ]
    records = [*suite(), *probes]
    records = [
        replace(one, row=replace(one.row, claim=Claim(adaptation="linear_probe"))) if one.defense == "pmp" else one
        for one in records
    ]
    board = scored(records, planned=[CellId.of(one) for one in records])
    assert of(board).claim.excess is None
    assert of(board).claim.verdict == "untested"


def test_a_test_score_far_above_validation_is_no_result() -> None:
    """The attack has read the test split. On the undefended model alone this would flatter every defense."""
    records = [
        replace(one, validation=measurement(0.75))
        if (one.defense, one.attack, one.seed) == ("none", "full", 4)
        else one
        for one in suite()
    ]
    board = scored(records)  # 0.83 on test and 0.75 on validation: 5.7 standard errors, which may be chance
    assert of(board).standing.group == "ranked"
    records = [
        replace(one, validation=measurement(0.7)) if (one.defense, one.attack, one.seed) == ("none", "full", 4) else one
        for one in suite()
    ]
    pmp = of(scored(records))
    assert (pmp.standing.group, pmp.claim.verdict) == ("unranked", "untested")
    reason = "none × full on pairs, seed 4: test score 13.0 points above selection, 9 standard errors"
    assert reason in pmp.standing.reasons[0]


# ------------------------------------------------------------------------------------------------- ranks and verdicts


def test_ranks_among_rows_that_keep_enough_and_the_pareto_mark() -> None:
    rows = {
        "strong": Truth(38.0, kept(0.15)),  # the curve of `short` is at 20 there
        "middle": Truth(33.0, kept(0.35)),  # 8
        "gentle": Truth(13.0, kept(0.75)),  # 0
        "beaten": Truth(12.0, kept(0.3)),  # 11
    }
    board = drawn.board(drawn.records(rows, np.random.default_rng(0)))
    order = [one.defense for one in board.scores if one.standing.rank]
    assert order == ["middle", "strong", "gentle", "beaten"]
    assert [of(board, row).standing.rank for row in order] == [1, 2, 3, 4]
    assert of(board, "gentle").standing.rank_among == {0.95: 1, 0.9: 1, 0.8: 2, 0.5: 3}
    assert of(board, "strong").standing.rank_among == {0.95: None, 0.9: None, 0.8: None, 0.5: 2}
    assert of(board, "beaten").standing.rank_among == {0.95: None, 0.9: None, 0.8: 3, 0.5: 4}
    assert [of(board, row).standing.pareto for row in order] == [True, True, True, False]


def claimed(pmp: Sequence[Record], **changes: Any) -> Score:
    return of(scored([*(one for one in suite() if one.defense != "pmp"), *pmp], **changes))


def test_verdicts() -> None:
    """`none` ends at 82, early_stop takes 10 points and keeps everything, scratch ends at 40."""
    assert claimed(sweep("pmp", (0.50, 0.53, 0.55, 0.50, 0.52))).claim.verdict == "holds"
    costly = claimed(sweep("pmp", (0.50, 0.53, 0.55, 0.50, 0.52), utility=0.70))
    assert (costly.utility.badge, costly.claim.verdict) == ("cannot tell", "holds at a cost")
    assert costly.standing.group == "ranked"
    # 10 points at the utility of early_stop: nothing beyond it, and the interval reaches from below to above zero
    assert claimed(sweep("pmp", (0.71, 0.72, 0.74, 0.70, 0.73))).claim.verdict == "not shown"
    # 4 points less than early_stop takes
    assert claimed(sweep("pmp", (0.74, 0.77, 0.77, 0.75, 0.77))).claim.verdict == "refuted"


def test_a_claim_is_refuted_where_its_attackers_end_as_on_the_undefended_model() -> None:
    """Without a ladder too: it is the row's attackers who refute it."""
    near = claimed(sweep("pmp", (0.795, 0.815, 0.835, 0.805, 0.825)), ladder={})
    assert near.claim.suppression == Interval(pytest.approx(0.5), pytest.approx(0.5), pytest.approx(0.5), 5, 0.0)  # type: ignore[arg-type]
    assert near.claim.verdict == "refuted"
    vague = claimed(sweep("pmp", (0.75, 0.86, 0.80, 0.82, 0.80)), ladder={})  # 1.6 points, and up to 6 by its interval
    assert vague.claim.verdict == "untested"


@pytest.mark.parametrize("added", [(), ("fuse",)])
def test_a_dose_that_met_fewer_attacks_refutes_nobody(added: Sequence[str]) -> None:
    """`full` leaves 30 points less of `pmp`, and `fuse` 5 less. What `fuse` would leave of early_stop nobody tried."""
    weaker = {"none": UNDEFENDED, "pmp": (0.75, 0.77, 0.79, 0.76, 0.78), "early_stop": (0.70, 0.72, 0.73, 0.71, 0.73)}
    fused = {
        name: [record(name, "fuse", task, seed, value) for seed, value in enumerate(ends) for task in TASKS]
        for name, ends in weaker.items()
    }
    records = [*suite(), *fused["none"], *fused["pmp"]]
    found = of(scored(records, planned=list(map(CellId.of, records)), added=added)).claim
    assert found.excess is not None
    assert found.excess.value == pytest.approx(-5.0)
    assert found.excess.high > 0
    assert found.verdict == "not shown"
    everywhere = [*records, *fused["early_stop"]]
    assert of(scored(everywhere, planned=list(map(CellId.of, everywhere)))).claim.verdict == "refuted"


def test_a_row_that_leaves_out_the_seeds_of_its_choice_holds_nothing() -> None:
    """At two of seven seeds it takes less than early_stop does."""
    ends = {"none": [*UNDEFENDED, 0.82, 0.82], "early_stop": [0.7] * 7, "pmp": [*DEFENDED, 0.81, 0.80]}
    records = [*scratch([0.4] * 7), *(one for row, values in ends.items() for one in sweep(row, values))]
    lucky = [one for one in records if one.defense != "pmp" or one.seed < 5]
    for found, verdict in ((records, "not shown"), (lucky, "untested")):
        assert of(scored(found, planned=list(map(CellId.of, found)))).claim.verdict == verdict


def test_an_untestable_claim_counts_in_the_correction() -> None:
    """Of two claims one has no result: p is doubled all the same, so that no claim gains by another's failure."""
    records = suite()
    alone = of(scored(records)).claim.p
    lost = [failed(one) if one.attack == "full" else one for one in sweep("mask", (0.5,) * 5)]
    together = of(scored([*records, *lost])).claim.p
    assert alone is not None
    assert together == pytest.approx(2 * alone)


# -------------------------------------------------------------------------------------------------------- properties


@settings(max_examples=3, derandomize=True, phases=[Phase.generate])
@given(st.integers(0, 1000), st.randoms(use_true_random=False))
def test_neither_the_order_of_records_nor_the_names_of_seeds_matter(number: int, shuffler: random.Random) -> None:
    records = drawn.records({"pmp": Truth(9.0, kept(0.1)), "mask": Truth(3.0)}, np.random.default_rng(number), seeds=3)
    names = shuffler.sample(range(100), 3)
    other = [replace(one, seed=names[one.seed], key=f"{one.key}/{names[one.seed]}") for one in records]
    first, second = drawn.board(records), drawn.board(shuffler.sample(other, len(other)))
    for row in ("pmp", "mask", "short[dose=1]"):
        before, after = of(first, row), of(second, row)
        assert before.excess.interval is not None
        assert after.excess.interval is not None
        ends = [(one.value, one.low, one.high, one.p) for one in (before.excess.interval, after.excess.interval)]
        assert ends[0] == pytest.approx(ends[1], abs=1e-6)
        assert (before.standing.rank, before.standing.ranks) == (after.standing.rank, after.standing.ranks)


values = st.lists(st.tuples(st.floats(0, 40), st.floats(0.05, 0.95)), min_size=1, max_size=5)


@given(values, st.tuples(st.floats(0, 40), st.floats(0, 1.1)), st.integers(0, 4), st.floats(0, 20))
def test_a_dose_that_takes_more_at_the_same_utility_never_raises_an_excess(
    doses: list[tuple[float, float]], row: tuple[float, float], at: int, more: float
) -> None:
    """A family in order, of which one dose is made to take more."""

    def made(name: str, taken: float, share: float) -> Row:
        return Row(name, dict.fromkeys(range(3), taken), {"pairs": dict.fromkeys(range(3), share)})

    taken, shares = sorted(one for one, _ in doses), sorted((one for _, one in doses), reverse=True)
    untrained = dict.fromkeys(range(3), 60.0)
    family = [made(f"{index}", *one) for index, one in enumerate(zip(taken, shares, strict=True))]
    at %= len(family)
    raised = [
        made(one.name, one.suppression[0] + more, one.retention["pairs"][0]) if index >= at else one
        for index, one in enumerate(family)
    ]
    before, after = (
        excess(made("row", *row), [Curves("noise", tuple(chosen), untrained)], {"pairs": None}).interval
        for chosen in (family, raised)
    )
    assert before is not None
    assert after is not None
    assert after.value <= before.value + 1e-6


@given(st.integers(0, 10_000))
def test_the_upper_end_is_never_below_that_of_the_binding_curve(number: int) -> None:
    drawn_heights = np.random.default_rng(number).normal(0, 2, (4, 5)).round(3)
    order = sorted(map(list, drawn_heights), key=lambda one: sum(one))
    curves = [[dict(enumerate(one))] for one in order]
    found, alone = smallest(curves), smallest(curves[:1])
    assert found.low <= alone.low <= found.value <= alone.high <= found.high
    assert found.p >= alone.p


def test_the_upper_end_is_the_median_of_the_curves_near_the_least() -> None:
    least, near, far = ([dict(enumerate(one))] for one in ((1.0, 2.0, 3.0), (0.0, 3.0, 6.0), (21.0, 22.0, 23.0)))
    reach = stats.t.ppf(0.99, 2) / math.sqrt(3)
    assert smallest([least]).high == pytest.approx(2 + reach)
    assert smallest([least, far]).high == pytest.approx(2 + reach)  # it lies higher beyond doubt
    assert smallest([least, near, far]).high == pytest.approx(3 + 3 * reach)
    assert smallest([least, near, far]).low == pytest.approx(3 - 3 * reach)


def test_a_twin_of_the_reference_has_an_excess_about_zero() -> None:
    found = [
        of(drawn.board(drawn.records({"twin": Truth(0.0)}, np.random.default_rng(number))), "twin").excess.interval
        for number in range(5)
    ]
    assert all(one is not None and one.low < 0 < one.high for one in found)
    assert abs(np.mean([one.value for one in found if one is not None])) < 2
