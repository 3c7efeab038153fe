"""Flags: each is raised where it should be, with its numbers, and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from nftbench.contract import OwnerLedger, Point, Protection, Spent
from nftbench.records.record import CellId, Record
from nftbench.scoring import Leaderboard, Score
from nftbench.scoring.flags import Flag
from tests.factories import (
    DEFENDED,
    STOPPED,
    TASKS,
    UNDEFENDED,
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


def of(board: Leaderboard, defense: str = "pmp") -> Score:
    return next(one for one in board.scores if one.defense == defense)


def raised(records: list[Record], defense: str = "pmp") -> dict[str, Flag]:
    return {flag.name: flag for flag in of(scored(records), defense).flags}


def changed(records: list[Record], defense: str, attack: str, **changes: object) -> list[Record]:
    return [
        replace(one, **changes) if (one.defense, one.attack) == (defense, attack) else one  # type: ignore[arg-type]
        for one in records
    ]


def adaptive() -> list[Record]:
    return changed(suite(), "pmp", "full", against=("pmp",))


def test_a_row_that_releases_what_another_does_is_said_to() -> None:
    """On every seed: a parameter that changes the release on one of them has an effect."""
    hashed = [replace(one, release_sha256=f"{one.defense}{one.seed}") for one in adaptive()]
    copies = [replace(one, defense="pmp[ratio=0.5]", key=f"again {one.key}") for one in hashed if one.defense == "pmp"]
    flag = raised([*hashed, *copies])["same_weights"]
    assert flag.severity == "warn"
    assert flag.message == "it releases the same weights as pmp[ratio=0.5], on every base seed"
    last = max(one.seed for one in copies)
    other = [replace(one, release_sha256="other") if one.seed == last else one for one in copies]
    assert "same_weights" not in raised([*hashed, *other])
    assert "same_weights" not in raised(hashed)


def test_weights_are_the_same_only_where_both_rows_say_what_they_are() -> None:
    """A row of fewer seeds is compared at those. At a seed without a hash, as in older records, nothing is known."""
    hashed = [replace(one, release_sha256=f"{one.defense}{one.seed}") for one in adaptive()]
    copies = [replace(one, defense="pmp[ratio=0.5]", key=f"again {one.key}") for one in hashed if one.defense == "pmp"]
    assert "same_weights" in raised([*hashed, *(one for one in copies if one.seed < 3)])
    unknown = [replace(one, release_sha256="") if one.seed else one for one in (*hashed, *copies)]
    assert "same_weights" not in raised(unknown)


def test_equal_weights_with_another_configuration_are_another_release() -> None:
    hashed = [replace(one, release_sha256=f"{one.defense}{one.seed}") for one in adaptive()]
    copies = [
        replace(
            one,
            defense="pmp[ratio=0.5]",
            key=f"again {one.key}",
            protection=one.protection and replace(one.protection, config_changed={"rope_theta": 500.0}),
        )
        for one in hashed
        if one.defense == "pmp"
    ]
    assert "same_weights" not in raised([*hashed, *copies])


def test_a_clean_row_has_no_flag() -> None:
    assert raised(adaptive()) == {}
    assert of(scored(adaptive())).standing.group == "ranked"


def test_a_picked_learning_rate_at_an_edge_unranks() -> None:
    records = changed(adaptive(), "pmp", "full", at_edge=True, picked=Point(0.03, 10, 0.5, None))
    flag = raised(records)["edge"]
    assert flag.severity == "unrank"
    assert "(0.03)" in flag.message
    assert "10 of 10 picked cells, first full on pairs, seed 0" in flag.message
    assert of(scored(records)).standing.group == "unranked"
    assert of(scored(records)).claim.verdict == "untested"
    assert flag.message in of(scored(records)).standing.reasons


def test_a_defense_that_took_more_than_the_recipe_is_unranked_unless_it_has_a_table_of_its_own() -> None:
    def protected(steps: int) -> list[Record]:
        ledger = OwnerLedger(Spent(steps, 100, 50, 3.0), Spent(3000, 0, 60, 10.0))
        return changed(adaptive(), "pmp", "none", protection=Protection(50, 1.0, ledger=ledger))

    assert "ledger" not in raised(protected(3000))
    flag = raised(protected(3001))["ledger"]
    assert (flag.severity, flag.message) == (
        "unrank",
        "the defense took 3,001 steps, and the suite's recipe allows 3,000",
    )
    aware = [replace(one, row=replace(one.row, task_aware=True)) for one in protected(3001) if one.defense == "pmp"]
    assert "ledger" not in raised([*(one for one in protected(3001) if one.defense != "pmp"), *aware])


def test_edge_of_the_reference_or_of_an_attack_that_was_not_picked_warns() -> None:
    assert raised(changed(adaptive(), "none", "full", at_edge=True), "none")["edge"].severity == "warn"
    weak = [
        record("pmp", "head", task, seed, 0.2, at_edge=True, curve=curve(0.2)) for task in TASKS for seed in range(5)
    ]
    board = scored([*adaptive(), *weak])
    assert [(flag.name, flag.severity) for flag in of(board).flags] == [("edge_elsewhere", "warn")]
    assert of(board).standing.group == "ranked"


def test_the_owner_s_own_fine_tuning_is_no_attack_left_at_an_edge() -> None:
    owner = [
        record("pmp", "authorized", task, seed, 0.9, at_edge=True, curve=curve(0.9), knowledge=("secret",))
        for task in TASKS
        for seed in range(5)
    ]
    assert raised([*adaptive(), *owner]) == {}


def keeping(*scores: float) -> list[Record]:
    """`pmp` with these scores by seed on the utility metric, on which `none` has 0.75 over a floor of 0.25."""
    kept = iter(scores)
    return [
        replace(one, unattacked=measured, attacked=measured)
        if (one.defense, one.role) == ("pmp", "utility") and (measured := measurement(next(kept)))
        else one
        for one in adaptive()
    ]


def test_lost_utility_warns_and_does_not_unrank() -> None:
    records = keeping(0.5, 0.5, 0.5, 0.5, 0.5)
    flag = raised(records)["utility"]
    assert flag.severity == "warn"
    assert flag.message == "loses utility: keeps 50.0 [50.0, 50.0] % of minimal_pairs"
    assert of(scored(records)).standing.group == "ranked"
    # mean 90 %, which is neither kept nor lost
    assert "utility" not in raised(keeping(0.68, 0.72, 0.70, 0.69, 0.71))


def test_a_release_that_knows_more_than_the_undefended_model_is_doubted() -> None:
    # 108 % of what is above the floor, at every seed: trained on the scored text, or on more than the recipe
    records = keeping(*[0.79] * 5)
    flag = raised(records)["above_reference"]
    assert flag.severity == "unrank"
    assert flag.message.startswith("keeps 108.0 [108.0, 108.0] % of minimal_pairs")
    assert (of(scored(records)).standing.group, of(scored(records)).claim.verdict) == ("unranked", "untested")
    assert "above_reference" not in raised(keeping(0.75, 0.83, 0.79, 0.77, 0.81))  # [102, 114] %: luck explains it
    assert "above_reference" not in raised(keeping(*[0.76] * 5))


@pytest.mark.parametrize(("error", "doubtful"), [(None, False), (1e-3, False), (0.02, True), (float("nan"), True)])
def test_gradients_that_are_wrong_unrank(error: float | None, doubtful: bool) -> None:
    records = changed(adaptive(), "pmp", "none", protection=Protection(1000, 1.0, gradient_error=error))
    assert ("gradient" in raised(records)) == doubtful
    assert of(scored(records)).claim.verdict == ("untested" if doubtful else "holds")


def test_gradients_that_cannot_be_checked_are_a_doubt() -> None:
    records = changed(adaptive(), "pmp", "none", protection=Protection(1000, 1.0, unchecked="no float64"))
    flag = raised(records)["unchecked"]
    assert (flag.severity, flag.message) == ("warn", "its gradients could not be checked: no float64")
    assert of(scored(records)).standing.group == "ranked"


def test_a_row_whose_release_no_record_describes_unranks() -> None:
    bare = changed(adaptive(), "pmp", "none", protection=None)
    flag = raised(bare)["unexamined"]
    assert flag.severity == "unrank"
    assert "the release at seeds 0, 1, 2, 3, 4, so" in flag.message
    assert of(scored(bare)).standing.group == "unranked"
    assert of(scored(bare)).claim.verdict == "untested"
    described = Protection(1000, 1.0)
    at_one = [replace(one, protection=described) if one.attack == "none" and one.seed != 3 else one for one in bare]
    assert "the release at seed 3, so" in raised(at_one)["unexamined"].message
    by_another_cell = [
        replace(one, protection=described) if (one.attack, one.task) == ("none", "topic") else one for one in bare
    ]
    assert "unexamined" not in raised(by_another_cell)
    failing = [failed(one) if one.attack == "none" else one for one in adaptive()]
    assert "unexamined" not in raised(failing)  # its cells are missing, which is said elsewhere


USUAL = {"text": 2.5, "passages": 2.6, "prompts of topic": 7.9, "beginning of topic": 0.3}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, None),
        ({"text": 4.5, "passages": 4.9, "prompts of topic": 10.5, "beginning of topic": 1.0}, None),
        (
            {"passages": 3.2},
            "it reads passages 0.6 bits per token worse than its reference does, beyond what it loses on other text",
        ),
        (
            {"text": 3.0, "prompts of topic": 10.4},
            "it reads prompts of topic 2.0 bits per token worse than its reference does, beyond what it loses on other "
            "text",
        ),
        (
            {"beginning of topic": 3.3},
            "a token in front of topic's prompts moves predictions by 3.0 bits more than the reference's",
        ),
        *(
            (
                {what: math.nan},
                f"it reads {what} nan bits per token worse than its reference does, beyond what it loses on other text",
            )
            for what in ("passages", "prompts of topic")
        ),
    ],
)
def test_a_release_that_does_not_hear_prompts_unranks(changes: dict[str, float], message: str | None) -> None:
    found = Protection(1000, 1.0, plain_text={**USUAL, **changes}, reference_plain_text=USUAL)
    records = changed(adaptive(), "pmp", "none", protection=found)
    flag = raised(records).get("prompts")
    assert (flag and flag.message) == message
    assert of(scored(records)).standing.group == ("unranked" if message else "ranked")
    assert of(scored(records)).claim.verdict == ("untested" if message else "holds")


@pytest.mark.parametrize("other", [False, True])
def test_an_architecture_without_rewrites_unranks_where_the_base_has_another(other: bool) -> None:
    found = Protection(1000, 1.0, rewrite="none is known", config_changed={"model_type": "bloom"} if other else {})
    flags = raised(changed(adaptive(), "pmp", "none", protection=found))
    assert flags["rewrite"].severity == "warn"
    assert ("costume" in flags) == other
    assert not other or flags["costume"].severity == "unrank"


def test_resistance_undone_by_another_optimizer_unranks() -> None:
    def muon(value: float) -> list[Record]:
        undefended = [record("none", "full[optimizer=muon]", task, seed, 0.82) for task in TASKS for seed in range(5)]
        others = [
            record(defense, "full[optimizer=muon]", task, seed, reached)
            for defense, reached in (("early_stop", 0.72), ("pmp", value))
            for task in TASKS
            for seed in range(5)
        ]
        return [*adaptive(), *undefended, *others]

    flag = raised(muon(0.84))["optimizer"]
    assert flag.severity == "unrank"
    assert "30.0 points under full" in flag.message
    assert "optimizer" not in raised(muon(0.60))


def test_a_wider_interval_under_all_optimizers_undoes_nothing() -> None:
    """At one seed of five another optimizer undoes everything, and elsewhere nothing: too little to show it."""
    ends = {"none": [0.86] * 5, "early_stop": [0.72] * 5, "pmp": [0.60, 0.60, 0.60, 0.95, 0.60]}
    others = [
        record(defense, "full[optimizer=muon]", task, seed, value)
        for defense, values in ends.items()
        for task in TASKS
        for seed, value in enumerate(values)
    ]
    records = [*adaptive(), *others]
    alone, together, undone = of(scored(records)).recipes.optimizers["full"]
    assert alone.low > 0 >= together.low
    assert undone.low <= 0
    assert "optimizer" not in raised(records)


@pytest.mark.parametrize("part", ["head", "layers[end=first]", "bitfit", "linear_probe[solver=ridge]"])
def test_a_part_that_ends_above_the_whole_unranks(part: str) -> None:
    def parts(undefended: float, protected: float) -> list[Record]:
        reached = {"none": undefended, "early_stop": 0.6, "pmp": protected}
        return [
            *adaptive(),
            *(record(row, part, task, seed, reached[row]) for row in reached for task in TASKS for seed in range(5)),
        ]

    flag = raised(parts(0.72, 0.62))["part"]  # full ends at 0.82 and 0.52 on average
    assert flag.severity == "unrank"
    assert "ends 10.0 [" in flag.message
    assert of(scored(parts(0.72, 0.62))).claim.verdict == "untested"
    assert "part" not in raised(parts(0.72, 0.50))
    # a part that is ahead on the undefended model too says nothing of the defense
    assert "part" not in raised(parts(0.92, 0.62))
    assert "ends 5.0 [" in raised(parts(0.87, 0.62))["part"].message


def test_longer_training_that_adds_more_than_on_the_undefended_model_warns() -> None:
    def trained(undefended: float, protected: float) -> list[Record]:
        reached = {"none": UNDEFENDED, "pmp": DEFENDED}
        added = {"none": undefended, "pmp": protected}
        return [
            *adaptive(),
            *(
                record(row, "long", task, seed, reached[row][seed] + added[row])
                for row in reached
                for task in TASKS
                for seed in range(5)
            ),
        ]

    flag = raised(trained(0.02, 0.10))["longer"]
    assert flag.severity == "warn"
    assert "adds 10.0 points, and 8.0 [8.0, 8.0] more than on the undefended model" in flag.message
    assert "longer" not in raised(trained(0.10, 0.10)), "it adds as much to an undefended model"
    assert "longer" not in raised(trained(0.02, 0.10), "none")
    # Where longer training harms the undefended model, only what it adds here counts.
    assert "longer" not in raised(trained(-0.10, -0.01))
    assert "and 4.0 [4.0, 4.0] more" in raised(trained(-0.05, 0.04))["longer"].message
    found = {defense: of(scored(trained(0.02, 0.10)), defense).recipes for defense in ("none", "pmp", "early_stop")}
    adds = {defense: recipes.longer_adds and round(recipes.longer_adds.value, 6) for defense, recipes in found.items()}
    assert adds == {"none": 2.0, "pmp": 10.0, "early_stop": None}


def test_an_attack_that_never_beat_not_training_warns() -> None:
    assert raised(changed(adaptive(), "pmp", "full", stuck=True))["stuck"].severity == "warn"
    beaten = [*sweep("none", (0.8,) * 5), *sweep("pmp", (0.2,) * 5, unattacked=0.3)]
    assert "10 of 10 cells" in raised(beaten)["stuck"].message


def test_an_attack_that_stayed_finite_only_in_another_attempt_warns() -> None:
    flag = raised(changed(adaptive(), "pmp", "full", retried="clipped"))["retried"]
    assert (flag.severity, "not with clipped" in flag.message) == ("warn", True)


def test_an_attack_that_stayed_finite_on_the_head_alone_unranks() -> None:
    records = changed(adaptive(), "pmp", "full", retried="head")
    flag = raised(records)["head_alone"]
    assert (flag.severity, "10 of 10 picked cells" in flag.message) == ("unrank", True)
    assert of(scored(records)).claim.verdict == "untested"
    assert "head_alone" not in raised(changed(adaptive(), "none", "full", retried="head"), "none")


@pytest.mark.parametrize("weakness", [{"at_edge": True}, {"retried": "head"}])
def test_a_claim_tested_by_weak_attacks_cannot_hold_though_the_ranking_picked_better_ones(
    weakness: dict[str, object],
) -> None:
    """`pmp` claims to withstand those who have the release alone; `heal` has more, and is picked."""
    heal = [
        record("pmp", "heal", task, seed, value + 0.02, knowledge=("data",))
        for task in TASKS
        for seed, value in enumerate((0.50, 0.53, 0.55, 0.50, 0.52))
    ]
    heal += [
        replace(record(control, "heal", task, seed, 0.5, knowledge=("data",)), row=row(control))
        for control in ("none", "early_stop")
        for task in TASKS
        for seed in range(5)
    ]
    sound = scored([*adaptive(), *heal])
    assert (of(sound).claim.verdict, [flag.name for flag in of(sound).flags]) == ("holds", [])
    weak = scored([*changed(adaptive(), "pmp", "full", **weakness), *heal])
    assert of(weak).claim.verdict == "untested"
    assert of(weak).standing.group == "ranked"
    flag = next(flag for flag in of(weak).flags if flag.name == "claim")
    assert (flag.severity, "in 10 cells" in flag.message) == ("warn", True)


def steady(records: list[Record]) -> list[Record]:
    """The same where restarts of `full` on the reference end where its sweep does."""
    again = (Point(0.1, 10, 0.3, None, attack_seed=1),)
    return changed(records, "none", "full", curve=curve(0.2, 0.3), restarts=again)


def test_restarts_that_fall_behind_the_sweep_warn() -> None:
    again = (Point(0.1, 10, 0.4, None, attack_seed=1),)

    def swept(reached: float) -> list[Record]:
        return changed(steady(adaptive()), "pmp", "full", curve=curve(0.3, reached), restarts=again)

    assert "restarts" not in raised(swept(0.44))
    flag = raised(swept(0.48))["restarts"]
    assert flag.severity == "warn"
    assert "in 10 of 10 cells and in 0 of 10 of its reference's, at most 8.0 below: full on pairs, seed 0" in (
        flag.message
    )
    as_brittle = changed(swept(0.48), "none", "full", curve=curve(0.3, 0.48), restarts=again)
    assert "restarts" not in raised(as_brittle), "the reference is as brittle"


def test_brittle_training_counts_in_every_cell_of_a_row_but_the_owner_s() -> None:
    """An attack that is brittle is the one that is not picked."""
    firm = (Point(0.1, 10, 0.3, None, attack_seed=1),)

    def attacked(attack: str, brittle: int, restarts: tuple[Point, ...], **changes: object) -> list[Record]:
        units = [(task, seed) for task in TASKS for seed in range(5)]
        return [
            record("pmp", attack, *unit, 0.3, curve=curve(0.2, 0.45 if index < brittle else 0.3), restarts=restarts,
                   **changes)
            for index, unit in enumerate(units)
        ]  # fmt: skip

    base = changed(steady(adaptive()), "pmp", "full", curve=curve(0.3, 0.5), restarts=(Point(0.1, 10, 0.5, None),))
    assert "in 10 of 20 cells and in 0 of 10 of its reference's, at most 15.0 below" in (
        raised([*base, *attacked("head", 10, firm)])["restarts"].message
    )
    assert "restarts" not in raised([*base, *attacked("head", 4, firm)]), "no more than chance would have"
    assert "restarts" not in raised([*base, *attacked("authorized", 9, firm, knowledge=("secret",))])
    nowhere = (Point(0.1, 10, None, None, attack_seed=1),)
    message = raised([*base, *attacked("head", 3, nowhere)])["restarts"].message
    assert "in 10 of 20 cells and in 0 of 10 of its reference's, at most 25.0 below" in message, (
        "a restart that diverges is as good as not training"
    )


def test_saturated_task_warns_at_the_reference() -> None:
    records = [*sweep("none", (0.99,) * 5), *scratch([0.4] * 5), *sweep("pmp", (0.5,) * 5)]
    assert "pairs 99.0, topic 99.0" in raised(records, "none")["saturated"].message
    assert "saturated" not in raised(adaptive(), "none")


def test_fewer_than_five_seeds_warn() -> None:
    assert raised(suite(3))["preliminary"].message == "preliminary: 3 base seeds, a rank takes 5"
    assert "preliminary" not in raised(suite(5))


def test_no_effect_beyond_the_trivial_defenses_is_noted() -> None:
    records = suite(5, defended=(0.71, 0.72, 0.74, 0.70, 0.73))
    flag = raised(records)["no_effect"]
    assert flag.severity == "note"
    assert flag.message.startswith("no effect beyond the trivial defenses: 0.0 [")
    assert flag.message.endswith("points beyond early_stop at the same mean utility")
    assert of(scored(records)).standing.group == "ranked"  # listed, with its rank
    assert "no_effect" not in {flag.name for flag in of(scored(records, ladder={})).flags}  # nothing is known


def test_no_effect_is_corrected_for_the_number_of_rows() -> None:
    # 6 points with a standard deviation of 3.2: one-sided p = 0.7 %, and 1.4 % as one of two rows
    weak = [stopped - gap for stopped, gap in zip(STOPPED, (0.02, 0.05, 0.06, 0.06, 0.11), strict=True)]
    records = suite(5, defended=weak)
    assert "no_effect" not in raised(records)
    assert "no_effect" in raised([*records, *sweep("mask", [value - 0.001 * (i % 2) for i, value in enumerate(weak)])])


@pytest.mark.parametrize(("gaps", "verdict"), [((2, 5, 6, 6, 11), "holds"), ((1, 4, 6, 6, 13), "not shown")])
def test_an_effect_takes_one_per_cent(gaps: Sequence[int], verdict: str) -> None:
    """One-sided p is 0.7 and 1.9 %: at 2.5 % too many undefended models would be taken for defenses."""
    weak = [stopped - gap / 100 for stopped, gap in zip(STOPPED, gaps, strict=True)]
    found = of(scored(suite(5, defended=weak)))
    assert found.claim.verdict == verdict
    assert found.excess.interval is not None
    assert (found.excess.interval.low > 0) == (verdict == "holds")


def test_one_seed_does_not_tell_whether_there_is_an_effect() -> None:
    assert "no_effect" not in raised(suite(1))
    assert "no_effect" in raised(suite(2, defended=(0.71, 0.74)))


def test_a_defense_without_an_attack_of_its_own_is_noted() -> None:
    assert raised(suite())["not_adaptive"].severity == "note"
    assert "not_adaptive" in raised(changed(suite(), "pmp", "full", against=("trap2",)))
    assert "not_adaptive" not in raised(suite(), "early_stop")


def test_attacks_of_nftbench_against_a_defense_that_the_suite_lacks_are_named() -> None:
    """They are no reason to write one."""
    lacking: dict[str, Any] = {"left_out": {"pmp": ["heal", "mask_recovery"]}}
    flags = {flag.name: flag for flag in of(scored(suite(), **lacking)).flags}
    assert "not_adaptive" not in flags
    assert flags["left_out"].severity == "note"
    assert "(heal, mask_recovery), and the suite runs none of them" in flags["left_out"].message
    found = {flag.name for flag in of(scored(adaptive(), **lacking)).flags}
    assert not found & {"left_out", "not_adaptive"}


def test_changed_configuration_is_noted() -> None:
    protection = Protection(1000, 1.0, config_changed={"n_embd": 32})
    flag = raised(changed(adaptive(), "pmp", "none", protection=protection))["config"]
    assert flag.message == "the release changes n_embd of the base"


def test_a_tokenizer_that_was_changed_unranks() -> None:
    records = changed(adaptive(), "pmp", "none", protection=Protection(1000, 1.0, tokenizer_changed=True))
    assert raised(records)["tokenizer"].severity == "unrank"
    assert of(scored(records)).standing.group == "unranked"
    twin = [
        replace(one, defense="twin", row=row("twin", reference="twin", claim=None))
        for one in suite()
        if one.defense == "none"
    ]
    own = [replace(one, row=row("pmp", reference="twin")) if one.defense == "pmp" else one for one in records]
    assert "tokenizer" not in raised([*own, *twin]), "a checkpoint brings one of its own"


def test_attacks_that_only_the_reference_withstood_are_named() -> None:
    records = [*adaptive(), *(record("none", "lora", task, seed, 0.8) for task in TASKS for seed in range(5))]
    planned = [CellId.of(one) for one in records]
    flags = {flag.name: flag for flag in of(scored(records, planned=planned)).flags}
    assert flags["skipped"].message.startswith("not attacked by lora, which its reference was")


def test_an_attack_that_has_not_run_was_not_skipped() -> None:
    """Scratch is planned under the reference alone; that it ignores the release, its records say."""
    planned = [CellId.of(one) for one in adaptive()]
    left = [one for one in adaptive() if one.attack != "scratch"]
    assert "skipped" not in {flag.name for flag in of(scored(left, planned=planned)).flags}
