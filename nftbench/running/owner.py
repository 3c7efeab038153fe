"""The owner of a model: builds and pre-trains it, and gives a defense its context.

An attacker who runs the defense again on public text is a second kind of owner, called a shadow.
"""

from __future__ import annotations

import contextlib
import copy
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nftbench.contract import Corpus, EachStep, Mask, Model, Task
from nftbench.device import Device
from nftbench.errors import NftbenchError
from nftbench.models import networks
from nftbench.planning.keys import base_key
from nftbench.records.leases import LostError
from nftbench.records.spec import Spec
from nftbench.running import activity, given_base
from nftbench.running.workspace import AttackersTask, Workspace, load_task, make_corpus
from nftbench.suites.schema import Budget, Pretraining, Suite
from nftbench.training import engine
from nftbench.training.trainer import Ledger

SIBLING = 0.9
"""Share of the owner's pre-training run after which a second checkpoint of it is kept (knowledge `sibling`)."""


SECONDS = "seconds.json"
"""The file in a base model's folder that holds the processor seconds of its run up to there."""


def make_base(workspace: Workspace, seed: int, fraction: float = 1.0) -> Model:
    """The undefended model of a base seed, after a fraction of its pre-training run."""
    return networks.load(base_folder(workspace, seed, fraction), str(workspace.device))


def base_folder(workspace: Workspace, seed: int, fraction: float = 1.0) -> Path:
    """Where the undefended model is kept; it is made if the cache lacks it.

    Raises:
        NftbenchError: the base is given, and an earlier state of it is asked for.
    """
    if workspace.suite.given is not None:
        if fraction != 1.0:
            raise NftbenchError("a given base has no earlier checkpoints")
        return given_base.folder(workspace.store, workspace.suite)
    recipe = workspace.suite.pretraining
    steps = step_at(recipe, fraction)
    key = base_key(workspace.suite, seed, workspace.plan.data, workspace.device)[:32]
    # One run gives the base and every checkpoint that the suite names; any other fraction needs its own run.
    wanted = sorted({steps, *(step_at(recipe, kept) for kept in recipe.checkpoints), recipe.steps} - {0})
    while (folder := workspace.store.artifact("bases", f"{key}-{steps}")) is None:
        if workspace.store.is_locked("runs", key):
            activity.tell(activity.WAITS)
        # Where the lock is lost, another process pre-trains the base now, and it is waited for.
        with workspace.store.lock("runs", key), contextlib.suppress(LostError):
            missing = [step for step in wanted if workspace.store.artifact("bases", f"{key}-{step}") is None]
            if steps in missing:
                _pretrain_base(workspace, seed, key, missing)
    return folder


def kept_bases(workspace: Workspace, seed: int) -> dict[int, Path]:
    """The folders of the undefended model that the cache holds, by steps of its run; a given base has taken none."""
    if workspace.suite.given is not None:
        return {0: base_folder(workspace, seed)}
    recipe = workspace.suite.pretraining
    key = base_key(workspace.suite, seed, workspace.plan.data, workspace.device)[:32]
    steps = sorted({step_at(recipe, fraction) for fraction in (1.0, *recipe.checkpoints)})
    found = {step: workspace.store.artifact("bases", f"{key}-{step}") for step in steps}
    return {step: folder for step, folder in found.items() if folder is not None}


def base_seconds(folder: Path) -> float:
    """Processor seconds of the pre-training run of an undefended model; 0 where its folder does not say."""
    path = folder / SECONDS
    return float(json.loads(path.read_text())) if path.exists() else 0.0


@dataclass(frozen=True)
class Recipe:
    """The parts of a suite that owners and attackers may know. They do not say how text and documents are made."""

    model: Mapping[str, Any]
    pretraining: Pretraining
    budget: Budget
    is_given: bool = False
    """Whether the base is a checkpoint that the suite does not pre-train."""

    @classmethod
    def of(cls, suite: Suite) -> Recipe:
        return cls(suite.model, suite.pretraining, suite.budget, suite.given is not None)


class BaseOwner(ABC):
    """What all kinds of owner do in the same way: build a model and pre-train it by the suite's recipe."""

    suite: Recipe | Suite
    device: Device
    base_seed: int
    kept: dict[str, torch.Tensor]
    """The second checkpoint of the last pre-training run: weights by name."""
    ledger: Ledger | None = None
    """Counts what pre-training costs; None where nobody asks."""

    @property
    @abstractmethod
    def corpus(self) -> Corpus: ...

    @abstractmethod
    def task(self, spec: str) -> Task: ...

    @property
    def seed(self) -> int:
        return networks.derive(self.base_seed, "defense")

    @property
    def pretraining(self) -> Pretraining:
        return self.suite.pretraining

    def build(self, **changes: Any) -> Model:
        given = self.given_folder()
        if given is not None:
            return networks.build_as(given, networks.derive(self.base_seed, "init"), str(self.device), **changes)
        # A copy: a plugin may change its tokenizer, and the corpus's own encodes everything else.
        tokenizer = copy.deepcopy(self.corpus.tokenizer) if self.pretraining.task is None else None
        return networks.build(
            {**self.suite.model, **changes}, tokenizer, networks.derive(self.base_seed, "init"), str(self.device)
        )

    def given_folder(self) -> Path | None:
        """Where the base lies if it is given; None where it is pre-trained, and for a shadow, which is given none."""
        return None

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
            if step == step_at(recipe, SIBLING):
                self.kept.update({name: tensor.detach().clone() for name, tensor in network.state_dict().items()})
            return each_step(network, step) if each_step is not None else None

        seed = networks.derive(self.base_seed, "pretrain")
        engine.pretrain(model.network, text, recipe, seed, self.device, mask=mask, each_step=watch)
        if self.ledger is not None:
            self.ledger.steps += taken
            self.ledger.flops += taken * engine.step_flops(model.network, text, recipe, self.device)
            self.ledger.seconds += time.monotonic() - begun
        return model

    def sibling(self, release: Model) -> Model | None:
        """A second checkpoint of the owner's run, in the release's architecture; None where its weights do not fit."""
        shapes = {name: tensor.shape for name, tensor in release.network.state_dict().items()}
        if {name: tensor.shape for name, tensor in self.kept.items()} != shapes:
            return None
        network = copy.deepcopy(release.network)
        network.load_state_dict(self.kept)
        return Model(network, release.tokenizer)


@dataclass(frozen=True)
class Owner(BaseOwner):
    """The owner as the referee has it, who makes the undefended model. A defense's process has an `OwnerApart`."""

    _workspace: Workspace
    base_seed: int
    _known_tasks: tuple[str, ...] = ()
    """Specs of the tasks that the defense names in `told()`."""
    kept: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def suite(self) -> Suite:  # type: ignore[override]
        return self._workspace.suite

    @property
    def device(self) -> Device:  # type: ignore[override]
        return self._workspace.device

    @property
    def corpus(self) -> Corpus:
        return make_corpus(self._workspace, self.base_seed)

    def task(self, spec: str) -> Task:
        allowed = (*self._known_tasks, *filter(None, [self.pretraining.task]))
        if spec not in allowed:
            raise NftbenchError(f"the defense asks for the task {spec!r}, which it does not name in told()")
        loaded = load_task(self._workspace, Spec.parse(spec), self.base_seed, self.build())
        return AttackersTask(
            loaded, ("validation", "selection", "test"), "a defense sees only the training split of a task"
        )

    def checkpoint(self, fraction: float) -> Model:
        return make_base(self._workspace, self.base_seed, fraction)

    def given_folder(self) -> Path | None:
        return base_folder(self._workspace, self.base_seed) if self.suite.given is not None else None


@dataclass(frozen=True)
class Shadow(BaseOwner):
    """`OwnerContext` of an attacker who runs the defense on public text, with the attacker's own seeds."""

    suite: Recipe | Suite
    device: Device
    base_seed: int
    text: Corpus
    ledger: Ledger | None = field(default_factory=Ledger)
    kept: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def corpus(self) -> Corpus:
        return self.text

    def task(self, spec: str) -> Task:
        raise NftbenchError("a defense that an attacker runs again (`shadow`) is given no tasks")

    def checkpoint(self, fraction: float) -> Model:
        raise NftbenchError(
            "a defense that an attacker runs again (`shadow`) is given no checkpoints of the undefended model"
        )


def step_at(recipe: Pretraining, fraction: float) -> int:
    return max(1, round(recipe.steps * fraction))


def _pretrain_base(workspace: Workspace, seed: int, key: str, steps: Sequence[int]) -> None:
    """Pre-train the undefended model up to the last of `steps`, and store the model at each of them."""
    owner, begun = Owner(workspace, seed), time.process_time()
    model = owner.build()

    def write(folder: Path) -> None:
        networks.save(model, folder)
        (folder / SECONDS).write_text(json.dumps(time.process_time() - begun))

    def keep(network: nn.Module, step: int) -> bool:
        activity.tell_step(f"pre-trains the undefended model of seed {seed}", step, max(steps))
        if step in steps:
            workspace.store.confirm("runs", key)  # all of these checkpoints must come from one run
            workspace.store.make("bases", f"{key}-{step}", write)
        return step == max(steps)

    owner.pretrain(model, each_step=keep)
