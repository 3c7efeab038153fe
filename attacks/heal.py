"""Healing: pre-training goes on with public text and all weights free, and only then comes fine-tuning.

What a mask froze, or a trap bent, moves to where pre-training would have taken it. The way out of Private Mask
Pre-Training (Wang et al. 2026, https://arxiv.org/abs/2602.00446) that its authors do not try.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from nftbench import Attack, AttackerContext, Knowledge, Outcome, Prepared, Release, Task


@dataclass(frozen=True)
class Heal(Attack):
    """`steps`: optimizer steps on text, None for what the budget allows. `learning_rate`: None for the highest of the
    budget's AdamW rates. On the toy model that is 1e-2; PMP's releases fine-tune better after it than after 1.5e-3 or
    4e-3, on average after 200 steps and each after 600, while the undefended model does not care."""

    knowledge: ClassVar[frozenset[Knowledge]] = frozenset({"data"})
    against: ClassVar[frozenset[str]] = frozenset({"pmp", "random_mask"})

    steps: int | None = None
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        if (self.steps is not None and self.steps < 1) or (self.learning_rate is not None and self.learning_rate <= 0):
            raise ValueError("steps must be at least 1 and learning_rate above 0")

    def prepare(self, release: Release, context: AttackerContext) -> Prepared:
        text = context.text(release.model, context.budget.batch)

        def loss(network: nn.Module, step: int) -> Tensor:
            tokens = next(text)
            value: Tensor = network(input_ids=tokens, labels=tokens).loss
            return value

        context.train(
            release.model.network,
            loss,
            steps=self.steps or context.budget.preparation_steps,
            learning_rate=self.learning_rate or max(context.budget.learning_rates["adamw"]),
        )
        return Prepared(release.model)

    def adapt(self, prepared: Prepared, task: Task, context: AttackerContext) -> Outcome:
        return context.sweep(prepared.model, task)
