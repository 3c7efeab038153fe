"""Networks that come back from a plugin's process, read without running any code of the plugin.

They are pickled. PyTorch's restricted unpickler makes nothing but tensors, plain data, and objects of classes that it
is told to allow. These are networks and configurations of libraries and of nftbench, each found in its own module.
"""

from __future__ import annotations

import importlib
import pickle
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.lora.config import LoraRuntimeConfig
from peft.tuners.lora.layer import LoraVariant
from torch import nn
from torch.nn.utils import parametrize
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals
from torch.utils.hooks import RemovableHandle
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, activations

from nftbench.errors import NftbenchError

LIBRARIES = ("torch.nn.", "transformers.", "peft.", "nftbench.models.")
"""Beginnings of the names of modules whose classes may be made."""
KINDS = (nn.Module, PreTrainedConfig, GenerationConfig, PeftConfig, LoraRuntimeConfig, LoraVariant, Enum)
"""Classes below these are data or compute a network's function."""


def save(network: nn.Module, path: Path) -> None:
    """Write a network that is trained no further. It is changed, and computes the same function as before.

    Hooks and adapters' wrappers are dropped, and parametrized weights become plain ones.

    Raises:
        NftbenchError: it cannot be pickled.
    """
    if isinstance(network, PeftModel):
        network = network.get_base_model()  # which holds the adapter's layers
    if isinstance(network, PreTrainedModel) and network.supports_gradient_checkpointing:
        network.activation_checkpointing_disable()
    for module in network.modules():  # how tensors were renamed when read: functions, which only saving to files needs
        vars(module).pop("_weight_conversions", None)
    _make_plain(network)
    try:
        torch.save(network, path)
    except (pickle.PicklingError, AttributeError, TypeError, RuntimeError) as error:
        raise NftbenchError(f"the attacked network cannot leave its process: {error}") from error


@torch.no_grad()
def _make_plain(network: nn.Module) -> None:
    # All weights are computed before any changes: tied weights share one parametrization.
    weights = [
        (module, name, getattr(module, name).clone())
        for module in network.modules()
        if parametrize.is_parametrized(module)
        for name in module.parametrizations  # type: ignore[union-attr]
    ]
    for module, name, weight in weights:
        parametrize.remove_parametrizations(module, name)
        setattr(module, name, nn.Parameter(weight))
    for module in network.modules():
        for name, value in list(vars(module).items()):
            if name.endswith("_hooks") and isinstance(value, dict):
                value.clear()
            elif _is_function(value) or _holds_handles(value):
                delattr(module, name)


def _is_function(value: object) -> bool:
    return callable(value) and not isinstance(value, type | nn.Module)


def _holds_handles(value: object) -> bool:
    """Whether this is left by adding hooks: a handle to remove one, or a list of these."""
    return isinstance(value, RemovableHandle) or (
        isinstance(value, list) and bool(value) and all(isinstance(item, RemovableHandle) for item in value)
    )


def load(path: Path, release: nn.Module, device: str) -> nn.Module:
    """Read a network that was made from `release`, whose own classes are allowed as well.

    Raises:
        NftbenchError: it is no network, or holds anything but tensors, plain data and allowed classes.
    """
    own = {f"{kind.__module__}.{kind.__qualname__}": kind for kind in map(type, release.modules())}
    config = type(getattr(release, "config", None))
    own[f"{config.__module__}.{config.__qualname__}"] = config
    try:
        foreign = get_unsafe_globals_in_checkpoint(path)
        with safe_globals([own.get(name) or _allowed(name) for name in foreign]):
            network = torch.load(path, map_location=device, weights_only=True)
    except NftbenchError:
        raise
    except Exception as error:  # a damaged file raises errors of many classes
        raise NftbenchError(f"the attacked network cannot be read: {' '.join(str(error).split())[:300]}") from error
    if not isinstance(network, nn.Module):
        raise NftbenchError(f"the attack returned {type(network).__name__}, not a network")
    _restore_functions(network, release)
    return network


def _restore_functions(network: nn.Module, release: nn.Module) -> None:
    """Give modules the functions that some classes keep on their objects, and that cannot be sent.

    They are those of the same module of the release, or those of a new activation where the architecture is another.
    """
    inside = next((module for module in network.modules() if type(module) is type(release)), network)
    originals = dict(release.named_modules())
    same = {module: originals[name] for name, module in inside.named_modules() if name in originals}
    for module in network.modules():
        original = same.get(module)
        if type(original) is not type(module):
            if type(module).__module__ != activations.__name__:
                continue
            try:
                original = type(module)()
            except TypeError:  # it takes arguments, as ClippedGELUActivation does
                continue
        for attribute, value in vars(original).items():
            if attribute not in vars(module) and _is_function(value):
                setattr(module, attribute, value)


def _allowed(name: str) -> Any:
    """The class of this full name, if it may be made."""
    module, _, own = name.rpartition(".")
    if f"{module}.".startswith(LIBRARIES):
        found = getattr(importlib.import_module(module), own, None)
        if isinstance(found, type) and issubclass(found, KINDS) and found.__module__ == module:
            return found
    raise NftbenchError(
        f"the attacked network holds {name}. It may hold classes of torch.nn, transformers, peft and nftbench.models "
        "only, because it is measured without running the attack's code"
    )
