"""Who trains, and with what: seed, budget, device, and the ledger of what is spent."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

from nftbench.contract import Cost
from nftbench.device import CPU, Device
from nftbench.errors import NftbenchError
from nftbench.suites.schema import Budget


class CellTimeoutError(Exception):
    """The cell has used up its seconds."""


@dataclass
class Ledger:
    """What has been spent so far: on preparation, in `runs` trainings, and in sweeps.

    The referee gives an attack one ledger to prepare with, and a new one for each cell.
    """

    steps: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    runs: int = 0
    sweeps: int = 0
    swept_steps: int = 0
    swept_seconds: float = 0.0
    parts: set[str] = field(default_factory=set)
    """Specs of the attacks that this one is built on and has asked for."""

    def begin_sweep(self) -> None:
        """Count a sweep. Two of them are twice the budget, so only an attack built on several has several.

        Raises:
            NftbenchError: the attack has had its sweep, or one for each of its parts.
        """
        allowed = max(1, len(self.parts))
        if self.sweeps >= allowed:
            raise NftbenchError(
                f"the budget of a cell is spent: context.sweep may run once, or once for each attack that "
                f"context.attack gave, here {allowed}"
            )
        self.sweeps += 1

    def end_sweep(self, cost: Cost) -> None:
        """Add what a sweep has spent."""
        self.swept_steps += cost.steps
        self.swept_seconds += cost.seconds
        self.peak_memory_bytes = max(self.peak_memory_bytes, cost.peak_memory_bytes)

    def whole(self, cost: Cost) -> Cost:
        """The cost of an outcome with that of all sweeps. An attack built on several returns the outcome of one."""
        return replace(cost, steps=max(cost.steps, self.swept_steps), seconds=max(cost.seconds, self.swept_seconds))

    def check(self, begun: float, budget: Budget) -> None:
        """Raise `CellTimeoutError` where this and what has gone on since `begun` use up the budget's seconds."""
        if self.seconds + time.monotonic() - begun > budget.timeout:
            raise CellTimeoutError(f"more than {budget.timeout:g} s of preparation")


@dataclass(frozen=True)
class Trainer:
    """Whoever trains under a budget. The functions `train`, `gradients`, `sweep`, `select` and `unchanged` take one."""

    seed: int
    budget: Budget
    device: Device = CPU
    ledger: Ledger = field(default_factory=Ledger)
