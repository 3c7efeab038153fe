"""The protection card: its verdict, its numbers, and that texts of a hostile checkpoint stay text."""

from __future__ import annotations

import dataclasses
import html.parser

import pytest
import yaml
from huggingface_hub import EvalResult
from huggingface_hub.repocard_data import model_index_to_eval_results

from nftbench.contract import Cost, Protection
from nftbench.records.manifest import Manifest, PlannedCell
from nftbench.records.record import Record
from nftbench.report import card as cards
from nftbench.report.card import Card
from nftbench.report.exports import model_index
from nftbench.scoring.cost_to_break import Multiple
from nftbench.scoring.intervals import Interval
from nftbench.scoring.scores import ClaimTest, Excess, Resistance, Score, TaskScore, Utility
from nftbench.scoring.table import Table
from nftbench.suites.schema import Family
from nftbench.terms import Verdict
from nftbench.testing import tiny_suite
from tests import factories

HOSTILE = "<script>alert('x')</script> ](javascript:x) | `--- {{ 7*7 }}"


def score(verdict: Verdict, excess: Interval | None = None, suppression: Interval | None = None) -> Score:
    """A release's row with this verdict."""
    taken = Interval(9.5, 8.0, 11.0, 3, 0.01) if suppression is None else suppression
    return Score(
        "checkpoint[path=a,reference=b]",
        "defense",
        factories.record("checkpoint[path=a,reference=b]", "none", "sst2", 0, 0.5).row,
        utility=Utility({"blimp": Interval(0.981, 0.96, 1.0, 3)}, Interval(0.981, 0.96, 1.0, 3), "blimp", "keeps"),
        resistance=Resistance(
            suppression=taken, tasks=(TaskScore("sst2", 50.0, Interval(70.123, 60.0, 80.0, 3), 80.0, taken, "full"),)
        ),
        excess=Excess(excess, "mean", "noise"),
        claim=ClaimTest(excess, taken, tested=True, covered=True, verdict=verdict),
    )


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (score("holds", Interval(4, 3, 5, 5)), "holds: it takes 9.5 [8.0, 11.0] points"),
        (score("holds at a cost", Interval(4, 3, 5, 5)), "may not keep its utility"),
        (score("refuted", Interval(-2, -3, -1, 3)), "refuted: a trivial change of the twin with as much utility"),
        (score("refuted", None, Interval(0.1, -1, 1, 3)), "attackers end where they do on the twin"),
        (score("not shown", Interval(1, -3, 5, 3)), "may be chance"),
        (score("not shown", Interval(4, 3, 5, 3)), "would need 5 seeds in place of 3"),
        (score("untested", None, Interval(4)), "1 seed cannot tell it from chance, and 3 are needed"),
        (
            dataclasses.replace(score("untested"), incomplete=("a cell: oom",)),
            "the first that lacks: a cell: oom",
        ),
    ],
)
def test_the_verdict_is_one_sentence_with_its_numbers(found: Score, said: str) -> None:
    verdict = found.claim.verdict
    assert verdict is not None
    answer = cards._answer(verdict, found)
    assert said in answer
    assert answer.endswith(".")
    assert ". " not in answer


@pytest.mark.parametrize(
    ("gain", "known"),
    [
        (Interval(20.0, 15.0, 25.0, 3), True),
        (Interval(20.0), True),
        (Interval(-1.7, -2.5, -0.9, 3), False),
        (Interval(1.7, -5.5, 8.8, 3), False),
        (None, False),
    ],
)
def test_costs_are_multiples_of_the_twins_only_where_attacks_gain_on_the_twin(
    gain: Interval | None, known: bool
) -> None:
    twin = dataclasses.replace(score("untested"), resistance=Resistance(gain=gain))
    release = dataclasses.replace(score("refuted"), cost_to_break={"steps": {0.5: Multiple(3.0), 0.9: Multiple(4.0)}})
    rows = cards._costs(release, twin)
    assert ("attacker's steps to 50 % of the twin's gain", "3×", "1×") in rows or not known
    assert ("1×" in {cell for row in rows for cell in row}) is known
    why = "the twin has no complete result" if gain is None else "no attack is shown to gain on the twin"
    assert any(why in row[1] for row in rows) is not known


def test_a_trivial_change_of_the_twin_is_named_with_its_dose() -> None:
    doses = ("noise[scale=0.02]", "noise", "noise[scale=0.3]")
    records = [*factories.suite(), *(one for dose in doses for one in factories.sweep(dose, factories.STOPPED))]
    board = factories.scored(records, ladder={"noise": Family(doses=doses)})
    release = next(one for one in board.scores if one.defense == "pmp")
    named = [row[0] for row in cards._controls(board, release).rows]
    assert sorted(named) == ["noise · 0.02", "noise · 0.1", "noise · 0.3", "the release"]


def planned(records: list[Record]) -> Manifest:
    cells = (PlannedCell(one.defense, one.attack, one.task, one.seed, str(index)) for index, one in enumerate(records))
    return Manifest(suite=tiny_suite(), cells=tuple(cells))


def test_a_cell_that_failed_is_no_result() -> None:
    records = factories.suite()
    broken = [factories.failed(one, "oom") if index < 2 else one for index, one in enumerate(records)]
    manifest = planned(records)
    assert cards._results(manifest, records) == f"{len(records)} of {len(records)} results"
    assert cards._results(manifest, broken) == f"{len(records) - 2} of {len(records)} results, 2 failed"


def test_of_a_part_of_the_seeds_only_their_cells_are_counted() -> None:
    """An audit with `--seeds 0` said that a third of its results were there, and that all seeds were drawn."""
    records = factories.suite()
    first = [one for one in records if one.seed == 0]
    of = len({one.seed for one in records})
    assert cards._results(planned(records), first) == f"{len(first)} of {len(first)} results at 1 of {of} seeds"
    assert cards._limits(tiny_suite(), 1)[-1].startswith("1 seed draws ")


def test_an_attack_that_failed_says_why() -> None:
    records = factories.suite()
    [first, *_] = [one for one in records if (one.defense, one.attack) == ("pmp", "full")]
    board = factories.scored([factories.failed(one) if one is first else one for one in records])
    release, twin = (next(one for one in board.scores if one.defense == name) for name in ("pmp", "none"))
    [results] = [row[-1] for row in cards._tried(release, twin).rows if row[0] == "full"]
    assert results.startswith("9 of 10; 1 × failed")
    assert "boom" in results


def test_the_cost_has_the_preparation_once_a_job_and_the_making_of_the_release() -> None:
    cell = factories.record("pmp", "heal", "sst2", 0, 0.5)
    cell = dataclasses.replace(
        cell, release="r", cost=Cost(preparation_seconds=100.0), provenance={**cell.provenance, "seconds": 20.0}
    )
    measured = dataclasses.replace(cell, attack="none", cost=None, protection=Protection(1, 3000.0, None))
    assert cards._seconds([cell, dataclasses.replace(cell, task="ag_news"), measured]) == 100 + 3 * 20 + 3000


def test_a_release_on_the_hub_is_named_with_its_commit() -> None:
    assert cards._at("org/name", "a" * 40) == f"org/name at {'a' * 40}"
    assert cards._at("folder", None) == "folder"


def test_an_untested_claim_is_not_said_to_be_the_fault_of_an_attack() -> None:
    """Records of two versions of torch, or another tokenizer, leave a claim untested as well."""
    found = score("untested", Interval(4, 3, 5, 5), Interval(9.5, 8.0, 11.0, 5, 0.01))
    assert cards._answer("untested", found) == "The protection is untested: a doubt below has to be cleared first."


def test_an_excess_that_is_not_known_says_why() -> None:
    blank = dataclasses.replace(
        score("untested"), excess=Excess(reason="no utility metric on which twin is above the floor")
    )
    twin = dataclasses.replace(score("untested"), defense="twin")
    [said] = [
        row[1] for row in cards._numbers(blank, twin).rows if row[0] == "taken beyond trivial changes of the twin"
    ]
    assert said == "not known: no utility metric on which the undefended twin is above the floor"


def test_the_model_index_is_read_by_the_hubs_own_library() -> None:
    text = model_index.text("mine", "audit", score("holds", Interval(4, 3, 5, 5)), "nftbench audit mine")
    name, results = model_index_to_eval_results(yaml.safe_load(text)["model-index"])
    assert name == "mine"
    found: dict[str, EvalResult] = {one.metric_type: one for one in results}
    assert {kind: one.metric_value for kind, one in found.items()} == {
        "nftbench.attacked_score": 70.12,
        "nftbench.suppression": 9.5,
        "nftbench.excess": 4.0,
        "nftbench.utility_kept": 98.1,
    }
    for one in results:
        assert one.metric_args is not None
        assert one.metric_args["command"] == "nftbench audit mine"
        assert len(one.metric_args["interval"]) == 2


def test_without_a_number_there_is_no_model_index() -> None:
    blank = dataclasses.replace(score("untested"), utility=Utility(), resistance=Resistance(), excess=Excess())
    assert model_index.text("mine", "audit", blank, "nftbench audit mine") == ""


class Tags(html.parser.HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def hostile() -> Card:
    return Card(
        name=HOSTILE,
        verdict="refuted",
        answer=f"Refuted: {HOSTILE}.",
        facts=(("release", HOSTILE),),
        tables=((Table(HOSTILE, (HOSTILE, "b"), ((HOSTILE, HOSTILE),)), HOSTILE),),
        doubts=(HOSTILE,),
        limits=(HOSTILE,),
        command=HOSTILE,
        model_index=f"a: 1\n```\n{HOSTILE}",
    )


def test_html_shows_hostile_texts_and_runs_none(hostile: Card) -> None:
    page = Tags(cards.as_html(hostile))
    assert "script" not in page.tags
    assert not page.attributes & {"onerror", "onload", "onclick", "src", "href"}
    assert page.text.count(HOSTILE) == 13
    assert "{{ 7*7 }}" in page.text


def test_markdown_escapes_hostile_texts(hostile: Card) -> None:
    page = cards.as_markdown(hostile)
    shown = [line for line in page.splitlines() if not line.startswith("    ")]
    assert not any("<script" in line for line in shown)
    rows = [line for line in shown if line.startswith("| ")]
    assert all(line.replace("\\|", "").count("|") == 3 for line in rows)
    assert "```" not in "\n".join(shown)


def test_without_a_model_index_nothing_is_said_of_it(hostile: Card) -> None:
    blank = dataclasses.replace(hostile, model_index="")
    for page, bare in ((f(hostile), f(blank)) for f in (cards.as_html, cards.as_markdown)):
        assert "These lines belong" in page
        assert "These lines belong" not in bare


def test_the_page_loads_nothing(hostile: Card) -> None:
    page = cards.as_html(hostile)
    assert "http" not in page
    assert "url(" not in page
    assert "@import" not in page
