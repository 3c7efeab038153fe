"""Healing and its control: which weights are trained on which text, the loss after it, and the recorded cost."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nftbench.contract import Attack, Model, Release
from nftbench.planning import registry
from nftbench.running.attacker import Attacker
from nftbench.running.owner import Owner
from nftbench.running.workspace import Workspace
from nftbench.testing import ARCHITECTURES, attack_inputs, temporary_workspace, tiny_suite

STEPS = 25
MakeWorkspace = Callable[..., Workspace]
RunAll = Callable[..., dict[tuple[str, str, str, int], Any]]

each_architecture = pytest.mark.parametrize("architecture", list(ARCHITECTURES))


def attacked(spec: str, architecture: str = "gpt2") -> tuple[Attack, Release, Attacker]:
    """An attack, the undefended tiny release and the attack's context."""
    attack: Attack = registry.create("attacks", spec)
    with temporary_workspace(tiny_suite(architecture, budget={"preparation_steps": STEPS})) as workspace:
        release, context = attack_inputs(workspace, attack)
    return attack, release, context


def text_loss(network: nn.Module, tokens: Tensor) -> Tensor:
    """Mean negative log-likelihood of the next token, in float64."""
    logits = network(input_ids=tokens).logits[:, :-1].double().log_softmax(-1)
    return -logits.gather(-1, tokens[:, 1:, None]).mean()


def flops(network: nn.Module, tokens: Tensor) -> float:
    """FLOPs of one step, forward and backward."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        network(input_ids=tokens, labels=tokens).loss.backward()
    return float(counter.get_total_flops())


@each_architecture
def test_healing_learns_the_text_with_every_weight(architecture: str, cache: Any) -> None:
    attack, release, context = attacked("heal", architecture)
    before = copy.deepcopy(release.model.network)
    healed = attack.prepare(release, context).model.network
    with torch.no_grad():
        losses = [float(text_loss(network, context.corpus.heldout)) for network in (before, healed)]
    assert losses[1] < losses[0] - 0.1
    was = dict(before.named_parameters())
    assert all(not torch.equal(weight, was[name]) for name, weight in healed.named_parameters())


def test_the_first_step_of_healing_is_an_adamw_step_on_the_text(cache: Any) -> None:
    """The first step by hand: AdamW at the warm-up's first rate, on the first batch of the attacker's text."""
    attack, release, context = attacked("heal[steps=1,learning_rate=0.01]")
    network, text = copy.deepcopy(release.model.network), context.text(release.model, context.budget.batch)
    steps = [next(text) for _ in range(3)]  # two go into counting what a step costs
    found = attack.prepare(release, context).model.network
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01, weight_decay=0.0)
    text_loss(network, steps[2]).backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    # The first step of AdamW is the sign of the gradient; rounding decides it where the gradient is almost zero.
    near = [torch.isclose(a, b, atol=1e-5) for a, b in zip(network.parameters(), found.parameters(), strict=True)]
    assert torch.cat([one.flatten() for one in near]).double().mean() > 0.99


@pytest.mark.parametrize("spec", ["heal[steps=2", "scratch[text=true,steps=2"])
def test_the_default_learning_rate_is_the_highest_of_the_suite(spec: str, cache: Any) -> None:
    weights = []
    for end in ("]", ",learning_rate=0.01]"):
        attack, release, context = attacked(spec + end)
        assert context.budget.learning_rates["adamw"] == (1e-3, 1e-2)
        weights.append(attack.prepare(release, context).model.network.state_dict())
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


@pytest.mark.parametrize(
    ("spec", "steps"), [("heal", STEPS), ("heal[steps=7]", 7), ("scratch[text=true]", STEPS), ("scratch", 0)]
)
def test_the_steps_and_flops_of_preparation_are_counted(spec: str, steps: int, cache: Any) -> None:
    attack, release, context = attacked(spec)
    network, batch = copy.deepcopy(release.model.network), context.budget.batch
    attack.prepare(release, context)
    assert context.ledger.steps == steps
    tokens = torch.zeros(batch, 32, dtype=torch.long)
    assert context.ledger.flops == pytest.approx(steps * flops(network, tokens))


def test_records_hold_the_steps_and_flops_of_preparation(workspace: MakeWorkspace, run_all: RunAll) -> None:
    attacks = ["none", "full", "heal[steps=5]", "scratch[text=true,steps=5]"]
    few = {"learning_rates": {"adamw": [1e-3, 1e-2]}, "durations": [2], "restarts": 1, "extension": 0}
    here = workspace(defenses=["none", "random_mask"], attacks=attacks, budget=few)
    records = run_all(here)
    assert all(record.status == "ok" for record in records.values())
    step = flops(Owner(here, 0).build().network, torch.zeros(8, 32, dtype=torch.long))
    for defense, attack in [("none", attacks[2]), ("random_mask", attacks[2]), ("none", attacks[3])]:
        cost = records[defense, attack, "toy_topic", 0].cost
        assert cost.preparation_steps == 5
        assert cost.preparation_flops == pytest.approx(5 * step)
        # The text is no part of the sweep's steps: two rates, a restart, and the sweep's own run once more.
        assert cost.steps <= 2 * (2 + 1 + 1)
    assert records["none", "full", "toy_topic", 0].cost.preparation_steps == 0
    assert ("random_mask", attacks[3], "toy_topic", 0) not in records


# --------------------------------------------------------------------------------------------------------- the control


@each_architecture
def test_the_control_trains_on_the_same_text_and_ignores_the_release(architecture: str, cache: Any) -> None:
    attack, release, context = attacked("scratch[text=true]", architecture)
    healing, healed, beside = attacked("heal", architecture)
    first, second = context.text(release.model, 8), beside.text(healed.model, 8)
    assert all(torch.equal(next(first), next(second)) for _ in range(STEPS))
    other = Release(Model(copy.deepcopy(release.model.network), release.model.tokenizer))
    with torch.no_grad():
        for weight in other.model.network.parameters():
            weight.zero_()
    found, again = (attack.prepare(one, context).model.network for one in (release, other))
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in found.state_dict().items())
    networks = (healing.prepare(healed, beside).model.network, found, context.untrained(release.model, 0))
    with torch.no_grad():
        well, taught, fresh = (float(text_loss(network, context.corpus.heldout)) for network in networks)
    assert well < taught < fresh - 0.1


def test_all_restarts_start_from_the_control_as_prepared(cache: Any) -> None:
    seen: list[Tensor] = []
    attack, release, context = attacked("scratch[text=true]")
    prepared = attack.prepare(release, context)

    class Sweeping:
        def sweep(self, model: Model, task: Any, **options: Any) -> None:
            assert not options
            seen.append(next(model.network.parameters()))

    attack.adapt(prepared, None, Sweeping())  # type: ignore[arg-type]
    assert torch.equal(seen[0], next(prepared.model.network.parameters()))


def test_scratch_needs_data_only_where_it_trains_on_text() -> None:
    assert registry.create("attacks", "scratch").knowledge == frozenset()
    assert registry.create("attacks", "scratch[text=true]").knowledge == {"data"}
