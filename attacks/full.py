"""Full fine-tuning of every weight of the release: the attack that papers on defenses run first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from nftbench import Attack, AttackerContext, Outcome, Prepared, Task, TrainedWeights


@dataclass(frozen=True)
class Full(Attack):
    """`optimizer`: `adamw`, `sgd` with momentum 0.9, or `muon`; each has a grid of learning rates in the suite.
    `clip`: whether gradients are clipped as in the suite. `warmup`: in steps; None for the suite's value. `decay`:
    whether the learning rate falls linearly to zero. `average`: whether the result is the mean of the weights over the
    last quarter of the steps."""

    trained_weights: ClassVar[TrainedWeights] = "all"
    optimizer: Literal["adamw", "sgd", "muon"] = "adamw"
    clip: bool = True
    warmup: int | None = None
    decay: bool = False
    average: bool = False

    def __post_init__(self) -> None:
        if self.warmup is not None and self.warmup < 0:
            raise ValueError("warmup must be at least 0")

    def adapt(self, prepared: Prepared, task: Task, context: AttackerContext) -> Outcome:
        budget = context.budget
        return context.sweep(
            prepared.model,
            task,
            optimizer=self.optimizer,
            clip=budget.clip if self.clip else None,
            warmup=budget.warmup if self.warmup is None else self.warmup,
            decay=budget.decay or self.decay,
            average=budget.average or self.average,
        )
