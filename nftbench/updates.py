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

from nftbench.types import NftbenchError, Update

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"  # PEFT's own names
_FACTOR = re.compile(r"base_model\.model\.(.+)\.lora_A\.weight")


def of_adapter(wrapped: PeftModel) -> Update:
    """A LoRA adapter's factors and configuration."""
    from peft import get_peft_model_state_dict

    factors = {name: _held(tensor) for name, tensor in get_peft_model_state_dict(wrapped).items()}
    config = wrapped.peft_config[wrapped.active_adapter].to_dict()
    return Update(factors, json.loads(json.dumps({**config, "inference_mode": True}, default=_plain)))


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
        NftbenchError: a configuration that is no plain LoRA.
    """
    if update.config is None:
        return dict(update.weights)
    config = update.config
    if config.get("peft_type") != "LORA" or config.get("use_dora") or config.get("rank_pattern"):
        raise NftbenchError("the update's adapter_config.json is no plain LoRA")
    rank, alpha = config["r"], config["lora_alpha"]
    scale = alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
    found: dict[str, Tensor] = {}
    for name, first in update.weights.items():
        if match := _FACTOR.fullmatch(name):
            product = scale * update.weights[name.replace("lora_A", "lora_B")] @ first
            found[f"{match[1]}.weight"] = product.T if config.get("fan_in_fan_out") else product
    return found


def added(base: PreTrainedModel, weights: Mapping[str, Tensor], scale: float = 1.0) -> PreTrainedModel:
    """A copy of the base with scale · weights added."""
    network = copy.deepcopy(base)
    named = dict(network.named_parameters())
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
