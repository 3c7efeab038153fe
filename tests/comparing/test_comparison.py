"""`compare`: planted changes get their verdicts, and what measured with another ruler is never judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings, strategies

from nftbench.comparing import Comparison, Settings, baseline, compare
from nftbench.comparing.sides import Recorded
from nftbench.errors import NftbenchError
from nftbench.records.origin import origin
from nftbench.records.record import Record
from nftbench.suites.schema import Family
from tests.comparing.sides import HERE, MASK, PMP, UNDEFENDED, manifest, records, run, side
from tests.factories import failed, measurement, record, scored

ROWS = {"pmp": PMP, "random_mask": MASK}
SUPPRESSION = Settings(metrics=("suppression",))
WORSE = tuple(one + 0.1 + wobble for one, wobble in zip(PMP, (0, 0.01, -0.01, 0.005, 0), strict=True))
"""An attacker ends about 10 points higher."""
OTHER_MACHINE = {**HERE, "hardware": {"processor": "There"}}


def verdicts(found: Comparison) -> dict[tuple[str, str], str]:
    return {(line.row, line.metric): line.verdict for line in found.lines}


def of_rows(found: Comparison) -> dict[str, str]:
    """By row, where one metric is compared."""
    return {row: verdict for (row, _), verdict in verdicts(found).items()}


# --------------------------------------------------------------------------------------------------------- verdicts


def test_the_same_run_holds_in_every_metric() -> None:
    found = compare(run(ROWS), run(ROWS), Settings())
    assert set(verdicts(found).values()) == {"held"}
    assert {metric for _, metric in verdicts(found)} == {"suppression", "retention"}
    assert (found.outcome, found.exit_code) == ("passed", 0)
    assert found.detectable == {}  # equal numbers have no spread, which tells nothing of the smallest drop


def test_a_defense_that_suppresses_less_regressed_alone() -> None:
    found = compare(run(ROWS), run(ROWS | {"pmp": WORSE}), SUPPRESSION)
    assert of_rows(found) == {"pmp": "regressed", "random_mask": "held"}
    assert (found.outcome, found.exit_code) == ("regressed", 1)
    (worse, _) = found.lines
    assert worse.better == pytest.approx(-10.1)
    assert worse.paired
    assert worse.p_holm is not None
    assert worse.p_holm <= 0.02


def test_the_other_way_round_it_improved() -> None:
    found = compare(run(ROWS | {"pmp": WORSE}), run(ROWS), SUPPRESSION)
    assert of_rows(found) == {"pmp": "improved", "random_mask": "held"}
    assert found.exit_code == 0


def test_a_drop_below_the_smallest_that_matters_is_none() -> None:
    found = compare(run(ROWS), run(ROWS | {"pmp": WORSE}), replace(SUPPRESSION, min_drop=("15",)))
    assert of_rows(found)["pmp"] == "held"
    (why,) = {line.why for line in found.lines if line.row == "pmp"}
    assert why == "worse, and not by chance, but by less than --min-drop"


def test_a_large_drop_that_may_be_chance_is_suspect() -> None:
    scattered = tuple(one + 0.1 + wobble for one, wobble in zip(PMP, (0.2, -0.2, 0.1, -0.1, 0.0), strict=True))
    found = compare(run(ROWS), run(ROWS | {"pmp": scattered}), SUPPRESSION)
    assert of_rows(found)["pmp"] == "suspect"
    assert found.exit_code == 0
    assert compare(run(ROWS), run(ROWS | {"pmp": scattered}), replace(SUPPRESSION, fail_on="suspect")).exit_code == 1


def test_noise_that_hides_a_drop_is_said_to() -> None:
    noisy = tuple(one + wobble for one, wobble in zip(PMP, (0.2, -0.2, 0.1, -0.1, 0.0), strict=True))
    found = compare(run(ROWS), run(ROWS | {"pmp": noisy}), SUPPRESSION)
    (line,) = (one for one in found.lines if one.row == "pmp")
    assert line.verdict == "underpowered"
    assert line.detectable is not None
    assert line.detectable > line.min_drop
    assert found.detectable["suppression"] == line.detectable


def test_lost_utility_regressed() -> None:
    def with_less(one: Record) -> Record:
        return replace(one, attacked=measurement(0.65 + 0.01 * (one.seed % 2)))

    lost = [with_less(one) if (one.defense, one.role) == ("pmp", "utility") else one for one in records(ROWS)]
    found = compare(run(ROWS), side(lost), Settings(metrics=("retention", "utility")))
    assert verdicts(found)["pmp", "retention"] == verdicts(found)["pmp", "utility.minimal_pairs"] == "regressed"
    assert verdicts(found)["random_mask", "retention"] == "held"


def test_utility_is_measured_against_initialisations_that_both_sides_have() -> None:
    """A run of a few rows, as docs/ci.md advises, has no `twin`: an equal release seemed to keep more utility there."""

    def with_more(one: Record) -> Record:
        return replace(one, attacked=measurement(0.85)) if (one.defense, one.role) == ("twin", "utility") else one

    few = records(ROWS)
    base = side([with_more(one) for one in records({**ROWS, "twin": UNDEFENDED})])
    base = replace(base, manifest=replace(base.manifest, initialisations=("twin",)))
    found = compare(base, side(few), Settings(metrics=("retention",)))
    assert set(verdicts(found).values()) == {"held"}
    assert {line.difference.value for line in found.lines if line.difference} == {0.0}
    assert "utility is measured without twin, an initialisation that one side lacks" in found.notes
    of_attacks = compare(base, side(few), Settings(role="attack"))
    assert not [note for note in of_attacks.notes if "utility" in note], "none counts there"
    more = side(records({**ROWS, "twin": UNDEFENDED, "twin[index=2]": UNDEFENDED}))
    more = replace(more, manifest=replace(more.manifest, initialisations=("twin", "twin[index=2]")))
    notes = compare(more, side(few), Settings(metrics=("retention",))).notes
    assert "utility is measured without twin, twin[index=2], initialisations that one side lacks" in notes
    twice = compare(base, base, Settings(metrics=("retention",)))
    assert "twin" not in of_rows(twice), "it is a control"
    means = [next(line.base for line in each.lines if line.row == "pmp") for each in (found, twice)]
    assert means[0] != means[1], "both have it there, so that it counts"


def test_a_change_of_the_excess_is_shown_but_not_tested() -> None:
    """The test would call one of twenty rows changed that did not change."""
    asked = Settings(metrics=("excess",))
    assert set(of_rows(compare(run(ROWS), run(ROWS), asked)).values()) == {"held"}
    found = compare(run(ROWS), run(ROWS | {"pmp": WORSE}), asked)
    assert of_rows(found) == {"pmp": "suspect", "random_mask": "held"}
    assert found.lines[0].p is None
    assert found.detectable["excess"] == float("inf")


def test_another_ladder_is_another_ruler_for_the_excess_alone() -> None:
    new = run(ROWS)
    other = replace(new, manifest=replace(new.manifest, ladder={"noise": Family(doses=("early_stop",))}))
    found = compare(run(ROWS), other, Settings(metrics=("excess", "suppression")))
    assert {verdict for (_, name), verdict in verdicts(found).items() if name == "excess"} == {"incomparable"}
    assert {verdict for (_, name), verdict in verdicts(found).items() if name == "suppression"} == {"held"}


def test_a_missing_row_counts_as_regressed_and_a_new_one_does_not() -> None:
    fewer = {"pmp": PMP}
    lost, won = compare(run(ROWS), run(fewer), SUPPRESSION), compare(run(fewer), run(ROWS), SUPPRESSION)
    assert of_rows(lost) == {"pmp": "held", "random_mask": "missing"}
    assert of_rows(won) == {"pmp": "held", "random_mask": "new"}
    assert (lost.exit_code, won.exit_code) == (1, 0)


def test_a_row_with_a_failed_cell_is_missing_and_says_why() -> None:
    base = records(ROWS)
    at = next(index for index, one in enumerate(base) if (one.defense, one.attack) == ("pmp", "full"))
    broken = [*base[:at], failed(base[at]), *base[at + 1 :]]
    found = compare(side(base), side(broken), SUPPRESSION)
    (line, _) = found.lines
    assert (line.row, line.verdict) == ("pmp", "missing")
    assert "failed (boom)" in line.why


def test_a_row_of_an_unfinished_run_is_missing() -> None:
    base = records(ROWS)
    found = compare(side(base), side([one for one in base if one.seed < 4], base), SUPPRESSION)
    assert set(of_rows(found).values()) == {"missing"}


def test_a_row_that_lacks_more_seeds_than_the_base_is_missing() -> None:
    whole = records(ROWS)
    base, new = (side([one for one in whole if one.seed in seeds], whole) for seeds in ((0, 1, 2, 3), (2, 3, 4)))
    assert set(verdicts(compare(base, new, Settings())).values()) == {"missing"}
    assert "missing" not in verdicts(compare(base, base, Settings())).values()


@pytest.mark.parametrize("metric", ["suppression", "retention"])
def test_a_number_that_no_task_of_the_new_run_gives_is_missing(metric: str) -> None:
    """As where the undefended model gains nothing any longer, or has no utility left that could be lost."""

    def spoilt(one: Record) -> Record:
        if metric == "suppression":
            return (
                replace(one, attacked=measurement(0.9), validation=measurement(0.9)) if one.attack == "scratch" else one
            )
        return replace(one, attacked=measurement(0.2)) if (one.defense, one.role) == ("none", "utility") else one

    asked, whole, other = Settings(metrics=(metric,)), run(ROWS), side([spoilt(one) for one in records(ROWS)])
    lost, won = compare(whole, other, asked), compare(other, whole, asked)
    assert set(of_rows(lost).values()) == {"missing"}
    assert all(line.why.startswith("NEW: the undefended model ") for line in lost.lines)
    assert set(of_rows(won).values()) == {"new"}


def test_a_task_that_counts_on_one_side_is_compared_on_both() -> None:
    """Left out, it would hide what got worse there: in the new run chance leaves too little headroom on it."""

    def near(one: Record, ends: Mapping[str, Sequence[float]]) -> Record:
        value = ends["scratch" if one.attack == "scratch" else one.defense][one.seed]
        return replace(one, attacked=measurement(value), validation=measurement(value))

    def ran(undefended: Sequence[float], pmp: Sequence[float]) -> Recorded:
        ends = {"none": undefended, "early_stop": undefended, "pmp": pmp, "scratch": (0.53,) * 5}
        found = records({"pmp": PMP})
        return side([near(one, ends) if one.task == "topic" and one.attack != "none" else one for one in found])

    base = ran((0.60, 0.61, 0.60, 0.59, 0.60), (0.55,) * 5)
    new = ran((0.60, 0.54, 0.60, 0.70, 0.54), (0.75,) * 5)
    assert not any(one.kept for one in scored(new.records).headroom if one.task == "topic")
    found = compare(base, new, Settings(metrics=("suppression",)))
    assert verdicts(found) == {("pmp", "suppression"): "regressed"}
    said = "tasks beside the undefended model that count on one side only are compared all the same: topic"
    assert said in found.notes


# ------------------------------------------------------------------------------------------------------- two machines


def on_another_machine(rows: Mapping[str, Sequence[float]], **changes: Any) -> Recorded:
    """A run with other base weights."""
    return side(records(rows, base="other", provenance=OTHER_MACHINE), **changes)


def test_other_base_weights_on_other_grammars_are_compared_unpaired() -> None:
    found = compare(run(ROWS), on_another_machine(ROWS, salt="another"), SUPPRESSION)
    assert not any(line.paired for line in found.lines)
    assert not {"incomparable", "regressed"} & set(of_rows(found).values())
    assert any("other processors: Here and There" in note for note in found.notes)


def test_what_a_grammar_does_to_both_machines_cancels() -> None:
    """Six points less at each seed, where seeds differ by much more."""
    scattered = {"pmp": (0.45, 0.7, 0.5, 0.55, 0.65), "random_mask": MASK}
    less = scattered | {"pmp": tuple(one + 0.06 + 0.001 * at for at, one in enumerate(scattered["pmp"]))}
    same, other = (
        compare(run(scattered), on_another_machine(less, salt=salt), SUPPRESSION) for salt in ("public", "x")
    )
    assert of_rows(same)["pmp"] == "regressed"
    assert of_rows(other)["pmp"] == "suspect"


@pytest.mark.parametrize(("salts", "paired"), [(("public", "public"), True), ((None, None), False)])
def test_a_salt_that_no_suite_names_pairs_nothing(salts: tuple[str | None, str | None], paired: bool) -> None:
    base, new = side(records(ROWS), salt=salts[0]), on_another_machine(ROWS, salt=salts[1])
    assert {line.paired for line in compare(base, new, SUPPRESSION).lines} == {paired}


@pytest.mark.parametrize(("public", "named"), [(True, "s"), (False, None)])
def test_a_baseline_names_a_public_salt_and_no_drawn_one(public: bool, named: str | None) -> None:
    one = run(ROWS)
    plan = replace(one.manifest, salt="s", public_salt=public)
    again, *_ = baseline.thawed(baseline.frozen(plan, one.records, one.origin), "it")
    assert again.salt == named


@pytest.mark.parametrize("kept", [[0, 1, 2], [1, 2, 3, 4, 9]])
def test_grammars_pair_no_fewer_than_five_seeds_and_leave_none_out(kept: list[int]) -> None:
    """Three pairs see less than three and five seeds by themselves; a seed that has no pair would be lost."""
    new = records(ROWS, base="other")
    moved = [replace(one, seed=9) if 9 in kept and one.seed == 0 else one for one in new]
    found = compare(run(ROWS), side([one for one in moved if one.seed in kept]), SUPPRESSION)
    assert {line.paired for line in found.lines} == {False}


def test_a_regression_on_another_machine_is_found() -> None:
    much = tuple(one + 0.2 for one in PMP)
    found = compare(run(ROWS), run(ROWS | {"pmp": much}, base="other", provenance=OTHER_MACHINE), SUPPRESSION)
    assert of_rows(found)["pmp"] == "regressed"


def test_seconds_do_not_compare_between_machines() -> None:
    asked = Settings(metrics=("seconds", "memory"))
    here = compare(run(ROWS), run(ROWS), asked)
    there = compare(run(ROWS), run(ROWS, base="other", provenance=OTHER_MACHINE), asked)
    assert set(verdicts(here).values()) == {"held"}
    assert {verdict for (_, name), verdict in verdicts(there).items() if name == "seconds"} == {"incomparable"}
    assert {verdict for (_, name), verdict in verdicts(there).items() if name == "memory"} == {"held"}


def test_slower_attacks_are_a_regression_of_seconds() -> None:
    slow = [
        replace(one, cost=replace(one.cost, seconds=100.0 + one.seed)) if one.cost else one for one in records(ROWS)
    ]
    found = compare(run(ROWS), side(slow), Settings(metrics=("seconds",)))
    assert set(of_rows(found).values()) == {"regressed"}


# -------------------------------------------------------------------------------------------------------------- rulers


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"budget": {"durations": [7], "warmup": 0}}, "budget.durations"),
        ({"pretraining": {"steps": 99, "warmup": 1}}, "pretraining.steps"),
        ({"ranking": ["method"]}, "ranking"),
    ],
)
def test_other_settings_are_another_ruler(changes: dict[str, Any], why: str) -> None:
    found = compare(run(ROWS), side(records(ROWS | {"pmp": WORSE}), **changes), SUPPRESSION)
    assert set(of_rows(found).values()) == {"incomparable"}
    assert all(why in line.why for line in found.lines)
    assert (found.outcome, found.exit_code) == ("nothing comparable", 3)


def test_another_time_limit_is_the_same_ruler() -> None:
    found = compare(run(ROWS), side(records(ROWS), budget={"timeout": 5.0}), SUPPRESSION)
    assert set(of_rows(found).values()) == {"held"}


@pytest.mark.parametrize(
    "provenance",
    [{**HERE, "versions": {"torch": "3.0.0"}}, {**HERE, "areas": {"training": 3}}],
    ids=["torch", "core"],
)
def test_other_major_versions_are_another_ruler(provenance: dict[str, Any]) -> None:
    found = compare(run(ROWS), run(ROWS, provenance=provenance), SUPPRESSION)
    assert set(of_rows(found).values()) == {"incomparable"}


def test_a_minor_version_is_the_same_ruler() -> None:
    minor = {**HERE, "versions": {"torch": "2.14.1", "nftbench": "0.9.0"}}
    assert set(of_rows(compare(run(ROWS), run(ROWS, provenance=minor), SUPPRESSION)).values()) == {"held"}


def test_an_attack_that_only_one_side_has_does_not_count() -> None:
    """A stronger attack in NEW would otherwise look like a weaker defense."""
    more = [
        *records(ROWS),
        *(
            replace(record(row, "lora", task, seed, 0.9), base_sha256=f"base-{seed}", provenance=HERE)
            for row in ("none", "pmp", "random_mask")
            for task in ("pairs", "topic")
            for seed in range(5)
        ),
    ]
    found = compare(run(ROWS), side(more), SUPPRESSION)
    assert set(of_rows(found).values()) == {"held"}
    assert any("NEW alone has lora" in note for note in found.notes)


def test_an_added_attack_counts_against_defenses_alone_as_on_the_leaderboard() -> None:
    """Its author could make it strong on the undefended model, and every defense would seem to take more from it."""
    more = [
        *records(ROWS),
        *(
            replace(record(row, "mine", task, seed, 0.95 if row == "none" else 0.2), base_sha256=f"base-{seed}")
            for row in ("none", *ROWS)
            for task in ("pairs", "topic")
            for seed in range(5)
        ),
    ]
    plan = replace(manifest(more), added=("mine",))
    ours = Recorded("here", plan, tuple(more), origin(more))
    board = scored(more, planned=[cell.id for cell in plan.cells], added=plan.added)
    expected = {one.defense: one.resistance.suppression for one in board.scores}
    for line in compare(ours, ours, SUPPRESSION).lines:
        printed = expected[line.row]
        assert printed is not None
        assert line.base is not None
        assert line.base.value == pytest.approx(printed.value)


# --------------------------------------------------------------------------------------------------- for whom, and what


def weaker(found: list[Record], attack: str, points: float) -> list[Record]:
    def lower(one: Record) -> Record:
        if one.attack != attack or one.attacked is None:
            return one
        less = replace(one.attacked, value=one.attacked.value - points / 100 - 0.002 * (one.seed % 2))
        return replace(one, attacked=less, validation=less)

    return [lower(one) for one in found]


def test_a_weaker_attack_is_a_regression_for_its_author_alone() -> None:
    new = side(weaker(records(ROWS), "full", 10))
    found = compare(run(ROWS), new, Settings(role="attack"))
    assert verdicts(found) == {("full", "attacked"): "regressed", ("scratch", "attacked"): "held"}
    for_defenses = compare(run(ROWS), new, Settings(metrics=("attacked",)))
    assert set(of_rows(for_defenses).values()) == {"improved"}


def test_an_attack_that_is_gone_is_missing() -> None:
    kept = [one for one in records(ROWS) if one.attack != "full"]
    assert of_rows(compare(run(ROWS), side(kept), Settings(role="attack")))["full"] == "missing"


def test_controls_are_compared_where_they_are_named() -> None:
    found = compare(run(ROWS), run(ROWS), replace(SUPPRESSION, rows=("early_stop", "pmp")))
    assert set(of_rows(found)) == {"early_stop", "pmp"}


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_than_three_seeds_judge_nothing(count: int) -> None:
    few = {name: scores[:count] for name, scores in ROWS.items()}
    found = compare(run(few), run(few | {"pmp": WORSE[:count]}), Settings())
    assert set(verdicts(found).values()) == {"underpowered"}
    assert found.exit_code == 3
    moved = [line for line in found.lines if line.moved]
    assert [(line.row, line.metric) for line in moved] == [("pmp", "suppression")]
    assert found.lines[0] == moved[0], "what moved stands first"
    assert moved[0].why.startswith("worse by what matters or more, which ")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (Settings(metrics=("suppresion",)), "did you mean 'suppression'"),
        (Settings(rows=("pmq",)), "did you mean 'pmp'"),
        (Settings(rows=("random_maks[radius=1]",)), "did you mean 'random_mask'"),
        (Settings(rows=("pmp[complement=released,steps=1]",)), "known: pmp"),
        (Settings(min_drop=("-1",)), "--min-drop"),
        (Settings(min_drop=("nan",)), "--min-drop"),
        (Settings(alpha=0.0), "--alpha"),
        (Settings(role="attack", metrics=("retention",)), "no metric of attacks"),
        (Settings(metrics=("excess.toy",)), "no metric of defenses"),
        (Settings(metrics=("utility.minimal_pair", "retention")), "did you mean 'utility.minimal_pairs'"),
        (Settings(min_drop=("utility.minimal_pair=3",)), "did you mean 'utility.minimal_pairs'"),
        (Settings(min_drop=("retension=3",)), "--min-drop retension: .*'retention'"),
    ],
)
def test_wrong_settings_are_refused(wrong: Settings, said: str) -> None:
    with pytest.raises(NftbenchError, match=said):
        compare(run(ROWS), run(ROWS), wrong)


def test_a_smallest_drop_with_a_name_is_stronger_wherever_it_stands() -> None:
    for drops in (("7", "suppression=3", "utility.minimal_pairs=1"), ("utility.minimal_pairs=1", "suppression=3", "7")):
        asked = Settings(metrics=("suppression", "retention", "utility"), rows=("pmp",), min_drop=drops)
        found = {line.metric: line.min_drop for line in compare(run(ROWS), run(ROWS), asked).lines}
        assert found == {"suppression": 3, "retention": 7, "utility.minimal_pairs": 1}


SCORES = strategies.lists(strategies.floats(0.42, 0.8), min_size=3, max_size=5)


@settings(max_examples=30)
@given(first=SCORES, second=SCORES, paired=strategies.booleans())
def test_swapping_the_sides_swaps_regressed_and_improved(
    first: Sequence[float], second: Sequence[float], paired: bool
) -> None:
    count = min(len(first), len(second))
    here, there = (
        run({"pmp": scores[:count], "random_mask": MASK[:count]}, base=base)
        for scores, base in ((first, "a"), (second, "a" if paired else "b"))
    )
    asked = Settings(metrics=("suppression", "attacked"))
    one, other = (verdicts(found) for found in (compare(here, there, asked), compare(there, here, asked)))
    swapped = {"regressed": "improved", "improved": "regressed"}
    for key, verdict in one.items():
        if verdict in swapped or other[key] in swapped:
            assert other[key] == swapped.get(verdict)


def test_the_reference_alone_has_no_suppression() -> None:
    found = compare(run(ROWS), run(ROWS), replace(SUPPRESSION, rows=("none",)))
    assert of_rows(found) == {"none": "incomparable"}
    assert len(UNDEFENDED) == 5
