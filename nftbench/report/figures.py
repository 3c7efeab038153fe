"""Scores become pictures: the frontier of trivial defenses, what each attack reaches, and at what cost.

The doses of the ladder are many. They are drawn in the frontier alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")  # no display: figures are files

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from nftbench.records.record import Record
from nftbench.report import order
from nftbench.report.frontier_figure import frontier
from nftbench.scoring.leaderboard import Leaderboard
from nftbench.terms import OF_UPDATES

LABEL = 60
"""Characters of a spec that a figure shows at most."""


def write(board: Leaderboard, records: Sequence[Record], folder: Path) -> list[Path]:
    """Write `frontier.png`, `attacks.png` and `budget.png` into `folder`; one that has nothing to show is left out."""
    sns.set_theme(style="whitegrid", context="paper")
    figures = {"frontier.png": frontier(board), "attacks.png": attacks(board, records), "budget.png": budget(board)}
    paths = []
    for name, figure in figures.items():
        if figure is not None:
            figure.savefig(folder / name, dpi=160, bbox_inches="tight")
            plt.close(figure)
            paths.append(folder / name)
    return paths


def attacks(board: Leaderboard, records: Sequence[Record]) -> Figure | None:
    """What each attack reaches against each row: the mean test score over tasks and seeds, in points."""
    shown = [score.defense for score in order.without_ladder(board)]
    reached = [
        {"defense": record.defense, "attack": record.attack, "score": 100 * record.attacked.value}
        for record in records
        if record.status == "ok" and record.role == "ranked" and record.attacked is not None
        if record.defense in shown
        if record.adaptation not in OF_UPDATES  # merging is about one task alone, and has a table of its own
    ]
    if not reached:
        return None
    table = pd.DataFrame(reached).pivot_table(index="defense", columns="attack", values="score", aggfunc="mean")
    rows = [defense for defense in shown if defense in table.index]
    columns = ["none", *sorted(set(table.columns) - {"none"})] if "none" in table.columns else sorted(table.columns)
    figure, axes = plt.subplots(figsize=(1.6 + 0.95 * len(columns), 1.2 + 0.38 * len(rows)))
    sns.heatmap(
        table.loc[rows, columns].rename(index=_clipped, columns=_clipped),
        annot=True,
        fmt=".1f",
        cmap="viridis",
        cbar_kws={"label": "test score, points"},
        linewidths=0.5,
        annot_kws={"fontsize": 8},
        ax=axes,
    )
    axes.grid(visible=False)  # it would show through cells without a value
    axes.set(xlabel="attack", ylabel="", title=f"{board.suite}: what each attack reaches (mean over tasks and seeds)")
    axes.set_xticklabels(axes.get_xticklabels(), rotation=35, ha="right", rotation_mode="anchor")
    axes.tick_params(axis="y", rotation=0)
    return figure


def budget(board: Leaderboard) -> Figure | None:
    """The best validation score so far (points) against FLOPs spent, over the whole catalogue: a line for each row, and
    for training from scratch."""
    kinds = {score.defense: score.kind for score in order.without_ladder(board)}
    doses = {score.defense for scores in order.doses(board).values() for score in scores}
    places = {defense: index for index, defense in enumerate(kinds)}
    curves = [curve for curve in board.budgets if curve.defense not in doses]
    if not curves:
        return None
    curves.sort(key=lambda curve: places.get(curve.defense, len(places)))
    colors = itertools.cycle([*sns.color_palette("colorblind", 10), *sns.color_palette("dark", 10)])
    figure, axes = plt.subplots(figsize=(7.2, 4.4))
    for curve in curves:
        kind = kinds.get(curve.defense)  # None for an attack that ignores every release
        sns.lineplot(
            x=curve.flops,
            y=[score.value for score in curve.scores],
            drawstyle="steps-post",
            errorbar=None,
            label=_clipped(curve.defense),
            color="black" if kind in ("reference", None) else next(colors),
            linestyle={"trivial": "--", None: ":"}.get(kind, "-"),
            linewidth=2.2 if kind == "reference" else 1.3,
            ax=axes,
        )
    axes.set(
        xscale="log",
        xlabel="FLOPs spent on one task: attack after attack, the cheapest first, preparation included",
        ylabel="best score so far, points (validation)",
        title=f"{board.suite}: what an attacker reaches for what they spend (attackers have {board.rules.ranking})",
    )
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=7, frameon=False)
    return figure


def _clipped(spec: str) -> str:
    """A spec short enough for a figure; the leaderboard has it in full."""
    clipped = spec if len(spec) <= LABEL else f"{spec[: LABEL - 1]}…"
    return clipped.replace("$", r"\$")  # a dollar sign would begin a formula
