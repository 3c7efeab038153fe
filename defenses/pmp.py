"""Private Mask Pre-Training (PMP): find an early-bird mask, pre-train only the marked weights, release all weights.

Wang et al. 2026, "Towards Building Non-Fine-Tunable Foundation Models", https://arxiv.org/abs/2602.00446. In the paper
the complement of the mask is frozen at initialisation. In the authors' code (ziyaow1010/Non-Fone-Tunable-LLM, commit
7d7a1ff) weight decay acts on it, and every 400 steps it is shrunk to a ball. `complement` chooses between the two.

Stage I, which the paper does not describe in more detail, is that of the code for both. With its recipe (cosine
schedule down to 0) and PyTorch's unfused AdamW, stages I and II give the code's weights bit for bit. We depart from it
where a suite does: rate, weight decay, steps and schedule are those of the suite's recipe, and a mask is found on whole
batches of the recipe, not on a single micro-batch of four blocks. Stage I sees the first batches of stage II, whereas
the code draws others.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from nftbench import Claim, Defense, Mask, Model, OwnerContext, Passes, Protected, Secret, Series, Stage, Suite
from nftbench.methods import masks


@dataclass(frozen=True)
class Pmp(Defense):
    """`ratio`: the share of the weights in the mask (0.7 in the paper, 0.9 in the code's defaults).

    `complement`: `frozen` at its initial values (the paper), or decayed and shrunk (`released`, the code).
    `criterion`: the `earlybird` mask, or a `random` one with everything else equal.
    `scope`: whether the largest gradients are chosen over all weights or in each tensor.
    `discovery_steps`, `iou`, `patience`: when to end stage I (see `discover`).
    """

    stage: ClassVar[Stage] = "pretrain"
    claims: ClassVar[Claim | None] = Claim(frozenset({"method", "data"}))
    keeps_secret: ClassVar[bool] = True

    ratio: float = 0.7
    complement: Literal["frozen", "released"] = "frozen"
    criterion: Literal["earlybird", "random"] = "earlybird"
    scope: Literal["global", "per_tensor"] = "global"
    discovery_steps: int = 500
    iou: float = 0.99
    patience: int = 5
    radius: float = 2.0
    """The L2 norm to which `complement=released` shrinks the complement, if it is longer."""
    interval: int = 400
    """The number of steps between two such shrinkages."""

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise ValueError(f"ratio must lie in (0, 1], not {self.ratio:g}")
        if self.discovery_steps < 1 or self.interval < 1 or self.patience < 1:
            raise ValueError("discovery_steps, interval and patience must be at least 1")

    def training_passes(self, suite: Suite) -> Passes:
        """Stage I."""
        steps = self.discovery_steps if self.criterion == "earlybird" else 0
        return Passes(blocks=steps * suite.pretraining.batch)

    def protect(self, model: Model, context: OwnerContext) -> Protected:
        mask, overlap = self.discover(model, context)
        if self.complement == "frozen":
            context.pretrain(model, mask=mask)
        else:
            self.pretrain_as_released(model, mask, context)
        return Protected(model, Secret(mask), (overlap,) if overlap.x else ())

    def discover(self, model: Model, context: OwnerContext) -> tuple[Mask, Series]:
        """Stage I, on a copy of the untrained model: find the mask.

        This is pre-training at a constant rate, with AdamW's default betas and without weight decay. Each step's
        candidate is the top `ratio` of |gradient| on that step's batch. It ends when `patience` consecutive pairs of
        candidates have an IoU of at least `iou`, or after `discovery_steps`. Returns the last candidate and the IoU of
        each step's candidate with the previous one.
        """
        if self.criterion == "random":
            generator = torch.Generator().manual_seed(context.seed)
            scores = {name: torch.rand(weight.shape, generator=generator) for name, weight in _weights(model.network)}
            return self.top(scores), Series("IoU", (), ())
        scout = Model(copy.deepcopy(model.network), model.tokenizer)
        mask: Mask = {}
        overlaps: list[float] = []

        def look(network: nn.Module, step: int) -> bool:
            nonlocal mask
            candidate = self.top({name: _magnitude(weight) for name, weight in _weights(network)})
            if mask:
                overlaps.append(masks.overlap(candidate, mask))
            mask = candidate
            return len(overlaps) >= self.patience and min(overlaps[-self.patience :]) >= self.iou

        context.pretrain(
            scout,
            each_step=look,
            steps=self.discovery_steps,
            schedule="constant",
            warmup=0,
            betas=(0.9, 0.999),
            weight_decay=0.0,
        )
        steps = tuple(float(step) for step in range(2, len(overlaps) + 2))
        return mask, Series("IoU of consecutive masks", steps, tuple(overlaps), y_label="IoU")

    def top(self, scores: dict[str, Tensor]) -> dict[str, Tensor]:
        """Mark the share `ratio` of the weights with the highest scores, over all tensors or in each of them."""
        return masks.top(scores, self.ratio, self.scope)

    def pretrain_as_released(self, model: Model, mask: Mask, context: OwnerContext) -> None:
        """Stage II as in the authors' code. Gradients outside the mask are zeroed, but weight decay still acts there,
        and on vectors too. After the steps `interval` + 1, 2 · `interval` + 1 and so on the complement is shrunk to the
        L2 norm `radius`, if it is longer: the code counts its steps from 0, and does not shrink after step 0."""
        weights = dict(_weights(model.network))
        hooks = [
            weight.register_hook(mask[name].to(weight.dtype).mul)  # type: ignore[no-untyped-call]
            for name, weight in weights.items()
        ]

        @torch.no_grad()
        def shrink(network: nn.Module, step: int) -> None:
            if step > 1 and (step - 1) % self.interval == 0:
                norm = math.sqrt(sum(float(weight[~mask[name]].square().sum()) for name, weight in weights.items()))
                for name, weight in weights.items():
                    weight.mul_(torch.where(mask[name], 1.0, min(1.0, self.radius / max(norm, 1e-12))))

        context.pretrain(model, each_step=shrink, decay_vectors=True)
        for hook in hooks:
            hook.remove()


def _weights(network: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return list(network.named_parameters())


def _magnitude(weight: nn.Parameter) -> Tensor:
    return weight.grad.abs() if weight.grad is not None else torch.zeros_like(weight)
