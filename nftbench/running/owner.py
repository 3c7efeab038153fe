"""The owner, who builds and pre-trains: the undefended model of a seed, and what a defense is given to work with.

An attacker who runs a defense plays the owner too, as a shadow.
"""

from __future__ import annotations

import copy
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from nftbench.contract import Corpus, EachStep, Mask, Model, Task
from nftbench.errors import NftbenchError
from nftbench.models import networks as models
from nftbench.planning.keys import base_key
from nftbench.records.spec import Spec
from nftbench.running.workspace import AttackersTask, Workplace, derive, load_task, make_corpus
from nftbench.suites.schema import Pretraining, Suite
from nftbench.training import engine as train
from nftbench.training.preparation import Ledger

SIBLING = 0.9
"""The share of a defense's pre-training run at which its second checkpoint is kept."""


def make_base(place: Workplace, seed: int, fraction: float = 1.0) -> Model:
    """The undefended model of a base seed, at a fraction of its pre-training run."""
    recipe = place.suite.pretraining
    steps = _step_at(recipe, fraction)
    key = base_key(place.suite, seed, place.plan.data, place.device)[:32]
    # One run gives the base and every checkpoint that the suite names; another fraction takes a run of its own.
    wanted = sorted({steps, *(_step_at(recipe, kept) for kept in recipe.checkpoints), recipe.steps} - {0})
    folder = place.store.artifact("bases", f"{key}-{steps}")
    if folder is None:
        with place.store.lock("runs", key):
            missing = [step for step in wanted if place.store.artifact("bases", f"{key}-{step}") is None]
            if steps in missing:
                _pretrain_base(place, seed, key, missing)
        folder = place.store.artifact("bases", f"{key}-{steps}")
        assert folder is not None
    return models.load(folder, place.device)


class _Pipeline(ABC):
    """How a suite's owners build and pre-train: what `OwnerContext` offers to every owner."""

    suite: Suite
    device: str
    base_seed: int
    kept: dict[str, torch.Tensor]
    """The weights at `SIBLING` of the last pre-training run."""
    ledger: Ledger | None = None
    """Where runs are counted, if they are."""

    @property
    @abstractmethod
    def corpus(self) -> Corpus: ...

    @abstractmethod
    def task(self, spec: str) -> Task: ...

    @property
    def seed(self) -> int:
        return derive(self.base_seed, "defense")

    @property
    def pretraining(self) -> Pretraining:
        return self.suite.pretraining

    def build(self, **changes: Any) -> Model:
        # a copy: what a plugin does to its tokenizer is not done to the corpus's, with which everything is read
        tokenizer = copy.deepcopy(self.corpus.tokenizer) if self.pretraining.task is None else None
        return models.build({**self.suite.model, **changes}, tokenizer, derive(self.base_seed, "init"), self.device)

    def pretrain(
        self,
        model: Model,
        *,
        mask: Mask | None = None,
        each_step: EachStep | None = None,
        **changes: Any,
    ) -> Model:
        recipe = Pretraining.model_validate({**self.pretraining.model_dump(), **changes})
        text = self.corpus.train if recipe.task is None else self.task(recipe.task)
        if recipe.only is not None:
            free = {name: recipe.only in name for name, _ in model.network.named_parameters()}
            mask = {
                name: torch.full_like(weight, free[name], dtype=torch.bool) & (True if mask is None else mask[name])
                for name, weight in model.network.named_parameters()
            }
        self.kept.clear()
        taken, begun = 0, time.monotonic()

        def watch(network: nn.Module, step: int) -> bool | None:
            nonlocal taken
            taken = step
            if self.ledger is not None:
                self.ledger.check(begun, self.suite.budget)
            if step == _step_at(recipe, SIBLING):
                self.kept.update({name: tensor.detach().clone() for name, tensor in network.state_dict().items()})
            return each_step(network, step) if each_step is not None else None

        seed = derive(self.base_seed, "pretrain")
        train.pretrain(model.network, text, recipe, seed, self.device, mask=mask, each_step=watch)
        if self.ledger is not None:
            self.ledger.steps += taken
            self.ledger.flops += taken * train.step_flops(model.network, text, recipe, self.device)
            self.ledger.seconds += time.monotonic() - begun
        return model

    def sibling(self, release: Model) -> Model | None:
        """The release's architecture with the weights kept of its run, if they fit."""
        shapes = {name: tensor.shape for name, tensor in release.network.state_dict().items()}
        if {name: tensor.shape for name, tensor in self.kept.items()} != shapes:
            return None
        network = copy.deepcopy(release.network)
        network.load_state_dict(self.kept)
        return Model(network, release.tokenizer)


@dataclass(frozen=True)
class Owner(_Pipeline):
    """`OwnerContext` of one base seed."""

    _place: Workplace
    base_seed: int
    _told: tuple[str, ...] = ()
    kept: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def suite(self) -> Suite:  # type: ignore[override]
        return self._place.suite

    @property
    def device(self) -> str:  # type: ignore[override]
        return self._place.device

    @property
    def corpus(self) -> Corpus:
        return make_corpus(self._place, self.base_seed)

    def task(self, spec: str) -> Task:
        allowed = (*self._told, *filter(None, [self.pretraining.task]))
        if spec not in allowed:
            raise NftbenchError(f"the defense was not told of {spec!r}: what it asks for it must name in told()")
        loaded = load_task(self._place, Spec.parse(spec), self.base_seed, self.build())
        return AttackersTask(loaded, ("validation", "test"), "the owner's defense learns from the training split alone")

    def checkpoint(self, fraction: float) -> Model:
        return make_base(self._place, self.base_seed, fraction)


@dataclass(frozen=True)
class Shadow(_Pipeline):
    """`OwnerContext` of an attacker who plays the owner on public text, with seeds of the attacker's own."""

    suite: Suite
    device: str
    base_seed: int
    text: Corpus
    ledger: Ledger | None = field(default_factory=Ledger)
    kept: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def corpus(self) -> Corpus:
        return self.text

    def task(self, spec: str) -> Task:
        raise NftbenchError("an attacker's shadow is told of no task")

    def checkpoint(self, fraction: float) -> Model:
        raise NftbenchError("an attacker's shadow has no undefended run beside it")


def _step_at(recipe: Pretraining, fraction: float) -> int:
    return max(1, round(recipe.steps * fraction))


def _pretrain_base(place: Workplace, seed: int, key: str, steps: Sequence[int]) -> None:
    """Run the undefended pre-training as far as the last of `steps`, and keep a copy at each."""
    owner = Owner(place, seed)
    model = owner.build()

    def keep(network: nn.Module, step: int) -> bool:
        if step in steps:
            place.store.make("bases", f"{key}-{step}", lambda folder: models.save(model, folder))
        return step == max(steps)

    owner.pretrain(model, each_step=keep)
