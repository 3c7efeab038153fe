"""Whether the gradients of a large network are correct, in the memory of a few copies of its weights.

`costs.gradient_error` holds a dozen float64 copies of the weights, 12 GB for 135 million parameters. Here the gradients
are taken in float32, as most attackers take them, and the finite differences in float64, one direction at a time. Only
where the two disagree are the gradients taken in float64 as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from nftbench.training.costs import FLOAT32_TOLERANCE, MAX_ERROR, SMALLEST, padding_rows, relative_error

DIRECTIONS = 2
STEP_SIZES = (1e-4, 1e-3)
"""Lengths of the finite differences; the one that agrees best counts. Shorter ones drown in the rounding of norms that
always compute in float32, such as Llama's; over longer ones the loss is not linear. SmolLM2-135M reads 2e-4, in 2.6 GB;
all that `costs.gradient_error` tries on it reads the same, in 12 GB."""
DOUBT = 5e-4
"""Beyond this error there is a second look, with gradients in float64 and `SHORT_STEP_SIZES`.

A release whose loss curves strongly needs it: its derivatives are large, float32 rounds them, and its loss is linear
over shorter steps alone. SpecDef's factors of 1e4 on SmolLM2-135M read 0.23 at the first look and 4e-4 then."""
SHORT_STEP_SIZES = (1e-7, 1e-6, 1e-5)
CHUNK = 2**16
"""Weights that are read or changed at once. In float64 they take half a megabyte, which fits into a core's cache."""


def gradient_error(network: nn.Module, loss: Callable[[nn.Module], Tensor], seed: int) -> float:
    """The relative error of a network's gradients: 0 if they are exact, about 1 if unrelated to the loss.

    It is the largest |a - f| / max(|a|, |f|, |g|) over random directions, as in `costs.gradient_error`: a is the
    derivative along a direction by autograd, f that by central differences, and |g| the root mean square of a. A
    direction changes each weight up or down, by an equal share of its size, but for the rows of `costs.padding_rows`.
    The gradients are of float32. Beyond an error of `DOUBT` those of float64 take their place, and a distance of both
    above `costs.FLOAT32_TOLERANCE` counts as an error, too. Afterwards the network is as it was.
    """
    probe = _Probe(network, loss, seed)
    single = probe.derivatives()
    with probe.in_float64():
        error = _worst(single, probe.differences(STEP_SIZES))
        if error <= DOUBT or error == MAX_ERROR:
            return error
        double = probe.derivatives()
        distance = _worst(single, [[derivative] for derivative in double])
        error = _worst(double, probe.differences(SHORT_STEP_SIZES))
    return max(error, distance) if distance > FLOAT32_TOLERANCE else error


class _Probe:
    """A network, a loss, and the random directions in which its weights are moved."""

    def __init__(self, network: nn.Module, loss: Callable[[nn.Module], Tensor], seed: int) -> None:
        self.network, self.loss = network, loss
        self.parameters = list(network.requires_grad_(True).parameters())
        self.weights = [parameter.data for parameter in self.parameters]
        self.least = [_least(weight) for weight in self.weights]
        self.directions = [list(_signs(network, seed, number)) for number in range(DIRECTIONS)]

    def derivatives(self) -> list[float]:
        """The derivative along each direction by autograd, in training mode and the network's present precision."""
        value = self.loss(self.network.train())
        gradients = torch.autograd.grad(value, self.parameters, allow_unused=True, materialize_grads=True)
        found = [0.0] * DIRECTIONS
        for gradient, weight, least, *signs in zip(gradients, self.weights, self.least, *self.directions, strict=True):
            for slope, before, *ups in _pieces(gradient, weight, *signs):
                scaled = slope.double().mul_(before.abs().double().add_(least))
                for number, up in enumerate(ups):
                    found[number] += float((scaled * up).sum())
        return found

    @contextmanager
    def in_float64(self) -> Iterator[None]:
        """The network computes in float64, and has its own weights and buffers again afterwards."""
        before = [(tensor, tensor.data) for tensor in [*self.parameters, *self.network.buffers()]]
        self.network.double()
        try:
            yield
        finally:
            for tensor, data in before:
                tensor.data = data

    @torch.no_grad()
    def differences(self, sizes: Sequence[float]) -> list[list[float]]:
        """Central differences of the loss in evaluation mode: for each direction one of each size."""
        self.network.eval()
        found = [[self._difference(signs, size) for size in sizes] for signs in self.directions]
        self._move_all(self.directions[0], 0.0)
        return found

    def _difference(self, signs: Sequence[Tensor], size: float) -> float:
        values = []
        for step in (size, -size):
            self._move_all(signs, step)
            values.append(float(self.loss(self.network)))
        return (values[0] - values[1]) / (2 * size)

    def _move_all(self, signs: Sequence[Tensor], step: float) -> None:
        """Set the weights to those at a distance of `step` from their own, along a direction."""
        for parameter, weight, sign, least in zip(self.parameters, self.weights, signs, self.least, strict=True):
            _move(parameter.data, weight, sign, least, step)


def _worst(derivatives: Sequence[float], differences: Sequence[Sequence[float]]) -> float:
    """The largest relative error over directions, each by the difference that agrees best."""
    typical = math.sqrt(sum(value * value for value in derivatives) / len(derivatives))
    return max(
        min(relative_error(derivative, difference, typical) for difference in along)
        for derivative, along in zip(derivatives, differences, strict=True)
    )


def _move(target: Tensor, weight: Tensor, sign: Tensor, least: float, step: float) -> None:
    """Write weight + step · sign · (|weight| + least) to `target`, a part at a time."""
    for own, before, up in _pieces(target.view(-1), weight, sign):
        own.copy_(before)
        own.add_(own.abs().add_(least).mul_(up), alpha=step)


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of one shape, a part of each at a time: in float64 a large vocabulary's embedding takes gigabytes."""
    return zip(*(torch.split(one.reshape(-1), CHUNK) for one in tensors), strict=True)


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
