"""Trap²: an update that works at scale 1 and fails at any other scale, so that merging, which rescales it, spoils it.

Jang et al. 2026, "Making Models Unmergeable via Scaling-Sensitive Loss Landscape", https://arxiv.org/abs/2601.21898.
It protects an update from being merged, not a model from being fine-tuned.

Let L(s) be the owner's loss at W0 + s·ΔW. Trap² minimises J(ΔW) = L(1) - λ E_s[w(s) L(s)], where s is uniform on
[minimum, 1 - band] and [1 + band, maximum]. Each step draws one s and uses the same mini-batch and dropout for both
losses. The paper's J has no lower bound, because a loss can grow without limit. We therefore replace L(s) by
min(L(s), cap), so that J ≥ -λ·cap·max w. Losses above the cap have no gradient.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from peft.helpers import rescale_adapter_scale
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from nftbench import (
    Claim,
    Defense,
    Model,
    NftbenchError,
    OwnerContext,
    Passes,
    Protected,
    Spec,
    Stage,
    Suite,
    Task,
    Update,
)
from nftbench.methods import Stepper, adapters, passes, seeded, shuffled, updates

WEIGHTS: dict[str, Callable[[float], float]] = {
    "inv": lambda scale: 1 / scale,
    "inv_sqrt": lambda scale: 1 / math.sqrt(scale),
    "none": lambda scale: 1.0,
}
SCALING = ("strength", "minimum", "maximum", "band", "weighting", "cap")
"""Parameters that have no effect at strength 0."""
LossAt = Callable[[Task, Any, float], Tensor]
"""A function of task, batch and scale s that returns L(s), differentiable in the trained weights."""


@dataclass(frozen=True)
class Trap2(Defense):
    """`task`: the spec of the owner's task (required). `strength`: λ. `weighting`: w(s). `cap`: in nats.

    The defaults are those of one script of the authors, training_scripts/math_training_trap2.py at commit ef65a26 of
    ml-postech/Trap2, which protects an adapter of Llama-3.1-8B: all parameters below but `cap` and `steps`, and AdamW
    with its default betas and weight decay, clipped gradients, and a learning rate that rises linearly from 0 over a
    fiftieth of the steps and falls linearly to 0. `cap` and `steps` are our choices: the script takes up to 100,000
    steps, and stops early and keeps the best adapter by its validation loss. It trains no full updates. For these we
    leave weight decay out, as the authors' script for vision does: it would shrink the base's weights as well.
    """

    stage: ClassVar[Stage] = "posttrain"
    claims: ClassVar[Claim | None] = Claim(frozenset({"base"}), "merging")
    task_aware: ClassVar[bool] = True
    releases_update: ClassVar[bool] = True

    task: str = ""
    update: Literal["lora", "full"] = "lora"
    strength: float = 0.01
    minimum: float = 0.05
    maximum: float = 2.0
    band: float = 0.05
    weighting: Literal["inv", "inv_sqrt", "none"] = "inv_sqrt"
    cap: float = 10.0
    rank: int = 16
    alpha: float = 16.0
    dropout: float = 0.1
    """The adapter's dropout. A full update uses the dropout of the base model."""
    learning_rate: float = 1e-4
    steps: int = 1000
    batch: int = 4

    def __post_init__(self) -> None:
        if not 0 < self.minimum < 1 - self.band < 1 + self.band < self.maximum:
            raise ValueError("scales must lie as 0 < minimum < 1 - band < 1 + band < maximum")
        if min(self.strength, self.dropout) < 0 or self.dropout >= 1:
            raise ValueError("strength must be at least 0, dropout in [0, 1)")
        if min(self.rank, self.steps, self.batch) < 1 or min(self.cap, self.alpha, self.learning_rate) <= 0:
            raise ValueError("rank, steps and batch must be at least 1; cap, alpha and learning_rate above 0")

    def told(self) -> tuple[str, ...]:
        return (self.task,) if self.task else ()

    def control_row(self) -> str | None:
        """The same update without the scaled loss."""
        if not self.strength:
            return None
        values = [(item.name, getattr(self, item.name), item.default) for item in dataclasses.fields(self)]
        kept = [(name, value) for name, value, default in values if name not in SCALING and value != default]
        names = [name for name, _, _ in values]
        return str(Spec("trap2", tuple(sorted([*kept, ("strength", 0.0)], key=lambda pair: names.index(pair[0])))))

    def check(self, suite: Suite | None = None) -> None:
        if not self.task:
            raise NftbenchError("trap2 protects an update for a task of the owner's own: write trap2[task=…]")
        if suite is not None and self.task not in (*suite.tasks, *suite.benign):
            raise NftbenchError(f"trap2: the owner's task {self.task!r} is not among the suite's tasks")

    def training_passes(self, suite: Suite) -> Passes:
        """With update=full each of the two losses has weights of its own."""
        each, losses = self.steps * self.batch * passes.of(self.update), 2 if self.strength else 1
        return Passes(
            documents=losses * each,
            documents_at_once=losses * self.batch,
            copies=2 if self.update == "lora" else 5 + losses,
        )

    def protect(self, model: Model, context: OwnerContext) -> Protected:
        self.check()
        task, base = context.task(self.task), model.network
        with seeded(context.seed):
            network, loss_at, found = (self.lora if self.update == "lora" else self.full)(base)
        rows = task.split("train")
        order = shuffled(len(rows), min(self.batch, len(rows)), context.seed)
        scales = np.random.default_rng([context.seed, 1])
        weight_decay = 0.01 if self.update == "lora" else 0.0
        stepper = Stepper(network, "adamw", self.learning_rate, factor=self.decay, weight_decay=weight_decay, clip=1.0)
        for step, indices in zip(range(self.steps), order, strict=False):
            loss = functools.partial(loss_at, task, rows.batch(indices))
            stepper.step(self.objective(loss, scales, context.seed + step))
        update = found()
        return Protected(Model(updates.added(base, updates.dense(update)), model.tokenizer), update=update)

    def objective(self, loss: Callable[[float], Tensor], scales: np.random.Generator, seed: int) -> Tensor:
        """J on one mini-batch at one random scale s: L(1) - λ w(s) min(L(s), cap), with the same dropout in both."""
        with seeded(seed):
            own = loss(1.0)
        if not self.strength:
            return own
        scale = self.draw(scales)
        with seeded(seed):
            other = loss(scale).clamp(max=self.cap)
        return own - self.strength * WEIGHTS[self.weighting](scale) * other

    def draw(self, scales: np.random.Generator) -> float:
        """A scale drawn uniformly from [minimum, maximum] without the band around 1."""
        scale = scales.uniform(self.minimum, self.maximum - 2 * self.band)
        return float(scale if scale < 1 - self.band else scale + 2 * self.band)

    def decay(self, step: int) -> float:
        """The learning rate's factor at a step, counted from 1: linear warm-up over a fiftieth of the steps from 0, and
        then linear decay, as in transformers' `get_linear_schedule_with_warmup`."""
        taken, warmup = step - 1, int(0.02 * self.steps)
        return taken / warmup if taken < warmup else (self.steps - taken) / (self.steps - warmup)

    def lora(self, base: PreTrainedModel) -> tuple[nn.Module, LossAt, Callable[[], Update]]:
        """A copy with an adapter on its attention layers; the scale multiplies the adapter's factor B."""
        try:
            wrapped: Any = adapters.lora(
                copy.deepcopy(base), self.rank, self.alpha, "attention", lora_dropout=self.dropout
            )
        except NftbenchError as error:
            raise NftbenchError("trap2: the model has no attention layers for an adapter; write update=full") from error

        def loss_at(task: Task, batch: Any, scale: float) -> Tensor:
            with rescale_adapter_scale(wrapped, scale):  # scales the output of B, which equals scaling B
                return task.loss(wrapped, batch)

        return wrapped.train(), loss_at, lambda: updates.of_adapter(wrapped)

    def full(self, base: PreTrainedModel) -> tuple[nn.Module, LossAt, Callable[[], Update]]:
        """A copy whose weights W are all trained; L(s) is the loss at W0 + s·(W - W0)."""
        network = copy.deepcopy(base).train()
        origin = dict(base.named_parameters())

        def loss_at(task: Task, batch: Any, scale: float) -> Tensor:
            own = dict(network.named_parameters())
            moved = {f"network.{name}": torch.lerp(origin[name].detach(), own[name], scale) for name in own}
            found: Tensor = functional_call(_Loss(network, task), moved, (batch,))
            return found

        return network, loss_at, lambda: updates.difference(network, base)


class _Loss(nn.Module):
    """A module that outputs a task's loss, for `functional_call`."""

    def __init__(self, network: nn.Module, task: Task) -> None:
        super().__init__()
        self.network, self.task = network, task

    def forward(self, batch: Any) -> Tensor:
        return self.task.loss(self.network, batch)
