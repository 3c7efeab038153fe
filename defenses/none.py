"""No defense: the base model as pre-trained. It is the row with which defenses are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nftbench import Defense, Model, OwnerContext, Protected, Stage


@dataclass(frozen=True)
class None_(Defense):  # noqa: N801 (the name `None` is taken)
    stage: ClassVar[Stage] = "posttrain"

    def protect(self, model: Model, context: OwnerContext) -> Protected:
        return Protected(model)
