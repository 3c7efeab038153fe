"""The picture of the frontier: a line for each family, every defense once, its excess from the curve to the point."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from nftbench.report import figures
from nftbench.report.frontier_figure import frontier
from nftbench.report.frontier_path import path
from nftbench.scoring import Leaderboard
from nftbench.scoring.frontier import MEAN
from nftbench.scoring.scores import Curve, Score
from tests.factories import scored, suite
from tests.scoring import drawn
from tests.scoring.drawn import Truth, kept

TRUTHS = {**drawn.CROWD, "wreck": Truth(-1.0, np.array([-3, 0.2, 0.4, 0.5, 0.3, 0.2, 0.1]))}


def board_of(truths: Mapping[str, Truth]) -> Leaderboard:
    return drawn.board(drawn.records(truths, np.random.default_rng(5)))


@pytest.fixture(scope="module")
def board() -> Leaderboard:
    return board_of(TRUTHS)


@pytest.fixture
def figure(board: Leaderboard) -> Iterator[Figure]:
    made = frontier(board)
    assert made is not None
    yield made
    plt.close(made)


def defenses(board: Leaderboard) -> list[Score]:
    return [one for one in board.scores if one.kind == "defense"]


def test_there_is_one_panel_with_a_line_for_each_family(figure: Figure) -> None:
    [axes] = figure.axes
    assert axes.get_xlabel() == "utility kept, %: mean over the metrics"
    lines = [line for line in axes.get_lines() if line.get_label() in drawn.DOSES]
    assert [line.get_label() for line in lines] == list(drawn.DOSES)
    assert len({line.get_linestyle() for line in lines}) == len(lines)


def test_the_excess_is_a_bar_from_the_curve_that_binds_to_the_point(board: Leaderboard, figure: Figure) -> None:
    for one in defenses(board):
        excess, taken = one.excess.interval, one.resistance.suppression
        assert excess
        assert taken
        [axes] = figure.axes
        [bar] = [line for line in axes.get_lines() if line.get_label() == f"excess of {one.defense}"]
        [curve] = [line for line in axes.get_lines() if line.get_label() == one.excess.family]
        (x, _), (low, high) = np.asarray(bar.get_xdata()), np.asarray(bar.get_ydata())
        if one.excess.metric == MEAN:
            assert high - low == pytest.approx(excess.value)
        else:
            assert high - low >= excess.value
        assert high == pytest.approx(taken.value)
        assert low == pytest.approx(np.interp(x, *np.asarray(curve.get_xydata())[::-1].T))


def test_each_defense_is_named_once_and_no_dose_is(board: Leaderboard, figure: Figure) -> None:
    names = [text.get_text().split("\n")[0] for axes in figure.axes for text in labels(axes)]
    assert sorted(names) == ["destroyer", "mask", "oracle", "pmp", "pmp · released", "wreck"]
    [wreck] = [text.get_text() for axes in figure.axes for text in labels(axes) if text.get_text().startswith("wreck")]
    retention = next(one for one in board.scores if one.defense == "wreck").utility.retention
    assert retention is not None
    assert f"at {100 * retention.value:.0f} % utility" in wreck  # it stands at the edge


def test_the_label_names_a_metric_that_binds_alone(board: Leaderboard, figure: Figure) -> None:
    alone = {one.defense: one.excess.metric for one in defenses(board) if one.excess.metric != MEAN}
    assert alone["destroyer"] == "tone"
    words = {text.get_text().split("\n")[0]: text.get_text() for axes in figure.axes for text in labels(axes)}
    assert "by tone alone" in words["destroyer"]
    assert "alone" not in words["mask"]


def test_labels_do_not_overlap() -> None:
    made = frontier(board_of({f"near[step={index}]": Truth(18.0 + index, kept(0.25)) for index in range(7)}))
    assert made is not None
    made.canvas.draw()
    for axes in made.axes:
        boxes = [super(Annotation, text).get_window_extent() for text in labels(axes)]
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert sum(len(labels(axes)) for axes in made.axes) == 7
    plt.close(made)


def labels(axes: Axes) -> list[Annotation]:
    return [text for text in axes.texts if isinstance(text, Annotation)]


def test_without_a_ladder_rows_are_drawn_without_curves() -> None:
    made = frontier(scored(suite(), ladder={}))
    assert made is not None
    [axes] = made.axes
    assert [text.get_text() for text in labels(axes)] == ["pmp", "early_stop"]
    assert not [line for line in axes.get_lines() if len(np.asarray(line.get_xdata())) > 1]
    plt.close(made)
    assert frontier(scored([])) is None


def test_a_staircase_is_flat_up_to_its_next_dose() -> None:
    doses = (("narrow", 0.8, 5.0), ("narrower", 0.4, 12.0))
    knots = ((1.0, 0.0), (0.8, 5.0), (0.4, 12.0))
    stairs = path(Curve("narrow", "pairs", "none", knots, doses, stairs=True))
    assert stairs[1:-1] == [(100, 0), (80, 0), (80, 5), (40, 5), (40, 12)]
    assert stairs[-1][1] == 12  # and after the last dose
    assert path(Curve("noise", "pairs", "none", knots, doses))[-1] == (40, 12)  # the family ends there


def test_a_curve_goes_on_flat_above_the_undefended_model() -> None:
    """A dose that keeps everything takes two points: so much can be had for nothing."""
    knots = ((1.0, 0.0), (1.0, 2.0), (0.5, 9.0), (0.0, 30.0))
    (far, most), *line, (least, end) = path(Curve("noise", "pairs", "none", knots, ()))
    assert far > 100
    assert line == [(100, most), (50, 9), (0, 30)]
    assert (most, end) == (2, 30)
    assert least < 0


def test_names_are_shown_as_they_are() -> None:
    made = frontier(board_of({"a[text=$x$_$y]": Truth(5.0)}))
    assert made is not None
    made.canvas.draw()  # raises where a dollar sign begins a formula
    plt.close(made)


def test_other_figures_leave_the_doses_out(board: Leaderboard) -> None:
    records = drawn.records(TRUTHS, np.random.default_rng(5))
    made = figures.attacks(board, records)
    assert made is not None
    shown = [text.get_text() for text in made.axes[0].get_xticklabels()]
    assert sorted(shown) == sorted(["destroyer", "mask", "none", "oracle", "pmp", "pmp · released", "wreck"])
    plt.close(made)
