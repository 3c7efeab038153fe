"""A job becomes records: make the release, let the attack spend its budget, measure, write down.

The harness is the referee. It alone holds release and secret; an attack is handed the model loaded again from the
published folder, and a context that holds what the attack's `knowledge` names and no more.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
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
from nftbench.models import networks as models, updates
from nftbench.planning import code_origin, registry
from nftbench.planning.keys import corpus_key
from nftbench.planning.plan import Job
from nftbench.planning.specs import task_spec
from nftbench.records.record import Cell, Record
from nftbench.records.spec import Spec
from nftbench.running import mask_accuracy as recovery, provenance
from nftbench.running.attacker import Attacker, own_copy
from nftbench.running.releases import (
    ADAPTER,
    ReleaseInspection,
    load_protection,
    load_secret,
    make_reference,
    make_release,
    make_sibling,
    open_release,
)
from nftbench.running.workspace import AttackersTask, Workplace, derive, load_task, make_corpus
from nftbench.terms import Knowledge, SplitName, Status
from nftbench.training import engine as train
from nftbench.training.preparation import Ledger
from nftbench.training.sweep import NonFiniteError


def execute(place: Workplace, job: Job) -> list[Record] | None:
    """Run a job's unsettled cells and write their records; None where another process holds the job.

    Whatever goes wrong in a defense, an attack or a task becomes a record's status and reason and loses nothing else.
    """
    _single_thread(place.device)
    with place.store.claim(job.key) as mine:
        if not mine:
            return None
        settled = place.store.settled_among(job.cells)
        cells = [cell for cell in job.cells if cell.key not in settled]
        return _Referee(place, job).run(cells) if cells else []


def protect(place: Workplace, job: Job) -> None:
    """Make the release that a job attacks, so that the jobs of one release need not wait for each other."""
    _single_thread(place.device)
    code_origin.check(place.plan, [("defenses", job.defense.name)])
    make_release(place, job.defense, job.seed, job.release)


@dataclass
class _Referee:
    """One job under way."""

    place: Workplace
    job: Job
    attack: Attack = field(init=False)
    knowledge: frozenset[Knowledge] = field(init=False)
    """Read once: what the attack says that it knows is what it is given and what the record says."""

    def __post_init__(self) -> None:
        self.attack = registry.create("attacks", str(self.job.attack))
        self.knowledge = frozenset(self.attack.knowledge)

    def run(self, cells: Sequence[Cell]) -> list[Record]:
        try:
            self.check_sources()
            folder = make_release(self.place, self.job.defense, self.job.seed, self.job.release)
            update = updates.load(folder / ADAPTER)
            release = Release(self.read(open_release(self.place, self.job.seed, folder)), update)
            self.sha256 = models.sha256(folder)
            context = self.context()
            begun = time.monotonic()
            # A copy, for the release itself is what unattacked scores are measured on, and what tasks are read by.
            theirs = Model(copy.deepcopy(release.model.network), copy.deepcopy(release.model.tokenizer))
            prepared = self.attack.prepare(Release(theirs, update), context)
            self.preparation = time.monotonic() - begun
            self.recovery = self.recovered(prepared)
        except (Exception, SystemExit) as error:  # a plugin may raise anything
            return [self.write(cell, *status_of(error)) for cell in cells]
        return [self.cell(cell, release, prepared, context) for cell in cells]

    def check_sources(self) -> None:
        """Refuse the job if its plugins have been edited since the run was planned."""
        attacks = (str(self.job.attack), *_built_on(self.attack))
        roles = [(cell, self.place.plan.role(cell)) for cell in self.job.cells]
        names: list[tuple[registry.Kind, str]] = [("defenses", self.job.defense.name)]
        names += [("attacks", Spec.parse(spec).name) for spec in attacks]
        names += [("yardsticks" if role == "yardstick" else "tasks", cell.task.name) for cell, role in roles]
        code_origin.check(self.place.plan, dict.fromkeys(names))

    def read(self, model: Model) -> Model:
        """The release as an attack reads text for it: by the corpus's tokenizer where its own has the same words but
        reads otherwise. What is only measured is read as published."""
        found = load_protection(self.place, self.job.release) if self.attack.trains else None
        if found is None or not found.tokenizer_changed or model.tokenizer is None:
            return model
        usual = make_corpus(self.place, self.job.seed).tokenizer
        same_words = model.tokenizer.get_vocab() == usual.get_vocab()
        return Model(model.network, copy.deepcopy(usual)) if same_words else model

    def recovered(self, prepared: Prepared) -> Mapping[str, float]:
        """How near the attack's guess comes to the owner's secret; that of an attack that was given it says nothing."""
        secret = load_secret(self.place, self.job.release)
        if prepared.guess is None or secret is None or "secret" in self.knowledge:
            return {}
        return recovery.score(prepared.guess, secret.mask)

    def context(self) -> Attacker:
        """What this attack may know."""
        knowledge = self.knowledge
        defense: Defense = registry.create("defenses", str(self.job.defense))
        return Attacker(
            seed=derive(self.job.seed, "attack"),
            budget=self.place.suite.budget,
            device=self.place.device,
            _corpus=copy.deepcopy(make_corpus(self.place, self.job.seed)) if "data" in knowledge else None,
            _secret=load_secret(self.place, self.job.release) if "secret" in knowledge else None,
            _base=make_reference(self.place, self.job) if "base" in knowledge else None,
            _defense=defense if "method" in knowledge else None,
            _suite=self.place.suite if knowledge & {"method", "sibling"} else None,
            _sibling=make_sibling(self.place, self.job) if "sibling" in knowledge else None,
            _uses=_built_on(self.attack),
        )

    def cell(self, cell: Cell, release: Release, prepared: Prepared, context: Attacker) -> Record:
        """Attack one task and let the referee measure."""
        begun = time.monotonic()
        if self.place.plan.role(cell) == "yardstick":
            return self.reading(cell, release, begun)
        try:
            task = load_task(self.place, cell.task, cell.seed, release.model)
            # A copy of its own for each task: an attack that changes what it prepared must not reach the next one.
            own = _copied(prepared)
            beside = dataclasses.replace(self.beside(cell, release, context), ledger=Ledger())
            theirs = self.theirs(cell, release, task)
            outcome = self.attack.adapt(own, AttackersTask(theirs), beside)
            plain = outcome.retried is None
            validation = self.measure(task, outcome.network, "validation", plain) if task.trainable else None
            attacked = self.measure(task, outcome.network, "test", plain)
            trained = self.attack.trains
            unattacked = self.measure(task, release.model.network, "test", True) if trained else attacked
        except (Exception, SystemExit) as error:  # a plugin may raise anything
            return self.write(cell, *status_of(error))
        finite = math.isfinite(attacked.value) and (attacked.loss is None or math.isfinite(attacked.loss))
        last = max(point.step for point in outcome.curve) if outcome.curve else 0
        cost = dataclasses.replace(
            outcome.cost,
            preparation_seconds=self.preparation + beside.ledger.seconds,
            preparation_steps=context.ledger.steps + beside.ledger.steps,
            preparation_flops=context.ledger.flops + beside.ledger.flops,
            peak_memory_bytes=max(
                outcome.cost.peak_memory_bytes, context.ledger.peak_memory_bytes, beside.ledger.peak_memory_bytes
            ),
        )
        return self.write(
            cell,
            "ok" if finite else "nonfinite",
            None if finite else "the attacked model's score or loss is not finite",
            unattacked=unattacked if finite else None,
            validation=validation if finite else None,
            attacked=attacked if finite else None,
            picked=outcome.picked,
            curve=outcome.curve,
            restarts=outcome.restarts,
            at_edge=outcome.at_edge,
            at_last_step=0 < outcome.picked.step == last,
            stuck=outcome.stuck,
            retried=outcome.retried,
            cost=cost if self.attack.trains else None,
            recovery=self.recovery,
            protection=load_protection(self.place, cell.release) if not self.attack.trains else None,
            seconds=time.monotonic() - begun,
            documents=getattr(theirs, "provenance", {}),
        )

    def theirs(self, cell: Cell, release: Release, task: Task) -> Task:
        """The task with as many training documents as the attack takes."""
        suite = self.place.suite
        taken = self.attack.train_documents(suite.budget)
        if taken == suite.budget.max_train_documents:
            return task
        budget = suite.budget.model_copy(update={"max_train_documents": taken})
        changed = suite.model_copy(update={"budget": budget})
        place = dataclasses.replace(self.place, plan=dataclasses.replace(self.place.plan, suite=changed))
        return load_task(place, cell.task, cell.seed, release.model)

    def beside(self, cell: Cell, release: Release, context: Attacker) -> Attacker:
        """The context with the suite's other tasks, for the attacks that are about several."""
        if self.attack.adaptation != "merging":
            return context
        ranked = [task_spec(text) for text in self.place.suite.tasks]
        found = {
            str(spec): AttackersTask(load_task(self.place, spec, cell.seed, release.model))
            for spec in ranked
            if spec != cell.task
        }
        return dataclasses.replace(context, others=found)

    def reading(self, cell: Cell, release: Release, begun: float) -> Record:
        """Read a yardstick off the release."""
        try:
            yardstick: Yardstick = registry.create("yardsticks", str(cell.task))
            found = yardstick.measure(ReleaseInspection(self.place, self.job, release))
        except (Exception, SystemExit) as error:  # a plugin may raise anything
            return self.write(cell, *status_of(error))
        unfit = sorted(name for name, value in found.values.items() if not math.isfinite(value))
        reason = f"not finite: {', '.join(unfit)}" if unfit else None
        return self.write(
            cell,
            "nonfinite" if unfit else "ok",
            reason,
            reading=None if unfit else found,
            protection=load_protection(self.place, cell.release),
            seconds=time.monotonic() - begun,
        )

    def measure(self, task: Task, network: nn.Module, split: SplitName, plain: bool) -> Measurement:
        with train.autocast(self.place.device, plain):
            return task.evaluate(network, task.split(split))

    def provenance(self, cell: Cell, seconds: float, documents: Mapping[str, Any]) -> dict[str, Any]:
        """Where the numbers come from; `documents` says which data a text task scored."""
        place = self.place
        found = provenance.collect(place.suite, place.device, place.command, seconds)
        return {
            **found,
            "corpus": corpus_key(place.suite, self.job.seed, place.plan.data),
            "documents": documents,
            "sources": code_origin.sources(place.plan, cell, place.store.cache),
        }

    def write(self, cell: Cell, status: Status, reason: str | None, **measured: Any) -> Record:
        place = self.place
        record = Record(
            key=cell.key,
            suite=place.suite.name,
            defense=str(cell.defense),
            attack=str(cell.attack),
            task=str(cell.task),
            seed=cell.seed,
            row=place.plan.row(cell.defense),
            role=place.plan.role(cell),
            knowledge=tuple(sorted(self.knowledge)),
            adaptation=self.attack.adaptation,
            against=tuple(sorted(self.attack.against)),
            uses_release=self.attack.uses_release,
            trains=self.attack.trains,
            status=status,
            reason=reason,
            limited=place.plan.limit is not None,
            release=cell.release,
            release_sha256=getattr(self, "sha256", ""),
            provenance=self.provenance(cell, measured.pop("seconds", 0.0), measured.pop("documents", {})),
            **measured,
        )
        place.store.write(record)
        return record


def _copied(prepared: Prepared) -> Prepared:
    guess = {name: tensor.clone() for name, tensor in prepared.guess.items()} if prepared.guess is not None else None
    parts = tuple(_copied(part) for part in prepared.parts)
    return dataclasses.replace(prepared, model=own_copy(prepared.model), guess=guess, parts=parts)


def _built_on(attack: Attack) -> tuple[str, ...]:
    """Specs of the attacks that it is built on, and of those that these are built on."""
    below = (_built_on(registry.create("attacks", spec)) for spec in attack.uses())
    return (*attack.uses(), *itertools.chain.from_iterable(below))


def fail(place: Workplace, job: Job, status: Status, reason: str) -> list[Record]:
    """Write a failed record for each unsettled cell of a job that could not even start."""
    with place.store.claim(job.key) as mine:
        settled = place.store.settled_among(job.cells)
        referee = _Referee(place, job)
        return [referee.write(cell, status, reason) for cell in job.cells if mine and cell.key not in settled]


def status_of(error: BaseException) -> tuple[Status, str]:
    """A cell's status and its reason in one line, with the place where it was raised."""
    if isinstance(error, train.CellTimeoutError):
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


@functools.cache
def _single_thread(device: str) -> None:
    """One thread a cell on the CPU, whatever --jobs: the bits of a sum depend on the number of threads."""
    if not device.startswith("cuda"):
        torch.set_num_threads(1)
