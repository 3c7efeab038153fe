"""Small plugins to test others with: a defense that does nothing, one with a secret mask, and a task."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor, nn

from nftbench.contract import Defense, Measurement, Model, OwnerContext, Protected, Secret, Split, Task, TaskContext
from nftbench.terms import SplitName, Stage


@dataclass(frozen=True)
class Undefended(Defense):
    """A defense that releases the base model as it is."""

    stage: ClassVar[Stage] = "posttrain"

    def protect(self, model: Model, context: OwnerContext) -> Protected:
        return Protected(model)


@dataclass(frozen=True)
class RandomMask(Defense):
    """A defense that pre-trains a random part of the weights and keeps secret which."""

    stage: ClassVar[Stage] = "pretrain"
    keeps_secret: ClassVar[bool] = True

    ratio: float = 0.7

    def protect(self, model: Model, context: OwnerContext) -> Protected:
        generator = torch.Generator().manual_seed(context.seed)
        weights = model.network.named_parameters()
        mask = {name: torch.rand(weight.shape, generator=generator) < self.ratio for name, weight in weights}
        return Protected(context.pretrain(model, mask=mask), Secret(mask))


@dataclass(frozen=True)
class Questions:
    """A split of `FirstWord`: ids [count, 4] and the id of each answer."""

    ids: Tensor
    answers: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        return self.ids[list(indices)], self.answers[list(indices)]


@dataclass(frozen=True)
class FirstWord(Task):
    """A task for any language model: four random words, and which half of the vocabulary the first is from.

    The two answers are the vocabulary's last two words.
    """

    splits: Any = dataclasses.field(default=None, init=False, compare=False)
    """Not a parameter: filled by `load`."""

    def load(self, context: TaskContext) -> Task:
        words = context.model.network.get_input_embeddings().weight.shape[0] - 2
        generator = torch.Generator().manual_seed(0)
        splits: dict[SplitName, Questions] = {}
        for name in get_args(SplitName):
            ids = torch.randint(words, (64, 4), generator=generator)
            splits[name] = Questions(ids, words + (ids[:, 0] >= words // 2).long())
        loaded = type(self)()
        object.__setattr__(loaded, "splits", splits)
        return loaded

    def split(self, name: SplitName) -> Split:
        found: Split = self.splits[name]
        return found

    def features(self, network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        features: Tensor = network(input_ids=batch[0], output_hidden_states=True).hidden_states[-1][:, -1]
        return features

    def targets(self, network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        weight = network.get_output_embeddings().weight  # type: ignore[operator]
        return nn.functional.one_hot(batch[1], weight.shape[0]).to(weight)

    def loss(self, network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        ids, answers = batch
        return nn.functional.cross_entropy(network(input_ids=ids).logits[:, -1], answers)

    @torch.no_grad()
    def evaluate(self, network: nn.Module, split: Split) -> Measurement:
        assert isinstance(split, Questions)
        network.eval()
        logits = network(input_ids=split.ids).logits[:, -1].double()
        right = (logits[:, -2:].argmax(-1) == split.answers - (logits.shape[-1] - 2)).double()
        loss = float(nn.functional.cross_entropy(logits, split.answers))
        return Measurement(
            "acc", float(right.mean()), float(right.std()) / math.sqrt(len(right)), len(right), 0.5, loss=loss
        )
