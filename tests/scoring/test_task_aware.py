"""The table of task-aware defenses, against numbers worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from nftbench.contract import Claim, OwnerLedger, Protection, Spent
from nftbench.records.record import CellId, Record
from nftbench.records.spec import Spec
from nftbench.scoring.grid import Grid, arrange
from nftbench.scoring.intervals import difference
from nftbench.scoring.scores import Excess
from nftbench.scoring.side_tables import SuiteEvidence
from nftbench.scoring.side_tables.task_aware import AwareRow, Group, TaskAware
from nftbench.terms import Adaptation
from tests.factories import RANKING, failed, measurement, record, row, scored

PROBE, FLOAT32, RIDGE, FULL = "linear_probe", "linear_probe[precision=float32]", "linear_probe[solver=ridge]", "full"
TOLD, OTHER, KEPT = "topic", "pairs", "tone"
CLAIM = Claim(frozenset({"method", "data"}), "linear_probe")
Scores = dict[tuple[str, str], Sequence[float]]
"""By attack and task: the attacked score of each seed."""


def _rows(
    defense: str, scores: Scores, claim: Claim | None = None, told: tuple[str, ...] = (), kept: float = 0.7
) -> list[Record]:
    about = row(defense, claim=claim, task_aware=bool(told), told=told, stage="posttrain")
    adaptations: dict[str, Adaptation] = {"linear_probe": "linear_probe"}
    attacks: Scores = {("none", task): [0.3] * len(values) for (_, task), values in scores.items()} | scores
    found = [
        replace(
            record(defense, attack, task, seed, value, role="benign" if task == KEPT else "ranked"),
            row=about,
            adaptation=adaptations.get(Spec.parse(attack).name, "finetuning"),
        )
        for (attack, task), values in attacks.items()
        for seed, value in enumerate(values)
    ]
    return [
        *found,
        *(replace(record(defense, "none", "bits", seed, kept), row=about, role="utility") for seed in range(5)),
    ]


UNDEFENDED: Scores = {
    (attack, task): [0.80, 0.82, 0.84, 0.82, 0.82]
    for attack in (PROBE, FLOAT32, RIDGE, FULL)
    for task in (TOLD, OTHER, KEPT)
}
IMMUNE: Scores = UNDEFENDED | {
    (PROBE, TOLD): [0.50, 0.53, 0.53, 0.52, 0.52],
    (FLOAT32, TOLD): [0.48, 0.50, 0.52, 0.50, 0.50],
    (PROBE, OTHER): [0.70, 0.72, 0.74, 0.72, 0.72],
    (PROBE, KEPT): [0.79, 0.82, 0.82, 0.81, 0.81],
}
WEAKER = _rows(
    "early_stop", {place: [value - 0.02 for value in values] for place, values in UNDEFENDED.items()}, kept=0.6
)
"""A trivial defense: it takes two points everywhere."""
BEYOND = Excess(difference([30.0, 31.0, 29.0, 30.0, 30.0], [1.0, 1.0, 1.0, 1.0, 1.0]))


def _grid(*records: Sequence[Record]) -> Grid:
    grid, problems = arrange([one for some in records for one in some], None, RANKING, 0.95)
    assert not problems
    return grid


def _lines(*records: Sequence[Record], excess: Excess = BEYOND, keeps: bool = True) -> tuple[AwareRow, ...]:
    grid = _grid(*records)
    keeping = frozenset(grid.rows if keeps else ())
    return TaskAware.of(SuiteEvidence(grid, {}, keeping=keeping, excess=lambda *asked: excess)).rows


def _table(immune: Scores = IMMUNE, claim: Claim | None = CLAIM, **found: Any) -> tuple[AwareRow, ...]:
    return _lines(_rows("none", UNDEFENDED), _rows("immune", immune, claim, (TOLD,)), **found)


def _suppression(one: AwareRow, attack: str, group: Group) -> Any:
    (found,) = [scores for scores in one.attacks if scores.attack == attack]
    return found.groups[group].suppression


def test_each_attack_on_each_group_of_tasks_by_hand() -> None:
    (immune,) = _table()
    assert immune.tasks == {"told": (TOLD,), "held_out": (OTHER,), "benign": (KEPT,)}
    gap = _suppression(immune, PROBE, "told")
    assert gap.value == pytest.approx(30.0)  # 30, 29, 31, 30 and 30
    assert gap == difference([80.0, 82.0, 84.0, 82.0, 82.0], [50.0, 53.0, 53.0, 52.0, 52.0])
    assert _suppression(immune, PROBE, "held_out").value == pytest.approx(10.0)
    assert _suppression(immune, PROBE, "benign").value == pytest.approx(1.0)  # 1, 0, 2, 1 and 1
    for attack in (RIDGE, FULL):
        assert _suppression(immune, attack, "told").value == 0
    scores = immune.attacks[1].groups["told"]
    assert (scores.undefended.value, scores.attacked.value) == pytest.approx((82.0, 52.0))  # type: ignore[union-attr]


def test_the_claims_own_attacks_come_first() -> None:
    (immune,) = _table()
    assert [(one.attack, one.claimed) for one in immune.attacks] == [
        ("none", False),
        (PROBE, True),
        (FLOAT32, True),
        (FULL, False),
        (RIDGE, False),
    ]


def test_a_claim_that_holds_as_made_and_falls_to_another_solver() -> None:
    (immune,) = _table()
    assert (immune.claim, immune.adaptive) == ("holds", "refuted")
    (withstands,) = _table(IMMUNE | {(RIDGE, TOLD): [0.50, 0.51, 0.51, 0.51, 0.51]})
    assert (withstands.claim, withstands.adaptive) == ("holds", "holds")


def test_fine_tuning_does_not_count_against_a_claim_about_probes() -> None:
    worst = IMMUNE | {(RIDGE, TOLD): [0.50, 0.51, 0.51, 0.51, 0.51], (FULL, TOLD): [0.9] * 5}
    assert _table(worst)[0].adaptive == "holds"
    (about_all,) = _table(worst, Claim(frozenset({"method", "data"})))
    assert about_all.adaptive == "refuted"
    assert [one.attack for one in about_all.attacks if one.claimed] == [FULL]


def test_a_release_that_is_worse_at_everything_holds_nothing() -> None:
    everywhere: Scores = {place: [value - 0.3 for value in values] for place, values in UNDEFENDED.items()}
    (immune,) = _table(everywhere)
    assert _suppression(immune, PROBE, "told").low > 0
    assert (immune.claim, immune.adaptive) == ("refuted", "refuted")


def test_without_benign_tasks_the_told_ones_decide() -> None:
    def without(scores: Scores) -> Scores:
        return {place: values for place, values in scores.items() if place[1] != KEPT}

    records = (_rows("none", without(UNDEFENDED)), _rows("immune", without(IMMUNE), CLAIM, (TOLD,)))
    (immune,) = _lines(*records)
    assert (immune.tasks["benign"], immune.claim) == ((), "holds")
    assert _suppression(immune, PROBE, "benign") is None


def test_what_a_trivial_defense_takes_too_holds_nothing() -> None:
    """Nor does a claim without trivial defenses, one at fewer than five seeds, or a release that lost its utility."""
    none = Excess(difference([1.0, 2.0, 0.0, 1.0, 1.0], [3.0, 3.0, 3.0, 3.0, 3.0]))
    assert _table(excess=none)[0].claim == "refuted"
    unclear = Excess(difference([9.0, 0.0, 9.0, 0.0, 9.0], [3.0, 3.0, 3.0, 3.0, 3.0]))
    assert _table(excess=unclear)[0].claim == "not shown"
    assert _table(excess=Excess(reason="no ladder"))[0].claim == "untested"
    assert _table(keeps=False)[0].claim == "holds at a cost"
    few = {place: values[:4] for place, values in IMMUNE.items()}
    assert _table(few, excess=Excess(difference([30.0, 31.0, 29.0, 30.0], [1.0] * 4)))[0].claim == "not shown"


def test_what_is_not_shown_is_not_refuted() -> None:
    """A wide interval refutes nothing; one that ends within two points of the undefended model does."""
    wide = IMMUNE | {place: [0.30, 0.90, 0.40, 0.80, 0.50] for place in ((PROBE, TOLD), (FLOAT32, TOLD))}
    assert _table(wide)[0].claim == "not shown"
    same = IMMUNE | {place: [0.80, 0.81, 0.84, 0.81, 0.82] for place in ((PROBE, TOLD), (FLOAT32, TOLD))}
    assert _table(same)[0].claim == "refuted"


def test_an_under_trained_model_that_is_told_a_task_holds_nothing() -> None:
    """The whole leaderboard: a weaker model loses points on a task that it is told, and anyone can train for less."""
    weaker: Scores = {
        place: [value - 0.05 + 0.001 * (index % 2) for index, value in enumerate(values)]
        for place, values in UNDEFENDED.items()
        if place[1] == TOLD
    }
    undefended: Scores = {place: values for place, values in UNDEFENDED.items() if place[1] == TOLD}
    trivial: Scores = {place: [value - 0.08 for value in values] for place, values in undefended.items()}
    board = scored(
        [
            *_rows("none", undefended),
            *_rows("early_stop", trivial, kept=0.6),
            *_rows("told", weaker, CLAIM, (TOLD,), kept=0.6),
        ]
    )
    (told,) = board.side_table(TaskAware).rows
    assert _suppression(told, PROBE, "told").low > 0
    assert (told.claim, told.adaptive) == ("refuted", "refuted")


def test_p_values_are_adjusted_by_holm_over_the_rows() -> None:
    """Alone a p of 0.0053 will do; the smaller of two must be at most half of 1 %."""
    told = [0.60, 0.74, 0.62, 0.76, 0.66]
    weak = IMMUNE | {(PROBE, TOLD): told, (FLOAT32, TOLD): told}
    p = difference([80.0, 82.0, 84.0, 82.0, 82.0], [100 * value for value in told]).p
    assert 0.005 < p < 0.01
    assert _table(weak)[0].claim == "holds"
    records = (_rows("none", UNDEFENDED), *(_rows(name, weak, CLAIM, (TOLD,)) for name in ("one", "two")))
    together = _lines(*records)
    assert [one.claim for one in together] == ["not shown", "not shown"]


def _changed(attack: str, **changes: Any) -> list[Record]:
    records = _rows("immune", IMMUNE, CLAIM, (TOLD,))
    return [replace(one, **changes) if (one.attack, one.task) == (attack, TOLD) else one for one in records]


NOTHING = _changed("none")
FAULTS = {
    "gradient": _changed("none", protection=Protection(1000, 1.0, gradient_error=0.5)),
    "tokenizer": _changed("none", protection=Protection(1000, 1.0, tokenizer_changed=True)),
    "edge": _changed(PROBE, at_edge=True),
    "head": _changed(PROBE, retried="head"),
    "versions": _changed(PROBE, provenance={"versions": {"torch": "2.8.0"}}),
    "failed": [failed(one) if (one.attack, one.seed) == (FULL, 1) else one for one in NOTHING],
    "missing": [one for one in NOTHING if (one.attack, one.task, one.seed) != (FULL, TOLD, 1)],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_claim_that_was_not_tested_well_does_not_hold(fault: str) -> None:
    """The verdict of the table and of the main one, which is the same."""
    undefended = _rows("none", UNDEFENDED)
    for records, verdict in ((NOTHING, "holds"), (FAULTS[fault], "untested")):
        board = scored([*undefended, *WEAKER, *records])
        assert [one.claim for one in board.side_table(TaskAware).rows] == [verdict]
        assert [one.claim.verdict for one in board.scores if one.defense == "immune"] == [verdict]


def test_an_attack_that_decides_nothing_may_stop_at_an_edge() -> None:
    board = scored([*_rows("none", UNDEFENDED), *WEAKER, *_changed(FULL, at_edge=True)])
    assert [one.claim for one in board.side_table(TaskAware).rows] == ["holds"]


def test_untested_where_seeds_cells_or_told_tasks_are_missing() -> None:
    few: Scores = {place: values[:2] for place, values in IMMUNE.items()}
    assert _table(few)[0].claim == "untested"
    held = (_rows("none", UNDEFENDED), _rows("immune", IMMUNE, CLAIM, ("another",)))
    (immune,) = _lines(*held)
    assert (immune.tasks["told"], immune.claim, immune.adaptive) == ((), "untested", "untested")
    broken = _rows("immune", IMMUNE, CLAIM, (TOLD,))
    broken = [failed(one) if (one.attack, one.task, one.seed) == (RIDGE, TOLD, 1) else one for one in broken]
    (immune,) = _lines(_rows("none", UNDEFENDED), broken)
    assert (immune.claim, immune.adaptive) == ("holds", "untested")
    assert _suppression(immune, RIDGE, "told") is None
    plain: Scores = {place: values for place, values in IMMUNE.items() if place[0] in (RIDGE, FULL)}
    others: Scores = {place: values for place, values in UNDEFENDED.items() if place[0] in (RIDGE, FULL)}
    (immune,) = _lines(_rows("none", others), _rows("immune", plain, CLAIM, (TOLD,)))
    assert (immune.claim, immune.adaptive) == ("untested", "refuted")


def test_what_the_defense_spent_is_beside_what_the_suite_allows() -> None:
    """That of the base seed with most steps; nothing of older records, and a dash for no limit."""

    def spent(steps: int, allowed: Spent) -> Protection:
        return Protection(1000, 1.0, ledger=OwnerLedger(Spent(steps, 32 * steps, 1000), allowed))

    def shown(protections: Sequence[Protection | None]) -> tuple[str, ...]:
        records = [
            replace(one, protection=protections[one.seed]) if one.attack == "none" else one
            for one in _rows("immune", IMMUNE, CLAIM, (TOLD,))
        ]
        grid = _grid(_rows("none", UNDEFENDED), records)
        found = SuiteEvidence(grid, {}, keeping=frozenset(grid.rows), excess=lambda *asked: BEYOND)
        table = TaskAware.of(found).tables()[0]
        assert table.header == ("defense", "told", "steps / allowed", "tokens / allowed", "its claim", "all probes")
        return table.rows[0]

    limits = Spent(1000, 32_000, 1250)
    most = [spent(steps, limits) for steps in (900, 1600, 1500, 900, 900)]
    assert shown(most) == ("immune", TOLD, "1,600 / 1,000", "51,200 / 32,000", "holds", "refuted")
    assert shown([spent(900, Spent())] * 5)[2:4] == ("900 / –", "28,800 / –")
    assert shown([None] * 5)[2:4] == ("–", "–")


def test_only_defenses_that_are_told_tasks_and_have_a_claim_are_in_the_table() -> None:
    merging = Claim(frozenset({"method"}), "merging")
    records = [
        _rows("none", UNDEFENDED),
        _rows("plain", IMMUNE, CLAIM),
        _rows("silent", IMMUNE, None, (TOLD,)),
        _rows("unmergeable", IMMUNE, merging, (TOLD,)),
    ]
    assert _lines(*records) == ()


def test_without_a_reference_there_are_no_scores() -> None:
    (immune,) = _lines(_rows("immune", IMMUNE, CLAIM, (TOLD,)))
    assert (immune.claim, _suppression(immune, PROBE, "told")) == ("untested", None)


def test_the_owners_attack_and_scratch_are_left_out() -> None:
    owner = [
        replace(record("immune", "authorized", TOLD, seed, 0.9), knowledge=("secret",), row=row("immune", claim=CLAIM))
        for seed in range(3)
    ]
    records = _rows("immune", IMMUNE, CLAIM, (TOLD,))
    owner = [replace(one, row=records[0].row) for one in owner]
    fresh = [record("none", "scratch", TOLD, seed, 0.4) for seed in range(3)]
    (immune,) = _lines(_rows("none", UNDEFENDED), fresh, records, owner)
    assert {one.attack for one in immune.attacks} == {"none", PROBE, FLOAT32, RIDGE, FULL}


# ------------------------------------------------------------------------------------- claims that should not have held

AT_LARGE = Claim(frozenset(), "finetuning")
FUSE = "fuse"
UNTOUCHED: Scores = {(attack, task): UNDEFENDED[FULL, task] for attack in (FULL, FUSE) for task in (TOLD, OTHER, KEPT)}
STRONG: Scores = UNTOUCHED | {(attack, TOLD): [0.50, 0.53, 0.53, 0.52, 0.52] for attack in (FULL, FUSE)}


def _of_attack(attack: str, records: Sequence[Record], **changes: Any) -> list[Record]:
    return [replace(one, **changes) if one.attack == attack else one for one in records]


def _board(*rows: Sequence[Record], **changes: Any) -> tuple[str, str, str]:
    """The verdicts of a whole leaderboard on `immune`: on its claim, on all probes, and the main one."""
    early = {place: [value - 0.02 for value in values] for place, values in UNTOUCHED.items()}
    board = scored([*(one for some in rows for one in some), *_rows("early_stop", early, kept=0.6)], **changes)
    (found,) = [one for one in board.side_table(TaskAware).rows if one.defense == "immune"]
    (main,) = [one.claim.verdict for one in board.scores if one.defense == "immune"]
    return found.claim, found.adaptive, main


def _at_large(
    immune: Scores = STRONG, undefended: Scores = UNTOUCHED, claim: Claim = AT_LARGE, **found: Any
) -> tuple[list[Record], list[Record]]:
    return _rows("none", undefended), _rows("immune", immune, claim, (TOLD,), **found)


def test_a_strong_claim_about_fine_tuning_holds() -> None:
    assert _board(*_at_large()) == ("holds", "holds", "holds")


def test_every_attacker_may_know_the_method() -> None:
    """A claim that grants no knowledge does not leave out the attacks that are written against the method."""
    broken = STRONG | {(FUSE, TOLD): UNDEFENDED[FULL, TOLD]}
    rows = [_of_attack(FUSE, some, knowledge=("method",)) for some in _at_large(broken)]
    assert _board(*rows)[:2] == ("refuted", "refuted")


def test_a_claim_about_fine_tuning_falls_to_an_attack_at_other_settings() -> None:
    """The table shows both verdicts. The worse one counts on the leaderboard."""
    tuned = "lora[rank=16]"
    undefended = UNTOUCHED | {(tuned, task): UNDEFENDED[FULL, task] for task in (TOLD, OTHER, KEPT)}
    immune = STRONG | {(tuned, task): undefended[tuned, task] for task in (TOLD, OTHER, KEPT)}
    assert _board(*_at_large(immune, undefended)) == ("holds", "refuted", "refuted")


def test_a_claim_is_untested_where_no_attack_used_what_it_grants() -> None:
    granted = Claim(frozenset({"data"}), "finetuning")
    assert _board(*_at_large(claim=granted))[0] == "untested"
    rows = [_of_attack(FULL, some, knowledge=("data",)) for some in _at_large(claim=granted)]
    assert _board(*rows)[0] == "holds"


def test_a_claim_is_untested_where_its_row_was_spared_an_attack() -> None:
    """Its reference was attacked by `fuse`, which was said not to apply to the row."""
    undefended, immune = _at_large()
    spared = [one for one in immune if one.attack != FUSE]
    early = _rows("early_stop", UNTOUCHED)
    plan = [CellId.of(one) for one in (*undefended, *spared, *early)]
    assert _board(undefended, spared, planned=plan)[0] == "untested"


def test_a_release_that_knows_more_than_the_undefended_model_holds_nothing() -> None:
    assert _board(*_at_large(kept=0.85))[0] == "untested"


def test_an_added_attack_alone_tests_no_claim() -> None:
    """Its author may have made it weak. Here the release has unlearned the task, and no listed attack trains it."""
    known = _of_attack("none", _at_large()[0], attacked=measurement(0.8), validation=measurement(0.8))
    undefended = [one for one in known if one.attack == "none"]
    weak: Scores = {place: values for place, values in STRONG.items() if place[0] == FULL}
    immune = _rows("immune", weak, AT_LARGE, (TOLD,))
    grid, _ = arrange([*undefended, *immune], None, RANKING, added=("full",))
    (row,) = TaskAware.of(SuiteEvidence(grid, {}, keeping=frozenset(grid.rows), excess=lambda *asked: BEYOND)).rows
    assert (row.claim, row.adaptive) == ("untested", "untested")


def test_an_added_attack_makes_up_for_nothing_on_benign_tasks() -> None:
    """It does not count on the reference. So it could hide that a release takes as much from benign tasks."""
    everywhere: Scores = {place: [value - 0.3 for value in values] for place, values in UNTOUCHED.items()}
    helped = everywhere | {(FUSE, KEPT): [0.95] * 5}
    assert _board(*_at_large(helped), added=(FUSE,))[0] == "refuted"


def test_what_an_added_attack_says_of_itself_raises_no_doubt() -> None:
    stronger = STRONG | {(FUSE, TOLD): [0.60, 0.61, 0.62, 0.61, 0.60]}
    undefended, immune = _at_large(stronger)
    assert _board(undefended, _of_attack(FUSE, immune, at_edge=True), added=(FUSE,))[0] == "holds"


def test_no_claim_gains_by_the_failure_of_another() -> None:
    """A row that cannot be tested counts in Holm's correction as one that was tested and failed."""
    told = [0.60, 0.74, 0.62, 0.76, 0.66]
    weak = IMMUNE | {(PROBE, TOLD): told, (FLOAT32, TOLD): told}
    one, other = (_rows(name, weak, CLAIM, (TOLD,)) for name in ("one", "two"))
    broken = [failed(cell) if (cell.attack, cell.task, cell.seed) == (PROBE, TOLD, 1) else cell for cell in other]
    assert [row.claim for row in _lines(_rows("none", UNDEFENDED), one, broken)] == ["not shown", "untested"]


def test_given_tasks_without_headroom_do_not_dilute_what_is_taken() -> None:
    """On such a task the undefended model does not end clearly above scratch, so nobody can take anything there."""
    noisy = IMMUNE | {place: [0.40, 1.00, 0.45, 0.99, 0.99] for place in ((PROBE, OTHER), (FLOAT32, OTHER))}
    records = (_rows("none", UNDEFENDED), _rows("immune", noisy, CLAIM, (TOLD, OTHER)))
    asked: list[Sequence[str]] = []

    def excess(_: str, tasks: Sequence[str], __: object) -> Excess:
        asked.append(tasks)
        return BEYOND

    grid = _grid(*records)
    for tasks, verdict in (([TOLD, OTHER], "not shown"), ([TOLD], "holds"), ([], "untested")):
        evidence = SuiteEvidence(grid, {"none": tasks}, keeping=frozenset(grid.rows), excess=excess)
        (row,) = TaskAware.of(evidence).rows
        assert row.claim == verdict
    assert [OTHER] not in asked
    assert list(asked[-1]) == [TOLD]


def test_benign_tasks_that_nobody_can_lose_show_nothing() -> None:
    """Training from scratch ends as far there as the undefended model does, so any defense would seem to spare it."""
    undefended, immune = _at_large()
    for fresh, verdict in ((0.4, "holds"), (0.9, "untested")):
        alone = [replace(record("none", "scratch", KEPT, seed, fresh), role="benign") for seed in range(5)]
        assert _board([*undefended, *alone], immune) == (verdict, verdict, verdict)
    weak = _rows("immune", UNTOUCHED, AT_LARGE, (TOLD,))
    assert _board([*undefended, *alone], weak) == ("refuted", "refuted", "refuted")


def test_a_benign_task_that_may_have_headroom_was_not_tested() -> None:
    """A defense could destroy it unseen: its gap of 17 points in the mean is chance by the test, so it is left out."""

    def mood(rows: Sequence[Record]) -> list[Record]:
        """The records of the benign task as those of another one."""
        return [replace(one, task="mood", key=f"{one.key}, mood") for one in rows if one.task == KEPT]

    undefended, immune = _at_large()
    ends = {
        one.seed: one.attacked.value for one in undefended if (one.task, one.attack) == (KEPT, FULL) and one.attacked
    }
    for gaps, verdict in (((0.3,) * 5, "holds"), ((0.8, 0.01, 0.01, 0.01, 0.01), "untested")):
        alone = [
            replace(record("none", "scratch", task, seed, ends[seed] - gap), role="benign")
            for task, by_seed in ((KEPT, (0.3,) * 5), ("mood", gaps))
            for seed, gap in enumerate(by_seed)
        ]
        assert _board([*undefended, *mood(undefended), *alone], [*immune, *mood(immune)]) == (verdict,) * 3


@pytest.mark.parametrize("known", [KEPT, "bits"])
def test_what_a_defense_was_told_to_spare_shows_nothing(known: str) -> None:
    """A benign task, or a utility metric: it may spare these and nothing else."""
    undefended, immune = _at_large()
    told = [replace(one, row=replace(one.row, told=(TOLD, known))) for one in immune]
    assert _board(undefended, told) == ("untested", "untested", "untested")


def test_a_trivial_control_makes_no_claim() -> None:
    records = [replace(one, row=replace(one.row, trivial=True)) for one in _rows("immune", IMMUNE, CLAIM, (TOLD,))]
    assert _lines(_rows("none", UNDEFENDED), records) == ()


@pytest.mark.parametrize("value", [1e307, -1e200, float("inf"), float("nan")])
def test_a_score_beyond_all_bounds_is_no_result(value: float) -> None:
    """It takes the verdict of its own row alone, and the leaderboard is still made."""
    undefended, immune = _at_large()
    lost = [replace(one, attacked=measurement(value)) if one.attack == FULL and not one.seed else one for one in immune]
    assert _board(undefended, lost) == ("untested", "untested", "untested")
