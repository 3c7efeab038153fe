"""The referee carries out a job: it makes the release, runs the attack, measures, and writes the records.

Only the referee holds the secret, the test splits and the scored text. Defense and attack run in processes of their own
and never in this one, which imports neither.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from nftbench.contract import Guess, Measurement, Model, Release, Task, Yardstick
from nftbench.models import networks, updates
from nftbench.planning import code_origin, registry
from nftbench.planning.facts import AttackFacts
from nftbench.planning.keys import corpus_key
from nftbench.planning.plan import Job
from nftbench.planning.specs import task_spec
from nftbench.records import disk_budget
from nftbench.records.record import Cell, Record
from nftbench.records.spec import Spec
from nftbench.running import attacking, isolation, mask_accuracy, provenance
from nftbench.running.attacking import Found, Goal, Order, Preparation
from nftbench.running.failures import status_of
from nftbench.running.owner import Recipe
from nftbench.running.protecting import ADAPTER
from nftbench.running.releases import (
    ReleaseInspection,
    aside,
    load_base_sha256,
    load_protection,
    load_secret,
    make_reference,
    make_release,
    make_sibling,
    needs_own_code,
    open_release,
)
from nftbench.running.workspace import AttackersTask, Workspace, load_task, make_corpus
from nftbench.terms import SplitName, Status
from nftbench.training import engine


def execute(workspace: Workspace, job: Job) -> list[Record] | None:
    """Run the cells of a job that have no settled record, and write their records.

    An error in a defense, an attack or a task becomes the status and reason of its record; other cells go on. Returns
    None where another process holds the job.
    """
    engine.set_threads(workspace.device)
    with disk_budget.until_end(), workspace.store.claim(job.key) as mine:
        if not mine:
            return None
        settled = workspace.store.settled_among(job.cells)
        cells = [cell for cell in job.cells if cell.key not in settled]
        return Referee(workspace, job).run(cells) if cells else []


def protect(workspace: Workspace, job: Job) -> None:
    """Make the release that a job attacks. Done first, so that the jobs of one release do not wait for each other."""
    engine.set_threads(workspace.device)
    with disk_budget.until_end():
        make_release(workspace, job.defense, job.seed, job.release)


@dataclass
class Referee:
    """One job while it runs."""

    workspace: Workspace
    job: Job
    attack: AttackFacts = field(init=False)
    """What the attack says about itself, as the plan has it: its process and its records have to agree on it."""
    sha256: str = field(init=False, default="")
    """Hash of the release's weight files, once it is made."""
    base_sha256: str | None = field(init=False, default=None)
    """Hash of the weights of its reference row, once it is made."""

    def __post_init__(self) -> None:
        self.attack = self.workspace.plan.attacks[self.job.attack]

    def run(self, cells: Sequence[Cell], *, is_aside: bool = False) -> list[Record]:
        """The records of cells. `is_aside` is True in a process that ends with them, where an owner's code may run."""
        workspace, job = self.workspace, self.job
        try:
            self.check_sources()
            folder = make_release(workspace, job.defense, job.seed, job.release)
            if needs_own_code(folder) and not is_aside:
                aside(workspace, _run_with_owners_code, job, tuple(cells))
                return workspace.store.read(cells)
            model = self.with_readable_text(open_release(workspace, folder))
            release = Release(model, updates.load(folder / ADAPTER))
            self.sha256 = networks.sha256(folder)
            self.base_sha256 = load_base_sha256(workspace, job.release)
            order = self.order(release)
        except (Exception, SystemExit) as error:  # a plugin may raise anything
            return [self.write_failure(cell, *status_of(error)) for cell in cells]
        records, goals = list[Record](), dict[Cell, Goal]()
        for cell in cells:
            if workspace.plan.role(cell) == "yardstick":
                records.append(self.reading(cell, release))
                continue
            try:
                goals[cell] = self.goal(cell, release)
            except (Exception, SystemExit) as error:  # so may a task
                records.append(self.write_failure(cell, *status_of(error)))
        return records + (self.attacked(release, goals, order) if goals else [])

    def check_sources(self) -> None:
        """Refuse the job if its plugins have been edited since the run was planned."""
        attacks = (str(self.job.attack), *self.workspace.plan.built_on[self.job.attack])
        roles = [(cell, self.workspace.plan.role(cell)) for cell in self.job.cells]
        names: list[tuple[registry.Kind, str]] = [("defenses", self.job.defense.name)]
        names += [("attacks", Spec.parse(spec).name) for spec in attacks]
        names += [("yardsticks" if role == "yardstick" else "tasks", cell.task.name) for cell, role in roles]
        if self.attack.adaptation == "merging":
            names += [("tasks", Spec.parse(task).name) for task in self.workspace.suite.tasks]
        if self.job.attack in self.workspace.plan.utility_after:
            names += [("tasks", Spec.parse(task).name) for task in self.workspace.suite.utility]
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

    def order(self, release: Release) -> Order:
        """What the attack's process is given, but the tasks: the release, and what the attack's knowledge names."""
        workspace, job, knowledge = self.workspace, self.job, self.attack.knowledge
        return Order(
            attack=str(job.attack),
            release=release,
            seed=workspace.seed_of("attack", job.seed),
            budget=workspace.suite.budget,
            device=workspace.device,
            goals=(),
            corpus=make_corpus(workspace, job.seed) if "data" in knowledge else None,
            secret=load_secret(workspace, job.release) if "secret" in knowledge else None,
            base=make_reference(workspace, job) if "base" in knowledge else None,
            sibling=make_sibling(workspace, job) if "sibling" in knowledge else None,
            defense=workspace.plan.defenses[job.defense] if "method" in knowledge else None,
            recipe=Recipe.of(workspace.suite) if knowledge & {"method", "sibling"} else None,
        )

    def goal(self, cell: Cell, release: Release) -> Goal:
        """The tasks of one cell as the referee has them; their test splits do not reach the attack's process."""
        others = {}
        if self.attack.adaptation == "merging":
            ranked = [task_spec(text) for text in self.workspace.suite.tasks]
            others = {
                str(spec): AttackersTask(load_task(self.workspace, spec, cell.seed, release.model))
                for spec in ranked
                if spec != cell.task
            }
        return Goal(AttackersTask(self.training_task(cell, release)), others)

    def training_task(self, cell: Cell, release: Release) -> Task:
        """The task with as many training documents as the attack takes."""
        suite, workspace = self.workspace.suite, self.workspace
        count = workspace.plan.train_documents[self.job.attack]
        if count != suite.budget.max_train_documents:
            budget = suite.budget.model_copy(update={"max_train_documents": count})
            changed = suite.model_copy(update={"budget": budget})
            workspace = dataclasses.replace(workspace, plan=dataclasses.replace(workspace.plan, suite=changed))
        return load_task(workspace, cell.task, cell.seed, release.model)

    def attacked(self, release: Release, goals: Mapping[Cell, Goal], order: Order) -> list[Record]:
        """Attack the tasks of these cells in a process of its own, and measure what comes back."""
        order = dataclasses.replace(order, goals=tuple(goals.values()))
        with isolation.folder(self.workspace.store) as folder:
            try:
                found = attacking.attack(order, folder, self.workspace)
                preparation = found.preparation()
                recovery = self.guess_accuracy(found.guess())
            except (Exception, SystemExit) as error:
                return [self.write_failure(cell, *status_of(error)) for cell in goals]
            records = []
            for index, (cell, goal) in enumerate(goals.items()):
                try:
                    record = self.measured(cell, release, goal, *found.cell(index), preparation, recovery)
                except (Exception, SystemExit) as error:
                    record = self.write_failure(cell, *status_of(error))
                records.append(record)
        return records

    def guess_accuracy(self, guess: Guess | None) -> Mapping[str, float]:
        """How close the attack's guess comes to the secret mask; empty where the attack was given the mask."""
        secret = load_secret(self.workspace, self.job.release)
        if guess is None or secret is None or "secret" in self.attack.knowledge:
            return {}
        return mask_accuracy.score(guess, secret.mask)

    def measured(
        self,
        cell: Cell,
        release: Release,
        goal: Goal,
        found: Found,
        network: nn.Module,
        preparation: Preparation,
        recovery: Mapping[str, float],
    ) -> Record:
        """The record of a cell that was attacked."""
        begun, trained = time.monotonic(), self.attack.trains
        task = load_task(self.workspace, cell.task, cell.seed, release.model)
        plain = found.retried is None
        validation = self.measure(task, network, task.choosing, plain) if task.trainable else None
        attacked = self.measure(task, network, "test", plain)
        unattacked = self.measure(task, release.model.network, "test", True) if trained else attacked
        utility = self.utility_after(cell, release, network, plain)
        finite = math.isfinite(attacked.value) and (attacked.loss is None or math.isfinite(attacked.loss))
        before, given = preparation.ledger, found.ledger
        cost = dataclasses.replace(
            given.whole(found.cost),
            preparation_seconds=preparation.seconds + given.seconds,
            preparation_steps=before.steps + before.swept_steps + given.steps,
            preparation_flops=before.flops + given.flops,
            peak_memory_bytes=max(found.cost.peak_memory_bytes, before.peak_memory_bytes, given.peak_memory_bytes),
        )
        record = self.blank(cell, found.seconds + time.monotonic() - begun, goal.task.documents())
        if found.trained is not None:
            record = dataclasses.replace(record, provenance={**record.provenance, "training": found.trained})
        if not finite:
            record = dataclasses.replace(record, reason="the attacked model's score or loss is not finite")
        return self.write(
            cell,
            dataclasses.replace(
                record,
                status="ok" if finite else "nonfinite",
                unattacked=unattacked if finite else None,
                validation=validation if finite else None,
                attacked=attacked if finite else None,
                attacked_utility=utility if finite else None,
                picked=found.picked,
                curve=found.curve,
                restarts=found.restarts,
                at_edge=found.at_edge,
                stuck=found.stuck,
                retried=found.retried,
                cost=cost if trained else None,
                recovery=recovery,
                protection=load_protection(self.workspace, cell.release) if not trained else None,
            ),
        )

    def utility_after(
        self, cell: Cell, release: Release, network: nn.Module, plain: bool
    ) -> Mapping[str, float | None] | None:
        """The utility of an attacked network: by task the metric's value, or None where that is not finite.

        It is measured as the release's own utility is. The result is None where the suite does not ask for it.
        """
        if self.job.attack not in self.workspace.plan.utility_after:
            return None
        found = {}
        for spec in map(task_spec, self.workspace.suite.utility):
            task = load_task(self.workspace, spec, cell.seed, release.model)
            value = self.measure(task, network, "test", plain).value
            found[str(spec)] = value if math.isfinite(value) else None
        return found

    def reading(self, cell: Cell, release: Release) -> Record:
        """Measure a yardstick on the release."""
        begun = time.monotonic()
        try:
            yardstick: Yardstick = registry.create("yardsticks", str(cell.task))
            found = yardstick.measure(ReleaseInspection(self.workspace, self.job, release))
        except (Exception, SystemExit) as error:  # a plugin may raise anything
            return self.write_failure(cell, *status_of(error))
        unfit = sorted(name for name, value in found.values.items() if not math.isfinite(value))
        return self.write(
            cell,
            dataclasses.replace(
                self.blank(cell, time.monotonic() - begun),
                status="nonfinite" if unfit else "ok",
                reason=f"not finite: {', '.join(unfit)}" if unfit else None,
                reading=None if unfit else found,
                protection=load_protection(self.workspace, cell.release),
            ),
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
        commit = workspace.plan.commits.get(cell.defense)
        given = {"revision": commit} if commit is not None else {}
        return Record(
            key=cell.key,
            suite=workspace.suite.name,
            defense=str(cell.defense),
            attack=str(cell.attack),
            task=str(cell.task),
            seed=cell.seed,
            row=workspace.plan.rows[cell.defense],
            role=workspace.plan.role(cell),
            knowledge=tuple(sorted(self.attack.knowledge)),
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
            provenance={**origin, "corpus": corpus, "documents": documents or {}, "sources": sources, **given},
        )

    def write(self, cell: Cell, record: Record) -> Record:
        """Write a cell's record. A settled one stays: another process made it while this one was stopped."""
        if self.workspace.store.settled_among([cell]):
            return self.workspace.store.read([cell])[0]
        self.workspace.store.write(record)
        return record

    def write_failure(self, cell: Cell, status: Status, reason: str) -> Record:
        return self.write(cell, dataclasses.replace(self.blank(cell), status=status, reason=reason))


def _run_with_owners_code(workspace: Workspace, job: Job, cells: Sequence[Cell]) -> None:
    engine.set_threads(workspace.device)
    registry.load(registry.find("defenses", job.defense.name))
    Referee(workspace, job).run(cells, is_aside=True)


def fail(workspace: Workspace, job: Job, status: Status, reason: str) -> list[Record]:
    """Write a failed record for each cell of a job that could not start, unless the cell is settled.

    The job's lock is not asked for: a process that was killed on another machine holds it for a while.
    """
    settled = workspace.store.settled_among(job.cells)
    referee = Referee(workspace, job)
    return [referee.write_failure(cell, status, reason) for cell in job.cells if cell.key not in settled]
