"""No attack: the release as it is. Its cells give the base utility and the unattacked scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nftbench import Attack, AttackerContext, Outcome, Prepared, Task


@dataclass(frozen=True)
class None_(Attack):  # noqa: N801 (the name `None` is taken)
    trains: ClassVar[bool] = False

    def adapt(self, prepared: Prepared, task: Task, context: AttackerContext) -> Outcome:
        return context.unchanged(prepared.model, task)
