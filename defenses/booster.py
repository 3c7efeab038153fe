"""Booster: tuning that also keeps a small harmful step from lowering the harmful loss. It is told the harmful task.

Huang et al. 2025 (ICLR), "Booster: Tackling Harmful Fine-tuning for Large Language Models via Attenuating Harmful
Perturbation", https://arxiv.org/abs/2409.01586. It minimises L_f(w) + lambda (L_h(w) - L_h(w - alpha·g / ‖g‖)), with g
the gradient of the harmful loss L_h at w. As in the paper, the step takes the perturbation as constant: its gradient is
∇L_f(w) + lambda (∇L_h(w) - ∇L_h(w - alpha·g / ‖g‖)), from three passes.

In the paper L_f is the loss of safe answers to harmful questions. A base model has no such data: L_f is here the loss
of the pre-training text. The two harmful passes of a step have the same dropout, so that their difference is that of
the weights; the paper's models have none.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from nftbench import Claim, Model, OwnerContext, Passes, Protected, Series, Suite
from nftbench.methods import adapters, passes, seeded, tuning
from nftbench.methods.benign_text import text_batches, text_loss
from nftbench.methods.gradient_vectors import gradient, moved, norm, weights_of, with_gradient
from nftbench.methods.task_aware import AgainstTask


@dataclass(frozen=True)
class Booster(AgainstTask):
    """`harmful`: the spec of the task to protect against (required). `strength`: lambda. `distance`: alpha, the length
    of the simulated harmful step. `steps`: optimizer steps, each on `batch` blocks of text and `batch` documents.

    The defaults are those of the authors' script (git-disl/Booster, commit 6421918, script/alignment/smooth_align.sh),
    which trains an adapter of Llama-2-7B. Only `steps` is ours: theirs are 20 epochs of 5,000 samples. Their adapter
    leaves out the output layer of attention, ours does not. Their weight decay of 0.1, constant learning rate and
    clipping are fixed here.
    """

    claims: ClassVar[Claim | None] = Claim()

    strength: float = 5.0
    distance: float = 0.1
    trained: tuning.Trained = "lora"
    """What is tuned: an adapter of the attention layers, or all weights."""
    rank: int = 32
    alpha: float = 4.0
    """The adapter's alpha."""
    learning_rate: float = 5e-4
    steps: int = 500
    batch: int = 10

    def __post_init__(self) -> None:
        if self.strength < 0 or min(self.rank, self.steps, self.batch) < 1:
            raise ValueError("strength must be at least 0; rank, steps and batch at least 1")
        if min(self.distance, self.alpha, self.learning_rate) <= 0:
            raise ValueError("distance, alpha and learning_rate must be above 0")

    def control_row(self) -> str | None:
        """The same tuning on text alone."""
        return self.row(strength=0.0) if self.strength else None

    def check(self, suite: Suite | None = None) -> None:
        super().check(suite)
        if suite is not None:
            adapters.linear_layers(tuning.outline(suite), "attention")

    def training_passes(self, suite: Suite) -> Passes:
        """Both gradients of the harmful loss and their difference are in memory while the text's loss is computed."""
        each, trained = self.steps * self.batch * passes.of(self.trained), passes.trained_copies(self.trained)
        return Passes(
            blocks=each,
            documents=2 * each if self.strength else 0.0,
            blocks_at_once=self.batch,
            copies=2 + trained * (2 if self.strength else 1),
        )

    def protect(self, model: Model, context: OwnerContext) -> Protected:
        self.check()
        made = tuning.begin(
            model.network,
            self.trained,
            context.seed,
            rank=self.rank,
            alpha=self.alpha,
            targets="attention",
            dropout=0.0,
        )
        task = context.task(self.harmful)
        documents = tuning.document_batches(task, self.batch, context.seed)
        batches = text_batches(context, self.batch, model.network.device)
        stepper = tuning.stepper(made.network, self.learning_rate, 0.1)
        curve = []

        def harmful_loss(rows: Any, step: int) -> Tensor:
            with seeded(context.seed + step):
                return task.loss(made.network, rows)

        with seeded(context.seed):
            for step, tokens, rows in zip(range(self.steps), batches, documents, strict=False):
                loss, fall = self.objective(
                    made.network,
                    functools.partial(text_loss, made.network, tokens),
                    functools.partial(harmful_loss, rows, step),
                )
                curve.append(fall)
                stepper.step(loss)
        falls = Series("fall of the harmful loss", tuple(map(float, range(self.steps))), tuple(curve), y_label="nats")
        return Protected(Model(made.result(), model.tokenizer), series=(falls,) if self.strength else ())

    def objective(
        self, network: nn.Module, text: Callable[[], Tensor], harmful: Callable[[], Tensor]
    ) -> tuple[Tensor, float]:
        """A scalar with the gradient of the module's docstring, and by how much the harmful step lowers L_h.

        `text` and `harmful` run the network once, and return L_f and L_h at its weights.
        """
        if not self.strength:
            return text(), 0.0
        weights = weights_of(network)
        before = harmful()
        here = gradient(before, weights)
        with moved(weights, here, -self.distance / (norm(here).item() + tuning.EPSILON)):
            after = harmful()
            there = gradient(after, weights)
        differences = [first - second for first, second in zip(here, there, strict=True)]
        return text() + self.strength * with_gradient(weights, differences), before.item() - after.item()
