"""Scores become pictures: what a defense keeps against what it takes, what each attack reaches, and at what expense."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")  # no display: figures are files

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nftbench.records.record import Record
from nftbench.scoring.intervals import Interval
from nftbench.scoring.score import Leaderboard, Score
from nftbench.terms import OF_UPDATES

LABEL = 60
"""Characters of a spec that a figure shows."""
KINDS = {"defense": "defense", "trivial": "trivial defense", "reference": "undefended"}


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


def frontier(board: Leaderboard) -> Figure | None:
    """Retention (share of base utility) against suppression (points), each row with its intervals."""
    rows = [score for score in board.scores if score.retention is not None and score.suppression is not None]
    if not rows:
        return None
    figure, axes = plt.subplots(figsize=(7.2, 4.4))
    colors = dict(zip(KINDS, sns.color_palette("colorblind", 3), strict=True))
    for number, score in enumerate(rows, 1):
        assert score.retention is not None
        assert score.suppression is not None
        axes.errorbar(
            score.suppression.value,
            100 * score.retention.value,
            xerr=_bars(score.suppression),
            yerr=_bars(score.retention, 100),
            fmt="o",
            color=colors[score.kind],
            capsize=2,
            elinewidth=0.8,
            markersize=5,
        )
        place = (score.suppression.value, 100 * score.retention.value)
        axes.annotate(str(number), place, xytext=(5, 5), textcoords="offset points", fontsize=8)
    axes.axhline(100 * board.utility_bar, color="gray", linestyle="--", linewidth=0.9)
    axes.text(
        1.0, 100 * board.utility_bar, " utility bar", transform=axes.get_yaxis_transform(), va="center", fontsize=8
    )
    _limits(axes, rows)
    axes.set(
        xlabel="suppression: points taken from the best attack",
        ylabel="retention: % of base utility, worst metric",
        title=f"{board.suite}: utility kept against fine-tuning suppressed (attackers have {board.ranking})",
    )
    handles = [Line2D([], [], marker="o", linestyle="", color=colors[kind], label=KINDS[kind]) for kind in KINDS]
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3, fontsize=8, frameon=False)
    names = "\n".join(f"{number:2}  {_clipped(score.defense)}" for number, score in enumerate(rows, 1))
    axes.text(1.13, 0.98, names, transform=axes.transAxes, va="top", fontsize=8, family="monospace")
    return figure


def attacks(board: Leaderboard, records: Sequence[Record]) -> Figure | None:
    """What each attack reaches against each row: the mean test score over tasks and seeds, in points."""
    rows = [
        {"defense": record.defense, "attack": record.attack, "score": 100 * record.attacked.value}
        for record in records
        if record.status == "ok" and record.role == "ranked" and record.attacked is not None
        if record.adaptation not in OF_UPDATES  # they are of one task alone and have a table of their own
    ]
    if not rows:
        return None
    table = pd.DataFrame(rows).pivot_table(index="defense", columns="attack", values="score", aggfunc="mean")
    order = [score.defense for score in board.scores if score.defense in table.index]
    columns = ["none", *sorted(set(table.columns) - {"none"})] if "none" in table.columns else sorted(table.columns)
    figure, axes = plt.subplots(figsize=(1.6 + 0.95 * len(columns), 1.2 + 0.38 * len(order)))
    sns.heatmap(
        table.loc[order, columns].rename(index=_clipped, columns=_clipped),
        annot=True,
        fmt=".1f",
        cmap="viridis",
        cbar_kws={"label": "test score, points"},
        linewidths=0.5,
        annot_kws={"fontsize": 8},
        ax=axes,
    )
    axes.set(xlabel="attack", ylabel="", title=f"{board.suite}: what each attack reaches (mean over tasks and seeds)")
    axes.set_xticklabels(axes.get_xticklabels(), rotation=35, ha="right", rotation_mode="anchor")
    axes.tick_params(axis="y", rotation=0)
    return figure


def budget(board: Leaderboard) -> Figure | None:
    """The best validation score so far (points) against FLOPs spent, over the whole catalogue: a line for each row, and
    for training from scratch."""
    if not board.budgets:
        return None
    places = {score.defense: index for index, score in enumerate(board.scores)}
    kinds = {score.defense: score.kind for score in board.scores}
    curves = sorted(board.budgets, key=lambda curve: places.get(curve.defense, len(places)))
    colors = itertools.cycle([*sns.color_palette("colorblind", 10), *sns.color_palette("dark", 10)])
    figure, axes = plt.subplots(figsize=(7.2, 4.4))
    for curve in curves:
        kind = kinds.get(curve.defense)  # none: an attack that ignores every release
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
        title=f"{board.suite}: what an attacker reaches for what they spend (attackers have {board.ranking})",
    )
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=7, frameon=False)
    return figure


def _clipped(spec: str) -> str:
    """A spec short enough for a figure; the leaderboard has it in full."""
    return spec if len(spec) <= LABEL else f"{spec[: LABEL - 1]}…"


def _bars(interval: Interval, scale: float = 1.0) -> list[list[float]]:
    """Error bars for matplotlib; an interval without ends (one seed) has none."""
    ends = (interval.value - interval.low, interval.high - interval.value)
    return [[scale * end if math.isfinite(end) else 0.0] for end in ends]


def _limits(axes: Axes, rows: Sequence[Score]) -> None:
    """Frame the values, not the widest interval: three seeds give intervals that would squeeze everything else."""
    for values, setter, margin in (
        ([score.suppression.value for score in rows if score.suppression], axes.set_xlim, 4.0),
        ([100 * score.retention.value for score in rows if score.retention], axes.set_ylim, 6.0),
    ):
        spread = max(values) - min(values)
        setter(min(values) - margin - 0.1 * spread, max(values) + margin + 0.1 * spread)
