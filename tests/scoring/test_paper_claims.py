"""What a paper claims beside what was measured: every quantity against numbers worked out by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nftbench import NftbenchError, Reading, report as reports
from nftbench.planning.plan import plan
from nftbench.records.record import Record
from nftbench.report import page
from nftbench.scoring.grid import arrange
from nftbench.scoring.side_tables.paper_claims import ClaimResult, examine
from nftbench.scoring.side_tables.readings import Readings
from nftbench.suites.reading import parse
from nftbench.suites.schema import PaperClaim
from nftbench.testing import tiny_suite
from tests.factories import RANKING, measurement, record, row, scored, suite, sweep

COUNT = 3


def reading(defense: str, seed: int, **values: float) -> Record:
    found = record(defense, "none", "cost[batch=2]", seed, 0.0, role="yardstick")
    return replace(found, attacked=None, unattacked=None, validation=None, reading=Reading(values))


def examined(records: list[Record], **claim: Any) -> ClaimResult:
    grid, _ = arrange(records, None, RANKING)
    readings = [one for one in records if one.role == "yardstick"]
    (found,) = examine([PaperClaim.model_validate({"says": "so", **claim})], grid, readings)
    return found


def test_gain_of_one_row_less_that_of_another() -> None:
    # none ends at 80, 82, 84 and pmp at 50, 53, 55; both begin at 30
    none, pmp = ({"rows": [name], "read": "gain", "attacks": ["full"]} for name in ("none", "pmp"))
    found = examined(suite(COUNT), read=none, minus=pmp, above=20)
    assert found.measured is not None
    assert found.measured.value == pytest.approx((30 + 29 + 29) / 3)
    assert found.outcome == "holds"
    assert examined(suite(COUNT), read=none, minus=pmp, below=20).outcome == "does not hold"
    assert examined(suite(COUNT), read=none, minus=pmp, above=29.3).outcome == "not distinguishable"
    assert examined(suite(COUNT), read=none, minus=pmp).outcome == "measured"


def test_score_on_the_tasks_and_rows_that_the_claim_names() -> None:
    found = examined(suite(COUNT), read={"rows": ["none", "pmp"], "read": "score", "tasks": ["topic"]}, above=0)
    assert found.measured is not None
    assert found.measured.value == pytest.approx(((80 + 50) / 2 + (82 + 53) / 2 + (84 + 55) / 2) / 3)


def test_the_attack_is_picked_on_validation() -> None:
    lucky = [record("pmp", "lora", "topic", seed, 0.56, validation=measurement(0.49)) for seed in range(COUNT)]
    lucky = [replace(one, row=row("pmp")) for one in lucky]
    found = examined([*suite(COUNT), *lucky], read={"rows": ["pmp"], "read": "score", "tasks": ["topic"]})
    assert found.measured is not None
    assert found.measured.value == pytest.approx((50 + 53 + 55) / 3)


def test_kept_is_the_share_of_the_way_from_the_base() -> None:
    # the base scores 30, the standalone update 70, merged 40, 50, 60: a quarter, a half, three quarters of the way
    rows = [*sweep("none", (0.8,) * COUNT), *sweep("trap", (0.4, 0.5, 0.6), attack="merge", unattacked=0.7)]
    found = examined(rows, read={"rows": ["trap"], "read": "kept", "attacks": ["merge"]}, below=1)
    assert found.measured is not None
    assert found.measured.value == pytest.approx(0.5)
    assert found.outcome == "not distinguishable"  # three seeds so far apart reach beyond 1


def test_utility_in_percent_of_the_reference() -> None:
    rows = [*sweep("none", (0.8,) * COUNT), *sweep("pmp", (0.8,) * COUNT, utility=0.65)]
    found = examined(rows, read={"rows": ["pmp"], "read": "utility"}, below=95)
    assert found.measured is not None
    assert found.measured.value == pytest.approx(100 * 0.4 / 0.5)
    assert found.outcome == "holds"


def test_utility_is_the_leaderboards_and_leaves_out_what_the_reference_does_not_know() -> None:
    """Around chance a share is noise: here the reference has 1 point of it, and the row 30."""
    rows = [*sweep("none", (0.8,) * COUNT), *sweep("pmp", (0.8,) * COUNT, utility=0.65)]
    unknown = [
        replace(record(name, "none", "agreement", seed, value, role="utility", validation=None), row=row(name))
        for name, values in {"none": (0.26, 0.24, 0.25), "pmp": (0.55, 0.25, 0.25)}.items()
        for seed, value in enumerate(values)
    ]
    found = examined([*rows, *unknown], read={"rows": ["pmp"], "read": "utility"}, below=95)
    assert found.measured is not None
    assert found.measured.value == pytest.approx(100 * 0.4 / 0.5)
    kept = next(one for one in scored([*rows, *unknown]).scores if one.defense == "pmp").utility.retention
    assert kept is not None
    assert found.measured.value == pytest.approx(100 * kept.value)
    named = examined([*rows, *unknown], read={"rows": ["pmp"], "read": "utility", "tasks": ["agreement"]})
    assert named.measured is None
    assert "the undefended model share no seed with utility, or the latter knows nothing of a metric" in str(
        named.reason
    )


def test_utility_after_an_attack_in_percent_of_the_releases_own() -> None:
    # chance is at 0.25: pmp's release is 0.40 above it, and 0.30, 0.10 and less than nothing are left
    after = ({"minimal_pairs": 0.55}, {"minimal_pairs": 0.35}, {"minimal_pairs": 0.15})
    rows = [*sweep("none", (0.8,) * COUNT), *sweep("pmp", (0.8,) * COUNT, utility=0.65)]
    rows = [
        replace(one, attacked_utility=after[one.seed]) if (one.defense, one.attack) == ("pmp", "full") else one
        for one in rows
    ]
    read = {"rows": ["pmp"], "read": "utility_after", "attacks": ["full"]}
    found = examined(rows, read=read)
    assert found.measured is not None
    assert found.measured.value == pytest.approx(100 * (0.30 / 0.40 + 0.10 / 0.40 + 0) / 3)
    unknown = examined(rows, read=read | {"rows": ["none"]})
    assert (unknown.measured, unknown.reason) == (None, "no utility_after of none")


def test_a_metric_far_below_its_floor_takes_no_more_than_its_own_share_of_utility() -> None:
    """Text is read a hundred times worse than by chance. The pairs are still all there, and make half of it."""
    bits = [
        record(row, "none", "bits", seed, 0.0, role="utility", validation=None, unattacked=lower, attacked=lower)
        for row in ("none", "pmp")
        for seed in range(COUNT)
        for lower in (measurement(4.0, floor=6.0, higher=False),)
    ]
    after = {"minimal_pairs": 0.75, "bits": 206.0}
    rows = [
        replace(one, attacked_utility=after) if one.attack == "full" else one
        for one in [*sweep("none", (0.8,) * COUNT), *sweep("pmp", (0.8,) * COUNT), *bits]
    ]
    found = examined(rows, read={"rows": ["pmp"], "read": "utility_after", "attacks": ["full"]})
    assert found.measured is not None
    assert found.measured.value == pytest.approx(50.0)


def test_a_release_that_knows_nothing_has_no_utility_to_leave() -> None:
    """At chance, an attack would seem to leave all of it. Nor is a metric lost that was not measured."""
    read = {"rows": ["pmp"], "read": "utility_after", "attacks": ["full"]}
    for utility, after in ((0.25, {"minimal_pairs": 0.25}), (0.65, {"another": 0.65})):
        rows = [*sweep("none", (0.8,) * COUNT), *sweep("pmp", (0.8,) * COUNT, utility=utility)]
        rows = [replace(one, attacked_utility=after) if one.attack == "full" else one for one in rows]
        found = examined(rows, read=read)
        assert (found.measured, found.reason) == (None, "no utility_after of pmp")


def test_utility_is_read_after_attacks_that_it_is_measured_after_alone() -> None:
    def claimed(**quantity: Any) -> None:
        read = {"rows": ["none"], "read": "utility_after", **quantity}
        claims = [PaperClaim.model_validate({"says": "so", "read": read})]
        plan(tiny_suite(defenses=("none",), attacks=("none", "full", "head"), claims=claims, utility_after=("full",)))

    claimed(attacks=["full"])
    with pytest.raises(NftbenchError, match="claims: utility_after: head: not in the suite's utility_after"):
        claimed(attacks=["full", "head"])
    with pytest.raises(NftbenchError, match="claims: utility_after: name its attacks"):
        claimed()


def test_readings_of_yardsticks_and_their_ratio() -> None:
    readings = [reading("none", seed, bytes=2.0) for seed in range(COUNT)]
    readings += [reading("pmp", seed, bytes=6.0 + seed) for seed in range(COUNT)]
    mine, theirs = ({"rows": [name], "read": "cost.bytes"} for name in ("pmp", "none"))
    found = examined([*suite(COUNT), *readings], read=mine, over=theirs, above=1)
    assert found.measured is not None
    assert found.measured.value == pytest.approx(3.5)
    assert found.outcome == "holds"


def test_readings_are_shown_as_means_over_seeds() -> None:
    readings = [reading("pmp", seed, bytes=6.0 + seed) for seed in range(COUNT)]
    board = scored([*suite(COUNT), *readings])
    found = board.side_table(Readings).values["cost[batch=2]"]["pmp"]["bytes"]
    assert (found.value, found.count) == (pytest.approx(7.0), COUNT)
    assert "| pmp | 7 [4.52, 9.48] |" in page.leaderboard(board, "nftbench run tiny")


@pytest.mark.parametrize(
    ("quantity", "reason"),
    [
        ({"rows": ["dlr"], "read": "gain"}, "no records of dlr"),
        ({"rows": ["none", "dlr"], "read": "utility"}, "no records of dlr"),
        ({"rows": ["pmp"], "read": "gain", "attacks": ["lora"]}, "not run on pmp: lora"),
        ({"rows": ["pmp"], "read": "kept"}, "nothing to keep: unattacked pmp scores what the undefended model does"),
        ({"rows": ["pmp"], "read": "cost.bytes"}, "cost was not read off pmp"),
        ({"rows": ["none"], "read": "cost.bytes"}, "cost of none has no bytes"),
        ({"rows": ["trap"], "read": "cost.flops"}, "cost of trap, seed 0: failed"),
    ],
)
def test_a_quantity_that_is_not_measured_has_a_reason(quantity: dict[str, Any], reason: str) -> None:
    readings = [reading("none", 0, flops=1.0), replace(reading("trap", 0), status="failed", reading=None)]
    found = examined([*suite(COUNT), *readings], read=quantity)
    assert (found.measured, found.outcome, found.reason) == (None, "not measured", reason)


def test_a_comparison_names_the_side_that_is_lacking() -> None:
    gain, lacking = ({"rows": [name], "read": "gain"} for name in ("pmp", "dlr"))
    assert examined(suite(COUNT), read=gain, minus=lacking).reason == "no records of dlr"
    assert examined(suite(COUNT), read=lacking, over=gain).reason == "no records of dlr"
    apart = [reading("pmp", 0, bytes=2.0), reading("none", 1, bytes=2.0)]
    mine, theirs = ({"rows": [name], "read": "cost.bytes"} for name in ("pmp", "none"))
    assert examined([*suite(COUNT), *apart], read=mine, minus=theirs).reason == "no seed has both of its numbers"
    both = {"rows": ["pmp", "none"], "read": "cost.bytes"}
    assert examined([*suite(COUNT), *apart], read=both).reason == "no seed has it for all of pmp, none"


def test_a_quotient_by_zero_says_so() -> None:
    flat = sweep("flat", (0.4, 0.3, 0.4))  # gains 10, 0, 10 points
    found = examined(
        [*suite(COUNT), *flat], read={"rows": ["pmp"], "read": "gain"}, over={"rows": ["flat"], "read": "gain"}
    )
    assert (found.measured, found.outcome) == (None, "not measured")
    assert found.reason == "a quotient by zero: gain of flat is 0 at seed 1"


def test_a_failed_attack_is_no_measurement() -> None:
    records = [
        replace(one, status="failed", attacked=None) if one.defense == "pmp" and one.seed == 0 and one.trains else one
        for one in suite(COUNT)
    ]
    found = examined(records, read={"rows": ["pmp"], "read": "gain"})
    assert found.outcome == "not measured"
    assert found.reason == "pmp × full on pairs, seed 0: failed and 1 more"


def test_a_claim_says_on_how_many_of_the_seeds_it_rests() -> None:
    whole = examined(suite(COUNT), read={"rows": ["pmp"], "read": "gain"})
    assert whole.measured is not None
    assert (whole.measured.count, whole.planned, whole.reason) == (COUNT, COUNT, None)
    readings = [reading("pmp", seed, bytes=2.0 + seed) for seed in range(2)]
    board = scored(
        [*suite(COUNT), *readings],
        claims=[PaperClaim.model_validate({"says": "so", "read": {"rows": ["pmp"], "read": read}})
                for read in ("cost.bytes", "gain", "cost.flops")],
    )  # fmt: skip
    text = page.leaderboard(board, "nftbench run tiny")
    assert "| so | – | 2.5 [-3.85, 8.85] | 2 of 3 | – | measured |" in text
    assert "| so | – | 22.7 [16.4, 28.9] | 3 | – | measured |" in text
    assert "| so | – | – | 0 of 3 | – | not measured: cost of pmp has no flops |" in text


def test_reports_show_the_claims(tmp_path: Path) -> None:
    claim = PaperClaim.model_validate(
        {"says": "It | resists", "paper": "a lot", "read": {"rows": ["pmp"], "read": "gain"}}
    )
    reports.write(scored(suite(COUNT), claims=[claim]), tmp_path, "nftbench reproduce it")
    text = (tmp_path / "leaderboard.md").read_text()
    assert "| It \\| resists | a lot | 22.7 [16.4, 28.9] | 3 | – | measured |" in text
    assert "- **Claims**:" in text
    (found,) = json.loads((tmp_path / "leaderboard.json").read_text())["claims"]
    assert found["claim"]["says"] == "It | resists"
    assert found["measured"]["value"] == pytest.approx((20 + 23 + 25) / 3)


def test_one_seed_decides_no_claim() -> None:
    assert examined(suite(1), read={"rows": ["pmp"], "read": "gain"}, above=0).outcome == "measured"


@pytest.mark.parametrize(
    ("quantity", "message"),
    [
        ({"rows": ["pmq"], "read": "gain"}, "pmp"),
        ({"rows": ["noise"], "read": "gain"}, "unknown 'noise'"),
        ({"rows": ["none"], "read": "gian"}, "'gain'"),
        ({"rows": ["none"], "read": "cost.bytes"}, "unknown 'cost'"),
        ({"rows": ["none"], "read": "gain", "attacks": ["lora[rank=3]"]}, "lora"),
    ],
)
def test_a_claim_about_what_the_suite_does_not_run_is_refused(quantity: dict[str, Any], message: str) -> None:
    content = {**tiny_suite().model_dump(), "claims": [{"says": "so", "read": quantity}]}
    with pytest.raises(NftbenchError, match=message):
        plan(parse(content))


def test_a_claim_may_write_a_row_in_any_way() -> None:
    content = {**tiny_suite().model_dump(), "defenses": ["none", "pmp[discovery_steps=3]"]}
    quantity = {"rows": ["pmp[ratio=0.7, discovery_steps=3]"], "read": "gain"}
    (found,) = plan(parse({**content, "claims": [{"says": "so", "read": quantity}]})).claims
    assert found.read.rows == ("pmp[discovery_steps=3]",)


def test_a_claim_has_one_bound_and_one_comparison() -> None:
    quantity = {"rows": ["none"], "read": "gain"}
    for both in ({"minus": quantity, "over": quantity}, {"above": 0, "below": 1}):
        with pytest.raises(ValueError, match="exclude one another"):
            PaperClaim.model_validate({"says": "so", "read": quantity, **both})
