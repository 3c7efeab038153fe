"""The referee carries out a job: it makes the release, runs the attack, measures, and writes the records.

Only the referee holds both the release and its secret. An attack is given the model as loaded from the published
folder, and a context with what the attack's `knowledge` names.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nftbench.contract import Attack, Defense, Measurement, Model, Prepared, Release, Task, Yardstick
from nftbench.errors import NftbenchError
from nftbench.models import networks, updates
from nftbench.planning import code_origin, registry
from nftbench.planning.keys import corpus_key
from nftbench.planning.plan import Job
from nftbench.planning.specs import task_spec
from nftbench.records.record import Cell, Record
from nftbench.records.spec import Spec
from nftbench.running import mask_accuracy, provenance
from nftbench.running.attacker import Attacker, own_copy
from nftbench.running.releases import (
    ADAPTER,
    ReleaseInspection,
    load_base_sha256,
    load_protection,
    load_secret,
    make_reference,
    make_release,
    make_sibling,
    open_release,
)
from nftbench.running.workspace import AttackersTask, Workspace, load_task, make_corpus
from nftbench.terms import Knowledge, SplitName, Status
from nftbench.training import engine
from nftbench.training.sweep import NonFiniteError
from nftbench.training.trainer import CellTimeoutError, Ledger


def execute(workspace: Workspace, job: Job) -> list[Record] | None:
    """Run the cells of a job that have no settled record, and write their records.

    An error in a defense, an attack or a task becomes the status and reason of its record; other cells go on. Returns
    None where another process holds the job.
    """
    engine.set_threads(workspace.device)
    with workspace.store.claim(job.key) as mine:
        if not mine:
            return None
        settled = workspace.store.settled_among(job.cells)
        cells = [cell for cell in job.cells if cell.key not in settled]
        return Referee(workspace, job).run(cells) if cells else []


def protect(workspace: Workspace, job: Job) -> None:
    """Make the release that a job attacks. Done first, so that the jobs of one release do not wait for each other."""
    engine.set_threads(workspace.device)
    make_release(workspace, job.defense, job.seed, job.release)


@dataclass
class Referee:
    """One job while it runs."""

    workspace: Workspace
    job: Job
    attack: Attack = field(init=False)
    knowledge: frozenset[Knowledge] = field(init=False)
    """What the attack says that it knows, read once: its context and its records have to agree on it."""
    sha256: str = field(init=False, default="")
    """Hash of the release's weight files, once it is made."""
    base_sha256: str | None = field(init=False, default=None)
    """Hash of the weights of its reference row, once it is made."""
    preparation: float = field(init=False, default=0.0)
    """Seconds that the attack's preparation took."""
    recovery: Mapping[str, float] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.attack = registry.create("attacks", str(self.job.attack))
        self.knowledge = frozenset(self.attack.knowledge)

    def run(self, cells: Sequence[Cell]) -> list[Record]:
        try:
            self.check_sources()
            folder = make_release(self.workspace, self.job.defense, self.job.seed, self.job.release)
            update = updates.load(folder / ADAPTER)
            model = self.with_readable_text(open_release(self.workspace, self.job.seed, folder))
            release = Release(model, update)
            self.sha256 = networks.sha256(folder)
            self.base_sha256 = load_base_sha256(self.workspace, self.job.release)
            context = self.context()
            begun = time.monotonic()
            # The attack gets a copy: the release itself encodes the tasks and gives the unattacked scores.
            copied = Model(copy.deepcopy(model.network), copy.deepcopy(model.tokenizer))
            prepared = self.attack.prepare(Release(copied, update), context)
            self.preparation = time.monotonic() - begun
            self.recovery = self.guess_accuracy(prepared)
        except (Exception, SystemExit) as error:  # a plugin may raise anything
            return [self.write_failure(cell, *status_of(error)) for cell in cells]
        return [self.cell(cell, release, prepared, context) for cell in cells]

    def check_sources(self) -> None:
        """Refuse the job if its plugins have been edited since the run was planned."""
        attacks = (str(self.job.attack), *_built_on(self.attack))
        roles = [(cell, self.workspace.plan.role(cell)) for cell in self.job.cells]
        names: list[tuple[registry.Kind, str]] = [("defenses", self.job.defense.name)]
        names += [("attacks", Spec.parse(spec).name) for spec in attacks]
        names += [("yardsticks" if role == "yardstick" else "tasks", cell.task.name) for cell, role in roles]
        if self.attack.adaptation == "merging":
            names += [("tasks", Spec.parse(task).name) for task in self.workspace.suite.tasks]
        code_origin.check(self.workspace.plan, dict.fromkeys(names))

    def with_readable_text(self, model: Model) -> Model:
        """The release with the tokenizer that an attack encodes text by.

        That is the corpus's tokenizer where the release's own has the same words but splits text in another way. An
        attack that only measures uses the tokenizer as published.
        """
        found = load_protection(self.workspace, self.job.release) if self.attack.trains else None
        if found is None or not found.tokenizer_changed or model.tokenizer is None:
            return model
        usual = make_corpus(self.workspace, self.job.seed).tokenizer
        same_words = model.tokenizer.get_vocab() == usual.get_vocab()
        return Model(model.network, copy.deepcopy(usual)) if same_words else model

    def guess_accuracy(self, prepared: Prepared) -> Mapping[str, float]:
        """How close the attack's guess comes to the secret mask; empty where the attack was given the mask."""
        secret = load_secret(self.workspace, self.job.release)
        if prepared.guess is None or secret is None or "secret" in self.knowledge:
            return {}
        return mask_accuracy.score(prepared.guess, secret.mask)

    def context(self) -> Attacker:
        """The context of this attack: what its knowledge names."""
        knowledge = self.knowledge
        defense: Defense = registry.create("defenses", str(self.job.defense))
        return Attacker(
            seed=networks.derive(self.job.seed, "attack"),
            budget=self.workspace.suite.budget,
            device=self.workspace.device,
            _corpus=copy.deepcopy(make_corpus(self.workspace, self.job.seed)) if "data" in knowledge else None,
            _secret=load_secret(self.workspace, self.job.release) if "secret" in knowledge else None,
            _base=make_reference(self.workspace, self.job) if "base" in knowledge else None,
            _defense=defense if "method" in knowledge else None,
            _suite=self.workspace.suite if knowledge & {"method", "sibling"} else None,
            _sibling=make_sibling(self.workspace, self.job) if "sibling" in knowledge else None,
            _uses=_built_on(self.attack),
        )

    def cell(self, cell: Cell, release: Release, prepared: Prepared, context: Attacker) -> Record:
        """Attack one task and measure the result."""
        begun = time.monotonic()
        if self.workspace.plan.role(cell) == "yardstick":
            return self.reading(cell, release, begun)
        try:
            task = load_task(self.workspace, cell.task, cell.seed, release.model)
            # Each task gets a copy: an attack that changes what it prepared must not affect the next task.
            own = _copied(prepared)
            given = dataclasses.replace(self.with_other_tasks(cell, release, context), ledger=Ledger())
            training_task = self.training_task(cell, release, task)
            outcome = self.attack.adapt(own, AttackersTask(training_task), given)
            plain = outcome.retried is None
            validation = self.measure(task, outcome.network, "validation", plain) if task.trainable else None
            attacked = self.measure(task, outcome.network, "test", plain)
            trained = self.attack.trains
            unattacked = self.measure(task, release.model.network, "test", True) if trained else attacked
        except (Exception, SystemExit) as error:  # a plugin may raise anything
            return self.write_failure(cell, *status_of(error))
        finite = math.isfinite(attacked.value) and (attacked.loss is None or math.isfinite(attacked.loss))
        cost = dataclasses.replace(
            given.ledger.whole(outcome.cost),
            preparation_seconds=self.preparation + given.ledger.seconds,
            preparation_steps=context.ledger.steps + context.ledger.swept_steps + given.ledger.steps,
            preparation_flops=context.ledger.flops + given.ledger.flops,
            peak_memory_bytes=max(
                outcome.cost.peak_memory_bytes, context.ledger.peak_memory_bytes, given.ledger.peak_memory_bytes
            ),
        )
        record = self.blank(cell, time.monotonic() - begun, training_task.documents())
        if not finite:
            record = dataclasses.replace(record, reason="the attacked model's score or loss is not finite")
        return self.write(
            dataclasses.replace(
                record,
                status="ok" if finite else "nonfinite",
                unattacked=unattacked if finite else None,
                validation=validation if finite else None,
                attacked=attacked if finite else None,
                picked=outcome.picked,
                curve=outcome.curve,
                restarts=outcome.restarts,
                at_edge=outcome.at_edge,
                stuck=outcome.stuck,
                retried=outcome.retried,
                cost=cost if self.attack.trains else None,
                recovery=self.recovery,
                protection=load_protection(self.workspace, cell.release) if not self.attack.trains else None,
            )
        )

    def training_task(self, cell: Cell, release: Release, task: Task) -> Task:
        """The task with as many training documents as the attack takes."""
        suite = self.workspace.suite
        taken = self.attack.train_documents(suite.budget)
        if taken == suite.budget.max_train_documents:
            return task
        budget = suite.budget.model_copy(update={"max_train_documents": taken})
        changed = suite.model_copy(update={"budget": budget})
        workspace = dataclasses.replace(self.workspace, plan=dataclasses.replace(self.workspace.plan, suite=changed))
        return load_task(workspace, cell.task, cell.seed, release.model)

    def with_other_tasks(self, cell: Cell, release: Release, context: Attacker) -> Attacker:
        """The context with the suite's other ranked tasks, for attacks that merge several fine-tuned models."""
        if self.attack.adaptation != "merging":
            return context
        ranked = [task_spec(text) for text in self.workspace.suite.tasks]
        found = {
            str(spec): AttackersTask(load_task(self.workspace, spec, cell.seed, release.model))
            for spec in ranked
            if spec != cell.task
        }
        return dataclasses.replace(context, others=found)

    def reading(self, cell: Cell, release: Release, begun: float) -> Record:
        """Measure a yardstick on the release."""
        try:
            yardstick: Yardstick = registry.create("yardsticks", str(cell.task))
            found = yardstick.measure(ReleaseInspection(self.workspace, self.job, release))
        except (Exception, SystemExit) as error:  # a plugin may raise anything
            return self.write_failure(cell, *status_of(error))
        unfit = sorted(name for name, value in found.values.items() if not math.isfinite(value))
        return self.write(
            dataclasses.replace(
                self.blank(cell, time.monotonic() - begun),
                status="nonfinite" if unfit else "ok",
                reason=f"not finite: {', '.join(unfit)}" if unfit else None,
                reading=None if unfit else found,
                protection=load_protection(self.workspace, cell.release),
            )
        )

    def measure(self, task: Task, network: nn.Module, split: SplitName, plain: bool) -> Measurement:
        with engine.autocast(self.workspace.device, plain):
            return task.evaluate(network, task.split(split))

    def blank(self, cell: Cell, seconds: float = 0.0, documents: Mapping[str, Any] | None = None) -> Record:
        """The record of a cell before anything is measured: a failure.

        Args:
            seconds: what the cell took.
            documents: which documents a task scored.
        """
        workspace = self.workspace
        origin = provenance.collect(workspace.suite, workspace.device, workspace.command, seconds)
        corpus = corpus_key(workspace.suite, self.job.seed, workspace.plan.data)
        sources = code_origin.sources(workspace.plan, cell, workspace.store.cache)
        return Record(
            key=cell.key,
            suite=workspace.suite.name,
            defense=str(cell.defense),
            attack=str(cell.attack),
            task=str(cell.task),
            seed=cell.seed,
            row=workspace.plan.row(cell.defense),
            role=workspace.plan.role(cell),
            knowledge=tuple(sorted(self.knowledge)),
            adaptation=self.attack.adaptation,
            against=tuple(sorted(self.attack.against)),
            uses_release=self.attack.uses_release,
            trains=self.attack.trains,
            trained_weights=self.attack.trained_weights,
            status="failed",
            limited=workspace.plan.limit is not None,
            release=cell.release,
            release_sha256=self.sha256,
            base_sha256=self.base_sha256,
            provenance={**origin, "corpus": corpus, "documents": documents or {}, "sources": sources},
        )

    def write(self, record: Record) -> Record:
        self.workspace.store.write(record)
        return record

    def write_failure(self, cell: Cell, status: Status, reason: str) -> Record:
        return self.write(dataclasses.replace(self.blank(cell), status=status, reason=reason))


def _copied(prepared: Prepared) -> Prepared:
    guess = {name: tensor.clone() for name, tensor in prepared.guess.items()} if prepared.guess is not None else None
    parts = tuple(_copied(part) for part in prepared.parts)
    return dataclasses.replace(prepared, model=own_copy(prepared.model), guess=guess, parts=parts)


def _built_on(attack: Attack) -> tuple[str, ...]:
    """Specs of the attacks that this attack is built on, directly or through others."""
    below = (_built_on(registry.create("attacks", spec)) for spec in attack.uses())
    return (*attack.uses(), *itertools.chain.from_iterable(below))


def fail(workspace: Workspace, job: Job, status: Status, reason: str) -> list[Record]:
    """Write a failed record for each cell of a job that could not start, unless the cell is settled."""
    with workspace.store.claim(job.key) as mine:
        settled = workspace.store.settled_among(job.cells)
        referee = Referee(workspace, job)
        return [referee.write_failure(cell, status, reason) for cell in job.cells if mine and cell.key not in settled]


def status_of(error: BaseException) -> tuple[Status, str]:
    """The status of a cell that ended in this error, and the reason in one line with the file and line raising it."""
    if isinstance(error, CellTimeoutError):
        return "timeout", str(error)
    if isinstance(error, NonFiniteError):
        return "nonfinite", str(error)
    message = " ".join(str(error).split())[:500]
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return "oom", message
    if isinstance(error, NftbenchError):
        return "failed", message
    frames = traceback.extract_tb(error.__traceback__)  # none where the error comes from a worker process
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return "failed", f"{type(error).__name__}: {message}{place}"
