"""Which layers an attacker trains: the linear layers of a network by their place, and LoRA on them by PEFT."""

from __future__ import annotations

import warnings
from typing import Any, Literal

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from nftbench.errors import NftbenchError

Targets = Literal["attention", "mlp", "all"]
LR_SCALE = 3.0
"""LoRA's best learning rates lie above those of full fine-tuning (about tenfold in Biderman et al. 2024, section 6,
at large models; threefold keeps the suite's grid around the best on the toy models, and its edges are extended)."""


def linear_layers(network: PreTrainedModel, targets: Targets = "all") -> list[str]:
    """Names of linear layers, the output head left out. One is of attention if a module on its way is named for it.

    Raises:
        NftbenchError: there is none of that kind.
    """
    head = getattr(network, "get_output_embeddings", lambda: None)()
    linear = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    ]
    chosen = [name for name in linear if targets == "all" or _of_attention(name) == (targets == "attention")]
    if not chosen:
        raise NftbenchError(f"no linear layer belongs to {targets}; there are: {', '.join(linear) or 'none'}")
    return chosen


def lora(network: PreTrainedModel, rank: int, alpha: float, targets: Targets = "all", **options: Any) -> nn.Module:
    """The network with LoRA layers (Hu et al. 2022, arXiv:2106.09685, section 4.1: B·A·alpha/rank); only they need a
    gradient. `options` are further fields of PEFT's `LoraConfig` (`use_dora`).
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=linear_layers(network, targets),
        task_type="CAUSAL_LM",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in network.modules()),
        **options,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT corrects fan_in_fan_out layer by layer and says so each time
        wrapped: nn.Module = get_peft_model(network, config)
    return wrapped


def blocks(network: PreTrainedModel) -> nn.ModuleList:
    """The decoder's layers: the outermost list of as many modules as the configuration counts; empty without one."""
    count = getattr(network.config, "num_hidden_layers", None)
    lists = (module for module in network.modules() if isinstance(module, nn.ModuleList))
    return next((found for found in lists if len(found) == count), nn.ModuleList())


def _of_attention(name: str) -> bool:
    return "attn" in name or "attention" in name
