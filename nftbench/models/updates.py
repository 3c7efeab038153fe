"""What an owner's fine-tuning added to the base: read off an adapter, written to a folder, scaled and added again.

In the folder lie `adapter_model.safetensors` and, for a LoRA update, `adapter_config.json`: what PEFT loads by itself.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nftbench.contract import Update
from nftbench.errors import NftbenchError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"  # PEFT's own names
_A = re.compile(r"base_model\.model\.(.+)\.lora_A\.weight").fullmatch


def of_adapter(wrapped: PeftModel) -> Update:
    """A LoRA adapter's factors and configuration, without the path of the base, which is the owner's own."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(wrapped, save_embedding_layers=False)  # or PEFT looks for the base on the hub
    config = {
        **wrapped.peft_config[wrapped.active_adapter].to_dict(),
        "inference_mode": True,
        "base_model_name_or_path": None,
    }
    factors = {name: _held(tensor) for name, tensor in state.items()}
    return Update(factors, json.loads(json.dumps(config, default=_plain)))


def difference(changed: nn.Module, base: nn.Module) -> Update:
    """changed - base, of every parameter that differs.

    Raises:
        NftbenchError: they are not of one shape.
    """
    before = dict(base.named_parameters())
    for name, parameter in changed.named_parameters():
        if name not in before or before[name].shape != parameter.shape:
            raise NftbenchError(f"no update of the base: {name} is not in it, or of another shape")
    found = {name: _held(parameter - before[name]) for name, parameter in changed.named_parameters()}
    return Update({name: tensor for name, tensor in found.items() if bool(tensor.any())})


def dense(update: Update) -> dict[str, Tensor]:
    """The differences by parameter name, each of its parameter's shape: for LoRA B·A·alpha/rank (Hu et al. 2022, 4.1).

    Raises:
        NftbenchError: a configuration that is no plain LoRA, or tensors that are no pairs of factors.
    """
    if update.config is None:
        return dict(update.weights)
    config = update.config
    others = ("use_dora", "lora_bias", "rank_pattern", "alpha_pattern")
    if config.get("peft_type") != "LORA" or any(config.get(name) for name in others):
        raise NftbenchError("the update's adapter_config.json is no plain LoRA")
    pairs = {match[1]: (name, name.replace("lora_A", "lora_B")) for name in update.weights if (match := _A(name))}
    if {name for pair in pairs.values() for name in pair} != update.weights.keys():
        raise NftbenchError("the update's tensors are no pairs of lora_A and lora_B")
    rank, alpha = config["r"], config["lora_alpha"]
    scale = alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
    products = {name: scale * update.weights[b] @ update.weights[a] for name, (a, b) in pairs.items()}
    turned = config.get("fan_in_fan_out")
    return {f"{name}.weight": (product.T if turned else product) for name, product in products.items()}


def added(base: PreTrainedModel, weights: Mapping[str, Tensor], scale: float = 1.0) -> PreTrainedModel:
    """A copy of the base with scale · weights added.

    Raises:
        NftbenchError: they are of no parameter of the base, or of another shape.
    """
    network = copy.deepcopy(base)
    named = dict(network.named_parameters())
    for name, tensor in weights.items():
        if name not in named or named[name].shape != tensor.shape:
            raise NftbenchError(f"no update of the base: {name} is not in it, or of another shape")
    with torch.no_grad():
        for name, tensor in weights.items():
            named[name].add_(tensor.to(named[name]), alpha=scale)
    return network


def save(update: Update, folder: Path) -> None:
    """Write an update into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: _held(tensor) for name, tensor in update.weights.items()}, folder / WEIGHTS)
    if update.config is not None:
        (folder / CONFIG).write_text(json.dumps(update.config, indent=1), encoding="utf-8")


def load(folder: Path) -> Update | None:
    """The update in a folder, or None where there is none."""
    if not (folder / WEIGHTS).is_file():
        return None
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8")) if (folder / CONFIG).is_file() else None
    return Update(load_file(folder / WEIGHTS), config)


def _held(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().cpu().contiguous()


def _plain(value: object) -> object:
    """PEFT's configuration holds sets and enumerations."""
    return sorted(value) if isinstance(value, set) else str(getattr(value, "value", value))
