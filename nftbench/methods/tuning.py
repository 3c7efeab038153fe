"""An owner's tuning of a finished model: which weights are trained, by which schedule, and the model that comes out.

Several defenses of the field train adapters with Hugging Face's Trainer and merge them before the release.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from nftbench.contract import Task
from nftbench.errors import NftbenchError
from nftbench.methods.adapters import Targets, lora
from nftbench.models import updates
from nftbench.models.networks import build, seeded
from nftbench.suites.schema import Suite
from nftbench.training.engine import Stepper, shuffled

Trained = Literal["lora", "full"]
"""Whether a LoRA adapter is trained, which is merged for the release, or all weights."""
EPSILON = 1e-7
"""Added to the norm of a gradient before it divides, as in the code of Vaccine and Booster."""


@dataclass(frozen=True)
class Tuning:
    """A copy of a model that is being tuned. `network` is trained; `core` is the same model without an adapter's
    wrapper, whose layers hooks may watch; `result` gives the tuned model, with the adapter merged."""

    network: nn.Module
    core: PreTrainedModel
    result: Callable[[], PreTrainedModel]


def begin(
    base: PreTrainedModel, trained: Trained, seed: int, *, rank: int, alpha: float, targets: Targets, dropout: float
) -> Tuning:
    """A tuning of a copy of `base`, in training mode. `rank` to `dropout` are the adapter's and without effect on
    `full`."""
    core = copy.deepcopy(base)
    if trained == "full":
        return Tuning(core.train(), core, core.eval)
    with seeded(seed):
        wrapped = lora(core, rank, alpha, targets, lora_dropout=dropout)
    return Tuning(wrapped.train(), core, lambda: updates.added(base, updates.dense(updates.of_adapter(wrapped))))


def stepper(
    network: nn.Module, learning_rate: float, weight_decay: float, factor: Callable[[int], float] = lambda step: 1.0
) -> Stepper:
    """AdamW with gradients clipped to norm 1, as in Hugging Face's Trainer by default."""
    return Stepper(network, "adamw", learning_rate, factor=factor, weight_decay=weight_decay, clip=1.0)


def document_batches(task: Task, batch: int, seed: int) -> Iterator[Any]:
    """Endless batches of a task's training documents, as `task.loss` takes them."""
    train = task.split("train")
    return (train.batch(indices) for indices in shuffled(len(train), batch, seed))


def needs_text(name: str, suite: Suite) -> None:
    """Refuse a suite whose models read no text.

    Raises:
        NftbenchError: the suite's corpus has no text.
    """
    if suite.corpus.source == "none":
        raise NftbenchError(f"{name} tunes a model on text, and the suite's models read none")


def outline(suite: Suite) -> PreTrainedModel:
    """The suite's network without weights, to look up its layers before anything runs."""
    with torch.device("meta"):
        return build(suite.model, None, 0, "meta").network
