"""`check_attack`: what an attack promises, held against an undefended tiny model."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from nftbench.contract import Attack, Model, Outcome, Prepared, Protected, Release, Task
from nftbench.errors import NftbenchError
from nftbench.models import networks, updates
from nftbench.planning import registry
from nftbench.running.attacker import Attacker
from nftbench.running.owner import Owner
from nftbench.running.workspace import AttackersTask, Workspace
from nftbench.terms import KNOWLEDGE, OF_UPDATES, Adaptation
from nftbench.testing.comparison import identical, keeps_random_state
from nftbench.testing.form import well_formed
from nftbench.testing.promises import BrokenPromiseError, promise
from nftbench.testing.stand_ins import FirstWord, RandomMask, Undefended
from nftbench.testing.tiny import ARCHITECTURES, task_context, temporary_workspace, tiny_suite
from nftbench.training.trainer import Ledger


@registry.importing_added()
def check_attack(
    attack: Attack | str, *, architectures: Sequence[str] = tuple(ARCHITECTURES), allowance: float = 1.0
) -> None:
    """Attack an undefended tiny model of each architecture twice, and check that the attack keeps its promises.

    Args:
        allowance: the allowed steps as a multiple of the suite's (10 for an attack that trains ten times as long).

    Raises:
        BrokenPromiseError: the attack breaks a promise, which the error names.
    """
    plugin: Attack = well_formed("attacks", attack)
    unknown = set(plugin.knowledge) - set(KNOWLEDGE)
    promise(not unknown, f"knowledge is among {', '.join(KNOWLEDGE)}; not: {', '.join(sorted(unknown))}")
    promise(plugin.adaptation in get_args(Adaptation), f"adaptation is among {', '.join(get_args(Adaptation))}")
    for architecture in architectures:
        with temporary_workspace(tiny_suite(architecture)) as workspace:
            release, context = attack_inputs(workspace, plugin)
            task = FirstWord().load(task_context(workspace, release.model))
            first, second = (_adapt(plugin, release, task, context) for _ in range(2))
            _check_outcome(first.outcome, task)
            _check_steps(plugin, first, context, allowance)
            weights = (one.outcome.network.state_dict() for one in (first, second))
            same = first.outcome.curve == second.outcome.curve and identical(*weights)
            promise(same, f"the same seed gives the same outcome ({architecture})")


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


@dataclass(frozen=True)
class _Adapted:
    """One attack: its outcome, the optimizer steps that `adapt` took, and its ledger, with what it spent besides."""

    outcome: Outcome
    steps: int
    besides: Ledger


def _adapt(plugin: Attack, release: Release, task: Task, context: Attacker) -> _Adapted:
    """Attack a copy of the release."""
    own = replace(release, model=Model(copy.deepcopy(release.model.network), release.model.tokenizer))
    steps: Counter[type] = Counter()
    own_ledger = replace(context, ledger=Ledger())  # the referee too gives `adapt` a ledger of its own
    with keeps_random_state("prepare"):
        prepared = plugin.prepare(own, context)
    promise(isinstance(prepared, Prepared), f"prepare returns Prepared, not {type(prepared).__name__}")
    before = {name: tensor.clone() for name, tensor in prepared.model.network.state_dict().items()}
    handle = register_optimizer_step_post_hook(lambda optimizer, *_: steps.update([type(optimizer)]))
    try:
        with keeps_random_state("adapt"):
            outcome = plugin.adapt(prepared, AttackersTask(task), own_ledger)
    except NftbenchError as error:
        raise BrokenPromiseError(f"adapt runs on an undefended model: {error}") from error
    finally:
        handle.remove()
    promise(isinstance(outcome, Outcome), f"adapt returns Outcome, not {type(outcome).__name__}")
    promise(
        identical(before, prepared.model.network.state_dict()),
        "adapt leaves the prepared model as it is, for the next task",
    )
    # Muon comes with an AdamW for the other weights: one step of the engine is one step of each.
    return _Adapted(outcome, max(steps.values(), default=0), own_ledger.ledger)


def _check_outcome(outcome: Outcome, task: Task) -> None:
    for name, weight in outcome.network.named_parameters():
        promise(bool(torch.isfinite(weight).all()), f"the attacked weights are finite: {name}")
    attacked = task.evaluate(outcome.network, task.split("test"))
    promise(math.isfinite(attacked.value), "the attacked model's score is finite")
    promise(outcome.validation is not None, "the outcome has a validation measurement")
    validation = task.evaluate(outcome.network, task.split("validation"))
    promise(validation == outcome.validation, "the outcome's network is the one that its validation measured")


def _check_steps(plugin: Attack, found: _Adapted, context: Attacker, allowance: float) -> None:
    """Steps are counted, within the budget, and change the model."""
    if plugin.adaptation in OF_UPDATES:  # it tries coefficients of updates, and trains other updates
        return
    outcome, steps, besides = found.outcome, found.steps, found.besides
    # A solver without an optimizer (least squares) has steps in its curve only.
    taken = steps or max((point.step for point in outcome.curve), default=0)
    promise(plugin.trains == (taken > 0), f"trains is {plugin.trains}, and adapt took {taken} steps")
    if not plugin.trains:
        return
    # FLOPs and memory are measured on an extra step of each sweep and of each training besides it.
    more = 1 + len(plugin.uses()) + besides.runs
    counted = besides.whole(outcome.cost).steps + besides.steps
    promise(steps <= counted + more, f"the cost counts every step: {counted} of {steps}")
    budget = context.budget
    widest = max(len(grid) for grid in budget.learning_rates.values()) + 2 * budget.extension
    again = budget.restarts + 1  # the sweep's own run, if it is the best, is repeated
    most = allowance * max(budget.durations) * (widest + again)
    promise(steps <= most + more, f"adapt keeps to the budget: {steps} steps of at most {most:g}")
    start = [point.loss for point in outcome.curve if point.step == 0]
    moved = [point.loss for point in outcome.curve if point.step and point.loss is not None]
    promise(bool(start), "the curve has step 0")
    promise(any(loss not in start for loss in moved), "training changes the undefended model")
