"""Full data: full fine-tuning on all training documents of the task, in the budget's number of steps."""

from __future__ import annotations

from dataclasses import dataclass

from nftbench import Attack, AttackerContext, Budget, Outcome, Prepared, Task


@dataclass(frozen=True)
class FullData(Attack):
    def train_documents(self, budget: Budget) -> int | None:
        return None

    def adapt(self, prepared: Prepared, task: Task, context: AttackerContext) -> Outcome:
        return context.sweep(prepared.model, task)
