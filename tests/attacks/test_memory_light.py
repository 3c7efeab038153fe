"""Attacks that store no activations: checkpointing gives the same numbers, MeZO estimates slopes without gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nftbench.attacks import memory_light
from nftbench.contract import Attack, Measurement, Model, Outcome, Prepared, Split, Task
from nftbench.models import networks
from nftbench.models.architectures import dlr
from nftbench.planning import registry
from nftbench.running.attacker import Attacker
from nftbench.running.owner import Owner
from nftbench.running.workspace import TaskSetting, Workspace, make_corpus
from nftbench.terms import SplitName
from nftbench.testing import ARCHITECTURES, FirstWord
from nftbench.training.costs import saved_bytes
from nftbench.training.trainer import Ledger
from tests.checkpoints import fresh

MakeWorkspace = Callable[..., Workspace]


def setting(workspace: MakeWorkspace, architecture: str) -> tuple[Prepared, Task, Attacker]:
    here = workspace(**({"architecture": architecture} if architecture != "gpt2" else {}))
    model = Owner(here, 0).build()
    task = FirstWord().load(TaskSetting(model, 0, here.suite, None, None, lambda: make_corpus(here, 0)))
    return Prepared(model), task, Attacker(seed=0, budget=here.suite.budget)


def adapted(spec: str, prepared: Prepared, task: Task, context: Attacker) -> Outcome:
    plugin: Attack = registry.create("attacks", spec)
    return plugin.adapt(prepared, task, context)


# -------------------------------------------------------------------------------------------------------- checkpointing


@pytest.mark.parametrize("locked", [False, True], ids=["plain", "dlr"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_checkpointing_gives_the_numbers_of_full(architecture: str, locked: bool, workspace: MakeWorkspace) -> None:
    prepared, task, context = setting(workspace, architecture)
    if locked:
        prepared = Prepared(Model(dlr.lock(prepared.model.network, 4), prepared.model.tokenizer))
    full, light = (
        adapted(spec, prepared, task, replace(context, ledger=Ledger())) for spec in ("full", "memory_light")
    )
    assert light.curve == full.curve
    assert light.restarts == full.restarts
    assert 0 < light.cost.saved_bytes < 0.6 * full.cost.saved_bytes
    assert light.cost.step_flops > full.cost.step_flops  # what is forgotten is computed again


def test_blocks_of_other_architectures_are_wrapped() -> None:
    plain: PreTrainedModel = fresh(n_layer=2).train()
    ids = torch.randint(50, (4, 12), generator=torch.Generator().manual_seed(0))

    def run_on(network: nn.Module) -> tuple[Tensor, int, list[Tensor]]:
        loss, saved = saved_bytes(network, lambda net: net(input_ids=ids, labels=ids, use_cache=False).loss)
        return loss, saved, list(torch.autograd.grad(loss, list(network.parameters())))

    light = copy.deepcopy(plain)
    light.supports_gradient_checkpointing = False
    light = memory_light._checkpointed(light, 0)
    (loss, saved, gradients), (same, fewer, others) = run_on(plain), run_on(light)
    assert torch.equal(loss, same)
    assert all(torch.equal(gradient, other) for gradient, other in zip(gradients, others, strict=True))
    assert 0 < fewer < 0.5 * saved


# ----------------------------------------------------------------------------------------------------------------- MeZO


class Bowl(Task):
    """Half the squared distance of the output from the batch."""

    def split(self, name: SplitName) -> Split:
        raise NotImplementedError

    def loss(self, network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return (network(batch[0]) - batch[1]).square().mean() / 2

    def evaluate(self, network: nn.Module, split: Split) -> Measurement:
        raise NotImplementedError


def bowl() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    with networks.seeded(0):
        network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
        return network, (torch.randn(16, 3).double(), torch.randn(16, 2).double())


def flat(tensors: Any) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def test_one_direction_gives_the_slope_along_it_times_the_direction() -> None:
    network, batch = bowl()
    before, true = copy.deepcopy(network), torch.autograd.grad(Bowl().loss(network, batch), list(network.parameters()))
    task = memory_light._Slopes(Bowl(), 1)
    task.seeded(network, 7)  # type: ignore[arg-type]
    loss = task.loss(network, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    seed = int(torch.randint(2**62, (1,), generator=torch.Generator().manual_seed(7)))
    generator = torch.Generator().manual_seed(seed)
    direction = flat([torch.randn(one.shape, generator=generator, dtype=one.dtype) for one in network.parameters()])
    expected = (flat(true) @ direction) * direction
    assert torch.allclose(flat([one.grad for one in network.parameters()]), expected, rtol=1e-4)
    assert float(loss.detach()) == pytest.approx(float(Bowl().loss(network, batch).detach()), rel=1e-3)
    assert torch.allclose(flat(before.parameters()), flat(network.parameters()), atol=1e-12)


def test_the_mean_over_many_directions_is_the_gradient() -> None:
    network, batch = bowl()
    true = flat(torch.autograd.grad(Bowl().loss(network, batch), list(network.parameters())))
    task = memory_light._Slopes(Bowl(), 1500)
    task.seeded(network, 0)  # type: ignore[arg-type]
    task.loss(network, batch).backward()  # type: ignore[no-untyped-call]
    found = flat([one.grad for one in network.parameters()])
    assert float(nn.functional.cosine_similarity(found, true, dim=0)) > 0.97
    assert float(found.norm() / true.norm()) == pytest.approx(1, abs=0.1)


def test_directions_depend_on_the_attack_seed_and_the_step() -> None:
    network, batch = bowl()
    task = memory_light._Slopes(Bowl(), 1)
    found = []
    for attack_seed in (0, 0, 1):
        task.seeded(network, attack_seed)  # type: ignore[arg-type]
        for _ in range(2):
            found.append(flat(torch.autograd.grad(task.loss(network, batch), list(network.parameters()))))
    first, second, again, _, other, _ = found
    assert torch.allclose(first, again, rtol=1e-3)  # all but what moving to and fro leaves
    assert not torch.allclose(first, second, rtol=0.1)
    assert not torch.allclose(first, other, rtol=0.1)


def test_mezo_saves_nothing_and_runs_no_backward_pass(workspace: MakeWorkspace) -> None:
    prepared, task, context = setting(workspace, "gpt2")

    class Raises(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, tensor: Tensor) -> Tensor:
            return tensor.view_as(tensor)

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Tensor:
            raise AssertionError("a backward pass through the network")

    class Guarded(FirstWord):
        def loss(self, network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            found: Tensor = Raises.apply(super().loss(network, batch))  # type: ignore[no-untyped-call]
            return found

    guarded = Guarded()
    object.__setattr__(guarded, "splits", task.splits)  # type: ignore[attr-defined]
    outcome = adapted("memory_light[by=mezo,directions=2]", prepared, guarded, context)
    assert outcome.cost.saved_bytes == 0
    start = next(point for point in outcome.curve if point.step == 0)
    assert any(point.loss is not None and point.loss < (start.loss or 0) for point in outcome.curve if point.step)
