"""Vaccine: the perturbed loss and its gradient by hand, its schedule, its steps, and what is refused."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import get_cosine_schedule_with_warmup

from nftbench.defenses import vaccine
from nftbench.defenses.vaccine import Vaccine
from nftbench.errors import NftbenchError
from nftbench.methods import tuning
from nftbench.methods.benign_text import text_loss
from nftbench.methods.cosine import cosine
from nftbench.planning import registry
from nftbench.suites.reading import parse
from nftbench.testing import tiny_suite
from tests.defenses.tuned import adamw_steps, assert_same_weights, context, model


def test_the_perturbed_loss_by_hand() -> None:
    """For the loss ‖B A x - t‖² / 2, with A and B as the watched modules."""
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(4, 3)), generator.normal(size=(2, 4))
    x, t, rho = generator.normal(size=3), generator.normal(size=2), 0.7
    blocks = [nn.Linear(3, 4, bias=False).double(), nn.Linear(4, 2, bias=False).double()]
    for block, value in zip(blocks, (a, b), strict=True):
        block.weight.data = torch.tensor(value)

    def loss() -> Tensor:
        found: Tensor = (blocks[1](blocks[0](torch.tensor(x))) - torch.tensor(t)).square().sum() / 2
        return found

    second = b @ (a @ x) - t
    first = b.T @ second
    scale = rho / np.sqrt(np.sum(first**2) + np.sum(second**2))
    hidden = a @ x + scale * first
    output = b @ hidden + scale * second
    found = vaccine.perturbed(loss, blocks, rho)
    assert found.item() == pytest.approx(np.sum((output - t) ** 2) / 2, rel=1e-6)
    found.backward()
    np.testing.assert_allclose(blocks[1].weight.grad, np.outer(output - t, hidden), rtol=1e-6)
    np.testing.assert_allclose(blocks[0].weight.grad, np.outer(b.T @ (output - t), x), rtol=1e-6)
    assert vaccine.perturbed(loss, blocks, 0.0).item() == pytest.approx(np.sum(second**2) / 2)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3"])
def test_the_outputs_of_every_attention_block_are_watched(kind: str) -> None:
    network = tuning.outline(tiny_suite(kind))
    names = vaccine.attention_blocks(network)
    assert len(names) == network.config.num_hidden_layers
    assert all(type(network.get_submodule(name)).__name__.endswith("Attention") for name in names)


def test_a_perturbed_model_has_a_higher_loss_and_is_left_as_it_was() -> None:
    network, tokens = model().network, torch.arange(16).view(2, 8)
    blocks = [network.get_submodule(name) for name in vaccine.attention_blocks(network)]
    plain = text_loss(network, tokens)
    losses = [vaccine.perturbed(lambda: text_loss(network, tokens), blocks, rho).item() for rho in (0.1, 1.0)]
    assert plain.item() < losses[0] < losses[1]
    assert text_loss(network, tokens).item() == plain.item()


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0.0), (10, 0.1), (50, 0.1), (7, 0.5)])
def test_the_schedule_is_that_of_transformers(steps: int, warmup: float) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, int(np.ceil(warmup * steps)), steps)
    for step in range(1, steps + 1):
        assert cosine(steps, warmup)(step) == pytest.approx(schedule.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        schedule.step()


def test_the_steps_are_adamws_on_the_perturbed_gradient() -> None:
    made = Vaccine(trained="full", steps=4, batch=1).protect(model(), context()).release.network
    network = model().network
    blocks = [network.get_submodule(name) for name in vaccine.attention_blocks(network)]
    tokens = context().corpus.train

    def gradient() -> list[Tensor]:
        loss = vaccine.perturbed(lambda: text_loss(network, tokens), blocks, 2.0)
        return list(torch.autograd.grad(loss, list(network.parameters())))

    adamw_steps(network, gradient, [1e-3 * cosine(4, 0.1)(step) for step in (1, 2, 3, 4)], 0.1)
    assert_same_weights(made, network)


def test_an_adapter_is_merged_and_leaves_the_base_alone() -> None:
    given = model()
    before = copy.deepcopy(given.network)
    made = Vaccine(steps=5, batch=2, learning_rate=0.01).protect(given, context(4)).release.network
    assert_same_weights(given.network, before)
    moved = [
        name
        for (name, one), other in zip(made.named_parameters(), before.parameters(), strict=True)
        if (one != other).any()
    ]
    assert len(moved) == 2 * 7
    assert all("_proj" in name for name in moved)


def test_control_and_refusals() -> None:
    assert registry.create("defenses", "vaccine[steps=7]").control_row() == "vaccine[rho=0,steps=7]"
    assert registry.create("defenses", "vaccine[rho=0]").control_row() is None
    without: Any = SimpleNamespace(corpus=SimpleNamespace(source="none"))
    with pytest.raises(NftbenchError, match="vaccine tunes a model on text, and the suite's models read none"):
        registry.create("defenses", "vaccine").check(without)
    mamba = parse(
        {**tiny_suite().model_dump(), "model": {"model_type": "mamba", "hidden_size": 16, "num_hidden_layers": 1}}
    )
    with pytest.raises(NftbenchError, match="no linear layer belongs to attention"):
        registry.create("defenses", "vaccine").check(mamba)
