"""Each format of a comparison is read again by a parser of its own, and agrees with the others."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest

from nftbench.comparing import Comparison, Settings, compare
from nftbench.report.comparison import FORMATS, table
from nftbench.report.comparison.lines import names, sentence
from tests.comparing.sides import MASK, PMP, renamed, run

WORSE = tuple(one + 0.1 + wobble for one, wobble in zip(PMP, (0, 0.01, -0.01, 0.005, 0), strict=True))
BAD = "pmp[path=<script>|&\"'::error::\x01]"
"""A row whose name tries every format."""
BENCHER = {
    "$schema": "http://json-schema.org/draft-07/schema",
    "type": "object",
    "patternProperties": {
        ".+": {
            "type": "object",
            "patternProperties": {
                ".+": {
                    "type": "object",
                    "properties": {name: {"type": "number"} for name in ("value", "lower_value", "upper_value")},
                    "required": ["value"],
                    "additionalProperties": False,
                }
            },
        }
    },
}
JUNIT_COUNTS = {"failures": "failure", "errors": "error", "skipped": "skipped"}


@pytest.fixture(scope="module")
def found() -> Comparison:
    """One row of each kind: regressed, held, missing, new."""
    base = renamed(run({"pmp": PMP, "random_mask": MASK, "trap2": PMP}), "trap2", BAD)
    new = run({"pmp": WORSE, "random_mask": MASK, "dlr_lock": PMP})
    return compare(base, new, Settings(metrics=("suppression", "retention")))


def text(name: str, found: Comparison, only_changed: bool = False) -> str:
    return FORMATS[name](found, only_changed)


def test_json_says_what_the_comparison_says(found: Comparison) -> None:
    content = json.loads(text("json", found))
    assert (content["outcome"], content["exit"]) == (found.outcome, found.exit_code) == ("regressed", 1)
    assert [(one["row"], one["metric"], one["verdict"]) for one in content["rows"]] == [
        (line.row, line.metric, line.verdict) for line in found.lines
    ]
    assert content["counts"] == {"regressed": 1, "missing": 2, "held": 3, "new": 2}
    (worse,) = (one for one in content["rows"] if one["verdict"] == "regressed")
    assert worse["difference"]["low"] < worse["difference"]["value"] < worse["difference"]["high"] < 0
    assert worse["p_holm"] <= content["alpha"]


def test_junit_counts_what_it_holds(found: Comparison) -> None:
    root = ElementTree.fromstring(text("junit", found))
    assert root.tag == "testsuites"
    for element in (root, *root):
        cases = element.findall(".//testcase")
        assert element.get("tests") == str(len(cases))
        for attribute, child in JUNIT_COUNTS.items():
            assert element.get(attribute) == str(sum(case.find(child) is not None for case in cases))
    ended = {(case.get("classname"), case.get("name")): [child.tag for child in case] for case in root.iter("testcase")}
    assert ended["pmp", "suppression"] == ["failure"]
    assert ended["pmp", "retention"] == []
    assert ended[BAD.replace("\x01", "\ufffd"), "suppression"] == ["error"]
    assert ended["dlr_lock", "suppression"] == ["skipped"]
    for case in root.iter("testcase"):
        for child in case:
            assert child.get("message")


def test_markdown_begins_with_its_marker_and_keeps_its_columns(found: Comparison) -> None:
    lines = text("markdown", found).splitlines()
    assert lines[0] == "<!-- nftbench-compare:tiny -->"
    assert lines[1] == "> [!CAUTION]"
    assert lines[2].startswith("> REGRESSED: 1 regressed, 2 missing")
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + len(found.lines)
    assert len({len(re.split(r"(?<!\\)\|", line)) for line in table}) == 1
    assert "<script>" not in text("markdown", found)
    assert any("<script>" in html.unescape(line) for line in table)


def test_people_read_labels_and_machines_specifications() -> None:
    """Each line of a comment repeated eighty characters of parameters."""
    long = "pmp[complement=released,radius=0.02]"
    base = renamed(run({"pmp": PMP, "trap2": PMP}), "trap2", long)
    found = compare(base, run({"pmp": WORSE}), Settings(metrics=("suppression",)))
    assert "| missing | pmp · released | " in text("markdown", found)
    assert f"- pmp · released: {long}" in html.unescape(text("markdown", found))
    assert f"pmp · released: {long}" in text("table", found).splitlines()
    assert "title=pmp · released%3A suppression missing::" in text("github", found)
    assert f'classname="{long}"' in text("junit", found)
    assert long in {row["row"] for row in json.loads(text("json", found))["rows"]}


def test_each_gate_of_a_suite_has_a_comment_of_its_own(found: Comparison) -> None:
    """Two jobs with other settings replaced each other's comment."""
    gates = [replace(found, settings=replace(found.settings, name=name)) for name in ("quick", "all rows --> <b>")]
    assert [text("markdown", gate).splitlines()[0] for gate in gates] == [
        "<!-- nftbench-compare:tiny:quick -->",
        "<!-- nftbench-compare:tiny:all-rows-b- -->",
    ]


def test_annotations_are_one_line_each(found: Comparison) -> None:
    lines = text("github", found).splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["::error"] * 3 + ["::notice"]
    for line in lines:
        command = re.fullmatch(r"::(error|notice) title=([^:,]*)::(.*)", line)
        assert command is not None
    assert "%3A%3Aerror" in text("github", found)
    assert "held. The smallest" in lines[-1] or "new. The smallest" in lines[-1], "two sentences"


def test_bencher_s_schema_accepts_its_format(found: Comparison) -> None:
    content: dict[str, Any] = json.loads(text("bencher", found))
    jsonschema.validate(content, BENCHER)
    assert set(content) == {"pmp", "random_mask", "dlr_lock"}
    assert content["pmp"]["suppression"]["value"] == pytest.approx(19.9)


def test_a_terminal_too_narrow_for_the_table_gets_a_sentence_for_each_line(found: Comparison) -> None:
    assert table.text(found, False, 160) == text("table", found)
    narrow = table.text(found, False, 80)
    assert "┃" not in narrow
    own = names(found)
    assert {sentence(line, own[line.row]) for line in found.lines} <= set(narrow.splitlines())
    assert narrow.splitlines()[0] == text("table", found).splitlines()[0]


def test_the_table_says_the_answer_first_and_how_far_it_sees(found: Comparison) -> None:
    lines = text("table", found).splitlines()
    assert lines[0] == "REGRESSED: 1 regressed, 2 missing, 3 held, 2 new"
    smallest = "The smallest drops that it finds in every row, with 80 % power: suppression"
    assert any(line.startswith(smallest) for line in lines)  # retention is equal at every seed, which tells nothing
    assert any(line.startswith("4 tests at alpha = 0.02 together") for line in lines)


def test_equal_numbers_say_nothing_of_the_smallest_drop() -> None:
    shown = text("table", compare(run({"pmp": PMP}), run({"pmp": PMP}), Settings()))
    assert "All numbers are equal at every seed" in shown
    assert "80 % power" not in shown


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_what_did_not_change_can_be_hidden(name: str, found: Comparison) -> None:
    shown = text(name, found, only_changed=True)
    assert ("random_mask" in text(name, found)) == (name != "github")
    assert "random_mask" not in shown
    assert "pmp" in shown


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_costs_have_their_own_units(name: str) -> None:
    rows = {"pmp": PMP}
    found = compare(run(rows), run(rows), Settings(metrics=("seconds", "memory", "cost_to_break")))
    shown = text(name, found)
    if name == "table":
        assert "50 s" in shown
        assert "0.001 MB" in shown
    if name == "bencher":
        assert json.loads(shown)["pmp"]["seconds"]["value"] == pytest.approx(50)


def test_a_suspect_row_fails_a_case_only_where_it_fails_the_gate() -> None:
    scattered = tuple(one + 0.1 + wobble for one, wobble in zip(PMP, (0.2, -0.2, 0.1, -0.1, 0.0), strict=True))
    asked = Settings(metrics=("suppression",))
    for fail_on, count in (("regressed", "0"), ("suspect", "1")):
        found = compare(run({"pmp": PMP}), run({"pmp": scattered}), replace(asked, fail_on=fail_on))
        assert found.outcome == "suspect"
        assert ElementTree.fromstring(text("junit", found)).get("failures") == count == str(found.exit_code)


def test_where_nothing_may_fail_no_format_says_that_something_does() -> None:
    found = compare(run({"pmp": PMP}), run({"pmp": WORSE}), Settings(metrics=("suppression",), fail_on="never"))
    assert (found.outcome, found.exit_code) == ("regressed", 0)
    assert [line.partition(" ")[0] for line in text("github", found).splitlines()] == ["::warning", "::notice"]
    junit = ElementTree.fromstring(text("junit", found))
    assert (junit.get("failures"), junit.get("errors")) == ("0", "0")
    assert "regressed" in "".join(one.text or "" for one in junit.iter("system-out"))


@pytest.mark.parametrize(("count", "why"), [(1, "one base seed gives no interval"), (2, "two base seeds are too few")])
@pytest.mark.parametrize("name", ["table", "markdown", "github"])
def test_too_few_seeds_are_told_with_what_to_do_and_what_moved(name: str, count: int, why: str) -> None:
    sides = [run({"pmp": scores[:count], "random_mask": MASK[:count]}) for scores in (PMP, WORSE)]
    found = compare(*sides, Settings())
    for only_changed in (True, False):
        said = html.unescape(re.sub(r"\s+", " ", text(name, found, only_changed)).replace("\\", ""))
        assert "NOTHING CAN BE JUDGED: 4 underpowered" in said
        assert f"4 lines have both sides, but {why}" in said
        assert "run both with at least 3, as with --set 'seeds=[0, 1, 2]'." in said
        assert "Moved by --min-drop or more, without a verdict: pmp suppression -10" in said
        if name != "github":
            assert ("random_mask" in said) != only_changed
