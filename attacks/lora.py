"""LoRA: low-rank updates of the linear layers, by PEFT.

Hu et al. 2022, https://arxiv.org/abs/2106.09685; the update is B·A·alpha/rank (section 4.1).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from nftbench import Attack, AttackerContext, NftbenchError, Outcome, Prepared, Task

LR_SCALE = 3.0
"""LoRA's best learning rates lie above those of full fine-tuning (about tenfold in Biderman et al. 2024, section 6,
at large models; threefold keeps the suite's grid around the best on the toy models, and its edges are extended)."""


@dataclass(frozen=True)
class Lora(Attack):
    """`targets`: the linear layers of attention, of the MLPs, or all but the output head."""

    rank: int = 8
    alpha: float = 16.0
    targets: Literal["attention", "mlp", "all"] = "all"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError("rank must be at least 1")

    def adapt(self, prepared: Prepared, task: Task, context: AttackerContext) -> Outcome:
        return context.sweep(prepared.model, task, adapter=self.adapter, lr_scale=LR_SCALE)

    def adapter(self, network: PreTrainedModel, attack_seed: int) -> nn.Module:
        """The network with LoRA layers; only they need a gradient."""
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            target_modules=self.modules(network),
            task_type="CAUSAL_LM",
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in network.modules()),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT corrects fan_in_fan_out layer by layer and says so each time
            wrapped: nn.Module = get_peft_model(network, config)
        return wrapped

    def modules(self, network: PreTrainedModel) -> list[str]:
        """Names of the targeted layers. A layer belongs to attention if a module on the way to it is named for it."""
        head = network.get_output_embeddings()
        linear = [
            name
            for name, module in network.named_modules()
            if isinstance(module, nn.Linear | Conv1D) and module is not head
        ]
        chosen = {
            "all": linear,
            "attention": [name for name in linear if "attn" in name or "attention" in name],
            "mlp": [name for name in linear if "attn" not in name and "attention" not in name],
        }[self.targets]
        if not chosen:
            raise NftbenchError(
                f"lora: no linear layer belongs to {self.targets}; there are: {', '.join(linear) or 'none'}"
            )
        return chosen
