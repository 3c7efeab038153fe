"""index.html holds every row, loads nothing, escapes every text, and is the same bytes for the same records."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from nftbench.records.spec import Spec
from nftbench.report import order, web
from nftbench.report.labels import labels
from nftbench.scoring import Leaderboard
from nftbench.scoring.provenance import Provenance
from nftbench.scoring.scores import Flag
from nftbench.suites.schema import PaperClaim
from tests.factories import COST, curve, scored, suite, sweep

COMMAND = "nftbench report runs/tiny"
VOID = {"meta", "input", "br", "hr", "link", "img", "wbr"}
EVIL = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</script><script>alert(1)</script>",
    "</style><style>*{display:none}",
    "a\u2028b\u2029c <!-- --> ]]>",
    "' onmouseover='alert(1)",
    "{{ 7 * 7 }}{% raw %}",
)


class Page(HTMLParser):
    """The elements of a page, with their texts; an element that is not closed in order fails."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[str | None, str]] = []
        self.shown: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append((dict(attrs).get("type"), ""))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            kind, before = self.scripts[-1]
            self.scripts[-1] = (kind, before + data)
        elif data.strip() and "style" not in self.open:
            self.shown.append(data.strip())

    def with_class(self, name: str) -> list[dict[str, str | None]]:
        return [found for _, found in self.elements if name in (found.get("class") or "").split()]


@pytest.fixture(scope="module")
def board() -> Leaderboard:
    records = [*suite(), *sweep("mask[radius=0.1]", (0.78,) * 5), *sweep("mask[radius=0.2]", (0.6,) * 5)]
    return scored(
        [replace(one, curve=curve(0.3, one.attacked.value), cost=COST) if one.attacked else one for one in records]
    )


def test_every_row_has_a_section_and_stands_in_a_table(board: Leaderboard) -> None:
    page = Page(web.text([(board, COMMAND)]))
    rows = {score.defense for score in order.everything(board)}
    assert len(rows) == len(board.scores)
    assert {one["data-row"] for one in page.with_class("defense")} == rows
    assert rows <= {found.get("data-row") for tag, found in page.elements if tag == "tr"}
    assert COMMAND in page.shown


def test_a_row_goes_by_its_label_with_its_specification_beside_it(board: Leaderboard) -> None:
    links = [found for tag, found in Page(web.text([(board, COMMAND)])).elements if tag == "a" and "title" in found]
    assert "mask[radius=0.1]" in {found["title"] for found in links}
    known = labels([score.defense for score in board.scores])
    assert known["mask[radius=0.1]"] in Page(web.text([(board, COMMAND)])).shown


def test_every_link_has_its_place_and_no_place_is_there_twice(board: Leaderboard) -> None:
    page = Page(web.text([(board, COMMAND), (board, COMMAND)]))
    places = [found["id"] for _, found in page.elements if "id" in found]
    assert len(set(places)) == len(places)
    assert {(found["href"] or "").removeprefix("#") for tag, found in page.elements if tag == "a"} <= set(places)


def test_nothing_is_loaded_and_no_other_script_may_run(board: Leaderboard) -> None:
    page = Page(web.text([(board, COMMAND)]))
    loading = ("src", "srcset", "data", "poster", "action", "background", "ping")
    assert not [found for _, found in page.elements if any(name in found for name in loading)]
    assert not [tag for tag, _ in page.elements if tag in ("link", "base", "iframe", "img", "object", "embed")]
    assert not [name for _, found in page.elements for name in found if name.startswith("on")]
    assert "url(" not in (Path(web.__file__).parent / "style.css").read_text()
    [policy] = [found["content"] or "" for _, found in page.elements if found.get("http-equiv")]
    assert policy.startswith("default-src 'none'; ")
    allowed = set(re.findall(r"'sha256-([^']+)'", policy))
    run = [script for kind, script in page.scripts if kind is None]
    assert {base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in run} == allowed
    assert len(run) == len(web.SCRIPTS)


def test_two_leaderboards_of_a_suite_have_different_tabs(board: Leaderboard) -> None:
    page = Page(web.text([(board, COMMAND), (board, "other")]))
    tabs = [found["id"] for tag, found in page.elements if found.get("role") == "tab"]
    assert tabs == ["board-0-tab", "board-1-tab"]
    assert {board.suite, f"{board.suite} (2)"} <= set(page.shown)
    named = Page(web.text([(board, COMMAND), (board, "other")], ["before", "after"]))
    assert {f"{board.suite} · before", f"{board.suite} · after"} <= set(named.shown)


def test_each_library_in_the_page_has_its_licence_and_version_beside_it() -> None:
    folder = web.HERE / "vendored"
    for script in folder.glob("*.js"):
        name = re.match(r"[a-z]+-\d+\.\d+\.\d+", script.name)
        assert name
        assert "permission" in (folder / f"{name[0]}.LICENSE").read_text().lower()
        assert name[0].rpartition("-")[2] in script.read_text(encoding="utf-8")


def test_the_same_records_make_the_same_bytes(board: Leaderboard) -> None:
    first = web.text([(board, COMMAND)])
    assert web.text([(board, COMMAND)]) == first
    assert len(first.encode()) < 2_000_000


def test_rows_have_the_labels_that_the_suite_sets(board: Leaderboard) -> None:
    row = next(one.defense for one in board.scores if one.kind == "defense")
    named = replace(board, labels={row: "the new one"})
    assert "the new one" in Page(web.text([(named, COMMAND)])).shown
    assert "the new one" not in Page(web.text([(board, COMMAND)])).shown


def test_a_papers_claims_come_before_a_ranking_without_rows() -> None:
    records = [one for one in suite(1) if one.defense in ("none", "pmp")]
    read = {"rows": ["pmp"], "read": "score", "attacks": ["full"]}
    claims = [
        PaperClaim.model_validate({"says": f"it is {side} 90", "read": read, side: 90}) for side in ("above", "below")
    ]
    shown = Page(web.text([(scored(records, claims=claims), COMMAND)])).shown
    assert "Outcomes of 2 claims of papers: 2 × measured." in shown
    assert shown.index("it is above 90") < shown.index("No row is ranked.") < shown.index("Not ranked (1)")


@pytest.mark.parametrize("evil", EVIL)
def test_text_of_plugins_stays_text(board: Leaderboard, evil: str) -> None:
    """In names, flags, reasons, faults, problems and commands, in HTML and in the JSON in it."""
    name = str(Spec("evil", (("word", evil),)))
    first, *others = board.scores
    changed = replace(
        first,
        defense=name,
        flags=(Flag("utility", "warn", evil),),
        attacks=tuple(replace(one, attack=evil, faults=(evil,)) for one in first.attacks),
        standing=replace(first.standing, reasons=(evil,)),
    )
    budgets = tuple(replace(one, defense=name) if one.defense == first.defense else one for one in board.budgets)
    said = Provenance(evil, evil, {evil: 3}, ({"gpu": evil},), (evil,), {evil: (evil,)})
    origin = replace(board.origin, commands={evil: 3, "other": 2}, provenance=said)
    made = replace(
        board, suite=evil, about=evil, problems=(evil,), origin=origin, budgets=budgets, scores=(changed, *others)
    )
    page, plain = Page(web.text([(made, evil)])), Page(web.text([(board, COMMAND)]))
    kinds = {(tag, attribute) for tag, found in plain.elements for attribute in found}
    new = {(tag, attribute) for tag, found in page.elements for attribute in found} - kinds
    assert new <= {("p", "class"), ("td", "class"), ("span", "class")}
    assert len(page.scripts) == len(plain.scripts)
    [data] = [json.loads(script) for kind, script in page.scripts if kind == "application/json"]
    assert name in {point["row"] for panel in data["frontier"] for point in panel["views"][0]["points"]}
    assert sum(evil.strip() in one for one in page.shown) >= 5
    assert not re.search("[\u2028\u2029<>]", next(script for kind, script in page.scripts if kind))


def test_the_answer_ends_with_what_the_suite_is_and_marks_code(board: Leaderboard) -> None:
    about = "Too rough to cite; raise `budget.extension`, `<b>` is no tag."
    found = web.text([(replace(board, about=about), COMMAND)])
    box = found.partition('<div class="answer">')[2].partition("</div>")[0]
    assert box.index("<p>pmp ") < box.index(f"<p>{about.partition(' `')[0]}")
    assert "raise <code>budget.extension</code>, <code>&lt;b&gt;</code> is no tag." in box
