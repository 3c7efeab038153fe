"""SOPHON: fine-tuning is simulated in training, and the model moves to where it ends in answers drawn at random.

Deng et al. 2024, "SOPHON: Non-Fine-Tunable Learning to Restrain Task Transferability For Pre-trained Models" (IEEE
S&P), https://arxiv.org/abs/2404.12699, with the loss KLU: the divergence of the predictions from uniform ones.

A loop has two parts. *Suppression* fine-tunes a copy on the harmful task by plain gradient descent. After each of its
steps it takes the gradient of KL(uniform ‖ predictions) on documents set aside from that step's batch, at the copy's
weights (first-order MAML). The model takes one step down their mean. *Reinforcement* takes `reinforce_steps` steps on
the model's own data, here the pre-training text. Loops end, and the last one is taken back, as soon as the original
task suffers too much.

The authors' code (ChiangE/Sophon, classification/kl_uniform_loss.py, commit 2ca637e) classifies images. For a causal LM
these points are ours:

- The classes are the first words of all answers, and predictions are the softmax over their logits alone.
- The original task's accuracy is that of the next token on held-out text. The authors stop at 80 % of a task that their
  models solve almost perfectly, we stop at 80 % of the undefended model's accuracy.
- Their MAML comes from a changed copy of learn2learn, which is not in the repository. It is given each step's last
  gradients, and we do not know what it does with them. Ours is plain.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nftbench import Model, OwnerContext, Passes, Protected, Suite
from nftbench.methods import Stepper, passes, seeded
from nftbench.methods.benign_text import text_batches, text_loss
from nftbench.methods.curves import curves
from nftbench.methods.gradient_vectors import gradient, weights_of, with_gradient
from nftbench.methods.harmful_pairs import HarmfulPairs, Masked, answer_tokens, cross_entropy
from nftbench.methods.task_aware import AgainstTask

KEPT = 0.8
"""The loops end where the accuracy on text falls to this share of the undefended model's."""
EVALUATED = 0.1
"""The share of each batch on which the divergence is measured; the copy trains on the others."""
JUDGED = 64
"""The number of held-out blocks on which the accuracy is measured."""


@dataclass(frozen=True)
class Sophon(AgainstTask):
    """`alpha` and `beta`: the learning rates of suppression and reinforcement, as multiples of `learning_rate`. With
    `alpha` 0 there is no suppression. `inner_rate`: the learning rate of the simulated fine-tuning.

    The defaults are those of the authors' code, with the settings that its Readme gives for KLU. 1,000 loops take
    50,000 steps of simulated fine-tuning.
    """

    alpha: float = 1.0
    beta: float = 1.0
    learning_rate: float = 1e-4
    steps: int = 1000
    batch: int = 150
    inner_steps: int = 50
    inner_rate: float = 1e-4
    reinforce_steps: int = 5
    clip: float = 0.5
    """The largest norm of a gradient of suppression."""

    def __post_init__(self) -> None:
        if min(self.alpha, self.beta) < 0 or min(self.learning_rate, self.inner_rate, self.clip) <= 0:
            raise ValueError("alpha and beta must be at least 0, learning rates and clip above 0")
        if min(self.steps, self.inner_steps) < 1 or self.reinforce_steps < 0 or self.batch < 2:
            raise ValueError("steps and inner_steps must be at least 1, reinforce_steps at least 0, batch at least 2")

    def control_row(self) -> str | None:
        """Reinforcement alone."""
        return self.row(alpha=0.0) if self.alpha else None

    def training_passes(self, suite: Suite) -> Passes:
        """Both steppers keep moments; the weights before the step and the fine-tuned copy are in memory too."""
        blocks = self.steps * (self.reinforce_steps * self.batch + JUDGED * passes.FORWARD)
        documents = self.steps * self.inner_steps * self.batch if self.alpha else 0.0
        return Passes(blocks, documents, blocks_at_once=self.batch, copies=10)

    def protect(self, model: Model, context: OwnerContext) -> Protected:
        self.check()
        network, task = model.network.train(), context.task(self.harmful)
        words = torch.tensor(answer_tokens(task), device=network.device)
        pairs = HarmfulPairs.of(task).batches(self.batch, context.seed, network.device)
        text = text_batches(context, self.batch, network.device)
        judged = context.corpus.heldout[:JUDGED].to(network.device)
        least = KEPT * accuracy(network, judged)
        suppression, reinforcement = (
            self.stepper(network, self.alpha, self.clip),
            self.stepper(network, self.beta, None),
        )
        weights = weights_of(network)
        curve: list[tuple[float, float]] = []
        with seeded(context.seed):
            for _ in range(self.steps):
                before = [weight.detach().clone() for weight in weights]
                value = 0.0
                if self.alpha:
                    batches = [next(pairs).harmful for _ in range(self.inner_steps)]
                    found = after_finetuning(network, batches, words, self.inner_rate)
                    suppression.step(with_gradient(weights, found.gradient))
                    value = found.divergence
                for _ in range(self.reinforce_steps):
                    reinforcement.step(text_loss(network, next(text)))
                kept = accuracy(network, judged)
                curve.append((value, kept))
                if kept <= least:
                    with torch.no_grad():
                        for weight, old in zip(weights, before, strict=True):
                            weight.copy_(old)
                    break
        network.eval()
        names = ("divergence from uniform answers", "accuracy on held-out text")
        return Protected(model, series=curves(names, curve))

    def stepper(self, network: PreTrainedModel, multiple: float, clip: float | None) -> Stepper:
        """Adam at a constant rate."""
        rate = multiple * self.learning_rate
        return Stepper(network, "adamw", rate, factor=lambda _: 1.0, weight_decay=0.0, clip=clip)


class AfterFinetuning(NamedTuple):
    """The mean over the steps of a fine-tuning: gradient of the divergence, one tensor a weight, and divergence in
    nats."""

    gradient: Sequence[Tensor]
    divergence: float


def after_finetuning(
    network: PreTrainedModel, batches: Sequence[Masked], words: Tensor, learning_rate: float
) -> AfterFinetuning:
    """Fine-tune a copy, one step a batch, and collect gradients at its weights. The network itself does not change."""
    copied = copy.deepcopy(network)
    weights = weights_of(copied)
    optimizer = torch.optim.SGD(weights, lr=learning_rate)
    total, mean = [torch.zeros_like(weight) for weight in weights], 0.0
    for batch in batches:
        cut = max(1, round(EVALUATED * len(batch.inputs)))
        aside, trained = Masked(*(part[:cut] for part in batch)), Masked(*(part[cut:] for part in batch))
        optimizer.zero_grad()
        cross_entropy(copied(input_ids=trained.inputs).logits, trained).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        value = divergence(copied, aside, words)
        mean += value.item() / len(batches)
        found = gradient(value, weights)
        total = [one + other / len(batches) for one, other in zip(total, found, strict=True)]
    return AfterFinetuning(total, mean)


def divergence(network: PreTrainedModel, sequences: Masked, words: Tensor) -> Tensor:
    """KL(uniform ‖ p) in nats, averaged over sequences. p is the prediction of an answer's first token, among `words`
    [classes]: token ids."""
    first = sequences.mask & (sequences.mask.cumsum(1) == 1)
    scores: Tensor = network(input_ids=sequences.inputs).logits[first][:, words].log_softmax(-1)
    return -scores.mean(-1).mean() - math.log(len(words))


@torch.no_grad()
def accuracy(network: PreTrainedModel, tokens: Tensor) -> float:
    """The share of next tokens on blocks [count, block] that the network ranks first, without dropout."""
    training = network.training
    picks = network.eval()(input_ids=tokens).logits[:, :-1].argmax(-1)
    network.train(training)
    return float((picks == tokens[:, 1:]).float().mean())
