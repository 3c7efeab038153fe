"""Who trains, and with what: seed, budget, device, and the ledger of what is spent outside the sweeps."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from nftbench.device import CPU, Device
from nftbench.suites.schema import Budget


class CellTimeoutError(Exception):
    """The cell has used up its seconds."""


@dataclass
class Ledger:
    """What has been spent on preparation so far, in `runs` trainings."""

    steps: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    runs: int = 0

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
