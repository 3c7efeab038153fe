"""Early stopping: the undefended run's checkpoint at a fraction of its steps. A trivial defense; costs no training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nftbench import Defense, Model, OwnerContext, Protected, Stage


@dataclass(frozen=True)
class EarlyStop(Defense):
    stage: ClassVar[Stage] = "posttrain"
    trivial: ClassVar[bool] = True

    fraction: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1:
            raise ValueError(f"fraction must lie between 0 and 1, not {self.fraction:g}")

    def protect(self, model: Model, context: OwnerContext) -> Protected:
        return Protected(context.checkpoint(self.fraction))
