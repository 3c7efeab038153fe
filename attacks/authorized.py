"""Authorised fine-tuning: with the owner's secret mask, only the marked weights move. It is not scored as an attack.

PMP, https://arxiv.org/abs/2602.00446: the weights outside of the mask keep their released values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nftbench import Attack, AttackerContext, Knowledge, Outcome, Prepared, Task


@dataclass(frozen=True)
class Authorized(Attack):
    knowledge: ClassVar[frozenset[Knowledge]] = frozenset({"secret"})

    def adapt(self, prepared: Prepared, task: Task, context: AttackerContext) -> Outcome:
        return context.sweep(prepared.model, task, gradient_mask=context.secret.mask)
