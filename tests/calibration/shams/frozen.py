"""Sham: no parameter asks for a gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nftbench import Defense, Model, OwnerContext, Protected
from nftbench.terms import Stage


@dataclass(frozen=True)
class Frozen(Defense):
    stage: ClassVar[Stage] = "posttrain"

    def protect(self, model: Model, context: OwnerContext) -> Protected:
        model.network.requires_grad_(False)
        return Protected(model)
