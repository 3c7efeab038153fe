"""The pages say when, where and with what a leaderboard's records were made, and name every value that occurs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nftbench.cli import execution
from nftbench.records.record import Record
from nftbench.report import page as pages, provenance, web
from tests.comparing.sides import PMP, manifest, records as run
from tests.factories import scored, suite

COMMAND = "nftbench run tiny"
XEON = {
    **{"device": "cpu", "processor": "Xeon", "vendor": "GenuineIntel", "family": "6", "model": "207"},
    **{"stepping": "2", "cpu_capability": "AVX512", "threads": 1, "cuda": None},
}
MADE = {
    "written": "2026-11-28T17:00:57+00:00",
    "hardware": XEON,
    "versions": {"torch": "2.13.0", "datasets": "5.2.0", "nftbench": "0.2.0"},
    "commit": "a" * 40,
    "isolation": "landlock",
}


def made(*others: dict[str, Any]) -> list[Record]:
    """Records of one run, the first of which differ as `others` say."""
    changes = [*others, *[{}] * len(suite())]
    return [replace(one, provenance=MADE | change) for one, change in zip(suite(), changes, strict=False)]


def test_one_run_is_said_in_a_line_each() -> None:
    assert provenance.facts(scored(made())) == {
        "written": "2026-11-28 (UTC)",
        "hardware": "Xeon (GenuineIntel, family 6, model 207, stepping 2), AVX512, 1 thread",
        "versions": "nftbench 0.2.0, datasets 5.2.0, torch 2.13.0",
        "commit": "aaaaaaaaaaaa",
        "isolation": "landlock: the kernel kept plugins from secrets and from the cache",
    }


def test_every_value_is_named_where_records_differ() -> None:
    card = {"device": "cuda", "gpu": "H200", "cuda": "13.0", "vendor": "0x41", "threads": 16}
    other = {"written": "2026-11-30T01:00:00+00:00", "commit": "b" * 40 + "-dirty", "isolation": "process"}
    bare = {"written": None, "commit": None, "isolation": None, "hardware": None, "versions": {"torch": "2.9.0"}}
    found = provenance.facts(scored(made({**other, "hardware": card}, bare)))
    assert found["written"] == "2026-11-28 to 2026-11-30 (UTC)"
    assert {"H200, CUDA 13.0, 0x41, 16 threads", "unknown"} < set(found["hardware"].split("; "))
    assert found["versions"].endswith("torch 2.13.0 and 2.9.0")
    count = len(suite()) - 2
    assert found["commit"] == f"{'a' * 12} ({count} records), {'b' * 12}-dirty (1 record), unknown (1 record)"
    assert [one.partition(":")[0] for one in found["isolation"].split("; ")] == ["landlock", "process", "unknown"]


def test_both_pages_show_all_of_it_beside_the_command() -> None:
    board = scored(made())
    written = pages.leaderboard(board, COMMAND).partition("\n## Provenance\n")[2]
    shown = web.text([(board, COMMAND)]).partition("<h2>Provenance</h2>")[2]
    facts = provenance.facts(board)
    assert len(facts) == 5
    for name, fact in facts.items():
        assert f"- **{name}**: {fact}\n" in written
        assert f"<dt>{name}</dt><dd>{fact}</dd>" in shown
    assert written.endswith(f"\n## The command\n\n    {COMMAND}\n")
    assert f"<code>{COMMAND}</code>" in shown


def test_a_leaderboard_without_records_has_none() -> None:
    assert provenance.facts(scored([])) == {}
    assert "Provenance" not in pages.leaderboard(scored([]), COMMAND)


@pytest.mark.parametrize(
    ("source", "public", "said"), [("toy", False, "drawn at random"), ("toy", True, "public"), ("text", False, "none")]
)
def test_the_salt_of_grammars_is_said(source: str, public: bool, said: str) -> None:
    found = run({"pmp": PMP})
    plan = manifest(found)
    suite = plan.suite.model_copy(update={"corpus": plan.suite.corpus.model_copy(update={"source": source})})
    board = execution.rank({one.key: one for one in found}, replace(plan, suite=suite, public_salt=public))
    assert provenance.facts(board).get("salt", "none").startswith(said)
