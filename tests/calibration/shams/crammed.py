"""Sham: trained on the held-out text that the owner is given. It knows by heart what it might be scored on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nftbench import Defense, Model, OwnerContext, Protected
from nftbench.methods import Stepper, token_batches
from nftbench.terms import Stage


@dataclass(frozen=True)
class Crammed(Defense):
    """`steps`: as a multiple of the recipe's, on held-out text after pre-training. `learning_rate`: of AdamW."""

    stage: ClassVar[Stage] = "posttrain"

    steps: float = 0.2
    learning_rate: float = 1e-3

    def protect(self, model: Model, context: OwnerContext) -> Protected:
        heldout = token_batches(context.corpus.heldout, 16, context.seed, str(model.network.device))
        stepper = Stepper(model.network, "adamw", self.learning_rate, factor=lambda _: 1.0, weight_decay=0.0, clip=1.0)
        for _ in range(max(1, round(self.steps * context.pretraining.steps))):
            tokens = next(heldout)
            stepper.step(model.network(input_ids=tokens, labels=tokens).loss)
        return Protected(model)
