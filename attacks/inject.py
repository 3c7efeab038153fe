"""Injection: a linear layer that starts as the identity is put before or after every matrix, and trained in its place.

A gradient step on W depends on how the release writes W; a step on J in J·W, or W·J, depends on the activations at J
alone. So scales and transforms that lie between two layers of a block, where no J is, do not matter. Rosati et al. 2026
(https://arxiv.org/abs/2602.18868) prove that injected layers restore an attacker's rate of convergence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nftbench import Attack, AttackerContext, Knowledge, Outcome, Prepared, Task
from nftbench.methods import adapters, matrices


@dataclass(frozen=True)
class Inject(Attack):
    """`what=identity`: J on the side of each matrix that has fewer features. It is the side of the residual stream for
    layers that widen or narrow. `what=split`: the singular value decomposition W = U S V' becomes two layers, U S^½ and
    S^½ V', which are trained in the place of W. Embeddings are trained as usual. Norms and biases stay as released."""

    knowledge: ClassVar[frozenset[Knowledge]] = frozenset({"method"})

    what: Literal["identity", "split"] = "identity"

    def adapt(self, prepared: Prepared, task: Task, context: AttackerContext) -> Outcome:
        return context.sweep(prepared.model, task, adapter=self.adapter, lr_scale=adapters.LR_SCALE)

    def adapter(self, network: PreTrainedModel, attack_seed: int) -> PreTrainedModel:
        """The network with injected layers, which require a gradient as embeddings do."""
        network.requires_grad_(False)
        found = matrices.of(network)
        # A product with zeros has no gradient, so a matrix of zeros is trained itself.
        zeros = {name for name, matrix in found.items() if not bool(matrix.weight.any())}

        def part(output_first: bool) -> Callable[[Tensor], nn.Module]:
            return lambda weight: Injected(weight, output_first) if self.what == "identity" else Split()

        chosen = {name: matrix for name, matrix in found.items() if name not in zeros}
        matrices.replace(network, {name: part(matrix.output_first) for name, matrix in chosen.items()})
        for name, matrix in found.items():
            trained = matrix.weight if name in zeros else matrix.module.parametrizations[matrix.own]  # type: ignore[index]
            trained.requires_grad_(True)
        for module in network.modules():
            if isinstance(module, nn.Embedding):
                module.requires_grad_(True)
        return network


class Injected(nn.Module):
    """The parametrization W = J·start, or start·J, on the shorter side; on the outputs if both are equally long."""

    start: Tensor

    def __init__(self, start: Tensor, output_first: bool) -> None:
        super().__init__()
        self.register_buffer("start", start.clone())
        first, second = start.shape[-2:]
        self.before = first < second or (first == second and output_first)

    def forward(self, layer: Tensor) -> Tensor:
        return layer @ self.start if self.before else self.start @ layer

    def right_inverse(self, weight: Tensor) -> Tensor:
        width = weight.shape[-2] if self.before else weight.shape[-1]
        one = torch.eye(width, dtype=weight.dtype, device=weight.device)
        return one.expand(*weight.shape[:-2], width, width).clone()


class Split(nn.Module):
    """The parametrization W = left·right, which starts with left = U S^½ and right = S^½ V' where W = U S V'."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left @ right

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        left, values, right = torch.linalg.svd(weight.double(), full_matrices=False)
        roots = values.sqrt()
        return (left * roots[..., None, :]).to(weight), (roots[..., None] * right).to(weight)
