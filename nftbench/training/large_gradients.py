"""Whether the gradients of a large network are correct, in the memory of a few copies of its weights.

`costs.gradient_error` holds a dozen float64 copies of the weights, 12 GB for 135 million parameters. Here the gradients
are taken in float32, as most attackers take them, and the finite differences in float64, one direction at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from nftbench.training.costs import MAX_ERROR, SMALLEST, padding_rows

DIRECTIONS = 2
STEP_SIZES = (1e-4, 1e-3)
"""Lengths of the finite differences; the one that agrees best counts. Shorter ones drown in the rounding of norms that
always compute in float32, such as Llama's; over longer ones the loss is not linear. SmolLM2-135M reads 2e-4, in 2.6 GB;
all that `costs.gradient_error` tries on it reads the same, in 12 GB."""
CHUNK = 2**16
"""Weights that are changed at once. In float64 they take half a megabyte, which fits into a core's cache."""


def gradient_error(network: nn.Module, loss: Callable[[nn.Module], Tensor], seed: int) -> float:
    """The relative error of a network's float32 gradients: 0 if they are exact, about 1 if unrelated to the loss.

    It is the largest |a - f| / max(|a|, |f|, |g|) over random directions, as in `costs.gradient_error`: a is the
    derivative along a direction by autograd, f that by central differences, and |g| the root mean square of a. A
    direction changes each weight up or down, by an equal share of its size, but for the rows of `costs.padding_rows`.
    Afterwards the network is as it was.
    """
    parameters = list(network.train().requires_grad_(True).parameters())
    directions = [list(_signs(network, seed, number)) for number in range(DIRECTIONS)]
    least = [_least(weight.detach()) for weight in parameters]
    gradients = torch.autograd.grad(loss(network), parameters, allow_unused=True, materialize_grads=True)
    derivatives = [0.0] * DIRECTIONS
    for gradient, weight, smallest, *signs in zip(gradients, parameters, least, *directions, strict=True):
        scaled = gradient.double().mul_(weight.detach().abs().double().add_(smallest))
        for number, sign in enumerate(signs):
            derivatives[number] += float((scaled * sign).sum())
    del gradients
    typical = math.sqrt(sum(value * value for value in derivatives) / DIRECTIONS)
    differences = _differences(network, loss, parameters, directions, least)
    errors = [
        min(_relative(derivative, difference, typical) for difference in along)
        for derivative, along in zip(derivatives, differences, strict=True)
    ]
    return max(errors)


@torch.no_grad()
def _differences(
    network: nn.Module,
    loss: Callable[[nn.Module], Tensor],
    parameters: Sequence[nn.Parameter],
    directions: Sequence[Sequence[Tensor]],
    least: Sequence[float],
) -> list[list[float]]:
    """Central differences of the loss in float64: for each direction one of each length."""
    weights = [parameter.data for parameter in parameters]
    buffers = [(buffer, buffer.data) for buffer in network.buffers()]
    network.eval().double()
    found = []
    try:
        for signs in directions:
            along = []
            for size in STEP_SIZES:
                values = []
                for step in (size, -size):
                    for parameter, weight, sign, smallest in zip(parameters, weights, signs, least, strict=True):
                        _move(parameter.data, weight, sign, smallest, step)
                    values.append(float(loss(network)))
                along.append((values[0] - values[1]) / (2 * size))
            found.append(along)
    finally:
        for tensor, data in [*zip(parameters, weights, strict=True), *buffers]:
            tensor.data = data
    return found


def _move(target: Tensor, weight: Tensor, sign: Tensor, least: float, step: float) -> None:
    """Write weight + step · sign · (|weight| + least) to `target`, a part at a time."""
    flat = (target.view(-1), weight.reshape(-1), sign.view(-1))
    for own, before, up in zip(*(torch.split(one, CHUNK) for one in flat), strict=True):
        own.copy_(before)
        own.add_(own.abs().add_(least).mul_(up), alpha=step)


def _least(weight: Tensor) -> float:
    """What is added to the sizes of a tensor's weights, so that zeros count."""
    return SMALLEST * float(weight.norm()) / math.sqrt(weight.numel()) + 1e-8


def _signs(network: nn.Module, seed: int, number: int) -> Iterator[Tensor]:
    """A random direction: +1 or -1 for each weight, as int8, and 0 in the rows of `padding_rows`."""
    generator, padding = torch.Generator().manual_seed(seed + number), padding_rows(network)
    for parameter in network.parameters():
        drawn = torch.randint(0, 2, parameter.shape, generator=generator, dtype=torch.int8).mul_(2).sub_(1)
        if parameter in padding:
            drawn[padding[parameter]] = 0
        yield drawn.to(parameter.device)


def _relative(derivative: float, difference: float, typical: float) -> float:
    if not (math.isfinite(derivative) and math.isfinite(difference)):
        return MAX_ERROR
    largest = max(abs(derivative), abs(difference), typical)
    return abs(derivative - difference) / largest if largest else 0.0
