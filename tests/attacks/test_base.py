"""Attacks that know the undefended base or a second checkpoint: where they start the sweep, and what it restores."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from nftbench.attacks.difference import AMOUNTS, Difference
from nftbench.attacks.extrapolate import SCALES, Extrapolate
from nftbench.attacks.full import Full
from nftbench.attacks.interpolate import SHARES, Interpolate
from nftbench.contract import Attack, Model, Outcome, Release, Task
from nftbench.data.corpus import word_tokenizer
from nftbench.models import networks
from nftbench.models.architectures import dlr
from nftbench.planning import registry
from nftbench.planning.plan import narrow
from nftbench.running.attacker import Attacker
from nftbench.running.owner import Owner
from nftbench.running.workspace import AttackersTask, Workspace
from nftbench.testing import ARCHITECTURES, FirstWord, task_context
from nftbench.training.preparation import tuned
from nftbench.training.trainer import Ledger
from tests.by_heart import by_heart
from tests.watched import Watched

MakeWorkspace = Callable[..., Workspace]
architectures = pytest.mark.parametrize("architecture", ARCHITECTURES)
Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Scene:
    """A base trained on every split of the task, an untrained start, and attackers with a tiny budget."""

    workspace: Workspace
    base: Model
    start: Model
    task: Task

    @property
    def wreck(self) -> Model:
        """The base under noise of thrice its size."""
        network, generator = copy.deepcopy(self.base.network), torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in network.parameters():
                noise = torch.randn(weight.shape, generator=generator)
                weight.add_(noise * weight.square().mean().sqrt() * 3)
        return Model(network, self.base.tokenizer)

    def context(self, **known: Any) -> Watched:
        return Watched(seed=5, budget=self.workspace.suite.budget, **known)

    def attack(self, attack: Attack, release: Model, **known: Any) -> Outcome:
        return self.attacked_by(Attacker(seed=5, budget=self.workspace.suite.budget, **known), attack, release)

    def attacked_by(self, context: Attacker, attack: Attack, release: Model) -> Outcome:
        known = [model for model in (context._base, context._sibling) if model is not None]
        before = [weights(model.network) for model in known]
        own = Release(Model(copy.deepcopy(release.network), release.tokenizer))
        outcome = attack.adapt(attack.prepare(own, context), AttackersTask(self.task), context)
        for model, one in zip(known, before, strict=True):
            assert same(weights(model.network), one), "what the attacker holds stays as it is, for the next task"
        return outcome

    def beginning(self, attack: Attack, release: Model, **known: Any) -> Any:
        """The network that the attack sweeps from."""
        context = self.context(**known)
        self.attacked_by(context, attack, release)
        (asked,) = context.asked
        return asked.network

    def test(self, network: Any) -> float:
        return self.task.evaluate(network, self.task.split("test")).value

    def standing(self, network: Any) -> tuple[float, float]:
        found = self.task.evaluate(network, self.task.split("validation"))
        return found.value, -(found.loss or 0.0)

    def look(self, network: Any, steps: int) -> Any:
        return tuned(network, self.task, self.context(ledger=Ledger()), steps)


@pytest.fixture
def scene(workspace: MakeWorkspace) -> Callable[..., Scene]:
    def make(architecture: str = "gpt2", **changes: Any) -> Scene:
        here = workspace(architecture=architecture, **changes)
        base = Owner(here, 0).build()
        start = Model(networks.build(here.suite.model, base.tokenizer, 99, "cpu").network, base.tokenizer)
        task = FirstWord().load(task_context(here, base))
        by_heart(base.network, task)
        base.network.eval()
        return Scene(here, base, start, task)

    return make


def weights(network: Any) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in network.named_parameters()}


def same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def near(one: Any, other: Any) -> bool:
    theirs = weights(other)
    return weights(one).keys() == theirs.keys() and all(
        torch.allclose(weight, theirs[name], rtol=1e-4, atol=1e-5) for name, weight in weights(one).items()
    )


def line(one: Any, other: Any, amount: float) -> Any:
    """one + amount (other - one), of every parameter."""
    network, theirs = copy.deepcopy(one), weights(other)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            weight.copy_(weight + amount * (theirs[name] - weight))
    return network


# -------------------------------------------------------------------------------------------- what they are written for


@architectures
@pytest.mark.parametrize("attack", [Difference(), Interpolate()], ids=["difference", "interpolate"])
def test_holding_the_base_undoes_large_noise_on_the_release(
    attack: Attack, architecture: str, scene: Callable[..., Scene]
) -> None:
    found = scene(architecture)
    assert found.test(found.base.network) > 0.85
    assert found.test(found.attack(Full(), found.wreck).network) < 0.75
    outcome = found.attack(attack, found.wreck, _base=found.base)
    assert found.test(outcome.network) > 0.85
    assert outcome.validation == found.task.evaluate(outcome.network, found.task.split("validation"))


def test_holding_the_second_checkpoint_undoes_large_noise_on_the_release(scene: Callable[..., Scene]) -> None:
    found = scene()
    outcome = found.attack(Difference("sibling"), found.wreck, _sibling=found.base)
    assert found.test(outcome.network) > 0.85


def test_extrapolate_restores_a_task_that_was_subtracted(scene: Callable[..., Scene]) -> None:
    """The release is θ - τ (forgetting by Ilharco et al.); the attack restores the task before the sweep begins."""
    found = scene(budget={"durations": [40], "learning_rates": {"adamw": [1e-2, 3e-2]}})
    by_heart = dict.fromkeys(("train", "validation", "test"), found.task.split("train"))
    object.__setattr__(found.task, "splits", by_heart)
    negated = Model(line(found.start.network, found.look(found.start.network, 40), -1.0), found.start.tokenizer)
    assert found.test(negated.network) < 0.6
    begun = found.beginning(Extrapolate(), negated, _base=found.start)
    assert found.test(begun) > 0.9


# ----------------------------------------------------------------------------------------------------- which candidate


@pytest.mark.parametrize("to", ["base", "sibling"])
@pytest.mark.parametrize("share", [0.3, 1.5])
def test_difference_starts_from_the_amount_that_is_best_after_short_tuning(
    to: Any, share: float, scene: Callable[..., Scene]
) -> None:
    """The release lies at 0.3 of the way from start to base, or beyond the base at 1.5."""
    found = scene()
    release = Model(line(found.start.network, found.base.network, share), found.base.tokenizer)
    begun = found.beginning(Difference(to), release, **{f"_{to}": found.start})
    moved = {amount: line(release.network, found.start.network, -amount) for amount in (0.0, *AMOUNTS[to])}
    standing = {amount: found.standing(found.look(network, 4)) for amount, network in moved.items()}
    standing[0.0] = max(standing[0.0], found.standing(release.network))
    best = max(standing, key=lambda amount: standing[amount])
    assert near(begun, moved[best])
    assert [amount for amount, network in moved.items() if near(begun, network)] == [best]
    if (to, share) == ("sibling", 0.3):
        assert best > 0, "the run goes on"


def test_interpolate_starts_from_the_best_mix_of_tuned_base_and_tuned_release(scene: Callable[..., Scene]) -> None:
    found = scene()
    halfway = Model(line(found.start.network, found.base.network, 0.5), found.base.tokenizer)
    shares = []
    for release, base in ((halfway, found.base), (halfway, found.start), (found.start, found.base)):
        begun = found.beginning(Interpolate(), release, _base=base)
        own, other = (found.look(model.network, 4) for model in (release, base))
        mixes = {share: line(own, other, share) for share in (*SHARES, 1.0)}
        standing = {share: found.standing(mixes[share]) for share in mixes}
        shares.append(max(mixes, key=lambda share: standing[share]))
        untuned = found.standing(release.network) > standing[shares[-1]]  # may be better than any mixture
        assert near(begun, release.network if untuned else mixes[shares[-1]])
    assert shares[0] > shares[1], "more of the base where the base knows more"


def test_extrapolate_adds_the_task_vector_of_the_base_at_the_best_scale(scene: Callable[..., Scene]) -> None:
    found = scene()
    release = Model(line(found.start.network, found.base.network, 0.5), found.base.tokenizer)
    begun = found.beginning(Extrapolate(), release, _base=found.start)
    before, after = weights(found.start.network), weights(found.look(found.start.network, 4))
    sums = {}
    for scale in (0.0, *SCALES):
        for onto, network in enumerate((release.network, found.look(release.network, 4))):
            sums[onto, scale] = copy.deepcopy(network)
            with torch.no_grad():
                for name, weight in sums[onto, scale].named_parameters():
                    weight.add_(scale * (after[name] - before[name]))
    best = max(sums, key=lambda each: found.standing(sums[each]))
    assert near(begun, sums[best])
    assert (min(SCALES), max(SCALES)) == (-1.0, 3.0)


def test_where_no_rate_keeps_short_tuning_finite_the_networks_are_mixed_as_they_are(
    scene: Callable[..., Scene],
) -> None:
    """A release may make ordinary learning rates diverge; the sweep deals with that itself."""
    found = scene(budget={"learning_rates": {"adamw": [1e37, 1e38]}})
    assert same(weights(found.look(found.start.network, 2)), weights(found.start.network))
    for attack in (Difference(), Interpolate(), Extrapolate()):
        begun = found.beginning(attack, found.start, _base=found.base)
        assert all(bool(weight.isfinite().all()) for weight in begun.parameters())
        assert found.standing(begun) >= found.standing(found.start.network)
    assert near(found.beginning(Interpolate(), found.start, _base=found.base), found.base.network), "it knows the task"


# -------------------------------------------------------------------------------------------------- other architectures


@architectures
def test_only_parameters_that_the_base_has_too_are_moved(architecture: str, scene: Callable[..., Scene]) -> None:
    found = scene(architecture)
    locked = Model(dlr.lock(found.start.network, 2, None), found.start.tokenizer)
    before, theirs = weights(locked.network), weights(found.base.network)
    fits = {name for name in before if name in theirs}
    assert fits
    assert before.keys() - fits
    begun = weights(found.beginning(Difference(), locked, _base=found.base))
    assert all(torch.equal(begun[name], before[name]) for name in before.keys() - fits)
    prepared = Difference().prepare(Release(locked), found.context(_base=found.base))
    assert prepared.guess is not None
    assert prepared.guess.keys() == before.keys()
    assert not any(bool(prepared.guess[name].any()) for name in before.keys() - fits)
    for attack in (Interpolate(), Extrapolate()):
        assert found.attack(attack, locked, _base=found.base).curve


def test_a_release_of_another_width_is_not_mixed_with_the_base(scene: Callable[..., Scene]) -> None:
    found = scene()
    slim = Owner(found.workspace, 0).build(n_embd=8)
    begun = found.beginning(Difference(), slim, _base=found.base)
    assert same(weights(begun), weights(slim.network))
    begun = found.beginning(Extrapolate(), slim, _base=found.base)
    alone = max((slim.network, found.look(slim.network, 4)), key=found.standing)
    assert same(weights(begun), weights(alone)), "tuned or not, nothing is added"
    begun = found.beginning(Interpolate(), slim, _base=found.base)
    assert near(begun, found.look(found.base.network, 4)), "who has the base needs no release"
    assert found.test(begun) > 0.85


def test_a_base_with_another_vocabulary_does_not_replace_the_release(scene: Callable[..., Scene]) -> None:
    found = scene()
    slim = Owner(found.workspace, 0).build(n_embd=8)
    assert slim.tokenizer is not None
    foreign = Model(found.base.network, word_tokenizer(sorted(slim.tokenizer.get_vocab(), reverse=True)))
    begun = found.beginning(Interpolate(), slim, _base=foreign)
    assert begun.config.n_embd == 8


# ---------------------------------------------------------------------------------------------------- guesses and costs


def test_the_guess_is_the_absolute_difference(scene: Callable[..., Scene]) -> None:
    found = scene()
    prepared = Difference().prepare(Release(found.start), found.context(_base=found.base))
    assert prepared.guess is not None
    own, theirs = weights(found.start.network), weights(found.base.network)
    assert same(prepared.guess, {name: (weight - theirs[name]).abs() for name, weight in own.items()})


def test_records_of_difference_count_every_step_and_score_the_guess(
    workspace: MakeWorkspace, run_all: Callable[..., Any]
) -> None:
    """A second checkpoint reveals the mask, and is not planned where there is no mask; every tuning step is counted."""
    attacks = ["none", "difference", "difference[to=sibling]"]
    here = workspace(defenses=["none", "random_mask", "narrow"], attacks=attacks)
    skips = {(skip.defense, skip.attack) for skip in here.plan.skips}
    assert skips == {(defense, "difference[to=sibling]") for defense in ("none", "narrow")}
    records = run_all(replace(here, plan=narrow(here.plan, attacks=attacks[1:])))
    assert {record.status for record in records.values()} == {"ok"}
    found = {place[:2]: record for place, record in records.items()}
    sibling = found["random_mask", "difference[to=sibling]"]
    assert sibling.knowledge == ("sibling",)
    assert sibling.recovery["roc_auc"] > 0.99
    assert sibling.recovery["precision"] > 0.99
    assert found["random_mask", "difference"].knowledge == ("base",)
    assert found["random_mask", "difference"].recovery["roc_auc"] < 0.99
    steps = {key: record.cost.preparation_steps for key, record in found.items()}
    assert steps == {
        ("random_mask", "difference[to=sibling]"): 4 * (1 + len(AMOUNTS["sibling"])),
        ("random_mask", "difference"): 4 * (1 + len(AMOUNTS["base"])),
        ("narrow", "difference"): 0,
        ("none", "difference"): 0,
    }


def test_what_is_trained_before_the_sweep_is_counted(scene: Callable[..., Scene]) -> None:
    found = scene()
    for attack, steps in ((Interpolate(), 8), (Extrapolate(), 8)):
        context = found.context(_base=found.base)
        prepared = attack.prepare(Release(found.start), context)
        attack.adapt(prepared, AttackersTask(found.task), context)
        assert context.ledger.steps == steps
        assert context.ledger.flops > 0


def test_knowledge_follows_the_parameters() -> None:
    known = {
        spec: registry.create("attacks", spec).knowledge
        for spec in ("difference", "difference[to=sibling]", "interpolate", "extrapolate")
    }
    assert known == {
        "difference": {"base"},
        "difference[to=sibling]": {"sibling"},
        "interpolate": {"base"},
        "extrapolate": {"base"},
    }
