"""A row's label is short, tells it from every other row, and does not depend on the order of rows."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from hypothesis import given, strategies as st

from nftbench.planning import registry
from nftbench.records.spec import Spec
from nftbench.report.labels import labels, of
from tests.factories import scored, suite


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (["pmp[discovery_steps=200]"], ["pmp"]),
        (
            ["pmp[discovery_steps=200]", "pmp[complement=released,discovery_steps=200,radius=0.02]"],
            ["pmp", "pmp · released"],
        ),
        (
            ["dlr_lock[depth=1,joint_steps=100]", "dlr_lock[joint_steps=100]"],
            ["dlr_lock · depth 1", "dlr_lock"],
        ),
        (["early_stop", "early_stop[fraction=0.2]"], ["early_stop", "early_stop · 0.2"]),
        (["cn[balanced=true,rank=2]", "cn[balanced=false,rank=2]"], ["cn · balanced true", "cn · balanced false"]),
        (["checkpoint[path=hub/Locked]", "checkpoint[path=hub/Free]"], ["checkpoint · Locked", "checkpoint · Free"]),
        (["checkpoint[path=a/x]", "checkpoint[path=b/x]"], ["checkpoint · path a/x", "checkpoint · path b/x"]),
        (["a[x=1,y=2]", "a[x=1,y=3]", "a[x=2,y=2]"], ["a · x 1 · y 2", "a · x 1 · y 3", "a · x 2 · y 2"]),
        (["p[a=x]", "p[b=x]"], ["p · x", "p"]),
    ],
)
def test_the_fewest_parameters_that_differ_are_said(rows: list[str], expected: list[str]) -> None:
    assert list(labels(rows).values()) == expected


def test_a_given_label_is_used_unless_another_row_has_it() -> None:
    rows = ["pmp[radius=1]", "pmp[radius=2]", "mask"]
    assert labels(rows, {"pmp[radius=1]": "PMP", "absent": "mask"})["pmp[radius=1]"] == "PMP"
    assert labels(rows, {"pmp[radius=1]": "mask"})["pmp[radius=1]"] == "pmp · 1"
    assert labels(rows, {"pmp[radius=1]": "PMP", "pmp[radius=2]": "PMP"}) == labels(rows)


def test_a_dose_of_the_ladder_says_the_number_that_it_leaves_to_the_default() -> None:
    doses = ("noise", "noise[scale=0.2]")
    board = scored(suite())
    others = tuple(replace(board.scores[0], defense=row) for row in ("dlr_lock", "dlr_lock[depth=1]"))
    board = replace(board, scores=others, ladder={"noise": doses, "narrow": ("narrow",)})
    found = of(board)
    scale = registry.create("defenses", "noise").scale
    assert [found[row] for row in doses] == [f"noise · {scale:g}", "noise · 0.2"]
    assert found["narrow"] == "narrow"  # nothing to tell it from
    assert found["dlr_lock"] == "dlr_lock"  # no dose
    assert of(replace(board, labels={"noise": "a little noise"}))["noise"] == "a little noise"


@pytest.mark.parametrize("kind", ["defenses", "attacks", "tasks"])
def test_defaults_read_from_a_file_are_those_of_the_class(kind: registry.Kind) -> None:
    for name, plugin in registry.available(kind).items():
        found = registry.defaults(kind, name)
        own = {} if plugin.text_file else {field.name: field.default for field in fields(registry.load(plugin))}
        assert {key: own[key] for key in found} == dict(found)
        assert {key for key, value in own.items() if isinstance(value, float)} <= found.keys()


NAMES = st.sampled_from(["pmp", "dlr_lock", "none", "pmp · x"])
VALUES = st.one_of(st.integers(0, 3), st.floats(0, 1), st.booleans(), st.sampled_from(["x", "a/x", "b/x", "1"]))
SPECS = st.builds(
    lambda name, parameters: str(Spec(name, tuple(parameters.items()))),
    NAMES,
    st.dictionaries(st.sampled_from(["a", "b", "c"]), VALUES),
)


@given(st.lists(SPECS, unique=True), st.dictionaries(SPECS, st.sampled_from(["one", "two", "pmp"])), st.randoms())
def test_labels_are_unique_and_the_same_in_any_order(rows: list[str], chosen: dict[str, str], chance: object) -> None:
    found = labels(rows, chosen)
    assert list(found) == rows
    assert len(set(found.values())) == len(rows)
    chance.shuffle(rows)  # type: ignore[attr-defined]
    assert labels(rows, chosen) == found


@given(SPECS)
def test_a_row_without_siblings_has_the_name_of_its_plugin(row: str) -> None:
    assert labels([row]) == {row: Spec.parse(row).name}


def test_a_plugins_own_label_takes_the_place_of_its_name() -> None:
    rows = ["mine[x=1]", "mine[x=2]", "pmp"]
    own = dict.fromkeys(rows[:2], "Low-rank lock")
    assert list(labels(rows, own=own).values()) == ["Low-rank lock · 1", "Low-rank lock · 2", "pmp"]
    assert labels(["mine"], own={"mine": "Low-rank lock"}) == {"mine": "Low-rank lock"}


def test_a_suites_label_wins_over_the_plugins_own() -> None:
    assert labels(["mine"], {"mine": "M"}, {"mine": "Low-rank lock"}) == {"mine": "M"}


@pytest.mark.parametrize(
    "label",
    [
        *("pmp", "PMP", "P-M-P", "prnp", "pmp (official)", "pmp - released", "dlr lock", "DLR Lock", "d1r lock"),
        *("none", "N0NE", "Undefended", "reference 2", "pmp complement released", "The one"),
    ],
)
def test_a_plugin_cannot_pass_for_another_row(label: str) -> None:
    rows = ["mine", "none", "dlr_lock", "pmp", "pmp[complement=released]"]
    found = labels(rows, {"dlr_lock": "The One"}, {"mine": label})
    assert found == labels(rows, {"dlr_lock": "The One"})
    assert found["mine"] == "mine"


def test_two_plugins_with_one_label_keep_their_names() -> None:
    assert labels(["a", "b"], own={"a": "Best", "b": "best"}) == {"a": "a", "b": "b"}


OWN = st.dictionaries(SPECS, st.sampled_from(["PMP", "Best", "best 1", "n0ne", "pmp x", "x"]))


@given(st.lists(SPECS, unique=True), OWN, st.dictionaries(SPECS, st.sampled_from(["one", "Best"])), st.randoms())
def test_own_labels_are_unique_and_the_same_in_any_order(
    rows: list[str], own: dict[str, str], chosen: dict[str, str], chance: object
) -> None:
    found = labels(rows, chosen, own)
    assert len(set(found.values())) == len(rows)
    chance.shuffle(rows)  # type: ignore[attr-defined]
    assert labels(rows, chosen, own) == found
