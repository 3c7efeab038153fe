"""Updates: the difference that an owner's fine-tuning made to the base model's weights.

An update is either a LoRA adapter (factors and a configuration) or a dense difference by parameter name. It is stored
as `adapter_model.safetensors` and, for LoRA, `adapter_config.json`, which is PEFT's own format.
"""

from __future__ import annotations

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
from nftbench.models.copies import copied

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"  # the names that PEFT expects
_A = re.compile(r"base_model\.model\.(.+)\.lora_A\.weight").fullmatch


def of_adapter(wrapped: PeftModel) -> Update:
    """Take the factors and the configuration from a LoRA adapter, without the path of the owner's base model."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(wrapped, save_embedding_layers=False)  # by default PEFT asks the hub for the base
    config = {
        **wrapped.peft_config[wrapped.active_adapter].to_dict(),
        "inference_mode": True,
        "base_model_name_or_path": None,
    }
    factors = {name: _cpu_copy(tensor) for name, tensor in state.items()}
    return Update(factors, json.loads(json.dumps(config, default=_jsonable)))


def difference(changed: nn.Module, base: nn.Module) -> Update:
    """The dense update `changed - base`, with an entry for each parameter that differs.

    Raises:
        NftbenchError: the networks' parameters differ in name or shape.
    """
    before = dict(base.named_parameters())
    for name, parameter in changed.named_parameters():
        if name not in before or before[name].shape != parameter.shape:
            raise NftbenchError(f"the update does not fit the base: {name} is missing there or has another shape")
    differences = {name: _cpu_copy(parameter - before[name]) for name, parameter in changed.named_parameters()}
    return Update({name: tensor for name, tensor in differences.items() if bool(tensor.any())})


def dense(update: Update) -> dict[str, Tensor]:
    """An update as differences by parameter name, each in its parameter's shape.

    For LoRA the difference is B·A·alpha/rank (Hu et al. 2022, arXiv:2106.09685, section 4.1), or B·A·alpha/sqrt(rank)
    if the configuration sets `use_rslora`.

    Raises:
        NftbenchError: the configuration is not plain LoRA, or the tensors are not pairs of factors.
    """
    if update.config is None:
        return dict(update.weights)
    config = update.config
    variants = ("use_dora", "lora_bias", "rank_pattern", "alpha_pattern")
    if config.get("peft_type") != "LORA" or any(config.get(name) for name in variants):
        raise NftbenchError("the update's adapter_config.json does not describe plain LoRA")
    pairs = {match[1]: (name, name.replace("lora_A", "lora_B")) for name in update.weights if (match := _A(name))}
    if {name for pair in pairs.values() for name in pair} != update.weights.keys():
        raise NftbenchError("the update's tensors are not pairs of lora_A and lora_B")
    rank, alpha = config["r"], config["lora_alpha"]
    scale = alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
    products = {name: scale * update.weights[b] @ update.weights[a] for name, (a, b) in pairs.items()}
    transposed = config.get("fan_in_fan_out")
    return {f"{name}.weight": (product.T if transposed else product) for name, product in products.items()}


def added(base: PreTrainedModel, weights: Mapping[str, Tensor], scale: float = 1.0) -> PreTrainedModel:
    """A copy of the base with `scale * weights` added to its parameters.

    Raises:
        NftbenchError: a name is no parameter of the base, or its shape differs.
    """
    network = copied(base)
    named = dict(network.named_parameters())
    for name, tensor in weights.items():
        if name not in named or named[name].shape != tensor.shape:
            raise NftbenchError(f"the update does not fit the base: {name} is missing there or has another shape")
    with torch.no_grad():
        for name, tensor in weights.items():
            named[name].add_(tensor.to(named[name]), alpha=scale)
    return network


def save(update: Update, folder: Path) -> None:
    """Write an update into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: _cpu_copy(tensor) for name, tensor in update.weights.items()}, folder / WEIGHTS)
    if update.config is not None:
        (folder / CONFIG).write_text(json.dumps(update.config, indent=1), encoding="utf-8")


def load(folder: Path) -> Update | None:
    """Read the update in a folder; None if the folder holds none."""
    if not (folder / WEIGHTS).is_file():
        return None
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8")) if (folder / CONFIG).is_file() else None
    return Update(load_file(folder / WEIGHTS), config)


def _cpu_copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().cpu().contiguous()


def _jsonable(value: object) -> object:
    """A value that JSON can hold: PEFT's configuration contains sets and enumerations."""
    return sorted(value) if isinstance(value, set) else str(getattr(value, "value", value))
