"""Gradients over all weights as one vector, kept as a list of tensors: product, norm, and steps along it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

Vector = Sequence[Tensor]
"""One tensor for each weight tensor of a network, of the same shape."""


def weights_of(network: nn.Module) -> list[nn.Parameter]:
    """The weights that are trained."""
    return [weight for weight in network.parameters() if weight.requires_grad]


def gradient(loss: Tensor, weights: Sequence[Tensor], *, differentiable: bool = False) -> list[Tensor]:
    """The gradient of a scalar by the weights; zeros for weights that it does not depend on.

    `differentiable` allows derivatives of the gradient.
    """
    found = torch.autograd.grad(loss, weights, create_graph=differentiable, allow_unused=True)
    return [torch.zeros_like(weight) if one is None else one for one, weight in zip(found, weights, strict=True)]


def product(first: Vector, second: Vector) -> Tensor:
    """The scalar product."""
    return torch.stack([(one * other).sum() for one, other in zip(first, second, strict=True)]).sum()


def norm(vector: Vector) -> Tensor:
    """The Euclidean length."""
    return product(vector, vector).sqrt()


@contextlib.contextmanager
def moved(weights: Sequence[nn.Parameter], direction: Vector, distance: float) -> Iterator[None]:
    """Move the weights by `distance` times `direction` inside the block; after it they are bit for bit as before."""
    before = [weight.detach().clone() for weight in weights]
    try:
        with torch.no_grad():
            for weight, part in zip(weights, direction, strict=True):
                weight.add_(part, alpha=distance)
        yield
    finally:
        with torch.no_grad():
            for weight, value in zip(weights, before, strict=True):
                weight.copy_(value)


def with_gradient(weights: Sequence[Tensor], wanted: Vector) -> Tensor:
    """A scalar whose gradient by the weights is `wanted`, for a `Stepper`, which steps down a loss."""
    return product(weights, [part.detach() for part in wanted])
