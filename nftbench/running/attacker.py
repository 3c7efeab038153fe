"""The attacker: the context of an attack, which holds what the attack's `knowledge` names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from nftbench.contract import (
    Attack,
    Corpus,
    Defense,
    Model,
    Protected,
    Secret,
    Task,
)
from nftbench.data import corpus
from nftbench.errors import NftbenchError
from nftbench.models import networks
from nftbench.models.copies import copied
from nftbench.planning import registry
from nftbench.planning.facts import with_code
from nftbench.planning.specs import canonical
from nftbench.running.owner import Recipe, Shadow
from nftbench.suites.schema import Pretraining, Suite
from nftbench.training import engine, preparation
from nftbench.training.sweep import select, sweep, unchanged
from nftbench.training.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class Attacker(Trainer):
    """`AttackerContext`. A field is None where the attack's knowledge does not name it."""

    _corpus: Corpus | None = None
    _secret: Secret | None = None
    _base: Model | None = None
    _defense: Defense | None = None
    _sibling: Model | None = None
    _suite: Recipe | Suite | None = None
    _uses: tuple[str, ...] = ()
    others: Mapping[str, Task] = field(default_factory=dict)

    # The training functions take a trainer first, so they are the methods that `AttackerContext` declares.
    train = preparation.train
    gradients = preparation.gradients
    sweep = sweep
    select = select
    unchanged = unchanged

    @property
    def corpus(self) -> Corpus:
        if self._corpus is None:
            raise NftbenchError("public text needs 'data' in the attack's knowledge")
        return self._corpus

    @property
    def secret(self) -> Secret:
        if self._secret is None:
            raise NftbenchError("the owner's secret needs 'secret' in the attack's knowledge")
        return self._secret

    @property
    def base(self) -> Model:
        if self._base is None:
            raise NftbenchError("the base model needs 'base' in the attack's knowledge")
        return own_copy(self._base)

    @property
    def defense(self) -> Defense:
        if self._defense is None:
            raise NftbenchError("the attacked defense needs 'method' in the attack's knowledge")
        return self._defense

    @property
    def pretraining(self) -> Pretraining:
        if self._defense is None or self._suite is None:
            raise NftbenchError("the owner's recipe needs 'method' in the attack's knowledge")
        return self._suite.pretraining

    @property
    def sibling(self) -> Model:
        if self._sibling is None:
            raise NftbenchError("a second checkpoint of the owner's run needs 'sibling' in the attack's knowledge")
        return own_copy(self._sibling)

    def initial(self, guess: int) -> PreTrainedModel:
        if self._sibling is None or self._suite is None:
            raise NftbenchError("the start of the owner's run needs 'sibling' in the attack's knowledge")
        seed = networks.derive(guess, "init")
        return networks.build(self._suite.model, self._sibling.tokenizer, seed, str(self.device)).network

    def shadow(self, index: int) -> Protected:
        if self._suite is None or self._defense is None or self._corpus is None:
            raise NftbenchError("running the defense needs 'method' and 'data' in the attack's knowledge")
        if self._defense.stage != "pretrain":
            raise NftbenchError("`shadow` cannot run a defense that starts from a trained base: the attacker has none")
        own = Shadow(
            self._suite, self.device, networks.derive(self.seed, "shadow", str(index)), self._corpus, self.ledger
        )
        return with_code(self._defense).protect(own.build(), own)

    def text(self, model: Model, batch: int) -> Iterator[torch.Tensor]:
        blocks = corpus.encoded_for(self.corpus, model.tokenizer)
        return engine.token_batches(blocks, batch, networks.derive(self.seed, "text"), str(self.device))

    def attack(self, spec: str) -> Attack:
        asked = str(canonical("attacks", spec))
        if asked not in {str(canonical("attacks", known)) for known in self._uses}:
            raise NftbenchError(f"the attack is not built on {spec!r}: it does not name it in uses()")
        self.ledger.parts.add(asked)
        found: Attack = registry.create("attacks", spec)
        return found

    def untrained(self, model: Model, seed: int) -> PreTrainedModel:
        return networks.untrained(model.network, networks.derive(self.seed, "untrained", str(seed)))


def own_copy(model: Model) -> Model:
    """A copy, so that changes by an attack affect neither the next task nor the referee."""
    return Model(copied(model.network), model.tokenizer)
