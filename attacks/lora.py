"""LoRA: low-rank updates of the linear layers, by PEFT.

Hu et al. 2022, https://arxiv.org/abs/2106.09685; the update is B·A·alpha/rank (section 4.1).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from nftbench import Attack, AttackerContext, Outcome, Prepared, Task
from nftbench.methods import adapters


@dataclass(frozen=True)
class Lora(Attack):
    """`targets`: the linear layers of `attention`, those of the MLPs (`mlp`), or `all`, without the output head."""

    rank: int = 8
    alpha: float = 16.0
    targets: adapters.Targets = "all"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError("rank must be at least 1")

    def adapt(self, prepared: Prepared, task: Task, context: AttackerContext) -> Outcome:
        return context.sweep(prepared.model, task, adapter=self.adapter, lr_scale=adapters.LR_SCALE)

    def adapter(self, network: PreTrainedModel, attack_seed: int) -> nn.Module:
        """The network with LoRA layers, which alone require a gradient."""
        return adapters.lora(network, self.rank, self.alpha, self.targets)
