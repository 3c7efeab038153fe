"""Soft masks: training starts at the release and moves each weight as far as its rate or gate allows."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nftbench import testing
from nftbench.attacks.soft_mask import SHARPNESS, Gated, Scaled, SoftMask, displaced
from nftbench.contract import Prepared, Release
from nftbench.running.attacker import Attacker
from nftbench.running.owner import Owner
from nftbench.running.workspace import AttackersTask, Workspace
from nftbench.testing import ARCHITECTURES
from nftbench.training.engine import Stepper
from nftbench.training.sweep import Sweep, sweep
from nftbench.training.trainer import Trainer

MakeWorkspace = Callable[..., Workspace]
RunAll = Callable[..., dict[tuple[str, str, str, int], Any]]
RATIO = 0.7

each_architecture = pytest.mark.parametrize("architecture", list(ARCHITECTURES))
KINDS: dict[str, Callable[[str, Tensor], nn.Module]] = {
    "rates": lambda name, weight: Scaled(weight, 0.5 if "mlp" in name else 1.25),
    "learnt": lambda name, weight: Gated(weight, RATIO),
}


def network(workspace: MakeWorkspace, architecture: str = "gpt2") -> Any:
    return Owner(workspace(architecture=architecture), 0).build().network


def values(net: nn.Module, like: nn.Module) -> dict[str, Tensor]:
    """The values in `net` of the parameters that `like` has."""
    found = {}
    for name, _ in like.named_parameters():
        owner, own = name.rpartition(".")[::2]
        found[name] = getattr(net.get_submodule(owner), own).detach().clone()
    return found


def tokens(net: Any) -> Tensor:
    return torch.randint(net.config.vocab_size, (4, 12), generator=torch.Generator().manual_seed(0))


@each_architecture
@pytest.mark.parametrize("by", KINDS)
def test_before_training_it_is_the_release_bit_for_bit(by: str, architecture: str, workspace: MakeWorkspace) -> None:
    plain = network(workspace, architecture)
    soft = displaced(copy.deepcopy(plain), KINDS[by])
    ids = tokens(plain)
    assert torch.equal(soft(input_ids=ids).logits, plain(input_ids=ids).logits)
    count = len(list(plain.parameters()))
    assert len(list(soft.parameters())) == count * (2 if by == "learnt" else 1), "tied weights are trained once"
    # The sweep counts a step's cost on copies, and a copy must not train what it was copied from.
    copied = copy.deepcopy(soft)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.add_(0.1)
    assert torch.equal(soft(input_ids=ids).logits, plain(input_ids=ids).logits)
    assert not torch.equal(copied(input_ids=ids).logits, plain(input_ids=ids).logits)


@each_architecture
def test_each_tensor_moves_at_its_own_rate(architecture: str, workspace: MakeWorkspace) -> None:
    """The first step of AdamW is as long as its rate wherever the gradient is not almost zero."""
    plain = network(workspace, architecture)
    soft = displaced(copy.deepcopy(plain), KINDS["rates"])
    before = values(soft, plain)
    stepper = Stepper(soft, "adamw", 1e-3, factor=lambda step: 1.0, weight_decay=0.0, clip=None)
    ids = tokens(plain)
    stepper.step(soft(input_ids=ids, labels=ids).loss)
    plain(input_ids=ids, labels=ids).loss.backward()
    gradients = {name: weight.grad for name, weight in plain.named_parameters()}
    seen = 0
    for name, after in values(soft, plain).items():
        gradient = gradients[name]
        assert gradient is not None
        clear = gradient.abs() > 1e-5
        moved = (after - before[name])[clear]
        assert torch.allclose(moved, -gradient[clear].sign() * (5e-4 if "mlp" in name else 1.25e-3), rtol=1e-2)
        seen += int(clear.sum())
    assert seen > 1000
    head, table = soft.get_output_embeddings().weight, soft.get_input_embeddings().weight
    assert torch.equal(head, table) == bool(plain.config.tie_word_embeddings)


def test_gates_open_where_a_larger_step_lowers_the_loss(workspace: MakeWorkspace) -> None:
    """A loss that pulls one weight far away and keeps the other near its place."""
    layer = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        layer.weight.zero_()
    soft = displaced(layer, KINDS["learnt"])  # type: ignore[arg-type]
    stepper = Stepper(soft, "adamw", 1e-3, factor=lambda step: 1.0, weight_decay=0.0, clip=None)
    own = soft.parametrizations.weight  # type: ignore[union-attr]
    assert torch.allclose(torch.sigmoid(SHARPNESS * own.original1), torch.tensor(RATIO))
    sign = 1.0
    for _ in range(60):
        sign = -sign  # the second weight is pulled to either side in turn
        weight = soft.weight[0]  # type: ignore[index]
        stepper.step((weight[0] - 1) ** 2 + sign * weight[1])  # type: ignore[operator]
    gates = torch.sigmoid(SHARPNESS * own.original1.detach())[0]
    assert float(gates[0]) > 0.95 > RATIO + 0.1 > float(gates[1])


def test_rates_are_the_densities_of_the_guess(workspace: MakeWorkspace) -> None:
    """In proportion to the share of each tensor among the top of the guess, and one on average over the weights."""
    here = workspace()
    owner = Owner(here, 0)
    release = owner.build()
    context = Attacker(seed=5, budget=here.suite.budget, _defense=testing.RandomMask(), _suite=here.suite)
    attack = SoftMask()
    prepared = attack.prepare(Release(release), context)
    generator = torch.Generator().manual_seed(0)
    guess = {
        name: torch.rand(weight.shape, generator=generator) + 0.3 * (weight.ndim < 2)
        for name, weight in release.network.named_parameters()
    }
    task = AttackersTask(testing.FirstWord().load(testing.task_context(here, release)))
    outcome = attack.adapt(Prepared(release, guess), task, context)
    assert prepared.guess is not None
    flat = torch.cat([scores.flatten() for scores in guess.values()])
    limit = flat.sort(descending=True).values[math.floor(RATIO * len(flat)) - 1]
    total = 0.0
    for name, scores in guess.items():
        owner_name, own = name.rpartition(".")[::2]
        scaled = outcome.network.get_submodule(owner_name).parametrizations[own][0]  # type: ignore[index, union-attr]
        assert scaled.rate == pytest.approx(float((scores >= limit).float().mean()) / RATIO)
        total += scaled.rate * scores.numel()
    assert total / len(flat) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("by", KINDS)
@pytest.mark.parametrize("attempt", ["plain", "float64", "clipped", "head"])
def test_every_attempt_of_the_sweep_can_train_it(by: str, attempt: str, workspace: MakeWorkspace) -> None:
    """Where nothing stays finite a sweep goes to double precision, clips, and trains the head alone."""
    here = workspace()
    model = Owner(here, 0).build()
    task = testing.FirstWord().load(testing.task_context(here, model))
    one = Sweep(Trainer(0, here.suite.budget), model, task, lambda net, seed: displaced(net, KINDS[by]), None, "adamw")
    one.attempt = attempt  # type: ignore[assignment]
    before, after = model.network, one.trajectory(1e-2, 0, (0, 3))[1]
    moved = {
        name
        for name, weight in values(after, before).items()
        if not torch.equal(weight.float(), dict(before.named_parameters())[name])
    }
    head = {name for name, weight in before.named_parameters() if weight is before.get_output_embeddings().weight}
    assert moved == head if attempt == "head" else head < moved


def test_the_outcome_with_averaged_weights_is_the_one_that_was_measured(workspace: MakeWorkspace) -> None:
    here = workspace()
    model = Owner(here, 0).build()
    task = testing.FirstWord().load(testing.task_context(here, model))
    budget = here.suite.budget.model_copy(update={"average": True})
    outcome = sweep(Trainer(0, budget), model, task, adapter=lambda net, seed: displaced(net, KINDS["rates"]))
    assert task.evaluate(outcome.network, task.split("validation")) == outcome.validation


def test_a_model_without_a_secret_is_attacked_too(workspace: MakeWorkspace, run_all: RunAll) -> None:
    records = run_all(workspace(attacks=["none", "soft_mask", "soft_mask[by=learnt]"]))
    found = {attack: record for (_, attack, task, _), record in records.items() if task == "toy_topic"}
    assert {record.status for record in records.values()} == {"ok"}
    assert all(found[attack].recovery == {} for attack in found)
    assert all(found[attack].knowledge == ("method",) for attack in found if attack != "none")
