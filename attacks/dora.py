"""DoRA: LoRA on the directions of the weights, with a separately trained length for each output, by PEFT.

Liu et al. 2024, https://arxiv.org/abs/2402.09353, Eq. 5: W' = m (W + B·A·alpha/rank) / ||W + B·A·alpha/rank||, where m
is initialised to ||W||. The norm is treated as a constant in the gradient (section 4.3).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from nftbench import Attack, AttackerContext, Outcome, Prepared, Task
from nftbench.methods import adapters


@dataclass(frozen=True)
class Dora(Attack):
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
        """The network with DoRA layers, which alone require a gradient."""
        left_out = [
            name
            for name in adapters.linear_layers(network, self.targets)
            if _lacks_direction(network.get_submodule(name))
        ]
        return adapters.lora(
            network, self.rank, self.alpha, self.targets, use_dora=True, exclude_modules=left_out or None
        )


def _lacks_direction(layer: nn.Module) -> bool:
    """Whether some output has weights of zero only, whose direction would be 0 / 0."""
    weight: Tensor = layer.get_parameter("weight")
    return not bool(weight.any(0 if isinstance(layer, Conv1D) else 1).all())
