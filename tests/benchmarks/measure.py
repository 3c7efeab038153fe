"""Ratios of CPU time, measured by turns in one run, each with an A/A control: what two equal things differ by here.

The machine may be shared, so seconds mean nothing and ratios little without the control beside them.
"""

from __future__ import annotations

import gc
import itertools
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Ratio:
    """How many times as much one thing takes as another: the median over rounds, with its quartiles."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{_plain(self.value)} [{_plain(self.low)}, {_plain(self.high)}]"


@dataclass(frozen=True)
class Line:
    """One line of the table in docs/performance.md."""

    what: str
    required: str
    measured: str
    control: str
    note: str = ""


def cpu(action: Callable[[], object]) -> float:
    """Seconds of CPU time that `action` takes in this process."""
    gc.collect()
    gc.disable()
    try:
        begun = time.process_time()
        action()
        return time.process_time() - begun
    finally:
        gc.enable()


def cpu_of(command: Sequence[str], environment: Mapping[str, str], log: Path) -> float:
    """Seconds of CPU time, user and system, of a process and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with log.open("w") as output:
        subprocess.run(command, env=dict(environment), stdout=output, stderr=subprocess.STDOUT, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def by_turns(
    actions: Mapping[str, Callable[[], object]], rounds: int, timer: Callable[[Callable[[], object]], float] = cpu
) -> dict[str, list[float]]:
    """Time every action once a round, each round in another order, after one round that is not counted."""
    orders = itertools.cycle(itertools.permutations(actions))
    for name in actions:
        actions[name]()
    found: dict[str, list[float]] = {name: [] for name in actions}
    for order in itertools.islice(orders, rounds):
        for name in order:
            found[name].append(timer(actions[name]))
    return found


def ratio(above: Sequence[float], below: Sequence[float]) -> Ratio:
    """`above / below`, round by round."""
    each = sorted(one / other for one, other in zip(above, below, strict=True))
    if len(each) < 2:
        return Ratio(each[0], each[0], each[0])
    low, middle, high = statistics.quantiles(each, n=4, method="inclusive")
    return Ratio(middle, low, high)


def within(
    measure: Callable[[], dict[str, list[float]]], above: str, below: str, most: float
) -> dict[str, list[float]]:
    """What `measure` finds; where its ratio `above / below` exceeds `most`, of three findings the one in the middle."""
    found = [measure()]
    if ratio(found[0][above], found[0][below]).value > most:
        found += [measure(), measure()]
    return sorted(found, key=lambda one: ratio(one[above], one[below]).value)[len(found) // 2]


def _plain(value: float) -> str:
    return f"{value:.1f}×" if value >= 10 else f"{value:.3f}×" if value < 2 else f"{value:.2f}×"
