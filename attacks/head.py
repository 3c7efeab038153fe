"""Head only: the last norm and the output head are trained, untied from the embeddings. Features stay as released."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn
from transformers import PreTrainedModel

from nftbench import Attack, AttackerContext, Outcome, Prepared, Task, TrainedWeights

LR_SCALE = 3.0
"""A head alone tolerates higher learning rates: on the toy models its best one is about three times as high."""


@dataclass(frozen=True)
class Head(Attack):
    trained_weights: ClassVar[TrainedWeights] = "part"

    def adapt(self, prepared: Prepared, task: Task, context: AttackerContext) -> Outcome:
        return context.sweep(prepared.model, task, adapter=_head_only, lr_scale=LR_SCALE)


def _head_only(network: PreTrainedModel, attack_seed: int) -> PreTrainedModel:
    head = network.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone())
    network.config.tie_word_embeddings = False
    network.requires_grad_(False)
    head.requires_grad_(True)
    last_norm = _last_norm(network)
    if last_norm is not None:
        last_norm.requires_grad_(True)
    return network


def _last_norm(network: PreTrainedModel) -> nn.Module | None:
    """The norm before the head: the last norm among the decoder's direct children (`ln_f`, `norm`, …)."""
    norms = [module for module in network.base_model.children() if "norm" in type(module).__name__.lower()]
    return norms[-1] if norms else None
