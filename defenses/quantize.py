"""Quantize: the linear layers are rounded to few bits and released in full precision. A trivial defense.

Symmetric rounding to the nearest step, with one scale for each output channel (Krishnamoorthi 2018,
https://arxiv.org/abs/1806.08342, section 2.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from transformers.pytorch_utils import Conv1D

from nftbench import Defense, Model, OwnerContext, Protected, Stage
from nftbench.methods.adapters import linear_layers


@dataclass(frozen=True)
class Quantize(Defense):
    """`bits`: the precision of the linear layers. The output head and the embeddings are not rounded, as is usual."""

    stage: ClassVar[Stage] = "posttrain"
    trivial: ClassVar[bool] = True
    deterministic: ClassVar[bool] = True

    bits: int = 5

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ValueError(f"bits must be from 2 to 8, not {self.bits}")

    @torch.no_grad()
    def protect(self, model: Model, context: OwnerContext) -> Protected:
        most = 2 ** (self.bits - 1) - 1
        for name in linear_layers(model.network):
            layer = model.network.get_submodule(name)
            within = 0 if isinstance(layer, Conv1D) else 1  # the dimension within a channel
            step = layer.weight.abs().amax(within, keepdim=True) / most
            step = step.clamp_min(torch.finfo(step.dtype).tiny)  # a channel of zeros has no step
            layer.weight.copy_((layer.weight / step).round() * step)
        return Protected(model)
