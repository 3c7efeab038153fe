"""What the harness measures about a network itself: the cost of a step, and whether its gradients are true."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nftbench.contract import Cost
from nftbench.training.engine import Stepper

STEP_SIZES = (1e-5, 1e-4, 1e-3, 1e-2)
"""Tried for each direction, and the nearest counts: some norms compute in float32 whatever they are given (Llama's),
which is too coarse for short steps, and over long ones the loss bends."""
ROUNDING = 0.1
"""How far gradients in float32 may be from those in float64: rounding stays orders of magnitude below."""
MOST = 2.0
"""The disagreement of what is not finite: the most that two finite numbers can have, and records keep no infinity."""


def step_cost(network: nn.Module, stepper: Callable[[nn.Module], Stepper], loss: Callable[[nn.Module], Tensor]) -> Cost:
    """FLOPs and memory of one optimizer step on `network`, which is used up.

    FLOPs are those of forward and backward under math attention, since fused CPU attention counts as zero. Memory is
    parameters, gradients, optimizer state and what is saved for backward; on CUDA the allocator's own peak.
    """
    optimizer = stepper(network)
    network.train()
    on_cuda = optimizer.parameters[0].is_cuda
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
    _, saved = saved_bytes(network, loss)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        optimizer.step(loss(network))
    state = [item for one in optimizer.optimizers for entry in one.state.values() for item in entry.values()]
    tensors = [*network.parameters(), *optimizer.parameters, *(item for item in state if isinstance(item, Tensor))]
    peak = sum(tensor.nbytes for tensor in tensors) + saved
    return Cost(
        step_flops=float(counter.get_total_flops()),
        saved_bytes=saved,
        peak_memory_bytes=torch.cuda.max_memory_allocated() if on_cuda else peak,
    )


def saved_bytes(network: nn.Module, loss: Callable[[nn.Module], Tensor]) -> tuple[Tensor, int]:
    """The loss, and the bytes that its graph saves for backward: each storage once, parameters left out."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = loss(network)
    return value, sum(seen.values())


def gradients(network: nn.Module, tokens: Tensor, batch: int = 32) -> dict[str, Tensor]:
    """The gradient of the mean next-token loss over `tokens` [count, block] by parameter, `batch` blocks at a time.

    Nothing is left on the network; a parameter without influence has a gradient of zeros.
    """
    named = dict(network.named_parameters())
    total = {name: torch.zeros_like(parameter) for name, parameter in named.items()}
    for part in torch.split(tokens, batch):
        loss = network(input_ids=part, labels=part).loss
        found = torch.autograd.grad(loss, list(named.values()), allow_unused=True, materialize_grads=True)
        for name, gradient in zip(named, found, strict=True):
            total[name].add_(gradient, alpha=len(part) / len(tokens))
    return total


def gradient_error(network: nn.Module, loss: Callable[[nn.Module], Tensor], seed: int, directions: int = 3) -> float:
    """How far autograd is from central differences, in float64: the largest |a - f| / max(|a|, |f|) over directions.

    A direction is random, each tensor's part scaled to the tensor's own size, so that a gradient of zeros or of
    garbage is seen as well. Gradients are those of the network as it trains, differences those of the network as it is
    judged: without dropout, which the caller turns off, both are one function. Honest networks stay below 1e-5; a
    custom backward that lies gives about 1. Gradients in float32 that have little to do with those in float64 count by
    their own distance.
    """
    network = copy.deepcopy(network)
    single = _gradients(network.float(), loss)
    double = _gradients(network.double(), loss)
    network.eval()
    parameters = list(network.parameters())
    scales = [parameter.detach().square().mean().sqrt().clamp_min(1e-8) for parameter in parameters]
    distance = _distance(single, double, scales)
    worst = distance if distance > ROUNDING else 0.0
    generator = torch.Generator().manual_seed(seed)
    for _ in range(directions):
        steps = [
            torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.device) * scale
            for parameter, scale in zip(parameters, scales, strict=True)
        ]
        claimed = sum(float((gradient * step).sum()) for gradient, step in zip(double, steps, strict=True))
        measured = [_central_difference(network, loss, parameters, steps, size) for size in STEP_SIZES]
        errors = [_disagreement(claimed, value) for value in measured]
        worst = max(worst, min(errors))
    return worst


def _gradients(network: nn.Module, loss: Callable[[nn.Module], Tensor]) -> list[Tensor]:
    """Of a network as it trains; a parameter without influence has a gradient of zeros."""
    parameters = list(network.train().requires_grad_(True).parameters())
    return list(torch.autograd.grad(loss(network), parameters, allow_unused=True, materialize_grads=True))


def _distance(first: list[Tensor], second: list[Tensor], scales: list[Tensor]) -> float:
    """|first - second| / max(|first|, |second|), each tensor in units of its parameter's size."""

    def norm(tensors: Iterable[Tensor]) -> float:
        return math.hypot(*(float(scale * one.norm()) for one, scale in zip(tensors, scales, strict=True)))

    largest = max(norm(first), norm(second))
    distance = norm(one.double() - other for one, other in zip(first, second, strict=True))
    if not (math.isfinite(distance) and math.isfinite(largest)):
        return MOST
    return distance / largest if largest else 0.0


def _disagreement(claimed: float, measured: float) -> float:
    if not (math.isfinite(claimed) and math.isfinite(measured)):
        return MOST
    largest = max(abs(claimed), abs(measured))
    return abs(claimed - measured) / largest if largest else 0.0


def _central_difference(
    network: nn.Module,
    loss: Callable[[nn.Module], Tensor],
    parameters: list[nn.Parameter],
    steps: list[Tensor],
    size: float,
) -> float:
    values = []
    with torch.no_grad():
        for sign in (1.0, -1.0):
            for parameter, step in zip(parameters, steps, strict=True):
                parameter.add_(step, alpha=sign * size)
            values.append(float(loss(network)))
            for parameter, step in zip(parameters, steps, strict=True):
                parameter.sub_(step, alpha=sign * size)
    return (values[0] - values[1]) / (2 * size)
