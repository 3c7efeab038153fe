"""RepNoise: what the layers hold about a harmful answer is turned into noise, so that little is left to recover.

Rosati et al. 2024, "Representation Noising: A Defence Mechanism Against Harmful Finetuning" (NeurIPS),
https://arxiv.org/abs/2405.14577. On pairs of a harmful and a harmless answer to one prompt it minimises

    CE_M(harmless) + β · mean_l MMD²(M ⊙ mlp_l(harmful), M ⊙ ε) - α · log(1 + mean CE_M(harmful) over the layers)

with ε from N(0, 1) and M, the tokens at which the two sequences differ (`nftbench.methods.harmful_pairs`). The last
term is `raised_loss` in `nftbench.methods.layerwise`. Harmless answers are all that keeps the model's other abilities.

The authors' code (domenicrosati/representation-noising, loss.py, commit 03689ff) departs from this in three points, in
which we follow the formula:

- Its cross-entropy sets the logits before the first token of M to zero, and so skips that token. In an answer of one
  token it would skip everything.
- It takes the MLPs' outputs at the tokens of M, we take them where these tokens are predicted. An answer's last token
  predicts nothing, and so noise on it would protect nothing.
- It counts no token with id 0, and norms the last layer's output twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nftbench import Model, OwnerContext, Passes, Protected, Suite
from nftbench.methods import Stepper, passes, seeded
from nftbench.methods.cosine import cosine
from nftbench.methods.curves import curves
from nftbench.methods.harmful_pairs import HarmfulPairs, Masked, Pair, cross_entropy
from nftbench.methods.layerwise import raised_loss, traced
from nftbench.methods.mmd import mmd
from nftbench.methods.task_aware import AgainstTask


@dataclass(frozen=True)
class RepNoise(AgainstTask):
    """`alpha`: weight of the raised harmful loss. `beta`: weight of the noise.

    The defaults are those of the authors' notebook for Qwen1.5-1.8B: AdamW with its default weight decay, a cosine
    schedule, and one epoch of 1,000 pairs. Their README says that each model needs a search over learning rate, alpha,
    beta and the number of pairs.
    """

    alpha: float = 1.0
    beta: float = 0.001
    learning_rate: float = 1e-4
    steps: int = 250
    batch: int = 4

    def __post_init__(self) -> None:
        if min(self.alpha, self.beta) < 0 or self.learning_rate <= 0:
            raise ValueError("alpha and beta must be at least 0, the learning rate above 0")
        if self.steps < 1 or self.batch < 2:
            raise ValueError("steps must be at least 1, batch at least 2: noise is compared with a sample")

    def control_row(self) -> str | None:
        """The same training on harmless answers alone."""
        return self.row(alpha=0.0, beta=0.0) if self.alpha or self.beta else None

    def training_passes(self, suite: Suite) -> Passes:
        """The MMD keeps the differences of all pairs among 2n vectors, n of a batch and n of noise: 4n numbers for each
        number that an MLP returns."""
        pairs = 4 * self.batch / passes.LAYER_NUMBERS
        return Passes(
            documents=self.steps * self.batch * (2 + passes.heads(suite)),
            documents_at_once=self.batch * (2 + passes.kept_by_heads(suite) + pairs),
            copies=4,
        )

    def protect(self, model: Model, context: OwnerContext) -> Protected:
        self.check()
        network = model.network.train()
        pairs = HarmfulPairs.of(context.task(self.harmful))
        factor = cosine(self.steps, 0.1)
        stepper = Stepper(
            network, "adamw", self.learning_rate, factor=factor, weight_decay=0.01, clip=None, decay_vectors=True
        )
        curve: list[Terms] = []
        with seeded(context.seed):
            batches = pairs.batches(self.batch, context.seed, network.device)
            for _, pair in zip(range(self.steps), batches, strict=False):
                terms = losses(network, pair)
                stepper.step(self.objective(terms))
                curve.append(Terms(*(term.detach() for term in terms)))
        network.eval()
        names = ("harmless loss", "MMD to noise", "log(1 + harmful loss)")
        return Protected(model, series=curves(names, curve))

    def objective(self, terms: Terms) -> Tensor:
        """The minimised loss."""
        return terms.harmless + self.beta * terms.noise - self.alpha * terms.harmful


class Terms(NamedTuple):
    """The three scalars of the loss, without their weights; losses are in nats."""

    harmless: Tensor
    noise: Tensor
    harmful: Tensor


def losses(network: PreTrainedModel, pair: Pair) -> Terms:
    """The terms on one batch of pairs. The noise is drawn from torch's global random numbers."""
    seen = traced(network, pair.harmful.inputs)
    return Terms(
        cross_entropy(network(input_ids=pair.harmless.inputs).logits, pair.harmless),
        torch.stack([distance_to_noise(output, pair.harmful) for output in seen.mlps]).mean(),
        raised_loss(network, seen, pair.harmful),
    )


def distance_to_noise(output: Tensor, sequences: Masked) -> Tensor:
    """MMD² between an MLP's outputs [batch, length, width] and noise, both zero outside of M, one vector a sequence."""
    inside = sequences.mask.unsqueeze(-1).to(output.dtype)
    return mmd((output * inside).flatten(1), (torch.randn_like(output) * inside).flatten(1))
