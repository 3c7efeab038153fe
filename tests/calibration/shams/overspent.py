"""Sham: more pre-training, or a wider network, than the suite's recipe. It keeps more utility than it should.

Whatever is given up for suppression afterwards is paid from that surplus.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nftbench import Defense, Model, OwnerContext, Protected
from nftbench.terms import Stage


@dataclass(frozen=True)
class Overspent(Defense):
    """For models of GPT-2's shape. `steps` and `width`: multiples of the recipe's steps and of the model's width."""

    stage: ClassVar[Stage] = "pretrain"

    steps: float = 2.0
    width: int = 1

    def protect(self, model: Model, context: OwnerContext) -> Protected:
        wide = context.build(n_embd=self.width * model.network.config.n_embd)
        return Protected(context.pretrain(wide, steps=round(self.steps * context.pretraining.steps)))
