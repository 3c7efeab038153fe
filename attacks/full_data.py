"""Full data: full fine-tuning on all documents of the task's training split, in the budget's steps."""

from __future__ import annotations

from dataclasses import dataclass

from nftbench import Attack, AttackerContext, Budget, Outcome, Prepared, Task


@dataclass(frozen=True)
class FullData(Attack):
    def train_documents(self, budget: Budget) -> int | None:
        return None

    def adapt(self, prepared: Prepared, task: Task, context: AttackerContext) -> Outcome:
        return context.sweep(prepared.model, task)
