"""Scores become pictures: the frontier of trivial defenses, what each attack reaches, and at what cost.

Each is written as PNG and as SVG. The doses of the ladder are many. They are drawn in the frontier alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")  # no display: figures are files

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from nftbench.records.record import Record
from nftbench.report import order, styles
from nftbench.report.frontier_figure import DPI, frontier, plain
from nftbench.report.labels import of
from nftbench.scoring.leaderboard import Leaderboard
from nftbench.terms import OF_UPDATES

KINDS = ("png", "svg")


def write(board: Leaderboard, records: Sequence[Record], folder: Path) -> list[Path]:
    """Write `frontier`, `attacks` and `budget` into `folder`, each as .png and .svg; one that has nothing to show is
    left out."""
    sns.set_theme(style="whitegrid", context="paper")
    figures = {"frontier": frontier(board), "attacks": attacks(board, records), "budget": budget(board)}
    paths = []
    # The same file every time, in which text is text.
    with mpl.rc_context({"svg.hashsalt": "nftbench", "svg.fonttype": "none"}):
        for name, figure in figures.items():
            if figure is None:
                continue
            for kind in KINDS:
                paths.append(folder / f"{name}.{kind}")
                unchanging = {"Date": None} if kind == "svg" else None
                figure.savefig(paths[-1], dpi=DPI, bbox_inches="tight", metadata=unchanging)
            plt.close(figure)
    return paths


def attacks(board: Leaderboard, records: Sequence[Record]) -> Figure | None:
    """What each attack reaches against each row: the mean test score over tasks and seeds, in points.

    A line for each attack, so that a large catalogue makes the picture longer and not wider.
    """
    names = of(board)
    rows = [score.defense for score in order.without_ladder(board)]
    reached = [
        {"defense": record.defense, "attack": record.attack, "score": 100 * record.attacked.value}
        for record in records
        if record.status == "ok" and record.role == "ranked" and record.attacked is not None
        if record.defense in names and record.defense in rows
        if record.adaptation not in OF_UPDATES  # merging is about one task alone, and has a table of its own
    ]
    if not reached:
        return None
    table = pd.DataFrame(reached).pivot_table(index="attack", columns="defense", values="score", aggfunc="mean")
    columns = [defense for defense in rows if defense in table.columns]
    lines = ["none", *sorted(set(table.index) - {"none"})] if "none" in table.index else sorted(table.index)
    figure, axes = plt.subplots(figsize=(2.6 + 0.62 * len(columns), 1.4 + 0.27 * len(lines)))
    sns.heatmap(
        table.loc[lines, columns].rename(index=plain, columns=lambda row: plain(names[row])),
        annot=True,
        fmt=".1f",
        cmap="cividis",
        cbar_kws={"label": "test score, points"},
        linewidths=0.5,
        annot_kws={"fontsize": 7.5},
        ax=axes,
    )
    axes.grid(visible=False)  # it would show through cells without a value
    axes.set(xlabel="", ylabel="attack", title=plain(f"{board.suite}: what each attack reaches"))
    axes.set_xticklabels(axes.get_xticklabels(), rotation=35, ha="right", rotation_mode="anchor")
    axes.tick_params(axis="y", rotation=0)
    return figure


def budget(board: Leaderboard) -> Figure | None:
    """The best validation score so far (points) against FLOPs spent, over the whole catalogue: a line for each row, and
    for training from scratch."""
    kinds, curves = {score.defense: score.kind for score in board.scores}, order.budgets(board)
    if not curves:
        return None
    names, looks = of(board), styles.of(board)
    figure, axes = plt.subplots(figsize=(7.2, max(4.4, 0.5 + 0.19 * len(curves))))
    for curve in curves:
        # An attack that ignores every release is no row.
        kind, look = kinds.get(curve.defense), looks.get(curve.defense, styles.SCRATCH)
        axes.step(
            curve.flops,
            [score.value for score in curve.scores],
            where="post",
            label=plain(names.get(curve.defense, curve.defense)),
            color=styles.INK if kind == "reference" else look.color,
            linestyle=look.line,
            marker=None if kind in ("reference", None) else look.marker,
            markevery=max(1, len(curve.flops) // 6),
            markersize=4,
            linewidth=2.2 if kind == "reference" else 1.3,
        )
    axes.set(
        xscale="log",
        xlabel="FLOPs spent on one task: attack after attack, the cheapest first, preparation included",
        ylabel="best score so far, points (validation)",
        title=plain(f"{board.suite}: what an attacker who has {board.rules.ranking} reaches for what they spend"),
    )
    handles, words = axes.get_legend_handles_labels()
    once = dict(zip(reversed(words), reversed(handles), strict=True))  # training from scratch beside several references
    axes.legend(
        [once[one] for one in dict.fromkeys(words)],
        list(dict.fromkeys(words)),
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        fontsize=8,
        frameon=False,
    )
    return figure
