"""Flags: each is raised where it should be, with its numbers, and nowhere else."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from nftbench.contract import OwnerLedger, Point, Protection, Spent
from nftbench.records.record import CellId, Record
from nftbench.scoring import Leaderboard, Score
from nftbench.scoring.flags import Flag
from tests.factories import TASKS, curve, measurement, record, row, scored, scratch, suite, sweep


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


def test_utility_below_the_bar_unranks() -> None:
    records = [one for one in adaptive() if one.defense != "pmp"] + sweep(
        "pmp", (0.5, 0.51, 0.5, 0.5, 0.5), utility=0.7
    )
    flag = raised(records)["utility"]
    assert flag.severity == "unrank"
    assert flag.message == "keeps 90.0 % of base utility, its interval ends at 90.0 %, below the bar of 95 %"
    assert of(scored(records)).standing.rank is None


def test_utility_whose_interval_holds_the_bar_unranks_for_too_few_seeds() -> None:
    kept = iter((0.72, 0.78, 0.74, 0.76, 0.75))  # 94, 106, 98, 102, 100 % of what is above the floor
    records = [
        replace(one, unattacked=measured, attacked=measured)
        if (one.defense, one.role) == ("pmp", "utility") and (measured := measurement(next(kept)))
        else one
        for one in adaptive()
    ]
    half = 2.776445 * math.sqrt(20 / 5)  # Student's t with four degrees of freedom; the variance is 20
    interval = f"[{100 - half:.1f}, {100 + half:.1f}]"
    flag = raised(records)["utility"]
    assert flag.severity == "unrank"
    assert flag.message == (
        f"keeps 100.0 % of base utility, too few seeds to tell: its interval {interval} holds the bar of 95 %"
    )


def test_utility_of_one_seed_has_no_interval_to_clear_the_bar() -> None:
    message = "keeps 100.0 % of base utility, one seed has no interval to clear the bar of 95 %"
    assert raised(suite(1))["utility"].message == message


@pytest.mark.parametrize(("error", "doubtful"), [(None, False), (1e-3, False), (0.02, True), (float("nan"), True)])
def test_gradients_that_are_wrong_unrank(error: float | None, doubtful: bool) -> None:
    records = changed(adaptive(), "pmp", "none", protection=Protection(1000, 1.0, gradient_error=error))
    assert ("gradient" in raised(records)) == doubtful
    assert of(scored(records)).claim.verdict == ("untested" if doubtful else "holds")


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


def test_a_best_point_at_the_last_step_warns() -> None:
    flag = raised(changed(adaptive(), "pmp", "full", at_last_step=True))["last_step"]
    assert (flag.severity, "10 of 10 cells" in flag.message) == ("warn", True)


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


def test_restarts_that_fall_behind_the_sweep_warn() -> None:
    again = (Point(0.1, 10, 0.4, None, attack_seed=1),)

    def swept(reached: float) -> list[Record]:
        return changed(adaptive(), "pmp", "full", curve=curve(0.3, reached), restarts=again)

    assert "restarts" not in raised(swept(0.54))
    flag = raised(swept(0.58))["restarts"]  # full ends at 0.50, 0.53, 0.55, 0.50, 0.52
    assert flag.severity == "warn"
    assert "in 6 of 10 picked cells, at most 8.0 below" in flag.message


def test_spread_larger_than_the_effect_warns() -> None:
    records = [*sweep("none", (0.8,) * 5), *scratch([0.4] * 5), *sweep("pmp", (0.7, 0.9, 0.7, 0.9, 0.75))]
    flag = raised(records)["spread"]
    # suppression 10, -10, 10, -10, 5: mean 1, s = √(420/4) = 10.2
    assert flag.message == "suppression varies by 10.2 points over seeds, its mean is 1.0"


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
    assert flag.message.endswith("points beyond early_stop")
    assert of(scored(records)).standing.group == "ranked"  # listed, with its rank


def test_without_trivial_defenses_no_effect_is_none_beyond_the_undefended() -> None:
    records = [*sweep("none", (0.8, 0.82, 0.84)), *scratch([0.4] * 3), *sweep("pmp", (0.81, 0.82, 0.83))]
    message = raised(records)["no_effect"].message
    assert message.startswith("no effect beyond the undefended model: 0.0 [")
    assert message.endswith("points beyond none")


def test_one_seed_does_not_tell_whether_there_is_an_effect() -> None:
    assert "no_effect" not in raised(suite(1))
    assert "no_effect" in raised(suite(2, defended=(0.71, 0.74)))


def test_a_defense_without_an_attack_of_its_own_is_noted() -> None:
    assert raised(suite())["not_adaptive"].severity == "note"
    assert "not_adaptive" in raised(changed(suite(), "pmp", "full", against=("trap2",)))
    assert "not_adaptive" not in raised(suite(), "early_stop")


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
