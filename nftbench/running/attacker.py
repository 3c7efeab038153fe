"""The attacker: what an attack is given to work with, its `knowledge` and no more."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from nftbench.contract import (
    Adapter,
    Attack,
    Candidates,
    Corpus,
    Defense,
    EachStep,
    Mask,
    Model,
    Outcome,
    Protected,
    Secret,
    StepLoss,
    Task,
)
from nftbench.data import corpus as corpora
from nftbench.errors import NftbenchError
from nftbench.models import networks as models
from nftbench.planning import registry
from nftbench.planning.specs import canonical
from nftbench.running.owner import Shadow
from nftbench.running.workspace import derive
from nftbench.suites.schema import Budget, Pretraining, Suite
from nftbench.terms import Optimizer
from nftbench.training import engine as train, preparation
from nftbench.training.preparation import Ledger
from nftbench.training.sweep import select, sweep, unchanged


@dataclass(frozen=True)
class Attacker:
    """`AttackerContext`: what is None here the attack's knowledge does not name."""

    seed: int
    budget: Budget
    device: str
    _corpus: Corpus | None = None
    _secret: Secret | None = None
    _base: Model | None = None
    _defense: Defense | None = None
    _sibling: Model | None = None
    _suite: Suite | None = None
    _uses: tuple[str, ...] = ()
    others: Mapping[str, Task] = field(default_factory=dict)
    ledger: Ledger = field(default_factory=Ledger)

    @property
    def corpus(self) -> Corpus:
        if self._corpus is None:
            raise NftbenchError("public text needs 'data' among the attack's knowledge")
        return self._corpus

    @property
    def secret(self) -> Secret:
        if self._secret is None:
            raise NftbenchError("the owner's secret needs 'secret' among the attack's knowledge")
        return self._secret

    @property
    def base(self) -> Model:
        if self._base is None:
            raise NftbenchError("the base model needs 'base' among the attack's knowledge")
        return own_copy(self._base)

    @property
    def defense(self) -> Defense:
        if self._defense is None:
            raise NftbenchError("which defense it is needs 'method' among the attack's knowledge")
        return self._defense

    @property
    def pretraining(self) -> Pretraining:
        if self._defense is None or self._suite is None:
            raise NftbenchError("the owner's recipe needs 'method' among the attack's knowledge")
        return self._suite.pretraining

    @property
    def sibling(self) -> Model:
        if self._sibling is None:
            raise NftbenchError("a second checkpoint needs 'sibling' among the attack's knowledge")
        return own_copy(self._sibling)

    def initial(self, guess: int) -> PreTrainedModel:
        if self._sibling is None or self._suite is None:
            raise NftbenchError("the start of the owner's run needs 'sibling' among the attack's knowledge")
        seed = derive(guess, "init")
        return models.build(self._suite.model, self._sibling.tokenizer, seed, self.device).network

    def shadow(self, index: int) -> Protected:
        if self._suite is None or self._defense is None or self._corpus is None:
            raise NftbenchError("running the defense needs 'method' and 'data' among the attack's knowledge")
        if self._defense.stage != "pretrain":
            raise NftbenchError("the defense starts from a trained base, which the attacker has not")
        own = Shadow(self._suite, self.device, derive(self.seed, "shadow", str(index)), self._corpus, self.ledger)
        return self._defense.protect(own.build(), own)

    def text(self, model: Model, batch: int) -> Iterator[torch.Tensor]:
        blocks = corpora.encoded_for(self.corpus, model.tokenizer)
        return train.token_batches(blocks, batch, derive(self.seed, "text"), self.device)

    def train(
        self,
        network: nn.Module,
        loss: StepLoss,
        *,
        steps: int,
        learning_rate: float,
        optimizer: Optimizer = "adamw",
        weight_decay: float = 0.0,
        mask: Mask | None = None,
        each_step: EachStep | None = None,
    ) -> None:
        preparation.train(
            network,
            loss,
            self.budget,
            derive(self.seed, "train"),
            self.device,
            self.ledger,
            steps=steps,
            learning_rate=learning_rate,
            optimizer=optimizer,
            weight_decay=weight_decay,
            mask=mask,
            each_step=each_step,
        )

    def gradients(
        self, network: PreTrainedModel, batches: Iterable[torch.Tensor]
    ) -> Iterator[Mapping[str, torch.Tensor]]:
        return preparation.gradients(network, batches, self.ledger)

    def attack(self, spec: str) -> Attack:
        if str(canonical("attacks", spec)) not in {str(canonical("attacks", known)) for known in self._uses}:
            raise NftbenchError(f"the attack is not built on {spec!r}: what it takes up it must name in uses()")
        found: Attack = registry.create("attacks", spec)
        return found

    def sweep(
        self,
        model: Model,
        task: Task,
        *,
        adapter: Adapter | None = None,
        gradient_mask: Mask | None = None,
        optimizer: Optimizer = "adamw",
        lr_scale: float = 1.0,
        **changes: Any,
    ) -> Outcome:
        budget = Budget.model_validate({**self.budget.model_dump(), **changes})
        return sweep(
            model,
            task,
            budget,
            self.seed,
            self.device,
            adapter=adapter,
            gradient_mask=gradient_mask,
            optimizer=optimizer,
            lr_scale=lr_scale,
        )

    def select(self, task: Task, candidates: Candidates) -> Outcome:
        return select(task, candidates, self.device)

    def untrained(self, model: Model, seed: int) -> PreTrainedModel:
        return models.untrained(model.network, derive(self.seed, "untrained", str(seed)))

    def unchanged(self, model: Model, task: Task) -> Outcome:
        return unchanged(model, task, self.device)


def own_copy(model: Model) -> Model:
    """A copy: what an attack does to it reaches neither the next task nor the referee."""
    return Model(copy.deepcopy(model.network), model.tokenizer)
