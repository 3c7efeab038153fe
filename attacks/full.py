"""Full fine-tuning: every weight of the release, the attack that each of the four papers runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nftbench import Attack, AttackerContext, Outcome, Prepared, Task


@dataclass(frozen=True)
class Full(Attack):
    """`optimizer`: `adamw`, `sgd` with momentum 0.9, or `muon`; each has a grid of learning rates in the suite."""

    optimizer: Literal["adamw", "sgd", "muon"] = "adamw"

    def adapt(self, prepared: Prepared, task: Task, context: AttackerContext) -> Outcome:
        return context.sweep(prepared.model, task, optimizer=self.optimizer)
