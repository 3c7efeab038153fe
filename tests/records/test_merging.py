"""Merging puts records of one plan together, whatever the order, and says what does not belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from nftbench.errors import NftbenchError
from nftbench.records.manifest import Manifest
from nftbench.records.merging import Merged, Source, merge
from nftbench.records.record import CellId, Record
from tests.comparing.sides import HERE, MASK, PMP, manifest, records

THERE = {**HERE, "hardware": {"processor": "There"}}
ROWS = {"pmp": PMP}
FOUND = records(ROWS)
PLAN = replace(manifest(FOUND), suite=manifest(FOUND).suite.model_copy(update={"seeds": (0, 1, 2, 3, 4)}))


def source(found: Sequence[Record], plan: Manifest = PLAN, name: str = "a", salt: str | None = "s") -> Source:
    return Source(name, plan, tuple(found), salt)


def again(one: Merged, name: str = "m") -> Source:
    """What was merged, as a folder to be merged."""
    return Source(name, one.manifest, one.records, one.salt)


def at(*seeds: int, of: Sequence[Record] = FOUND) -> list[Record]:
    return [one for one in of if one.seed in seeds]


def seeds_alone(*seeds: int, of: Sequence[Record] = FOUND, **changes: Any) -> Manifest:
    """The plan of a run with these seeds alone."""
    planned = manifest([one for seed in seeds for one in at(seed, of=of)], **changes)
    return replace(planned, suite=planned.suite.model_copy(update={"seeds": seeds}))


def contents(one: Merged) -> tuple[set[Any], set[Any], dict[str, Record]]:
    return set(one.manifest.suite.seeds), set(one.manifest.cells), {record.key: record for record in one.records}


# ------------------------------------------------------------------------------------------------------- the algebra

FEW = FOUND[::8]
parts = st.lists(st.sets(st.integers(0, 2)), min_size=len(FEW), max_size=len(FEW))
"""For each record the folders that hold it: none, one or several."""


@settings(max_examples=12)
@given(parts, st.booleans())
def test_the_order_of_merging_does_not_matter(held: list[set[int]], timed: bool) -> None:
    """Copies of a record may differ in time, as when a cell was run twice on one machine."""

    def copy(one: Record, index: int) -> Record:
        return replace(one, provenance={**HERE, "written": f"2026-11-2{8 - index}"}) if timed else one

    a, b, c = (
        source([copy(one, index) for one, where in zip(FEW, held, strict=True) if index in where]) for index in range(3)
    )
    whole = merge([a, b, c])
    expected = {one.key for one, where in zip(FEW, held, strict=True) if where}
    assert {one.key for one in whole.records} == expected
    assert whole.left_out == whole.notes == ()
    left = merge([again(merge([a, b])), c])
    right = merge([a, again(merge([b, c]))])
    assert contents(left) == contents(right) == contents(whole)
    for order in permutations([a, b, c]):
        assert contents(merge(order)) == contents(whole)
    for one in (a, b, c):
        assert contents(merge([again(whole), one])) == contents(whole)
    assert merge([again(whole), again(whole)]) == merge([again(whole)]) == whole


@settings(max_examples=8)
@given(st.lists(st.sampled_from([0, 1, 2]), min_size=5, max_size=5))
def test_plans_of_other_seeds_are_joined(where: list[int]) -> None:
    groups = [tuple(seed for seed in range(5) if where[seed] == index) for index in range(3)]
    folders = [source(at(*seeds), seeds_alone(*seeds)) for seeds in groups if seeds]
    whole = merge(folders)
    assert contents(whole) == ({0, 1, 2, 3, 4}, set(PLAN.cells), {one.key: one for one in FOUND})
    assert whole.left_out == ()
    assert contents(merge(folders[::-1])) == contents(whole)
    ordered = [whole.manifest.suite.seeds.index(cell.seed) for cell in whole.manifest.cells]
    assert ordered == sorted(ordered)


# ---------------------------------------------------------------------------------------------------- what is joined


def test_defenses_of_two_runs_on_the_same_base_models_are_joined() -> None:
    other = records({"random_mask": MASK})
    plans = [
        replace(plan, suite=plan.suite.model_copy(update={"defenses": ("none", name)}))
        for plan, name in ((manifest(FOUND), "pmp"), (manifest(other), "random_mask"))
    ]
    whole = merge([source(FOUND, plans[0]), source(other, plans[1], "b")])
    assert {one.defense for one in whole.records} == {"none", "early_stop", "pmp", "random_mask"}
    assert whole.manifest.suite.defenses == ("none", "pmp", "random_mask")
    assert (whole.left_out, whole.notes) == ((), ())


def test_what_a_plan_says_about_its_defenses_stays_with_them() -> None:
    """Or a defense would lose by a merge that nobody ran the attacks that were written against it."""
    own = replace(PLAN, added_defenses=("pmp",), left_out={"pmp": ("heal",)}, labels={"pmp": "Masks"})
    for folders in ([source(FOUND), source(FOUND, own)], [source(FOUND, own), source(FOUND)]):
        joined = merge(folders).manifest
        assert joined.added_defenses == own.added_defenses
        assert joined.left_out == own.left_out
        assert joined.labels == own.labels


def test_seeds_of_two_machines_are_joined() -> None:
    there = records(ROWS, base="other", provenance=THERE)
    whole = merge([source(at(0, 1)), source(at(2, 3, 4, of=there), name="b")])
    assert len(whole.records) == len(FOUND)
    assert {one.base_sha256 for one in whole.records} == {"base-0", "base-1", "other-2", "other-3", "other-4"}
    assert (whole.left_out, whole.notes) == ((), ())


def test_one_base_model_attacked_on_two_processors_is_marked() -> None:
    there = [replace(one, provenance=THERE) for one in FOUND[1::2]]
    whole = merge([source(FOUND[::2]), source(there, name="b")])
    assert len(whole.records) == len(FOUND)
    assert whole.left_out == ()
    assert len(whole.notes) == 5
    assert "seed 0 has one base model, but its attacks ran on different processors (Here, There)" in whole.notes[0]


def test_a_seed_of_two_base_models_is_refused_unless_one_folder_is_believed() -> None:
    there = records(ROWS, base="other", provenance=THERE)
    mine, theirs = [one for one in FOUND if one.defense != "pmp"], [one for one in there if one.defense == "pmp"]
    folders = [source(mine), source([*theirs, *at(4, of=there)], name="b")]
    with pytest.raises(NftbenchError, match=r"seed 0: .* records of b come from other weights than those of a"):
        merge(folders)
    with pytest.raises(NftbenchError, match="processors: Here, There"):
        merge(folders)
    first, last = merge(folders, "first"), merge(folders, "last")
    assert {one.base_sha256 for one in first.records} == {f"base-{seed}" for seed in range(5)}
    assert {one.base_sha256 for one in last.records} == {f"other-{seed}" for seed in range(5)}
    assert len(first.left_out) == len(last.left_out) == 5
    assert "records of a come from other weights than those of b: left out" in last.left_out[0]


def test_a_release_that_was_made_twice_is_refused() -> None:
    """From the same base model, as by a defense that takes the time into account."""
    one, other = ([replace(each, release_sha256=f"{name}{each.seed}") for each in FOUND] for name in "xy")
    with pytest.raises(NftbenchError, match="other weights"):
        merge([source(one[::2]), source(other[1::2], name="b")])


# ---------------------------------------------------------------------------------------------------- contradictions


def test_two_results_of_one_cell_are_refused_unless_one_folder_is_believed() -> None:
    moved = replace(FOUND[7], attacked=replace(FOUND[7].attacked, value=0.123))  # type: ignore[type-var]
    folders = [source(FOUND), source([moved, FOUND[8]], name="b")]
    with pytest.raises(NftbenchError, match=f"1 cells have different results .*{CellId.of(moved).task}.* in a and b"):
        merge(folders)
    for keep, expected in (("first", FOUND[7]), ("last", moved)):
        whole = merge(folders, keep)  # type: ignore[arg-type]
        assert expected in whole.records
        assert len(whole.records) == len(FOUND)
        assert whole.left_out[0].endswith(f"the {keep} one is kept")


def test_a_result_takes_the_place_of_a_failure() -> None:
    failed = replace(FOUND[7], status="oom", reason="too little memory", attacked=None)
    for folders in ([source([failed]), source(FOUND)], [source(FOUND), source([failed])]):
        whole = merge(folders)
        assert FOUND[7] in whole.records
        assert whole.left_out == ()
    assert merge([source([failed]), source([failed])]).records == (failed,)


# ----------------------------------------------------------------------------------------------------- what is left out


def rekeyed(found: Sequence[Record]) -> list[Record]:
    return [replace(one, key=f"x{one.key[1:]}") for one in found]


CASES: dict[str, tuple[Source, str]] = {
    "settings": (
        source(rekeyed(FOUND), manifest(rekeyed(FOUND), pretraining={"steps": 99, "warmup": 1})),
        "other settings of the suite: pretraining.steps",
    ),
    "limit": (source(rekeyed(FOUND), replace(manifest(rekeyed(FOUND)), limit=5)), "--limit 5, and None in a"),
    "device": (source(rekeyed(FOUND), replace(manifest(rekeyed(FOUND)), device="cuda:1")), "computed on cuda"),
    "salt": (source(rekeyed(FOUND), manifest(rekeyed(FOUND)), salt="t"), "another salt than a"),
    "salt unknown, other keys": (source(rekeyed(FOUND), manifest(rekeyed(FOUND)), salt=None), "other keys"),
    "areas": (
        source(
            [replace(one, provenance={**HERE, "areas": {"training": 3}}) for one in rekeyed(FOUND)],
            manifest(rekeyed(FOUND)),
        ),
        "other core code (area versions): training",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_another_ruler_is_left_out_with_the_reason(case: str) -> None:
    other, reason = CASES[case]
    whole = merge([source(FOUND), replace(other, name="b")])
    assert contents(whole)[1:] == (set(PLAN.cells), {one.key: one for one in FOUND})
    (said,) = whole.left_out
    assert said.startswith(f"b: {len(FOUND)} of {len(FOUND)} records left out: ")
    assert reason in said


def test_seeds_cannot_be_added_without_knowing_the_salt() -> None:
    new = at(3, 4)
    whole = merge([source(at(0, 1), seeds_alone(0, 1)), source(new, seeds_alone(3, 4), "b", salt=None)])
    assert len(whole.records) == len(at(0, 1))
    assert "the salt of b is not known" in whole.left_out[0]
    assert merge([source(FOUND), source(new, salt=None)]).left_out == (), "equal keys say that the salt is the same"


def test_cells_of_an_edited_plugin_are_left_out() -> None:
    """Both where the keys say so and, at seeds that only one folder has, where the records' digests do."""

    def by(code: str, found: Sequence[Record]) -> list[Record]:
        digests = {"attack": "same", "task": "same"}
        return [
            replace(one, provenance={**HERE, "sources": {**digests, "defense": code if one.defense == "pmp" else "d"}})
            for one in found
        ]

    mine = by("old", at(0, 1))
    edited = [replace(one, key=f"x{one.key[1:]}") if one.defense == "pmp" else one for one in by("new", at(1, 2))]
    whole = merge([source(mine, seeds_alone(0, 1)), source(edited, seeds_alone(1, 2, of=edited), "b")])
    assert {(one.defense, one.seed) for one in whole.records} == {
        *((name, seed) for name in ("none", "early_stop") for seed in (0, 1, 2)),
        *(("pmp", seed) for seed in (0, 1)),
    }
    (said,) = whole.left_out
    assert "left out: other code of defense pmp, the first: pmp × " in said


def test_foreign_records_are_named_and_taken_where_they_belong() -> None:
    stale = replace(FOUND[0], key="stale")
    copied_in = at(4)
    plan = seeds_alone(0, 1)
    whole = merge([source([*at(0, 1), stale, *copied_in], plan), source(at(2, 3), name="b")])
    assert {one.seed for one in whole.records} == {0, 1, 2, 3, 4}
    assert "stale" not in {one.key for one in whole.records}
    (said,) = whole.notes
    assert said.startswith("a: records that belong to no cell of its own plan are left out: 1 of planned cells")


def test_other_versions_of_libraries_are_marked() -> None:
    newer = [replace(one, provenance={**HERE, "versions": {"torch": "2.14.0"}}) for one in at(1)]
    whole = merge([source(at(0)), source(newer, name="b")])
    assert "records differ in the version of torch (2.13.0, 2.14.0), so that no row is ranked" in whole.notes


def test_the_salt_stays_as_private_as_it_was() -> None:
    drawn = replace(PLAN, salt=None, public_salt=False)
    packed = replace(drawn, salt="s")
    assert merge([source(FOUND, drawn), source(FOUND, drawn)]).manifest.salt is None
    assert merge([source(FOUND, drawn), source(FOUND, drawn)]).salt == "s"
    assert merge([source(FOUND, drawn), source(FOUND, packed)]).manifest.salt == "s"
    assert merge([source(FOUND, drawn, salt=None), source(FOUND, drawn)]).salt == "s"
    public = replace(packed, public_salt=True)
    assert merge([source(FOUND, drawn), source(FOUND, public)]).manifest.public_salt
