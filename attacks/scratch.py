"""Training from scratch: the architecture with random weights. An attacker may always ignore the release."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nftbench import Attack, AttackerContext, Outcome, Prepared, Task


@dataclass(frozen=True)
class Scratch(Attack):
    uses_release: ClassVar[bool] = False

    def adapt(self, prepared: Prepared, task: Task, context: AttackerContext) -> Outcome:
        return context.sweep(
            prepared.model, task, adapter=lambda network, attack_seed: context.untrained(prepared.model, attack_seed)
        )
