"""Twin: the undefended model pre-trained again from another initialisation, to show how two such models differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nftbench import Defense, Model, OwnerContext, Protected, Stage


@dataclass(frozen=True)
class Twin(Defense):
    """Any effect measured on it is chance. `nftbench calibrate` checks that its intervals contain zero.

    `index` says which initialisation: each index draws other weights.
    """

    stage: ClassVar[Stage] = "pretrain"
    trivial: ClassVar[bool] = True

    index: int = 1

    def __post_init__(self) -> None:
        if self.index < 1:
            raise ValueError(f"index must be at least 1, not {self.index}")

    def protect(self, model: Model, context: OwnerContext) -> Protected:
        from nftbench.methods import untrained

        again = untrained(model.network, context.seed + self.index - 1)
        return Protected(context.pretrain(Model(again, model.tokenizer)))
