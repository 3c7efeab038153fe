"""Short: a pre-training run of a fraction of the steps, with a schedule of its own. A trivial defense.

`early_stop` takes a checkpoint from before the learning rate decays, which no owner would publish. A short run that
anneals is the cheaper model that an owner would publish, and a stronger control.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nftbench import Defense, Model, OwnerContext, Protected, Stage


@dataclass(frozen=True)
class Short(Defense):
    """`fraction`: share of the recipe's steps. The warm-up is the recipe's, or half of what a very short run leaves."""

    stage: ClassVar[Stage] = "pretrain"
    trivial: ClassVar[bool] = True

    fraction: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1:
            raise ValueError(f"fraction must lie between 0 and 1, not {self.fraction:g}")

    def protect(self, model: Model, context: OwnerContext) -> Protected:
        recipe = context.pretraining
        steps = max(1, round(self.fraction * recipe.steps))
        before_decay = steps - round(recipe.decay * steps) if recipe.schedule == "wsd" else steps
        return Protected(context.pretrain(model, steps=steps, warmup=min(recipe.warmup, before_decay // 2)))
