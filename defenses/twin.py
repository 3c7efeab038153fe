"""Twin: the undefended model pre-trained again from another initialisation. What two undefended models differ by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nftbench import Defense, Model, OwnerContext, Protected, Stage


@dataclass(frozen=True)
class Twin(Defense):
    """Whatever is measured on it beyond zero is chance: `nftbench calibrate` sees that the intervals say so."""

    stage: ClassVar[Stage] = "pretrain"
    trivial: ClassVar[bool] = True

    def protect(self, model: Model, context: OwnerContext) -> Protected:
        from nftbench.methods import untrained

        again = untrained(model.network, context.seed)
        return Protected(context.pretrain(Model(again, model.tokenizer)))
