"""Full fine-tuning that keeps few or no activations: what a lock that costs memory has to face.

`checkpointing` keeps what goes into each block and computes the rest again (Chen et al. 2016, arXiv:1604.06174): the
numbers of `full`, and fewer bytes saved for backward. While a block is computed again its own activations are there,
and no other's. `mezo` takes forward passes alone (Malladi et al. 2023, arXiv:2305.17333, algorithm 1), and so is no
more impressed by a backward pass that lies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from nftbench import Attack, AttackerContext, Knowledge, Outcome, Prepared, Task, WrappedTask
from nftbench.methods import adapters

EPSILON = 1e-3
"""How far a weight is moved to feel the slope, in standard deviations of the direction: the default of MeZO's code."""
LR_SCALE = 2.0
"""Slopes along random directions are noise for the most part, and Adam divides by it: on the toy models the best rates
are about twice as high."""


@dataclass(frozen=True)
class MemoryLight(Attack):
    """`by`: the way. `directions`: of `mezo`, along so many the slope is measured at each step, with two forward passes
    each. The paper takes one and up to a hundred times the steps of fine-tuning; a budget counts steps, and ten
    directions get as far in 100 steps as one does in 1000 (toy_topic, suite `small`: 85 and 83 points)."""

    knowledge: ClassVar[frozenset[Knowledge]] = frozenset({"method"})
    against: ClassVar[frozenset[str]] = frozenset({"dlr_lock"})

    by: Literal["checkpointing", "mezo"] = "checkpointing"
    directions: int = 10

    def __post_init__(self) -> None:
        if self.directions < 1:
            raise ValueError("directions must be at least 1")

    def adapt(self, prepared: Prepared, task: Task, context: AttackerContext) -> Outcome:
        if self.by == "checkpointing":
            return context.sweep(prepared.model, task, adapter=_checkpointed)
        slopes = _Slopes(task, self.directions)
        # Not clipped, as in the paper: what differs in size from step to step is how much a direction has to say.
        return context.sweep(prepared.model, slopes, adapter=slopes.seeded, lr_scale=LR_SCALE, clip=None)


# -------------------------------------------------------------------------------------------------------- checkpointing


def _checkpointed(network: PreTrainedModel, attack_seed: int) -> PreTrainedModel:
    """The network, whose blocks are computed again in the backward pass."""
    if network.supports_gradient_checkpointing:
        network.activation_checkpointing_enable({"use_reentrant": False})
        return network
    for block in adapters.blocks(network):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    return network


# ----------------------------------------------------------------------------------------------------------------- MeZO


@dataclass(frozen=True)
class _Slopes(WrappedTask):
    """A task whose loss is known by its values alone: the gradient is the slope along random directions, times them.

    A direction is drawn again from its seed wherever it is needed. The engine's optimizers read `.grad`, which is
    therefore there: the memory is that of the weights and one gradient, with no activations.
    """

    directions: int
    generators: WeakKeyDictionary[nn.Module, torch.Generator] = field(default_factory=WeakKeyDictionary, compare=False)

    def seeded(self, network: PreTrainedModel, attack_seed: int) -> PreTrainedModel:
        """The network, for which directions are drawn by the attack seed."""
        self.generators[network] = torch.Generator().manual_seed(attack_seed)
        return network

    def loss(self, network: nn.Module, batch: Any) -> Tensor:
        parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        drawn = torch.randint(2**62, (self.directions,), generator=self.generators[network])
        seeds: list[int] = drawn.tolist()
        values = [self.around(network, batch, parameters, seed) for seed in seeds]
        slopes = [float(above - below) / (2 * EPSILON * self.directions) for above, below in values]
        mean = torch.stack([value for pair in values for value in pair]).mean()
        found: Tensor = _Projection.apply(mean, seeds, slopes, *parameters)  # type: ignore[no-untyped-call]
        return found

    @torch.no_grad()
    def around(self, network: nn.Module, batch: Any, parameters: Sequence[Tensor], seed: int) -> tuple[Tensor, Tensor]:
        """The loss a little forward and a little back along one direction, in full precision: it is their difference
        that counts."""
        found = []
        with torch.autocast(parameters[0].device.type, enabled=False):
            for length in (EPSILON, -2 * EPSILON):
                _move(parameters, seed, length)
                found.append(self.task.loss(network, batch))
        _move(parameters, seed, EPSILON)
        return found[0], found[1]


def _move(parameters: Sequence[Tensor], seed: int, length: float) -> None:
    for parameter, direction in zip(parameters, _direction(parameters, seed), strict=True):
        parameter.add_(direction, alpha=length)


def _direction(like: Sequence[Tensor], seed: int) -> Iterator[Tensor]:
    """Standard normal numbers for each parameter, the same for the same seed."""
    generator = torch.Generator(like[0].device).manual_seed(seed)
    for one in like:
        yield torch.randn(one.shape, generator=generator, device=one.device, dtype=one.dtype)


class _Projection(torch.autograd.Function):
    """A loss that is there already, and for its gradient the sum of slopes times directions."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, seeds: list[int], slopes: list[float], *parameters: Tensor) -> Tensor:
        ctx.seeds, ctx.slopes, ctx.parameters = seeds, slopes, parameters
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        total = [torch.zeros_like(parameter) for parameter in ctx.parameters]
        for seed, slope in zip(ctx.seeds, ctx.slopes, strict=True):
            for one, direction in zip(total, _direction(ctx.parameters, seed), strict=True):
                one.add_(direction, alpha=slope * float(gradients[0]))
        return None, None, None, *total
