"""LoX: the low-rank part of what the owner's tuning changed is added once more, beyond the tuned model.

Perin et al. 2025 (COLM), "LoX: Low-Rank Extrapolation Robustifies LLM Safety Against Fine-tuning",
https://arxiv.org/abs/2506.15606. For each weight with two dimensions, W' = W_tuned + coefficient · SVD_k(W_tuned -
W_base), where SVD_k keeps the k largest singular values. All other weights are those of the tuned model.

The paper takes pairs of a base and an aligned model. Here the owner tunes the base. Without a task this is more
training on the pre-training text: it needs no other data, but then nothing is refused that the extrapolation could
preserve. With `harmful` the tuned model refuses: it keeps the text's loss, and the loss of the task's right answers is
raised by `margin` above the base's. That is our counterpart of safety alignment. It knows what the attack is about, as
the paper's does.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nftbench import Claim, Defense, Model, OwnerContext, Passes, Protected, Stage, Suite
from nftbench.methods import passes, seeded, tuning
from nftbench.methods.benign_text import text_batches, text_loss
from nftbench.methods.control import changed
from nftbench.methods.cosine import cosine


@dataclass(frozen=True)
class LoX(Defense):
    """`k`: how many singular values of a difference are extrapolated; 0 for all. `coefficient`: by how much.

    `harmful`: the spec of a task that the tuned model refuses. `margin`: by how many nats the loss of its right answers
    is raised above the base's, which may be large already. `steps`: optimizer steps of the tuning, each on `batch`
    blocks of text and as many documents, with all weights trained.

    k and the coefficient are the paper's by a third party's note. The authors' script (VITA-Group/LoX,
    safety/LoX.py) has 0 and 1 by default. The tuning is ours.
    """

    stage: ClassVar[Stage] = "posttrain"
    claims: ClassVar[Claim | None] = Claim()

    harmful: str = ""
    k: int = 6
    coefficient: float = 1.25
    margin: float = 5.0
    learning_rate: float = 1e-4
    steps: int = 300
    batch: int = 16

    def __post_init__(self) -> None:
        if min(self.k, self.coefficient) < 0 or min(self.steps, self.batch) < 1:
            raise ValueError("k and coefficient must be at least 0; steps and batch at least 1")
        if min(self.margin, self.learning_rate) <= 0:
            raise ValueError("margin and learning_rate must be above 0")

    def told(self) -> tuple[str, ...]:
        return (self.harmful,) if self.harmful else ()

    def control_row(self) -> str | None:
        """The tuned model itself."""
        return changed("lox", self, coefficient=0.0) if self.coefficient else None

    def check(self, suite: Suite) -> None:
        tuning.needs_text("lox", suite)

    def training_passes(self, suite: Suite) -> Passes:
        each = self.steps * self.batch
        return Passes(
            blocks=each,
            documents=each * (1 + passes.FORWARD) if self.harmful else 0.0,
            blocks_at_once=self.batch,
            documents_at_once=self.batch if self.harmful else 0.0,
            copies=5,
        )

    def protect(self, model: Model, context: OwnerContext) -> Protected:
        tuned = self.tuned(model.network, context)
        return Protected(Model(self.extrapolated(tuned, model.network), model.tokenizer))

    def tuned(self, base: PreTrainedModel, context: OwnerContext) -> PreTrainedModel:
        """A copy of the base after the owner's tuning."""
        made = tuning.begin(base, "full", context.seed, rank=1, alpha=1.0, targets="all", dropout=0.0)
        stepper = tuning.stepper(made.network, self.learning_rate, 0.0, cosine(self.steps, 0.1))
        task = context.task(self.harmful) if self.harmful else None
        documents = tuning.document_batches(task, self.batch, context.seed) if task else itertools.repeat(None)
        batches = text_batches(context, self.batch, base.device)
        with seeded(context.seed):
            for _, tokens, rows in zip(range(self.steps), batches, documents, strict=False):
                loss = text_loss(made.network, tokens)
                if task is not None:
                    with torch.no_grad():
                        refused = task.loss(base, rows) + self.margin
                    loss = loss + (refused - task.loss(made.network, rows)).clamp(min=0)
                stepper.step(loss)
        return made.result()

    @torch.no_grad()
    def extrapolated(self, tuned: PreTrainedModel, base: PreTrainedModel) -> PreTrainedModel:
        """The tuned model with the low-rank part of its difference from the base added, in place."""
        before = dict(base.named_parameters())
        for name, weight in tuned.named_parameters():
            if weight.ndim == 2:
                weight.add_(self.coefficient * low_rank(weight - before[name], self.k))
        return tuned


def low_rank(difference: Tensor, k: int) -> Tensor:
    """The best approximation of a matrix by rank k, in its own precision; with k = 0 the matrix itself."""
    if not k:
        return difference
    left, values, right = torch.linalg.svd(difference, full_matrices=False)
    found: Tensor = (left[:, :k] * values[:k]) @ right[:k]
    return found
