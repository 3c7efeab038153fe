"""SpecDef: some weights are released as two factors, one of them with huge singular values, so that training diverges.

Rosati et al. 2026, "Limits of Convergence-Rate Control for Open-Weight Safety", https://arxiv.org/abs/2602.18868. It
needs no data and no training. Let U_k hold the k largest left singular vectors of a weight W [m, n], and let C =
I - (1 - 1/alpha) U_k U_k^T. Then W~ = W + (alpha - 1) U_k U_k^T W is W with its k largest singular values multiplied by
alpha, and C W~ = W. The curvature of the loss in C grows with alpha, so that only learning rates near 1/alpha or below
are stable. The paper says that whoever multiplies C W~ again undoes it (section 4), and proves that a linear number of
added weights defeats every defense of this class (theorem 8).

There is no official code, and of the paper only a summary and others' code (Georgakopoulos-Soares-lab/glm-locking)
could be read. Ours, besides the form `folded`, are these choices:

- The layers are drawn from all linear layers of the decoder.
- If m > n, the compensator stands on the side of the inputs: W = W~ C with right singular vectors. On the other side C
  would have m² weights of which only n directions are used.
- At most half of a weight's singular values are multiplied. The paper's 25 are less than 1 % of those of its models;
  if all were, W~ would be a mere multiple of W.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nftbench import Claim, Defense, Model, NftbenchError, OwnerContext, Protected, Stage, Suite
from nftbench.methods import symmetries, tuning, two_layer
from nftbench.methods.control import changed


@dataclass(frozen=True)
class SpecDef(Defense):
    """`alpha`: the factor on the largest singular values. `k`: how many of each weight, but at most half of them.
    `layers`: how many layers are drawn at random.

    `form`: `two_layer` releases each drawn weight as two layers, in an architecture of nftbench. `folded` keeps the
    standard architecture. It draws among places where one linear map feeds another, and multiplies W~ into the first
    and C into the second. Such places are the values and outputs of each attention head, and the up and down
    projections of gated MLPs. Between the latter stands a product unit by unit, so that C must be diagonal there: the
    units with the largest rows of the up projection take the place of singular vectors.
    """

    stage: ClassVar[Stage] = "posttrain"
    claims: ClassVar[Claim | None] = Claim()

    alpha: float = 1e4
    k: int = 25
    layers: int = 5
    form: Literal["two_layer", "folded"] = "two_layer"

    def __post_init__(self) -> None:
        if self.alpha < 1 or min(self.k, self.layers) < 1:
            raise ValueError("alpha, k and layers must be at least 1")

    def control_row(self) -> str | None:
        """The same two-layer architecture with all singular values as they are. Folded, that would be the base."""
        return changed("specdef", self, alpha=1.0) if self.alpha > 1 and self.form == "two_layer" else None

    def check(self, suite: Suite) -> None:
        self.places(tuning.outline(suite))

    @torch.no_grad()
    def protect(self, model: Model, context: OwnerContext) -> Protected:
        network, chosen = model.network, self.drawn(model.network, context.seed)
        if self.form == "folded":
            for place in chosen:
                self.fold(place)
            return Protected(model)
        weights = {name: two_layer.weight_of(network.base_model.get_submodule(name)) for name in chosen}
        factors = {name: self.factors(weight) for name, weight in weights.items()}
        return Protected(Model(two_layer.factored(network, factors), model.tokenizer))

    def places(self, network: PreTrainedModel) -> list[Any]:
        """What can be drawn: names of layers, or of `folded` the attention and gated MLPs of the blocks.

        Raises:
            NftbenchError: the architecture has none that are known.
        """
        if self.form == "two_layer":
            return two_layer.layers(network)
        parts = symmetries.anatomy(network)
        if parts is None:
            raise NftbenchError(f"specdef[form=folded] knows no blocks as in {network.config.model_type}")
        gated = [units for block in parts.blocks for units in block.units if units.linear is not None]
        return [*(block.attention for block in parts.blocks), *gated]

    def drawn(self, network: PreTrainedModel, seed: int) -> list[Any]:
        """`layers` of the places, or all if there are fewer, in the order of the network."""
        places = self.places(network)
        order = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed)).tolist()
        return [places[index] for index in sorted(order[: self.layers])]

    def count(self, size: int) -> int:
        """How many of `size` singular values are multiplied."""
        return min(self.k, max(size // 2, 1))

    def factors(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The outer and the inner factor of a weight [m, n], in float64: C and W~, or W~ and C if m > n."""
        outputs, inputs = weight.shape
        weight = weight.double()
        left, _, right = torch.linalg.svd(weight, full_matrices=False)
        count = self.count(min(outputs, inputs))
        if outputs <= inputs:
            directions = left[:, :count]
            return stretch(directions, 1 / self.alpha), stretch(directions, self.alpha) @ weight
        directions = right[:count].mT
        return weight @ stretch(directions, self.alpha), stretch(directions, 1 / self.alpha)

    def fold(self, place: symmetries.Attention | symmetries.Units) -> None:
        """Multiply the map W~ W^-1 into the first layer of a place, and its inverse C into the second, in place."""
        if isinstance(place, symmetries.Units):
            assert place.linear is not None
            rows = place.linear.weight.double().norm(dim=1)
            scale = torch.ones_like(rows)
            scale[rows.topk(self.count(len(rows))).indices] = self.alpha
            place.linear.scale(scale)
            place.output.weight.copy_(place.output.weight.double() / scale)
            return
        size, group = place.size, place.group
        for head in range(place.key_heads):
            value = place.value.outputs(head * size, (head + 1) * size)
            left = torch.linalg.svd(value.weight.double(), full_matrices=False)[0]
            directions = left[:, : self.count(size)]
            value.write(stretch(directions, self.alpha) @ value.table)
            inverse = stretch(directions, 1 / self.alpha)
            for query in range(head * group, (head + 1) * group):  # the query heads that share these values
                columns = place.output.weight[:, query * size : (query + 1) * size]
                columns.copy_(columns.double() @ inverse)


def stretch(directions: Tensor, factor: float) -> Tensor:
    """The symmetric map that multiplies `directions`, orthonormal columns [n, k], by a factor. It keeps what is
    orthogonal to them."""
    identity = torch.eye(len(directions), dtype=directions.dtype, device=directions.device)
    return identity + (factor - 1) * directions @ directions.mT
