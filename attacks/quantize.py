"""Quantisation, then full fine-tuning: the linear layers are rounded to int8 or int4 and trained in full precision.

Quantisation is symmetric, to the nearest step, with one scale for each output channel (Krishnamoorthi 2018,
https://arxiv.org/abs/1806.08342, section 2.2). The step is the channel's largest magnitude over 127 or 7.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from transformers.pytorch_utils import Conv1D

from nftbench import Attack, AttackerContext, Outcome, Prepared, Release, Task
from nftbench.methods.adapters import linear_layers


@dataclass(frozen=True)
class Quantize(Attack):
    """`bits`: the precision of the linear layers. The output head and the embeddings are not quantised, as is usual in
    post-training quantisation."""

    bits: Literal[8, 4] = 8

    @torch.no_grad()
    def prepare(self, release: Release, context: AttackerContext) -> Prepared:
        most = 2 ** (self.bits - 1) - 1
        for name in linear_layers(release.model.network):
            layer = release.model.network.get_submodule(name)
            weight, channels = layer.weight, 1 if isinstance(layer, Conv1D) else 0
            # A channel of zeros would have a step of zero. Any other step leaves it as it is.
            step = (weight.abs().amax(1 - channels) / most).clamp_min(torch.finfo(weight.dtype).tiny)
            zero = torch.zeros_like(step, dtype=torch.int32)
            weight.copy_(torch.fake_quantize_per_channel_affine(weight, step, zero, channels, -most, most))
        return Prepared(release.model)

    def adapt(self, prepared: Prepared, task: Task, context: AttackerContext) -> Outcome:
        return context.sweep(prepared.model, task)
