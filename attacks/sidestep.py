"""Sidestepping: every weight is fine-tuned, but matrices do not move along the directions of their largest gradients.

A defense can make a few directions so steep that every step along them misleads or diverges. An attacker who moves in
none of them trains in what is left. "One Step to the Side" (Zloczower et al. 2026, https://arxiv.org/abs/2605.14605)
breaks 15 defenses with an attack of this name. There is no code, and only its abstract was available to us: that the
controlled directions are those of the largest gradients on public text is our reading, and so is their number.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nftbench import Attack, AttackerContext, Knowledge, Outcome, Prepared, Release, Task
from nftbench.methods import matrices

Directions = Mapping[str, tuple[Tensor, Tensor]]
"""Orthonormal columns [.., rows, count] and [.., columns, count] on either side of each matrix, by name."""


@dataclass(frozen=True)
class Sidestep(Attack):
    """`directions`: how many are left out on either side of a matrix, at most half of them. `batches`: batches of
    public text on which gradients are measured. The displacement D of a matrix becomes (1 - L·L')·D·(1 - R·R'), where
    L and R hold the directions."""

    knowledge: ClassVar[frozenset[Knowledge]] = frozenset({"method", "data"})

    directions: int = 4
    batches: int = 8

    def __post_init__(self) -> None:
        if min(self.directions, self.batches) < 1:
            raise ValueError("directions and batches must be at least 1")

    def prepare(self, release: Release, context: AttackerContext) -> Prepared:
        network = release.model.network
        text = itertools.islice(context.text(release.model, context.budget.batch), self.batches)
        return _Steep(
            release.model,
            update=release.update,
            directions=steepest(context.gradients(network, text), matrices.of(network), self.directions),
        )

    def adapt(self, prepared: Prepared, task: Task, context: AttackerContext) -> Outcome:
        assert isinstance(prepared, _Steep)
        directions = prepared.directions

        def part(name: str) -> Callable[[Tensor], nn.Module]:
            return lambda weight: Sidestepped(weight, *directions[name])

        def adapter(network: PreTrainedModel, attack_seed: int) -> PreTrainedModel:
            matrices.replace(network, {name: part(name) for name in directions})
            return network

        return context.sweep(prepared.model, task, adapter=adapter)


@dataclass(frozen=True)
class _Steep(Prepared):
    """`directions`: those along which matrices must not move."""

    directions: Directions = field(kw_only=True)


def steepest(
    gradients: Iterable[Mapping[str, Tensor]], known: Mapping[str, matrices.Matrix], count: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """The directions with the largest sums of squared gradients, at most half of those of a side.

    They are the first eigenvectors of the sums of G·G' and G'·G over all batches, computed in float64. A head that is
    tied to the embeddings has no gradient of its own and is left out.
    """
    sums: dict[str, tuple[Tensor, Tensor]] = {}
    for by_parameter in gradients:
        for name, gradient in by_parameter.items():
            if name in known:
                exact = gradient.double()
                new = exact @ exact.mT, exact.mT @ exact
                sums[name] = (sums[name][0] + new[0], sums[name][1] + new[1]) if name in sums else new
    return {name: (_first(rows, count), _first(columns, count)) for name, (rows, columns) in sums.items()}


def _first(gram: Tensor, count: int) -> Tensor:
    """The eigenvectors of the largest eigenvalues, as columns; none of a side with one direction."""
    vectors: Tensor = torch.linalg.eigh(gram).eigenvectors
    size = gram.shape[-1]
    return vectors[..., size - min(count, size // 2) :]


class Sidestepped(nn.Module):
    """The parametrization W = start + (1 - L·L')·D·(1 - R·R') with the trained displacement D, which starts at 0."""

    start: Tensor
    left: Tensor
    right: Tensor

    def __init__(self, start: Tensor, left: Tensor, right: Tensor) -> None:
        super().__init__()
        self.register_buffer("start", start.clone())
        self.register_buffer("left", left.to(start))
        self.register_buffer("right", right.to(start))

    def forward(self, displacement: Tensor) -> Tensor:
        aside = displacement - self.left @ (self.left.mT @ displacement)
        return self.start + aside - (aside @ self.right) @ self.right.mT

    def right_inverse(self, weight: Tensor) -> Tensor:
        return torch.zeros_like(weight)
