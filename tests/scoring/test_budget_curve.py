"""The attacker's budget: an attacker who pays step by step for everything they try, simulated."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings, strategies as st

from nftbench.contract import Cost, Point
from nftbench.records.record import Record
from nftbench.report import figures
from nftbench.scoring.budget_curve import BudgetCurve, Reached, way
from tests.factories import TASKS, failed, measurement, record, row, scored, suite

RATE = 1e6


def swept(
    attack: str,
    curves: dict[float, list[float]],
    *,
    defense: str = "pmp",
    step_flops: float = 100.0,
    preparation: float = 0.0,
    restarts: tuple[float, ...] = (),
    task: str = "topic",
    seed: int = 0,
) -> Record:
    """Trajectories by learning rate, read at steps 10, 20, …, then restarts at step 10; step 0 scores 0.3."""
    points = [Point(0.0, 0, 0.3, None)]
    points += [
        Point(rate, 10 * at, score, None) for rate, scores in curves.items() for at, score in enumerate(scores, 1)
    ]
    again = tuple(Point(0.1, 10, score, None, attack_seed=1 + index) for index, score in enumerate(restarts))
    steps = sum(10 * len(scores) for scores in curves.values()) + 10 * len(restarts)
    last = max(restarts, default=max((score for scores in curves.values() for score in scores), default=0.3))
    return replace(
        record(defense, attack, task, seed, last),
        curve=tuple(points),
        restarts=again,
        cost=Cost(steps=steps, seconds=1.0, step_flops=step_flops, step_seconds=0.1, preparation_flops=preparation),
    )


def simulated(records: list[Record], budget: float) -> float:
    """The best score that `budget` FLOPs pay for: one step of one learning rate at a time, all rates in turn."""
    best, left = 30.0, budget
    for one in records:
        assert one.cost is not None
        left -= one.cost.preparation_flops
        rates = sorted({point.learning_rate for point in one.curve if point.step})
        ends = {rate: max(p.step for p in one.curve if p.learning_rate == rate) for rate in rates}
        if left < -1e-6:
            return best
        best = max([best, *(100 * p.score for p in one.curve if p.step == 0 and p.score is not None)])
        for step in range(1, max(ends.values(), default=0) + 1):
            left -= one.cost.step_flops * sum(step <= end for end in ends.values())
            if left < -1e-6:
                return best
            best = max([best, *(100 * p.score for p in one.curve if p.step == step and p.score is not None)])
        left -= one.cost.step_flops * sum(point.step for point in one.restarts)
        if left < -1e-6:
            return best
        best = max([best, *(100 * p.score for p in one.restarts if p.score is not None)])
    return best


def read(points: list[Reached], budget: float) -> float:
    return max(point.score for point in points if point.flops <= budget + 1e-6)


scores = st.floats(0.3, 0.95).map(lambda value: round(value, 2))
trajectories = st.dictionaries(st.sampled_from([0.1, 0.2, 0.4]), st.lists(scores, min_size=1, max_size=3), min_size=1)
attempts = st.lists(
    st.tuples(
        trajectories, st.sampled_from([10.0, 100.0]), st.sampled_from([0.0, 5000.0]), st.lists(scores, max_size=2)
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=100)
@given(attempts, st.integers(0, 40))
def test_the_best_point_within_each_budget_is_shown(
    tried: list[tuple[dict[float, list[float]], float, float, list[float]]], share: int
) -> None:
    records = [
        swept(f"attack{index}", curves, step_flops=flops, preparation=prepared, restarts=tuple(again))
        for index, (curves, flops, prepared, again) in enumerate(tried)
    ]
    found = way([record("pmp", "none", "topic", 0, 0.3), *records], RATE)
    total = sum(one.cost.preparation_flops + one.cost.steps * one.cost.step_flops for one in records if one.cost)
    assert found[0] == Reached(0.0, pytest.approx(30.0))  # type: ignore[arg-type]
    assert found[-1].flops == pytest.approx(total)
    assert [point.score for point in found] == sorted(point.score for point in found)
    assert [point.flops for point in found] == sorted(point.flops for point in found)
    for budget in (total * share / 40, total):
        assert read(found, budget) == pytest.approx(simulated(records, budget))


def test_an_attack_that_is_not_counted_costs_the_time_it_took() -> None:
    probe = replace(swept("probe", {1.0: [0.8]}), cost=Cost(steps=10, seconds=3.0))
    assert way([probe], RATE)[-1] == Reached(3.0 * RATE, pytest.approx(80.0))  # type: ignore[arg-type]


def test_scores_that_are_not_finite_are_none() -> None:
    diverged = swept("full", {0.1: [0.4], 0.2: [math.nan]})
    diverged = replace(diverged, curve=(*diverged.curve, Point(0.4, 10, None, None)))
    assert way([diverged], RATE)[-1].score == pytest.approx(40.0)


# ---------------------------------------------------------------------------------------------------- through a board


def catalogue(seeds: int = 3) -> list[Record]:
    """`full` is dear, `lora` cheap, `scratch` useless; `heal` prepares for long and `secret` is the owner's."""
    found = []
    for seed in range(seeds):
        for task in TASKS:
            at = {"task": task, "seed": seed}
            for defense, end in (("none", 0.8), ("early_stop", 0.7), ("pmp", 0.5)):
                found.append(swept("full", {0.1: [0.4, end], 0.2: [0.35, 0.4]}, defense=defense, **at))  # type: ignore[arg-type]
                found.append(swept("lora", {0.1: [0.35], 0.2: [0.45]}, defense=defense, step_flops=10.0, **at))  # type: ignore[arg-type]
                heal = swept("heal", {0.1: [0.6]}, defense=defense, preparation=1e5, **at)  # type: ignore[arg-type]
                found.append(replace(heal, knowledge=("data",)))
            owner = swept("authorized", {0.1: [0.9]}, step_flops=1.0, **at)  # type: ignore[arg-type]
            found.append(replace(owner, knowledge=("secret",)))
            found.append(replace(swept("scratch", {0.1: [0.3, 0.33]}, defense="none", **at), uses_release=False))  # type: ignore[arg-type]
    kept = [one for one in suite(seeds) if one.attack == "none"]
    return [*kept, *(replace(one, row=_row_of(one.defense, kept)) for one in found)]


def _row_of(defense: str, kept: list[Record]) -> object:
    return next(one.row for one in kept if one.defense == defense)


def curves(records: list[Record]) -> dict[str, BudgetCurve]:
    return {curve.defense: curve for curve in scored(records).budgets}


def at(curve: BudgetCurve, budget: float) -> float:
    return max(score.value for flops, score in zip(curve.flops, curve.scores, strict=True) if flops <= budget)


def test_a_line_for_each_row_and_for_scratch() -> None:
    found = curves(catalogue())
    assert list(found) == ["early_stop", "none", "pmp", "scratch"]
    pmp = found["pmp"]
    # lora 200, then scratch 2,000, full 4,000, heal 100,000 + 1,000: the cheapest first, everything paid
    for budget, wanted in ((180, 30), (240, 45), (6000, 45), (7500, 50), (1e5, 50), (1.4e5, 60)):
        assert at(pmp, budget) == pytest.approx(wanted), budget
    assert at(found["none"], 7500) == pytest.approx(80)
    assert at(found["scratch"], 1e9) == pytest.approx(33)
    assert found["scratch"].flops[-1] < found["pmp"].flops[-1]
    for curve in found.values():
        assert list(curve.flops) == sorted(curve.flops)
        assert [score.value for score in curve.scores] == sorted(score.value for score in curve.scores)
        assert all(score.count == 3 for score in curve.scores)


def test_the_last_point_is_past_every_cost() -> None:
    pmp = curves(catalogue())["pmp"]
    total = 10 * (10 + 10) + 100 * 20 + 100 * 40 + 1e5 + 1000
    assert pmp.flops[-2] < total <= pmp.flops[-1]


def test_a_row_of_which_an_attack_failed_has_no_curve() -> None:
    records = catalogue()
    index = next(i for i, one in enumerate(records) if (one.defense, one.attack) == ("pmp", "lora"))
    records[index] = failed(records[index])
    assert "pmp" not in curves(records)
    assert "none" in curves(records)


def test_a_row_that_is_only_measured_has_no_curve() -> None:
    """As a further initialisation of the undefended model, on which attacks that ignore the release would count too."""
    measured = [one for one in catalogue() if (one.defense, one.attack) == ("pmp", "none")]
    twin = [replace(one, defense="twin", row=row("twin")) for one in measured]
    found = scored([*catalogue(), *twin], initialisations=["twin"])
    assert "twin" not in {curve.defense for curve in found.budgets}


def test_records_without_costs_have_no_curves() -> None:
    board = scored(suite(3))
    assert board.budgets == ()
    assert figures.budget(board) is None


def test_where_lower_is_better_the_lowest_score_is_best() -> None:
    one = swept("full", {0.1: [3.0, 2.0]})
    bits = replace(one, validation=measurement(2.0, higher=False), curve=one.curve[1:])
    assert [point.score for point in way([bits], RATE)] == [-300.0, -200.0, -200.0]


def test_figure_has_a_step_line_for_each_curve() -> None:
    board = scored(catalogue())
    figure = figures.budget(board)
    assert figure is not None
    (axes,) = figure.axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert set(lines) == {curve.defense for curve in board.budgets} - {"early_stop"}  # a dose of the ladder
    pmp = next(curve for curve in board.budgets if curve.defense == "pmp")
    assert list(lines["pmp"].get_xdata()) == pytest.approx(list(pmp.flops))
    assert list(lines["pmp"].get_ydata()) == pytest.approx([score.value for score in pmp.scores])
    assert lines["pmp"].get_drawstyle() == "steps-post"
    assert axes.get_xscale() == "log"
