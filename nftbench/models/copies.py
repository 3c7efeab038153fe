"""Copies of networks that take memory only for the weights that one of both changes.

An attack trains a copy of the release, and many attacks train a small part of it: adapters, a head, the last blocks.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def copied(network: Network) -> Network:
    """A copy as `copy.deepcopy` gives it, whose weights lie where the originals lie until one of both is written to.

    PyTorch copies a weight at its first change ("copy on write"), so whoever changes one copy never changes the other.
    Asking a weight for its address (`data_ptr`, `numpy`) also makes PyTorch copy it.
    """
    memo: dict[int, object] = {}
    for weight in network.parameters():
        if type(weight) is nn.Parameter and _has_own_memory(weight):
            memo[id(weight)] = nn.Parameter(_lazy_clone(weight.detach()), weight.requires_grad)
    return copy.deepcopy(network, memo)


def _has_own_memory(weight: Tensor) -> bool:
    """Whether a weight fills its memory in its own order. `deepcopy` would change the layout of another one."""
    return weight.device.type == "cpu" and weight.is_contiguous() and weight.untyped_storage().nbytes() == weight.nbytes


def _lazy_clone(weight: Tensor) -> Tensor:
    try:
        return torch._lazy_clone(weight)
    except RuntimeError:  # its memory is not PyTorch's own, but that of a file or of NumPy
        return weight.clone()
