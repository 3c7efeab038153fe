"""Two trivial families composed: a short run with a schedule of its own, then noise on every weight.

No suite has this on its ladder, and nobody should be ranked for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nftbench import Defense, Model, OwnerContext, Protected
from nftbench.planning import registry
from nftbench.terms import Stage


@dataclass(frozen=True)
class ShortThenNoise(Defense):
    """`fraction`: share of the recipe's steps. `scale`: of the noise, relative to the size of each tensor's weights."""

    stage: ClassVar[Stage] = "pretrain"

    fraction: float = 0.5
    scale: float = 0.1

    def protect(self, model: Model, context: OwnerContext) -> Protected:
        for spec in (f"short[fraction={self.fraction!r}]", f"noise[scale={self.scale!r}]"):
            part: Defense = registry.create("defenses", spec)
            model = part.protect(model, context).release
        return Protected(model)
