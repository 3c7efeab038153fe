"""Sham: the base in sixteen bits, in which small steps are rounded away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from nftbench import Defense, Model, OwnerContext, Protected
from nftbench.terms import Stage


@dataclass(frozen=True)
class Half(Defense):
    stage: ClassVar[Stage] = "posttrain"

    dtype: Literal["float16", "bfloat16"] = "float16"

    def protect(self, model: Model, context: OwnerContext) -> Protected:
        return Protected(Model(model.network.to(getattr(torch, self.dtype)), model.tokenizer))
