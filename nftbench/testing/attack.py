"""`check_attack`: what an attack promises, held against an undefended tiny model."""

from __future__ import annotations

import contextlib
import copy
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from nftbench.contract import Attack, Model, Outcome, Prepared, Protected, Release, Task
from nftbench.models import networks, updates
from nftbench.running.attacker import Attacker
from nftbench.running.owner import Owner
from nftbench.running.workspace import AttackersTask, Workspace
from nftbench.terms import OF_UPDATES
from nftbench.testing.comparison import identical, keeps_random_state
from nftbench.testing.form import well_formed
from nftbench.testing.promises import promise, returns, source_of, works
from nftbench.testing.stand_ins import FirstWord, RandomMask, Undefended
from nftbench.testing.tiny import ARCHITECTURES, task_context, temporary_workspace, tiny_suite
from nftbench.training.trainer import Ledger


def check_attack(
    attack: Attack | type[Attack] | ModuleType | str | Path,
    *,
    architectures: Sequence[str] = tuple(ARCHITECTURES),
    allowance: float = 1.0,
) -> None:
    """Attack an undefended tiny model of each architecture twice, and check that the attack keeps its promises.

    Args:
        attack: an object, a class, a module, a spec, or a file or folder as `--plugin` takes it.
        allowance: the allowed steps as a multiple of the suite's (10 for an attack that trains ten times as long).

    Raises:
        BrokenPromiseError: the attack breaks a promise, which the error names.
    """
    with well_formed("attacks", attack) as plugin:
        for architecture in architectures:
            with temporary_workspace(tiny_suite(architecture)) as workspace:
                _check_on(plugin, workspace, allowance, architecture)


def _check_on(plugin: Attack, workspace: Workspace, allowance: float, architecture: str) -> None:
    with works("it says what it needs of a suite and of a defense", source_of(plugin)):
        plugin.train_documents(workspace.suite.budget)
        release, context = attack_inputs(workspace, plugin)
    task = FirstWord().load(task_context(workspace, release.model))
    first, second = (_adapt(plugin, release, task, context) for _ in range(2))
    _check_outcome(first.outcome, task)
    _check_steps(plugin, first, context, allowance)
    weights = (one.outcome.network.state_dict() for one in (first, second))
    promise(
        first.outcome.curve == second.outcome.curve and identical(*weights),
        "the same seed gives the same outcome",
        f"on {architecture} two attacks differ: draw all that is random from generators seeded with context.seed",
    )


def attack_inputs(workspace: Workspace, plugin: Attack) -> tuple[Release, Attacker]:
    """What an attack's `prepare` is given: a pre-trained tiny model as downloaded, and a context.

    The context holds what the attack says that it knows. The model has a secret mask where the attack needs one.
    """
    owner, knowledge, masked = Owner(workspace, 0), plugin.knowledge, RandomMask()
    secretive = bool(knowledge & {"secret", "sibling"}) or plugin.applies(Undefended()) is not None
    protected = masked.protect(owner.build(), owner) if secretive else Protected(owner.pretrain(owner.build()))
    model, sibling = protected.release, owner.sibling(protected.release)
    folder = workspace.store.make("releases", "tiny", lambda draft: networks.save(model, draft))

    context = Attacker(
        seed=networks.derive(0, "attack"),
        budget=workspace.suite.budget,
        device=workspace.device,
        _corpus=owner.corpus if "data" in knowledge else None,
        _secret=protected.secret if "secret" in knowledge else None,
        _defense=(masked if secretive else Undefended()) if "method" in knowledge else None,
        _suite=workspace.suite if knowledge & {"method", "sibling"} else None,
        _sibling=sibling if "sibling" in knowledge else None,
        _uses=plugin.uses(),
    )
    release = Release(networks.load(folder, attacker=True))
    if "base" in plugin.knowledge:
        base = owner.build()
        update = updates.difference(release.model.network, base.network)
        others = {"other": AttackersTask(FirstWord().load(task_context(workspace, base)))}
        return replace(release, update=update), replace(context, _base=base, others=others)
    return release, context


@dataclass
class _Ledger(Ledger):
    """A ledger that remembers whether a sweep was refused, which an attack could hide by catching the error."""

    refused: bool = False

    def begin_sweep(self) -> None:
        self.refused = True
        super().begin_sweep()
        self.refused = False


@dataclass(frozen=True)
class _Stage:
    """`prepare` or `adapt`: the optimizer steps that it took, and its ledger, with what it says that it spent."""

    steps: int
    ledger: Ledger


@dataclass(frozen=True)
class _Adapted:
    """One attack."""

    outcome: Outcome
    changed: bool
    """Whether the attacked network has the prepared one's tensors with other values."""
    preparation: _Stage
    adaptation: _Stage


def _adapt(plugin: Attack, release: Release, task: Task, context: Attacker) -> _Adapted:
    """Attack a copy of the release."""
    own = replace(release, model=Model(copy.deepcopy(release.model.network), release.model.tokenizer))
    preparing = Ledger()
    with _running("prepare", "prepare ends without an error", plugin) as taken:
        prepared = plugin.prepare(own, replace(context, ledger=preparing))
    returns("prepare", prepared, Prepared, "end it for example with `return Prepared(release.model)`")
    preparation = _Stage(_count(taken), preparing)
    before = {name: tensor.clone() for name, tensor in prepared.model.network.state_dict().items()}
    adapting = _Ledger()  # the referee too gives `adapt` a ledger of its own
    try:
        with _running("adapt", "adapt ends without an error on an undefended model", plugin) as taken:
            outcome = plugin.adapt(prepared, AttackersTask(task), replace(context, ledger=adapting))
    finally:
        promise(
            not adapting.refused,
            "adapt sweeps once for each task",
            "a second context.sweep would be twice the budget: drop it, try settings with context.select, or name "
            "whole attacks in uses() and call each with context.attack",
            essential=True,
        )
    returns("adapt", outcome, Outcome, "end it for example with `return context.sweep(prepared.model, task)`")
    promise(
        identical(before, prepared.model.network.state_dict()),
        "adapt leaves the prepared model as it is, for the next task",
        "train a copy: `copy.deepcopy(prepared.model.network)`",
    )
    after = outcome.network.state_dict()
    changed = before.keys() == after.keys() and not identical(before, after)
    return _Adapted(outcome, changed, preparation, _Stage(_count(taken), adapting))


@contextlib.contextmanager
def _running(method: str, statement: str, plugin: Attack) -> Iterator[Counter[type]]:
    """Runs a method of the attack, and counts the steps of torch's optimizers by the optimizer's class."""
    steps: Counter[type] = Counter()
    handle = register_optimizer_step_post_hook(lambda optimizer, *_: steps.update([type(optimizer)]))
    try:
        with works(statement, source_of(plugin)), keeps_random_state(method):
            yield steps
    finally:
        handle.remove()


def _count(steps: Counter[type]) -> int:
    # Muon comes with an AdamW for the other weights: one step of the engine is one step of each.
    return max(steps.values(), default=0)


def _check_outcome(outcome: Outcome, task: Task) -> None:
    weights = outcome.network.named_parameters()
    broken = [name for name, weight in weights if not bool(torch.isfinite(weight).all())]
    promise(not broken, "the attacked weights are finite", f"NaN or infinity in {', '.join(broken)}")
    attacked = task.evaluate(outcome.network, task.split("test"))
    promise(math.isfinite(attacked.value), "the attacked model's score is finite", f"it is {attacked.value}")
    if outcome.validation is None:
        promise(False, "the outcome has a validation measurement", "measure it: `task.evaluate(network, split)`")
        return
    promise(True, "the outcome has a validation measurement")
    validation = task.evaluate(outcome.network, task.split("validation"))
    promise(
        validation == outcome.validation,
        "the outcome's network is the one that its validation measured",
        f"it scores {validation.value:g}, and its validation says {outcome.validation.value:g}: return the network "
        "that was measured, unchanged",
    )


def _check_steps(plugin: Attack, found: _Adapted, context: Attacker, allowance: float) -> None:
    """Steps are counted, within the budget, and change the model."""
    if plugin.adaptation in OF_UPDATES:  # it tries coefficients of updates, and trains other updates
        return
    outcome, steps, besides = found.outcome, found.adaptation.steps, found.adaptation.ledger
    # A solver without an optimizer (least squares) has steps in its curve only.
    taken = steps or max((point.step for point in outcome.curve), default=0)
    promise(
        plugin.trains == (taken > 0),
        "trains says whether the attack trains",
        f"trains is {plugin.trains}, and adapt took {taken} steps: write `trains: ClassVar[bool] = {taken > 0}`, or "
        "train with context.sweep",
        essential=True,
    )
    # FLOPs and memory are measured on an extra step of each sweep and of each training besides it.
    prepared = found.preparation
    most = prepared.ledger.steps + prepared.ledger.runs
    promise(
        prepared.steps <= most,
        "the cost counts every step of prepare",
        f"{prepared.ledger.steps} of {prepared.steps}: train with context.train, which counts",
    )
    if not plugin.trains:
        return
    more = 1 + len(plugin.uses()) + besides.runs
    counted = besides.whole(outcome.cost).steps + besides.steps
    # Without an optimizer of torch only the curve tells the steps. Prompting has settings there, and changes no weight.
    spent = steps or (taken if found.changed else 0)
    promise(
        spent <= counted + more,
        "the cost counts every step of adapt",
        f"{counted} of {spent}: train with context.sweep and context.train, which count, or put all steps into "
        "Outcome.cost",
    )
    budget = context.budget
    widest = max(len(grid) for grid in budget.learning_rates.values()) + 2 * budget.extension
    again = budget.restarts + 1  # the sweep's own run, if it is the best, is repeated
    most_steps = allowance * max(budget.durations) * (widest + again)
    promise(
        steps <= most_steps + more,
        "adapt keeps to the budget",
        f"{steps} steps of at most {most_steps:g}: leave durations, rates and restarts to context.sweep",
    )
    start = [point.loss for point in outcome.curve if point.step == 0]
    moved = [point.loss for point in outcome.curve if point.step and point.loss is not None]
    promise(bool(start), "the curve has step 0", "add the point of not training, which is always one of the choices")
    promise(
        any(loss not in start for loss in moved),
        "training changes the undefended model",
        "every point of the curve has the loss of not training: nothing is trained, or its rates are far too small",
    )
