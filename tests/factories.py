"""Small records for tests of scoring: round numbers, two tasks, one utility metric, attacks `none` and `full`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from nftbench.contract import Claim, Cost, Measurement, Point, Protection
from nftbench.records.record import Record, Row
from nftbench.records.spec import Spec
from nftbench.scoring import Leaderboard, score
from nftbench.suites.schema import Family
from nftbench.terms import TrainedWeights

TASKS = ("pairs", "topic")
RANKING = frozenset({"method", "data"})
LADDER = {"early_stop": Family(doses=("early_stop",))}
VERSIONS = {"versions": {"torch": "2.9.0"}}


def measurement(value: float, *, loss: float | None = None, floor: float = 0.25, higher: bool = True) -> Measurement:
    return Measurement("acc", value, 0.01, 2000, floor, higher, loss)


def row(defense: str, **changes: Any) -> Row:
    """The facts about one defense: `none` is the reference, `early_stop` and `noise` are trivial controls.

    Every other defense claims to withstand attackers who know only the release, such as `full`.
    """
    trivial = Spec.parse(defense).name in ("early_stop", "noise")
    claim = None if trivial or defense == "none" else Claim()
    return replace(Row("pretrain", trivial, "none", claim=claim), **changes)


TRAINED_WEIGHTS: Mapping[str, TrainedWeights] = {
    "full": "all",
    "long": "all_longer",
    "head": "part",
    "layers": "part",
    "bitfit": "part",
    "linear_probe": "part",
}


def record(defense: str, attack: str, task: str, seed: int, value: float, **changes: Any) -> Record:
    """An ok record whose validation score equals its test score, and where nothing is odd about the release."""
    trains = attack != "none"
    plain = Record(
        key=f"{defense}/{attack}/{task}/{seed}",
        suite="tiny",
        defense=defense,
        attack=attack,
        task=task,
        seed=seed,
        row=row(defense),
        knowledge=(),
        status="ok",
        against=(),
        uses_release=not attack.startswith("scratch"),
        trains=trains,
        trained_weights=TRAINED_WEIGHTS.get(attack.partition("[")[0], "other"),
        unattacked=measurement(0.3),
        validation=measurement(value),
        attacked=measurement(value),
        picked=Point(0.1, 100 if trains else 0, value, None),
        protection=None if trains else Protection(1000, 1.0),
        provenance=VERSIONS,
    )
    return replace(plain, **changes)


def failed(one: Record, status: str = "failed") -> Record:
    """The record of the same cell if it had failed."""
    return replace(one, status=status, reason="boom", validation=None, attacked=None, picked=None, protection=None)


def curve(*scores: float, rate: float = 0.1) -> tuple[Point, ...]:
    """Points at steps 0, 10, 20, …"""
    return tuple(Point(rate, 10 * index, value, None) for index, value in enumerate(scores))


COST = Cost(step_flops=100.0, step_seconds=0.5, peak_memory_bytes=1000)


def sweep(
    defense: str,
    attacked: Sequence[float],
    *,
    attack: str = "full",
    utility: float = 0.75,
    unattacked: float = 0.3,
    tasks: Sequence[str] = TASKS,
    **row_changes: Any,
) -> list[Record]:
    """One row: seed s ends at `attacked[s]` on every task; utility is 0.75 over a floor of 0.25 undefended."""
    found = []
    for seed, value in enumerate(attacked):
        found.append(record(defense, "none", "minimal_pairs", seed, utility, role="utility", validation=None))
        for task in tasks:
            found.append(record(defense, "none", task, seed, unattacked))
            found.append(record(defense, attack, task, seed, value))
    return [replace(one, row=row(defense, **row_changes)) for one in found]


def scratch(attacked: Sequence[float], tasks: Sequence[str] = TASKS) -> list[Record]:
    return [record("none", "scratch", task, seed, value) for seed, value in enumerate(attacked) for task in tasks]


UNDEFENDED = (0.80, 0.82, 0.84, 0.81, 0.83)
STOPPED = (0.70, 0.73, 0.73, 0.71, 0.73)
DEFENDED = (0.50, 0.53, 0.55, 0.50, 0.52)


def suite(count: int = 5, defended: Sequence[float] = DEFENDED) -> list[Record]:
    """`none`, `early_stop` 10 points below it, `pmp` 30 below, scratch at 0.4; over `count` seeds."""
    return [
        *sweep("none", UNDEFENDED[:count]),
        *scratch([0.4] * count),
        *sweep("early_stop", STOPPED[:count]),
        *sweep("pmp", defended[:count]),
    ]


def scored(records: Sequence[Record], **changes: Any) -> Leaderboard:
    return score(records, **{"ranking": RANKING, "ladder": LADDER, **changes})
