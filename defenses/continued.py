"""Continued: the base is trained further on public text, without any protection. A trivial defense.

It is the counterpart of `short` for a base that is trained already: what an owner's training on text takes from an
attacker by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nftbench import Defense, Model, OwnerContext, Passes, Protected, Stage, Suite


@dataclass(frozen=True)
class Continued(Defense):
    """`steps` of the suite's recipe at the rate `learning_rate`, by default the recipe's own."""

    stage: ClassVar[Stage] = "posttrain"
    trivial: ClassVar[bool] = True

    steps: int = 20
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, not {self.steps}")
        if self.learning_rate is not None and self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be above 0, not {self.learning_rate:g}")

    def training_passes(self, suite: Suite) -> Passes:
        batch = suite.pretraining.batch
        return Passes(blocks=self.steps * batch, blocks_at_once=batch, copies=4)

    def protect(self, model: Model, context: OwnerContext) -> Protected:
        recipe = context.pretraining
        before_decay = self.steps - round(recipe.decay * self.steps) if recipe.schedule == "wsd" else self.steps
        return Protected(
            context.pretrain(
                model,
                steps=self.steps,
                warmup=min(recipe.warmup, before_decay // 2),
                learning_rate=self.learning_rate or recipe.learning_rate,
            )
        )
