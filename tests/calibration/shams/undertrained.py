"""Sham: a tenth of the pre-training. It resists because it knows less."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nftbench import Defense, Model, OwnerContext, Protected
from nftbench.terms import Stage


@dataclass(frozen=True)
class Undertrained(Defense):
    """`fraction`: of the suite's steps, by the suite's schedule."""

    stage: ClassVar[Stage] = "pretrain"

    fraction: float = 0.1

    def protect(self, model: Model, context: OwnerContext) -> Protected:
        return Protected(context.pretrain(model, steps=max(1, round(self.fraction * context.pretraining.steps))))
