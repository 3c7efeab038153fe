"""An attack runs in a process of its own: what it is given, and what it leaves in its folder.

All cells of a job are attacked in one process, because they share the attack's preparation. The attacked networks and
the attack's measurements come back as files; the referee reads and measures them.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from torch import nn

from nftbench.contract import (
    Attack,
    Corpus,
    Cost,
    Guess,
    Model,
    Outcome,
    Point,
    Prepared,
    Release,
    Secret,
    Task,
)
from nftbench.device import Device
from nftbench.errors import NftbenchError
from nftbench.models import returned
from nftbench.planning import facts, registry
from nftbench.planning.facts import DefenseFacts, Described
from nftbench.planning.plan import built_on
from nftbench.running import activity, failures, isolation, packing
from nftbench.running.attacker import Attacker, own_copy
from nftbench.running.owner import Recipe
from nftbench.running.workspace import Workspace
from nftbench.suites.schema import Budget
from nftbench.training import engine
from nftbench.training.trainer import Ledger

GUESS, PREPARED, FAILED = "guess.safetensors", "prepared.json", "failed.json"
STARTING = 60.0
"""Seconds that an attack's process has to start and to read what it is given, beside the time that the budget allows
it. They are generous: an attack that trains nothing must not be stopped because the machine is busy."""


@dataclass(frozen=True)
class Goal:
    """One cell: the task to attack, and the suite's other ranked tasks if the attack is given them."""

    task: Task
    others: Mapping[str, Task]


@dataclass(frozen=True)
class Order:
    """What an attack's process is given: the release, the tasks without their test splits, and what it knows."""

    attack: str
    release: Release
    seed: int
    budget: Budget
    device: Device
    goals: tuple[Goal, ...]
    corpus: Corpus | None = None
    secret: Secret | None = None
    base: Model | None = None
    sibling: Model | None = None
    defense: DefenseFacts | None = None
    recipe: Recipe | None = None


@dataclass(frozen=True)
class Preparation:
    """What the preparation of all cells cost."""

    seconds: float
    ledger: Ledger


@dataclass(frozen=True)
class Found:
    """What the attack of one cell says about it: the fields of `Outcome` without the network."""

    picked: Point
    curve: tuple[Point, ...]
    restarts: tuple[Point, ...]
    cost: Cost
    at_edge: bool
    stuck: bool
    retried: str | None
    trained: str | None
    ledger: Ledger
    """What `adapt` spent outside its sweeps."""
    seconds: float


@dataclass(frozen=True)
class Returned:
    """What an attack's process has left."""

    folder: Path
    release: nn.Module
    device: Device
    died: NftbenchError | None
    """Why the process ended before its time; cells that it has finished by then count."""

    def preparation(self) -> Preparation:
        """What the preparation cost.

        Raises:
            FailedError, NftbenchError: it failed, or its process ended before that.
        """
        failures.raise_written(self.folder / FAILED)
        path = self.folder / PREPARED
        if not path.exists():
            raise self.died or NftbenchError("its process ended without a result")
        return TypeAdapter(Preparation).validate_json(path.read_bytes())

    def guess(self) -> Guess | None:
        path = self.folder / GUESS
        return load_file(path) if path.exists() else None

    def cell(self, index: int) -> tuple[Found, nn.Module]:
        """What the attack found in one cell, and the attacked network.

        Raises:
            FailedError, NftbenchError: the attack failed there, its network is none that may be measured, or its
                process ended before that.
        """
        failures.raise_written(self.folder / f"{index}-{FAILED}")
        path = self.folder / f"{index}.json"
        if not path.exists():
            raise self.died or NftbenchError("its process ended without a result")
        found = TypeAdapter(Found).validate_json(path.read_bytes())
        return found, returned.load(self.folder / f"{index}.pt", self.release, str(self.device))


def attack(order: Order, folder: Path, workspace: Workspace) -> Returned:
    """Run an attack in a process of its own."""
    died: NftbenchError | None = None
    activity.tell("attacks the release")
    # The budget limits each sweep and all preparation. This limit stops an attack that does not ask for the time.
    limit = STARTING + 4 * order.budget.timeout * (1 + len(order.goals))
    try:
        isolation.run(perform, packed(order, folder), folder, workspace.store, limit=limit, hidden=workspace.documents)
    except NftbenchError as error:
        died = error
    activity.tell("measures the attacked models")
    return Returned(folder, order.release.model.network, order.device, died)


def packed(order: Order, folder: Path) -> bytes:
    """An order as it is sent to the attack's process: without test splits, and large tensors in its folder."""
    tasks = [task for goal in order.goals for task in (goal.task, *goal.others.values())]
    hidden = [split for task in tasks for split in packing.splits(task, ("selection", "test"))]
    return packing.pack(order, folder, hidden)


def perform(content: bytes, folder: Path) -> None:
    """Prepare, and attack each task, in the attack's own process."""
    order: Order = packing.unpack(content, folder)
    engine.set_threads(order.device)
    failures.attempt(lambda: _attack_all(order, folder), folder / FAILED)


def _attack_all(order: Order, folder: Path) -> None:
    plugin: Attack = registry.create("attacks", order.attack)
    context = Attacker(
        seed=order.seed,
        budget=order.budget,
        device=order.device,
        _corpus=order.corpus,
        _secret=order.secret,
        _base=order.base,
        # The defense's code is not imported here: it could change how this attack trains.
        _defense=Described(order.defense) if order.defense is not None else None,
        _suite=order.recipe,
        _sibling=order.sibling,
        _uses=built_on(facts.attack(order.attack)),
    )
    begun = time.monotonic()
    prepared = plugin.prepare(order.release, context)
    preparation = Preparation(time.monotonic() - begun, context.ledger)
    if not isinstance(prepared, Prepared):
        raise NftbenchError(f"prepare returned {type(prepared).__name__}, not Prepared")
    if prepared.guess is not None and "secret" not in plugin.knowledge:
        save_file({name: score.detach().cpu().contiguous() for name, score in prepared.guess.items()}, folder / GUESS)
    (folder / PREPARED).write_bytes(TypeAdapter(Preparation).dump_json(preparation))
    for index, goal in enumerate(order.goals):
        action = functools.partial(_attack_one, plugin, prepared, goal, context, folder, index)
        failures.attempt(action, folder / f"{index}-{FAILED}")


def _attack_one(plugin: Attack, prepared: Prepared, goal: Goal, context: Attacker, folder: Path, index: int) -> None:
    begun = time.monotonic()
    given = dataclasses.replace(context, others=goal.others, ledger=Ledger())
    # Each task gets a copy: an attack that changes what it prepared must not affect the next task.
    outcome = plugin.adapt(_copied(prepared), goal.task, given)
    if not isinstance(outcome, Outcome):
        raise NftbenchError(f"adapt returned {type(outcome).__name__}, not Outcome")
    found = Found(
        picked=outcome.picked,
        curve=outcome.curve,
        restarts=outcome.restarts,
        cost=outcome.cost,
        at_edge=outcome.at_edge,
        stuck=outcome.stuck,
        retried=outcome.retried,
        trained=outcome.trained,
        ledger=given.ledger,
        seconds=time.monotonic() - begun,
    )
    returned.save(outcome.network, folder / f"{index}.pt")
    (folder / f"{index}.json").write_bytes(TypeAdapter(Found).dump_json(found))


def _copied(prepared: Prepared) -> Prepared:
    guess = {name: tensor.clone() for name, tensor in prepared.guess.items()} if prepared.guess is not None else None
    parts = tuple(_copied(part) for part in prepared.parts)
    return dataclasses.replace(prepared, model=own_copy(prepared.model), guess=guess, parts=parts)
