"""Rank correlations between two runs, against enumerations and simulations of their own."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nftbench.calibration import order
from nftbench.calibration.proof import Run
from nftbench.cli import main
from nftbench.errors import NftbenchError
from nftbench.records.record import CellId
from nftbench.scoring.scores import Kind
from nftbench.testing import tiny_suite
from tests.factories import row, scratch, sweep

UNDEFENDED = (0.80, 0.82, 0.84)


def run_of(name: str, **ends: float) -> Run:
    """A run in which the attack ends at the same score on every seed of a row; names become rows."""
    records = [*sweep("none", UNDEFENDED), *scratch((0.4,) * 3)]
    for text, end in ends.items():
        records += [replace(one, row=row(text)) for one in sweep(text, (end,) * 3, utility=end)]
    return Run(tiny_suite(name=name, ranking=[]), tuple(map(CellId.of, records)), tuple(records))


def test_equal_specs_are_paired_and_then_defenses_whose_name_occurs_once() -> None:
    """Two doses of a trivial defense are no pair."""
    first = ["noise[scale=0.1]", "short", "lox", "booster[steps=350]", "pmp", "tar[steps=1]", "tar[steps=2]"]
    second = ["short", "noise[scale=0.3]", "lox", "booster[steps=20]", "tar[steps=3]"]
    kinds: list[dict[str, Kind]] = [
        {row: "trivial" if row.startswith(("noise", "short")) else "defense" for row in rows}
        for rows in (first, second)
    ]
    assert order.paired(*kinds) == [("short", "short"), ("lox", "lox"), ("booster[steps=350]", "booster[steps=20]")]


def test_p_is_the_share_of_orders_that_correlate_as_highly() -> None:
    first, second = [3.0, 1.0, 4.0, 1.5, 5.0], [2.0, 0.5, 1.0, 1.2, 9.0]

    def rho(one: list[float], other: list[float]) -> float:
        """Pearson's correlation of ranks."""
        return float(np.corrcoef(np.argsort(np.argsort(one)), np.argsort(np.argsort(other)))[0, 1])

    found = order.spearman(first, second)
    assert found is not None
    assert found.value == pytest.approx(rho(first, second))
    as_high = [rho(list(one), second) >= rho(first, second) - 1e-9 for one in itertools.permutations(first)]
    assert found.p == pytest.approx(sum(as_high) / math.factorial(5))
    assert found.count == 5


def test_the_interval_is_that_of_bonett_and_wright() -> None:
    """Their formula by hand at ρ = 0.6 of 19 pairs: artanh 0.6931, error √(1.18 / 16) = 0.27157."""
    low, high = order.ends(0.6, 19)
    assert low == pytest.approx(math.tanh(0.693147 - 1.959964 * 0.271570), abs=1e-5)
    assert high == pytest.approx(math.tanh(0.693147 + 1.959964 * 0.271570), abs=1e-5)


def test_a_perfect_order_of_few_rows_is_not_certain() -> None:
    found = order.spearman([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0])
    assert found is not None
    assert found.low < 0 < found.high == found.value == 1.0
    assert found.p == pytest.approx(1 / 24)
    assert order.ends(-1.0, 4) == pytest.approx((-1.0, -found.low))


@pytest.mark.parametrize("values", [[1.0, 2.0, 3.0], [1.0, 1.0, 1.0, 1.0]])
def test_too_few_rows_and_equal_values_have_no_correlation(values: list[float]) -> None:
    assert order.spearman(values, list(range(len(values)))) is None
    assert order.spearman(list(range(len(values))), values) is None


@pytest.mark.parametrize("count", [5, 8, 16])
@pytest.mark.parametrize("true", [0.0, 0.5, 0.9])
def test_intervals_hold_the_true_correlation(count: int, true: float) -> None:
    """Of normal pairs, whose ρ is 6/π · arcsin(r/2): at least 92.5 of 95 % in 1,500 draws."""
    draw = np.random.default_rng(count)
    linear = 2 * math.sin(math.pi * true / 6)
    pairs = draw.multivariate_normal([0, 0], [[1, linear], [linear, 1]], (1500, count))
    ranks = pairs.argsort(1).argsort(1)
    rhos = 1 - 6 * ((ranks[..., 0] - ranks[..., 1]) ** 2).sum(1) / (count * (count**2 - 1))
    held = [low <= true <= high for low, high in (order.ends(float(rho), count) for rho in rhos)]
    assert np.mean(held) >= 0.925


def test_two_runs_are_compared_row_by_row() -> None:
    toy = run_of("toy", lox=0.79, specdef=0.5, vaccine=0.7, booster=0.6, pmp=0.4)
    real = run_of("real", lox=0.8, specdef=0.45, vaccine=0.62, booster=0.65, tar=0.4)
    found = order.judge([toy, real])
    assert found.name == "toy-order"
    assert found.valid
    by_quantity = {one["quantity"]: one for one in found.numbers["correlations"]}
    assert {one["of"] for one in found.numbers["correlations"]} == {"defenses"}
    assert set(by_quantity) == {"suppression, ranking", "suppression, release alone", "utility kept"}
    for one in by_quantity.values():  # lox, vaccine, booster, specdef against lox, booster, vaccine, specdef
        assert one["rho"]["value"] == pytest.approx(0.8)
        assert one["rho"]["count"] == 4
    assert [note for note in found.notes if note.startswith("only in")] == [
        "only in the first run: pmp",
        "only in the second run: tar",
    ]
    cells = {line[0]: line[1:] for line in found.tables[1].rows}
    assert set(cells) == {"lox", "specdef", "vaccine", "booster"}
    assert cells["specdef"][0].startswith("32.0 [")
    assert cells["specdef"][1].startswith("37.0 [")


def test_defenses_are_also_taken_without_the_doses_of_trivial_ones() -> None:
    ends = {"lox": 0.79, "specdef": 0.5, "vaccine": 0.7, "booster": 0.6}
    toy, real = (run_of(name, **ends, noise=0.3, short=0.2, prune=0.1) for name in ("toy", "real"))
    trivial = {"noise", "short", "prune"}
    both = [
        replace(
            run,
            records=tuple(replace(one, row=row(one.defense, trivial=one.defense in trivial)) for one in run.records),
        )
        for run in (toy, real)
    ]
    counts = {(one["quantity"], one["of"]): one["rho"]["count"] for one in order.judge(both).numbers["correlations"]}
    assert counts["suppression, ranking", "defenses"] == 4
    assert counts["suppression, ranking", "all rows"] == 7


def test_it_takes_two_runs_with_rows_in_common() -> None:
    toy = run_of("toy", lox=0.79)
    with pytest.raises(NftbenchError, match="reads two runs"):
        order.judge([toy])
    with pytest.raises(NftbenchError, match="no row in common"):
        order.judge([toy, run_of("real", tar=0.5)])


def test_published_folders_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`standard` against the paper's suite of PMP, which share three rows; that is too few for a correlation."""
    results = Path(__file__).parents[2] / "results"
    folders = ["--from", str(results / "standard"), "--from", str(results / "paper-pmp")]
    assert main(["calibrate", "standard", "--proof", "order", *folders, "--out", str(tmp_path)]) == 0
    written = json.loads((tmp_path / "order.json").read_text())
    assert written["runs"] == ["standard", "paper-pmp"]
    assert "random_mask" in capsys.readouterr().out
