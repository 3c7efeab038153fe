"""Leaving one attack out scores as a run without it; the strongest attacks are counted by hand."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from nftbench.calibration import attacks
from nftbench.calibration.proof import Run
from nftbench.cli import main
from nftbench.errors import NftbenchError
from nftbench.planning.plan import plan
from nftbench.records.record import CellId, Record
from nftbench.records.store import Store
from nftbench.scoring import score
from nftbench.testing import tiny_suite
from tests.factories import LADDER, TASKS, record, suite


def records() -> list[Record]:
    """`full` on every row as in the factories, and `lora`, which alone breaks `pmp` on the task `topic`."""
    ends: Mapping[str, float] = {"none": 0.70, "early_stop": 0.60, "pmp": 0.79}
    added = [
        replace(record(row, "lora", task, seed, end if task == "topic" else 0.45), row=one.row)
        for row, end in ends.items()
        for one in [next(one for one in suite() if one.defense == row)]
        for task, seed in itertools.product(TASKS, range(5))
    ]
    return [*suite(), *added]


def run_of(found: list[Record]) -> Run:
    planned = tuple(CellId.of(one) for one in found)
    return Run(tiny_suite(defenses=["none", "early_stop", "pmp"], ranking=[]), planned, tuple(found), LADDER)


def test_leaving_an_attack_out_scores_as_a_run_without_it() -> None:
    found = attacks.judge([run_of(records())])
    changes = {(one["attack"], one["row"]): one for one in found.numbers["changes"]}
    for attack in ("full", "lora", "scratch"):
        rest = [one for one in records() if one.attack != attack]
        board = score(rest, ranking=frozenset(), ladder=LADDER)
        for one in board.scores:
            change = changes[attack, one.defense]
            assert change["suppression"][1] == (taken.value if (taken := one.resistance.suppression) else None)
            assert change["verdict"][1] == one.claim.verdict
    pmp = changes["lora", "pmp"]
    # full: 82 - 52 = 30 on both tasks; with lora topic ends at 79, 3 below, so the mean is 16.5
    assert pmp["suppression"] == pytest.approx((16.5, 30.0))
    assert (pmp["more"], pmp["alone"]) == (pytest.approx(13.5), pytest.approx(13.5))
    # without full the undefended model ends at (45 + 70) / 2 instead of 82, and pmp at (45 + 79) / 2 instead of 65.5
    assert changes["full", "none"]["alone"] == pytest.approx(82 - 57.5)
    assert changes["full", "pmp"]["alone"] == pytest.approx(65.5 - 62)
    assert changes["full", "pmp"]["more"] == pytest.approx(57.5 - 62 - 16.5)


def test_the_strongest_attacks_are_counted() -> None:
    found = attacks.judge([run_of(records())])
    assert found.numbers["strongest"] == {
        "full": {"none": 10, "early_stop": 10, "pmp": 5},
        "lora": {"pmp": 5},
    }
    worth = {row[0]: row for row in found.tables[0].rows}
    assert worth["full"][:4] == ("full", "release alone", "25 of 30", "10")
    assert worth["lora"][2:6] == ("5 of 30", "0", "13.5 pmp", "1")
    assert worth["scratch"][4:] == ("–", "0", "0", "0")


def test_only_rows_that_an_attack_changes_are_listed() -> None:
    rows = attacks.judge([run_of(records())]).tables[1].rows
    assert ("lora", "pmp", "65.5", "52.0", "16.5", "30.0", "holds", "holds", "1", "1") in rows
    assert not any(row[0] == "scratch" for row in rows)


def test_without_its_only_fine_tuning_attack_a_row_has_no_scores() -> None:
    found = attacks.judge([run_of(suite())])
    change = next(one for one in found.numbers["changes"] if (one["attack"], one["row"]) == ("full", "pmp"))
    assert change["suppression"] == (pytest.approx(30.0), None)
    assert change["verdict"] == ("holds", "untested")
    assert change["place"] == ("1", "unranked")


def test_of_two_attacks_with_equal_results_neither_is_missed() -> None:
    twice = [replace(one, attack="again", key=f"again/{one.key}") for one in suite() if one.attack == "full"]
    found = attacks.judge([run_of([*suite(), *twice])])
    assert all((one["more"], one["alone"]) == (0.0, 0.0) for one in found.numbers["changes"])


def test_authorized_fine_tuning_is_not_left_out_as_an_attack() -> None:
    owner = [record("pmp", "authorized", task, seed, 0.9, knowledge=("secret",)) for task in TASKS for seed in range(5)]
    found = attacks.judge([run_of([*suite(), *owner])])
    assert {one["attack"] for one in found.numbers["changes"]} == {"full", "scratch"}


def test_a_row_with_one_attack_has_no_scores_without_it() -> None:
    """As `nftbench run --defenses pmp --attacks full` leaves it, before the rest is run."""
    partly = [one for one in suite() if one.defense != "pmp" or one.attack == "full"]
    found = attacks.judge([replace(run_of(suite()), records=tuple(partly))])
    change = next(one for one in found.numbers["changes"] if (one["attack"], one["row"]) == ("full", "pmp"))
    assert (change["attacked"][1], change["suppression"][1], change["place"][1]) == (None, None, "unranked")
    assert "have no result" in found.notes[0]


def test_other_than_one_run_is_refused() -> None:
    with pytest.raises(NftbenchError, match="reads one run"):
        attacks.judge([run_of(suite()), run_of(suite())])


def test_the_verb_reads_a_finished_run(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Leaving out is from records alone, and writes elsewhere."""
    suite = tiny_suite(attacks=["full", "head"], ladder={"early_stop": ["early_stop"]}, seeds=[0, 1, 2])
    whole, store = plan(suite), Store(tmp_path / "run", tmp_path)
    store.write_manifest(whole.manifest(""))
    for cell in whole.cells:
        made = record(str(cell.defense), str(cell.attack), str(cell.task), cell.seed, 0.8, role=whole.role(cell))
        store.write(replace(made, key=cell.key, row=whole.rows[cell.defense]))
    monkeypatch.chdir(tmp_path)
    assert main(["calibrate", "small", "--proof", "attacks", "--from", "run"]) == 0
    assert "tiny-attacks: reported" in " ".join(capsys.readouterr().out.split())
    found = json.loads(Path("runs/small-attacks/attacks.json").read_text())
    counted = sum(times for rows_ in found["strongest"].values() for times in rows_.values())
    assert counted == 2 * 3  # rows, seeds
    assert main(["calibrate", "small", "--proof", "spread", "--from", "run"]) == 0
    assert len(json.loads(Path("runs/small-spread/spread.json").read_text())["spreads"]) == 2 * 2  # task, all tasks


def test_the_verb_says_which_file_or_proof_is_missing(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["calibrate", "small", "--proof", "attacks"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("nftbench: runs/small: no results here, and --proof attacks reads them; nftbench run small ")
    assert main(["calibrate", "small", "--proof", "power"]) == 2
    assert "nftbench calibrate small --proof null makes them, or name another folder" in capsys.readouterr().err
    assert main(["calibrate", "small", "--proof", "attack"]) == 2
    assert "did you mean 'attacks'?" in capsys.readouterr().err
    Path("manifest.json").write_text("{}")
    assert main(["calibrate", "small", "--proof", "spread", "--from", "."]) == 2
    assert "manifest.json: not a manifest of nftbench" in capsys.readouterr().err
