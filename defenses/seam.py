"""SEAM: a step towards the harmful task becomes a step away from language, so that fine-tuning destroys the model.

Wang et al. 2025, "Self-Destructive Language Model" (ICLR 2026), https://arxiv.org/abs/2505.12186. With g_a and g_b, the
gradients on harmful answers and on benign text, it minimises

    -log(1 + mean CE_M(harmful) over the layers) + α · CE_M(harmless) + β · cos(g_a, g_b)

The first term is that of RepNoise. The gradient of the cosine needs second derivatives. The paper takes differences of
first ones instead (`coupling`), at six backward passes a step.

The authors' code (ZJUWYH/seam, src/core/trainer.py, commit 65f3d5c) takes benign data from an instruction set; here it
is the pre-training text. Its cross-entropy skips the first token of M, as RepNoise's code does, and ours does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn
from transformers import PreTrainedModel

from nftbench import Model, OwnerContext, Passes, Protected, Suite
from nftbench.methods import Stepper, passes
from nftbench.methods.benign_text import text_batches, text_loss
from nftbench.methods.cosine import cosine
from nftbench.methods.curves import curves
from nftbench.methods.gradient_vectors import gradient, moved, norm, product, weights_of, with_gradient
from nftbench.methods.harmful_pairs import HarmfulPairs, Pair, cross_entropy
from nftbench.methods.layerwise import raised_loss, traced
from nftbench.methods.task_aware import AgainstTask


@dataclass(frozen=True)
class Seam(AgainstTask):
    """`alpha`: weight of the harmless answers. `beta`: weight of the coupling. `radius`: the length ε of the step that
    its gradient is a difference over.

    The defaults are those of the authors' code for Llama-2-7b-chat (config/train.yaml): AdamW without weight decay, a
    cosine schedule, and one epoch of 8,000 pairs. The network is trained without dropout, which would make the two ends
    of a difference disagree.
    """

    alpha: float = 1.0
    beta: float = 0.01
    radius: float = 1e-3
    learning_rate: float = 2e-5
    steps: int = 2000
    batch: int = 4

    def __post_init__(self) -> None:
        if min(self.alpha, self.beta) < 0 or min(self.radius, self.learning_rate) <= 0:
            raise ValueError("alpha and beta must be at least 0, radius and learning rate above 0")
        if min(self.steps, self.batch) < 1:
            raise ValueError("steps and batch must be at least 1")

    def control_row(self) -> str | None:
        """The same without the coupling."""
        return self.row(beta=0.0) if self.beta else None

    def training_passes(self, suite: Suite) -> Passes:
        """The coupling has ten gradients or directions in memory, beside weights, gradient and moments."""
        each = self.steps * self.batch
        return Passes(
            blocks=2 * each,
            documents=each * (4 + passes.heads(suite)),
            blocks_at_once=self.batch,
            documents_at_once=self.batch * passes.kept_by_heads(suite),
            copies=14,
        )

    def protect(self, model: Model, context: OwnerContext) -> Protected:
        self.check()
        network = model.network.eval()
        pairs = HarmfulPairs.of(context.task(self.harmful))
        stepper = Stepper(
            network, "adamw", self.learning_rate, factor=cosine(self.steps, 0.1), weight_decay=0.0, clip=None
        )
        batches = zip(
            range(self.steps),
            pairs.batches(self.batch, context.seed, network.device),
            text_batches(context, self.batch, network.device),
            strict=False,
        )
        curve: list[tuple[float, ...]] = []
        for _, pair, tokens in batches:
            step = self.direction(network, pair, tokens)
            stepper.step(with_gradient(weights_of(network), step.gradient))
            curve.append(step.losses)
        names = ("log(1 + harmful loss)", "harmless loss", "cosine of the gradients")
        return Protected(model, series=curves(names, curve))

    def direction(self, network: PreTrainedModel, pair: Pair, tokens: Tensor) -> Step:
        """The gradient of one step, on a batch of pairs and a batch of text [batch, block]."""
        weights = weights_of(network)
        raised = raised_loss(network, traced(network, pair.harmful.inputs), pair.harmful)
        harmless = cross_entropy(network(input_ids=pair.harmless.inputs).logits, pair.harmless)
        total = gradient(self.alpha * harmless - raised, weights)
        coupled = coupling(
            weights,
            lambda: cross_entropy(network(input_ids=pair.harmful.inputs).logits, pair.harmful),
            lambda: text_loss(network, tokens),
            self.radius,
        )
        total = [one + self.beta * other for one, other in zip(total, coupled.gradient, strict=True)]
        return Step(total, (raised.item(), harmless.item(), coupled.cosine))


class Step(NamedTuple):
    """The gradient of a step, one tensor a weight, and the losses at its start."""

    gradient: Sequence[Tensor]
    losses: tuple[float, ...]


class Coupling(NamedTuple):
    """The cosine of the angle between two gradients, and its own gradient, one tensor a weight."""

    cosine: float
    gradient: Sequence[Tensor]


def coupling(
    weights: Sequence[nn.Parameter], harmful: Callable[[], Tensor], benign: Callable[[], Tensor], radius: float
) -> Coupling:
    """The cosine of the gradients of two losses and, to first order in `radius`, its gradient without second
    derivatives: the paper's Hessian-free estimate, as the authors' code computes it.

    With unit vectors a and b of the gradients and c = a·b, the gradient of c is H_a (b - c a) / ‖g_a‖ plus
    H_b (a - c b) / ‖g_b‖. Each product with a Hessian H is a difference of two gradients, on the same batch.
    """
    by_harm, by_benign = gradient(harmful(), weights), gradient(benign(), weights)
    harm_size, benign_size = norm(by_harm).clamp(min=1e-12), norm(by_benign).clamp(min=1e-12)
    a, b = [part / harm_size for part in by_harm], [part / benign_size for part in by_benign]
    cosine = product(a, b)
    with moved(weights, [other - cosine * own for own, other in zip(a, b, strict=True)], radius):
        harm_there = gradient(harmful(), weights)
    with moved(weights, [own - cosine * other for own, other in zip(a, b, strict=True)], radius):
        benign_there = gradient(benign(), weights)
    found = [
        ((there - here) / harm_size + (benign_end - benign_start) / benign_size) / radius
        for there, here, benign_end, benign_start in zip(harm_there, by_harm, benign_there, by_benign, strict=True)
    ]
    return Coupling(cosine.item(), found)
