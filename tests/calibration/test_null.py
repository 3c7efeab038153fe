"""The null judge: its counts against scipy, its bounds against a search, its intervals against repetition."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from nftbench.calibration import null
from nftbench.calibration.proof import Finding, Run
from nftbench.planning.plan import plan
from nftbench.records.record import CellId, Record
from nftbench.records.store import Store
from nftbench.scoring.intervals import difference
from nftbench.testing import tiny_suite
from tests.factories import measurement, record

Pairs = Mapping[int, tuple[float, float]]


def drawn(seed: int, spread: float = 1.0, levels: float = 1.0, count: int = 12) -> Pairs:
    """Undefended models around 85 points: grammars differ by `levels`, the models of one by `spread`."""
    rng = np.random.default_rng(seed)
    grammars, models = rng.normal(85, levels, count), rng.normal(0, spread, (count, 2))
    return {base: (float(one), float(other)) for base, (one, other) in enumerate(grammars[:, None] + models)}


def records_of(pairs: Pairs, utility: float = 0.75) -> list[Record]:
    """The records of a null run in which the models end at these points."""
    found = []
    for base, models in pairs.items():
        for name, end in zip(null.MODELS, models, strict=True):
            made = [
                record(name, "none", "minimal_pairs", base, utility, role="utility", validation=None),
                record(name, "none", "topic", base, 0.3),
                record(name, "full", "topic", base, end / 100),
                record(name, "head", "topic", base, end / 100 - 0.1),
            ]
            found += [replace(one, release_sha256=f"{name}{base}") for one in made]
    return found


def run_of(records: list[Record]) -> Run:
    planned = [CellId.of(one) for one in records]
    suite = tiny_suite(name="tiny-null", seeds=sorted({one.seed for one in records}), ranking=[])
    return Run(suite, tuple(planned), tuple(records))


def judged(run: Run) -> Finding:
    """With fewer fakes than the proof draws."""
    return null.judge(tiny_suite(), run, sample=300)


def test_every_choice_of_seeds_and_sides_is_judged_once() -> None:
    pairs = drawn(0, count=6)
    fakes = list(null.within(pairs, 3))
    assert len(fakes) == len({(fake.defended, fake.reference) for fake in fakes}) == 20 * 8
    for fake in fakes:
        assert {*zip(fake.defended, fake.reference, strict=True)} <= {
            pair for one, other in pairs.values() for pair in ((one, other), (other, one))
        }


def test_across_grammars_no_model_is_compared_with_itself() -> None:
    models = {base: one for base, (one, _) in drawn(1).items()}
    for fake in null.across(models, 5, sample=200):
        assert len({*fake.defended, *fake.reference}) == 10
        assert {models[unit] for unit in fake.units} == {*fake.defended, *fake.reference}


def test_effects_are_those_of_scipys_tests() -> None:
    pairs = drawn(2, levels=0.3, count=7)
    found = null.rate("pairs", 3, null.within(pairs, 3))
    expected = 0
    for fake in null.within(pairs, 3):
        expected += stats.ttest_rel(fake.reference, fake.defended).confidence_interval().low > 0
    assert (found.effects, found.fakes) == (expected, 35 * 8)
    assert expected > 0


def test_false_effects_are_as_rare_as_their_nominal_rate() -> None:
    rates = [null.rate("pairs", 3, null.within(drawn(seed, levels=0.0, count=6), 3)).interval for seed in range(40)]
    mean = float(np.mean([one.value for one in rates]))
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(4000, 2, 3))
    nominal = np.mean([difference(*map(list, one)).low > 0 for one in draws])
    error = float(np.std([one.value for one in rates]) / np.sqrt(len(rates)) + np.sqrt(nominal / 4000))
    assert abs(mean - nominal) < 3 * error
    assert nominal == pytest.approx(0.025, abs=0.008)
    covered = np.mean([one.low <= nominal <= one.high for one in rates])
    assert covered >= 0.9


@pytest.mark.parametrize("size", null.BOUNDS)
def test_no_sizes_of_differences_exceed_the_bound_of_symmetry(size: int) -> None:
    """A search over sizes of differences, equal and extreme ones among them, finds no more sign patterns."""
    rng = np.random.default_rng(size)
    sizes = [
        np.ones(size),
        *(np.concatenate([np.ones(size - 1), [small]]) for small in (0.0, 0.1, 0.3)),
        *rng.lognormal(0, 1.0, (60, size)),
        *rng.uniform(0.8, 1.2, (20, size)),
    ]
    signs = [np.array(one) for one in itertools.product((-1, 1), repeat=size)]
    most = max(np.mean([difference(list(pattern * one), [0.0] * size).low > 0 for pattern in signs]) for one in sizes)
    assert most <= null.BOUNDS[size]
    assert most == null.BOUNDS[size] or size == 3  # it is reached


def of_rates(*shares: float) -> list[null.Fake]:
    """A hundred fakes of each seed; this share of them has an effect."""
    effect, none = ((1.0,) * 3, (2.0,) * 3), ((1.0,) * 3, (1.0,) * 3)
    return [
        null.Fake(*(effect if index < round(100 * share) else none), frozenset({seed}))
        for seed, share in enumerate(shares)
        for index in range(100)
    ]


def test_the_interval_of_a_rate_is_students_where_each_fake_is_of_one_seed() -> None:
    values = [0.0, 0.05, 0.02, 0.01, 0.04]
    found = null.rate("one seed each", 3, of_rates(*values))
    low, high = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
    assert found.interval.value == pytest.approx(np.mean(values))
    assert (found.interval.low, found.interval.high) == pytest.approx((max(0.0, low), high))


def test_a_rate_that_is_the_same_without_each_seed_has_an_interval_up_to_the_bound() -> None:
    found = null.rate("no effects", 5, of_rates(*[0.0] * 12)).interval
    assert (found.value, found.low, found.high) == (0.0, 0.0, 1 / 16)


def test_undefended_models_pass() -> None:
    found = judged(run_of(records_of(drawn(3, count=11))))
    assert found.failures == ()
    assert [(one["design"], one["seeds"]) for one in found.numbers["rates"]] == [
        ("pairs of one grammar", 3),
        ("pairs of one grammar", 5),
        ("across grammars", 3),
        ("across grammars", 5),
    ]
    assert found.numbers["attacked"]["none"][0] == pytest.approx(drawn(3, count=11)[0][0])


def test_utility_that_differs_between_initialisations_is_told_from_chance_in_documents() -> None:
    kept = {0: 0.70, 1: 0.75, 2: 0.80, 3: 0.74, 4: 0.76, 5: 0.75}  # of none's 0.75, over a floor of 0.25
    records = [
        replace(one, unattacked=measured, attacked=measured)
        if (one.defense, one.role) == ("twin", "utility") and (measured := measurement(kept[one.seed]))
        else one
        for one in records_of(drawn(6, count=6))
    ]
    shares = 100 * (np.array([*kept.values()]) - 0.25) / 0.5
    low, high = stats.t.interval(0.95, 5, shares.mean(), stats.sem(shares))
    spread = shares.std(ddof=1)
    chance = 100 * np.sqrt(2) * 0.01 / 0.5  # the standard error of either measurement is 0.01
    ((metric, *cells),) = null.utilities(run_of(records)).rows
    assert metric == "minimal_pairs"
    assert cells == [
        f"{shares.mean():.2f} [{low:.2f}, {high:.2f}]", f"{spread:.2f}", f"{chance:.2f}",
    ]  # fmt: skip


def test_a_metric_that_the_undefended_model_does_not_master_has_no_share_to_keep() -> None:
    assert null.utilities(run_of(records_of(drawn(6, count=6), utility=0.25))).rows == ()


def test_a_rate_above_the_limit_is_a_failure() -> None:
    """Differences of one size reach the bound of symmetry, which for three seeds is 12.5 %."""
    found = judged(run_of(records_of(dict.fromkeys(range(11), (86.0, 84.0)))))
    assert "pairs of one grammar, 3 seeds: 12.5 % of the fakes are taken for defenses, at most 10 % may be" in (
        found.failures
    )
    assert not any("5 seeds" in one for one in found.failures)


def test_a_twin_with_the_weights_of_none_is_a_failure() -> None:
    records = [replace(one, release_sha256=f"{one.seed}") for one in records_of(drawn(5))]
    found = judged(run_of(records))
    assert "seed 0: none and its twin have the same weights" in found.failures


def test_a_missing_cell_is_a_failure() -> None:
    records = records_of(drawn(6))
    run = run_of(records)
    found = judged(replace(run, records=tuple(records[1:])))
    assert found.failures == ("1 of 96 cells have no result, first none × none on minimal_pairs, seed 0",)


def test_the_derived_suite_plans_both_models_on_twelve_seeds_and_its_records_are_read(
    cache: Path, tmp_path: Path
) -> None:
    suite, pairs = tiny_suite(seeds=[3, 4, 5]), drawn(7)
    whole = plan(null.derive(suite, (), ["full"]))
    assert whole.suite.seeds == (3, 4, 5, 0, 1, 2, *range(6, 12))
    assert {(str(cell.defense), str(cell.attack)) for cell in whole.cells} == {
        (model, attack) for model in null.MODELS for attack in ("none", "full")
    }
    store = Store(tmp_path, cache)
    for cell in whole.cells:
        model, attack, task = str(cell.defense), str(cell.attack), str(cell.task)
        end = pairs[cell.seed][null.MODELS.index(model)] / 100 if attack == "full" else 0.3
        made = record(model, attack, task, cell.seed, end, role=whole.role(cell), release_sha256=cell.release)
        store.write(replace(made, key=cell.key, row=whole.row(cell.defense), unattacked=measurement(0.3)))
    run = Run.of(whole, store.records())
    assert run.missing == ""
    assert run.attacked("twin") == pytest.approx({seed: twin for seed, (_, twin) in pairs.items()})
    assert sum(1 for _ in null.within(pairs, 5)) == 792 * 32
