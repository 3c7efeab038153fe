"""Rebalancing: the rewritten network computes the same function, and rescaled weights do not change the attack."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from nftbench.attacks import rebalance
from nftbench.contract import Attack, Model, Outcome, Release
from nftbench.methods.symmetries import anatomy, scale_logits, scale_stream
from nftbench.planning import registry
from nftbench.running.attacker import Attacker
from nftbench.running.owner import make_base
from nftbench.running.workspace import TaskSetting, Workspace, make_corpus
from nftbench.testing import ARCHITECTURES, FirstWord
from tests.checkpoints import fresh

MakeWorkspace = Callable[..., Workspace]
IDS = torch.randint(50, (4, 12), generator=torch.Generator().manual_seed(0))


def base(workspace: MakeWorkspace, architecture: str) -> tuple[Workspace, PreTrainedModel]:
    here = workspace(**({"architecture": architecture} if architecture != "gpt2" else {}))
    return here, make_base(here, 0).network


@torch.no_grad()
def planted(network: PreTrainedModel) -> PreTrainedModel:
    """The same function, with weights rescaled by factors of 300 and 1000."""
    network = copy.deepcopy(network)
    found = anatomy(network)
    assert found is not None
    scale_stream(found, 300.0)
    attention = found.blocks[0].attention
    attention.value.scale(1e3)
    attention.output.weight.mul_(1e-3)
    for part in found.blocks[0].attention_norm.parameters():
        part.mul_(1e-3)
    for reader in (attention.query, attention.key, attention.value):
        reader.weight.mul_(1e3)
    return network


def attacked(here: Workspace, network: PreTrainedModel) -> Outcome:
    plugin: Attack = registry.create("attacks", "rebalance")
    model = Model(copy.deepcopy(network))
    task = FirstWord().load(TaskSetting(model, 0, here.suite, None, None, lambda: make_corpus(here, 0)))
    context = Attacker(seed=0, budget=here.suite.budget)
    return plugin.adapt(plugin.prepare(Release(model), context), task, context)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rescaled_weights_do_not_change_the_attack(architecture: str, workspace: MakeWorkspace) -> None:
    here, network = base(workspace, architecture)
    other = planted(network)
    with torch.no_grad():
        assert torch.allclose(network(input_ids=IDS).logits, other(input_ids=IDS).logits, atol=1e-4)
    plain, undone = attacked(here, network), attacked(here, other)
    assert len(plain.curve) == len(undone.curve)
    for one, two in zip(plain.curve, undone.curve, strict=True):
        assert (one.learning_rate, one.step) == (two.learning_rate, two.step)
        assert two.loss == pytest.approx(one.loss, rel=2e-3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_ordinary_model_keeps_its_logits(architecture: str, workspace: MakeWorkspace) -> None:
    _, network = base(workspace, architecture)
    rewritten = copy.deepcopy(network)
    rebalance.Rebalance().prepare(Release(Model(rewritten)), Attacker(seed=0, budget=None))  # type: ignore[arg-type]
    with torch.no_grad():
        assert torch.allclose(network(input_ids=IDS).logits, rewritten(input_ids=IDS).logits, atol=1e-4)


@pytest.mark.parametrize("factor", [1e-6, 1e-3, 1e3, 1e6])
def test_saturated_and_flat_logits_become_ordinary(factor: float) -> None:
    network = fresh()
    scale_logits(network, 50.0)  # an untrained model's are flat
    assert rebalance.sharpness(network) == 1.0
    scale_logits(network, factor)
    assert 0.05 < rebalance.sharpness(network) * factor < 20


def test_a_constant_has_no_sharpness() -> None:
    network = fresh()
    scale_logits(network, 0.0)
    assert rebalance.sharpness(network) == 1.0
