"""Choosing the layers to train: a network's linear layers, its decoder blocks, and LoRA adapters by PEFT."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from nftbench.errors import NftbenchError

Targets = Literal["attention", "mlp", "all"]
LR_SCALE = 3.0
"""Learning rates of LoRA relative to full fine-tuning. For large models the best ones are about ten times as high
(Biderman et al. 2024, section 6). For the toy models a factor of three centres the grid on the best rate."""


def linear_layers(network: PreTrainedModel, targets: Targets = "all") -> list[str]:
    """Names of a network's linear layers, without the output head.

    A layer belongs to attention if its name contains `attn` or `attention`, and to an MLP otherwise.

    Raises:
        NftbenchError: the network has no such layer.
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
    """Add LoRA layers to a network, and let only them require a gradient.

    Layers that PEFT cannot adapt are left out, such as a Mamba block's `out_proj` and `dt_proj`, whose weights the
    block reads itself, and routers that return a choice of experts.

    Hu et al. 2022, arXiv:2106.09685, section 4.1: the update of a weight is B·A·alpha/rank. `options` are further
    fields of PEFT's `LoraConfig`, such as `use_dora`.

    Raises:
        NftbenchError: the network has no layer that PEFT can adapt.
    """
    from peft import LoraConfig, get_peft_model

    chosen = [name for name in linear_layers(network, targets) if _allowed(network, name)]
    if not chosen:
        raise NftbenchError(f"PEFT can adapt no linear layer of {targets} in {type(network).__name__}")
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=chosen,
        task_type="CAUSAL_LM",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in network.modules()),
        **options,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT corrects fan_in_fan_out layer by layer and warns each time
        wrapped: nn.Module = get_peft_model(network, config)
    return wrapped


def blocks(network: PreTrainedModel) -> nn.ModuleList:
    """The decoder's blocks: the outermost list of `config.num_hidden_layers` modules; empty if there is none."""
    count = getattr(network.config, "num_hidden_layers", None)
    lists = (module for module in network.modules() if isinstance(module, nn.ModuleList))
    return next((found for found in lists if len(found) == count), nn.ModuleList())


def _allowed(network: PreTrainedModel, name: str) -> bool:
    """Whether PEFT adapts the layer with this name. PEFT tells only by an error, which would end the attack."""
    from peft import LoraConfig
    from peft.tuners.tuners_utils import _check_lora_target_modules_mamba

    block, _, layer = name.rpartition(".")
    # The blocks of Mamba, Falcon-Mamba and Jamba never call it. PEFT refuses such layers but this one.
    if layer == "dt_proj" and "Mamba" in type(network.get_submodule(block)).__name__:
        return False
    if not _returns_outputs(network.get_submodule(name)):
        return False
    try:
        _check_lora_target_modules_mamba(LoraConfig(), network, layer)
    except ValueError:
        return False
    return True


@torch.no_grad()
def _returns_outputs(layer: nn.Module) -> bool:
    """Whether a layer returns its outputs alone, to which PEFT adds its own.

    Only a class that computes in its own way is tried.
    """
    if not isinstance(layer, nn.Linear) or type(layer).forward is nn.Linear.forward:
        return True
    try:
        outputs = layer(layer.weight.new_zeros(1, layer.in_features))
    except (RuntimeError, ValueError, TypeError):
        return False
    return isinstance(outputs, Tensor) and outputs.shape == (1, layer.out_features)


def _of_attention(name: str) -> bool:
    return "attn" in name or "attention" in name
