"""Full fine-tuning that saves few or no activations, against defenses that make training expensive in memory.

`checkpointing` saves only the inputs of each block and computes the rest again in the backward pass (Chen et al. 2016,
arXiv:1604.06174). It gives the same numbers as `full` with fewer saved bytes: at any time only one block's activations
are in memory. `mezo` uses forward passes alone (Malladi et al. 2023, arXiv:2305.17333, algorithm 1). Wrong gradients
from a manipulated backward pass therefore do not affect it.
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
"""The step of the finite differences, in standard deviations of the random direction: the default of MeZO's code."""
LR_SCALE = 2.0
"""Gradient estimates from random directions are mostly noise, by which Adam divides. On the toy models the best
learning rates are therefore about twice as high."""


@dataclass(frozen=True)
class MemoryLight(Attack):
    """`by`: the method. `directions`: for `mezo`, the number of random directions at each step, which take two forward
    passes each. The paper uses one direction and up to a hundred times the steps of fine-tuning. A budget counts steps,
    and ten directions in 100 steps do as well as one in 1000 (toy_topic, suite `small`: 85 and 83 points)."""

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
        # No clipping, as in the paper: the size of a step's gradient says how informative its directions are.
        return context.sweep(prepared.model, slopes, adapter=slopes.seeded, lr_scale=LR_SCALE, clip=None)


# -------------------------------------------------------------------------------------------------------- checkpointing


def _checkpointed(network: PreTrainedModel, attack_seed: int) -> PreTrainedModel:
    """The network, with blocks that are computed again in the backward pass."""
    if network.supports_gradient_checkpointing:
        network.activation_checkpointing_enable({"use_reentrant": False})
        return network
    for block in adapters.blocks(network):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    return network


# ----------------------------------------------------------------------------------------------------------------- MeZO


@dataclass(frozen=True)
class _Slopes(WrappedTask):
    """A task whose gradient is estimated from losses alone: the sum of slope times direction over random directions.

    A direction is drawn again from its seed whenever it is needed. The engine's optimizers read `.grad`, so memory is
    needed for the weights and one gradient, but not for activations.
    """

    directions: int
    generators: WeakKeyDictionary[nn.Module, torch.Generator] = field(default_factory=WeakKeyDictionary, compare=False)

    def seeded(self, network: PreTrainedModel, attack_seed: int) -> PreTrainedModel:
        """The network, registered so that its directions are drawn by the attack seed."""
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
        """The losses at +EPSILON and -EPSILON along one direction. They are computed in full precision, because only
        their small difference matters."""
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
    """A standard normal direction: one tensor for each parameter, determined by the seed."""
    generator = torch.Generator(like[0].device).manual_seed(seed)
    for one in like:
        yield torch.randn(one.shape, generator=generator, device=one.device, dtype=one.dtype)


class _Projection(torch.autograd.Function):
    """Returns a loss that is already computed. Its gradient is the sum of slopes times directions."""

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
