"""Healing: pre-training is continued on public text with all weights trainable, and then the release is fine-tuned.

Weights that a mask froze or a trap bent move to where pre-training would have taken them. This is an obvious attack on
Private Mask Pre-Training (Wang et al. 2026, https://arxiv.org/abs/2602.00446) that the paper does not try.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from nftbench import Attack, AttackerContext, Knowledge, Outcome, Prepared, Release, Task


@dataclass(frozen=True)
class Heal(Attack):
    """`steps`: optimizer steps on text; None for as many as the budget allows. `learning_rate`: None for the highest of
    the budget's AdamW rates, which is 1e-2 on the toy model. There PMP's releases fine-tune better after it than after
    1.5e-3 or 4e-3: on average after 200 steps, and every one of them after 600. The undefended model fine-tunes equally
    well after all of them."""

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
