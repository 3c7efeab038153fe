"""Training from scratch: the release's architecture with random weights. Attackers can always ignore the release."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from nftbench import Attack, AttackerContext, Knowledge, Model, Outcome, Prepared, Release, Task


@dataclass(frozen=True)
class Scratch(Attack):
    """`text`: whether the random weights are first trained on public text, as `heal` trains the release. This shows
    what the text alone is worth. `steps`: optimizer steps on text; None for as many as the budget allows.
    `learning_rate`: None for the highest of the budget's AdamW rates, which is best for untrained weights of the toy
    model."""

    uses_release: ClassVar[bool] = False

    text: bool = False
    steps: int | None = None
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        if (self.steps is not None and self.steps < 1) or (self.learning_rate is not None and self.learning_rate <= 0):
            raise ValueError("steps must be at least 1 and learning_rate above 0")

    @property
    def knowledge(self) -> frozenset[Knowledge]:
        return frozenset({"data"}) if self.text else frozenset()

    def prepare(self, release: Release, context: AttackerContext) -> Prepared:
        if not self.text:
            return Prepared(release.model)
        text = context.text(release.model, context.budget.batch)

        def loss(network: nn.Module, step: int) -> Tensor:
            tokens = next(text)
            value: Tensor = network(input_ids=tokens, labels=tokens).loss
            return value

        network = context.untrained(release.model, 0)
        context.train(
            network,
            loss,
            steps=self.steps or context.budget.preparation_steps,
            learning_rate=self.learning_rate or max(context.budget.learning_rates["adamw"]),
        )
        return Prepared(Model(network, release.model.tokenizer))

    def adapt(self, prepared: Prepared, task: Task, context: AttackerContext) -> Outcome:
        if self.text:
            return context.sweep(prepared.model, task)
        return context.sweep(
            prepared.model, task, adapter=lambda network, attack_seed: context.untrained(prepared.model, attack_seed)
        )
