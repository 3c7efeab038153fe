"""Fusing: layers that only compute a linear map together become one linear layer, then every weight is fine-tuned.

A matrix can be published as a product of badly scaled factors, so that every gradient step on the factors diverges
(SpecDef, Rosati et al. 2026, https://arxiv.org/abs/2602.18868, section 4). The product has ordinary gradients again.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from nftbench import Attack, AttackerContext, Knowledge, Outcome, Prepared, Release, Task

LINEAR = 1e-4
"""The largest deviation from a linear map, relative to the largest output in float64. Rounding stays below it for
factors that differ by 1e10; any activation function exceeds it at one of `SIZES`."""
SIZES = (1.0, 100.0)
"""The sizes of the inputs on which modules are tried, as multiples of what they are given in the network."""


@dataclass(frozen=True)
class Fuse(Attack):
    """A module is recognised by what it computes, whatever its class. It must take and return one tensor, and hold two
    linear layers or more. Layers with a function in between stay, as in an MLP or a DLR-Net. So do layers that meet
    inside a module with other parts, as values and outputs in attention; `rebalance` rewrites these."""

    knowledge: ClassVar[frozenset[Knowledge]] = frozenset({"method"})
    against: ClassVar[frozenset[str]] = frozenset({"specdef"})

    def prepare(self, release: Release, context: AttackerContext) -> Prepared:
        fuse(release.model.network)
        return Prepared(release.model)

    def adapt(self, prepared: Prepared, task: Task, context: AttackerContext) -> Outcome:
        return context.sweep(prepared.model, task)


@torch.no_grad()
def fuse(network: PreTrainedModel) -> list[str]:
    """Replace every module that computes a linear map by one layer, in place, and return the modules' names."""
    fused: list[str] = []
    for name, example in examples(network).items():
        if not name.startswith(tuple(f"{outer}." for outer in fused)):
            layer = as_linear(network.get_submodule(name), example)
            if layer is not None:
                network.set_submodule(name, layer)
                fused.append(name)
    return fused


def examples(network: PreTrainedModel) -> dict[str, Tensor]:
    """What modules with two linear layers or more are given on random words, by name, outer modules first.

    Modules that take anything but one tensor are left out, and so is the network itself.
    """
    if not any(isinstance(module, nn.Embedding) for module in network.modules()):
        return {}
    seen: dict[nn.Module, Tensor] = {}

    def watch(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        alone = len(given) == 1 and not named and isinstance(given[0], Tensor) and isinstance(output, Tensor)
        if alone and given[0].is_floating_point() and given[0].shape[:-1] == output.shape[:-1]:
            seen[module] = given[0].detach()

    candidates = {name: module for name, module in network.named_modules() if name and _layers(module) > 1}
    handles = [module.register_forward_hook(watch, with_kwargs=True) for module in candidates.values()]
    try:
        words = network.get_input_embeddings().num_embeddings
        ids = torch.randint(words, (2, 8), generator=torch.Generator().manual_seed(0))
        network.eval()(input_ids=ids.to(network.device))
    finally:
        for handle in handles:
            handle.remove()
    return {name: seen[module] for name, module in candidates.items() if module in seen}


def _layers(module: nn.Module) -> int:
    return sum(isinstance(one, nn.Linear | Conv1D) for one in module.modules())


@torch.no_grad()
def as_linear(module: nn.Module, example: Tensor) -> nn.Linear | None:
    """One layer that computes what a module computes; None where that is no linear map plus a constant.

    Args:
        example: inputs [.., width] as the module is given them in the network.
    """
    exact = copy.deepcopy(module).double()
    inputs = example.double()
    try:
        constant = exact(torch.zeros_like(inputs))
        for size in SIZES:
            first, second = size * inputs, size * inputs.flip(-1)
            parts, whole = exact(first) + exact(second) - constant, exact(first + second)
            if not _close(parts, whole):
                return None
        one = torch.eye(inputs.shape[-1], dtype=inputs.dtype, device=inputs.device)[:, None]
        bias = exact(torch.zeros_like(one[:1]))[0, 0]
        weight = (exact(one)[:, 0] - bias).mT
        if not _close(nn.functional.linear(inputs, weight, bias), exact(inputs)):  # it mixes positions
            return None
    except (RuntimeError, TypeError):  # a part of it computes in no other precision
        return None
    like = next(module.parameters())
    biased = any(getattr(one, "bias", None) is not None for one in module.modules())
    outputs, width = weight.shape
    layer = nn.Linear(width, outputs, bias=biased or bool(bias.any()), device=like.device, dtype=like.dtype)
    layer.weight.copy_(weight)
    if layer.bias is not None:
        layer.bias.copy_(bias)
    return layer


def _close(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() <= LINEAR * other.abs().max())
