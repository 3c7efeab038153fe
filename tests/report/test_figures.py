"""A defense looks the same in every figure; names are whole, and the legend says each once."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt

from nftbench.report import figures
from nftbench.report.styles import styles
from nftbench.scoring.budget_curve import BudgetCurve
from nftbench.scoring.intervals import Interval
from tests.factories import TASKS, record, scored, suite, sweep

LONG = "condition_number[balanced=true,epochs=40,harmful=toy_topic,lambda_ill=10,lambda_well=1,learning_rate=0.001]"


def test_the_colour_of_a_defense_does_not_depend_on_the_other_rows() -> None:
    alone, among = styles(["pmp[radius=1]"]), styles(["dlr_lock", "mine", "pmp[radius=1]", "pmp[radius=2]"])
    assert alone["pmp[radius=1]"].color == among["pmp[radius=1]"].color == among["pmp[radius=2]"].color
    assert styles(["mine"])["mine"].color == among["mine"].color
    assert len({(one.color, one.marker, one.dash) for one in among.values()}) == len(among)


def test_more_attacks_make_the_figure_longer_and_not_wider() -> None:
    few = suite()
    many = [record("none", f"lora[rank={rank}]", TASKS[0], 0, 0.5) for rank in range(1, 40)]
    found = []
    for records in (few, [*few, *many]):
        made = figures.attacks(scored(records), records)
        assert made is not None
        found.append(made.get_size_inches())
        plt.close(made)
    (width, height), (same, longer) = found
    assert width == same
    assert longer > height


def test_the_budget_figure_names_each_line_once_by_its_whole_label() -> None:
    ends = (Interval(0.3), Interval(0.6))
    lines = [BudgetCurve(name, (1.0, 10.0), ends) for name in (LONG, "none", "scratch", "scratch", "scratch")]
    board = replace(scored([*suite(), *sweep(LONG, (0.6,) * 5)]), budgets=tuple(lines))
    made = figures.budget(board)
    assert made is not None
    legend = made.axes[0].get_legend()
    assert legend is not None
    words = [text.get_text() for text in legend.get_texts()]
    assert words == ["condition_number", "none", "scratch"]
    plt.close(made)


def test_each_figure_is_a_png_and_an_svg_with_real_text(tmp_path: Path) -> None:
    paths = figures.write(scored(suite()), suite(), tmp_path)
    assert {path.name for path in paths} >= {"frontier.png", "frontier.svg", "attacks.png", "attacks.svg"}
    texts = {one.text for one in ET.parse(tmp_path / "frontier.svg").iter() if one.tag.endswith("}text")}
    assert "pmp" in texts
    first = (tmp_path / "frontier.svg").read_bytes()
    figures.write(scored(suite()), suite(), tmp_path)
    assert (tmp_path / "frontier.svg").read_bytes() == first
