"""Scores become pictures: utility kept against fine-tuning suppressed, what each attack reaches, and at what cost."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
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
from nftbench.scoring.leaderboard import Leaderboard
from nftbench.scoring.scores import Score
from nftbench.terms import OF_UPDATES

LABEL = 60
"""Characters of a spec that a figure shows at most."""
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
    rows = list(_kept_and_taken(board.scores))
    if not rows:
        return None
    figure, axes = plt.subplots(figsize=(7.2, 4.4))
    colors = dict(zip(KINDS, sns.color_palette("colorblind", 3), strict=True))
    for number, (score, kept, taken) in enumerate(rows, 1):
        axes.errorbar(
            taken.value,
            100 * kept.value,
            xerr=_bars(taken),
            yerr=_bars(kept, 100),
            fmt="o",
            color=colors[score.kind],
            capsize=2,
            elinewidth=0.8,
            markersize=5,
        )
        axes.annotate(
            str(number), (taken.value, 100 * kept.value), xytext=(5, 5), textcoords="offset points", fontsize=8
        )
    _limits(axes, [(taken, kept) for _, kept, taken in rows])
    axes.set(
        xlabel="suppression: points taken from the best attack",
        ylabel="utility: % of the undefended model, least metric",
        title=f"{board.suite}: utility kept against fine-tuning suppressed (attackers have {board.rules.ranking})",
    )
    handles = [Line2D([], [], marker="o", linestyle="", color=colors[kind], label=KINDS[kind]) for kind in KINDS]
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3, fontsize=8, frameon=False)
    names = "\n".join(f"{number:2}  {_clipped(score.defense)}" for number, (score, _, _) in enumerate(rows, 1))
    axes.text(1.13, 0.98, names, transform=axes.transAxes, va="top", fontsize=8, family="monospace")
    return figure


def attacks(board: Leaderboard, records: Sequence[Record]) -> Figure | None:
    """What each attack reaches against each row: the mean test score over tasks and seeds, in points."""
    rows = [
        {"defense": record.defense, "attack": record.attack, "score": 100 * record.attacked.value}
        for record in records
        if record.status == "ok" and record.role == "ranked" and record.attacked is not None
        if record.adaptation not in OF_UPDATES  # merging is about one task alone, and has a table of its own
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
    order = {score.defense: index for index, score in enumerate(board.scores)}
    kinds = {score.defense: score.kind for score in board.scores}
    curves = sorted(board.budgets, key=lambda curve: order.get(curve.defense, len(order)))
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
    return spec if len(spec) <= LABEL else f"{spec[: LABEL - 1]}…"


def _bars(interval: Interval, scale: float = 1.0) -> list[list[float]]:
    """Error bars for matplotlib; an interval without ends (one seed) has none."""
    ends = (interval.value - interval.low, interval.high - interval.value)
    return [[scale * end if math.isfinite(end) else 0.0] for end in ends]


def _kept_and_taken(scores: Sequence[Score]) -> Iterator[tuple[Score, Interval, Interval]]:
    """Retention and suppression of the rows that have both."""
    for score in scores:
        kept, taken = score.utility.retention, score.resistance.suppression
        if kept is not None and taken is not None:
            yield score, kept, taken


def _limits(axes: Axes, points: Sequence[tuple[Interval, Interval]]) -> None:
    """Frame the values, not the widest interval: three seeds give intervals that would squeeze everything else."""
    for values, setter, margin in (
        ([taken.value for taken, _ in points], axes.set_xlim, 4.0),
        ([100 * kept.value for _, kept in points], axes.set_ylim, 6.0),
    ):
        spread = max(values) - min(values)
        setter(min(values) - margin - 0.1 * spread, max(values) + margin + 0.1 * spread)
