"""The gradient check of large networks: it finds what the full one finds, and leaves the network as it was."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nftbench import Model
from nftbench.models import networks
from nftbench.planning import registry
from nftbench.scoring.flags import GRADIENT_ERROR
from nftbench.training import costs, large_gradients
from tests.allocated import peak_bytes
from tests.checkpoints import fresh

TOKENS = torch.arange(24).reshape(2, 12)


@pytest.fixture
def network() -> nn.Module:
    return fresh("llama", 24)


def loss(network: nn.Module) -> Tensor:
    logits = network(input_ids=TOKENS).logits[:, :-1].double()
    return nn.functional.cross_entropy(logits.flatten(0, 1), TOKENS[:, 1:].flatten())


def test_honest_gradients_pass_and_every_bit_is_as_before(network: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert large_gradients.gradient_error(network, loss, 0) < GRADIENT_ERROR
    assert large_gradients.gradient_error(network, loss, 0) == large_gradients.gradient_error(network, loss, 0)
    after = network.state_dict()
    assert all(
        torch.equal(tensor, after[name]) and tensor.dtype == after[name].dtype for name, tensor in before.items()
    )


def test_a_strongly_curved_loss_is_not_taken_for_wrong_gradients(network: nn.Module) -> None:
    """Factors of very different sizes: over the usual steps the loss is far from linear."""
    defense = registry.create("defenses", "specdef[alpha=1e5,k=4]")
    curved = defense.protect(Model(network, None), SimpleNamespace(seed=0)).release.network
    probe = large_gradients._Probe(curved, loss, 0)
    derivatives = probe.derivatives()
    with probe.in_float64():
        assert large_gradients._worst(derivatives, probe.differences(large_gradients.STEP_SIZES)) > 0.1
    assert large_gradients.gradient_error(curved, loss, 0) < GRADIENT_ERROR
    for parameter in curved.parameters():
        parameter.register_hook(lambda gradient: 0.5 * gradient)
    assert large_gradients.gradient_error(curved, loss, 0) > 0.4


@pytest.mark.parametrize(("factor", "least"), [(0.0, 0.5), (-1.0, 0.9), (0.5, 0.2), (float("nan"), costs.MAX_ERROR)])
def test_wrong_gradients_of_one_layer_are_found_as_by_the_full_check(
    network: nn.Module, factor: float, least: float
) -> None:
    """The head's weight gets its gradient multiplied by a factor."""
    network.lm_head.weight.register_hook(lambda gradient: factor * gradient)  # type: ignore[union-attr, operator]
    assert large_gradients.gradient_error(network, loss, 0) >= least


def test_what_differs_between_training_and_evaluation_is_found(network: nn.Module) -> None:
    class TwoFaced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network

        def forward(self, input_ids: Tensor) -> Any:
            found = self.inner(input_ids=input_ids)
            found.logits = -found.logits if self.training else found.logits
            return found

    assert large_gradients.gradient_error(TwoFaced(), loss, 0) > 0.1


def test_weights_are_moved_part_by_part_as_in_one_piece() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, large_gradients.CHUNK + 5, generator=generator)
    sign = torch.randint(-1, 2, weight.shape, generator=generator, dtype=torch.int8)
    target = torch.empty(weight.shape, dtype=torch.float64)
    large_gradients._move(target, weight, sign, 1e-6, -1e-3)
    assert torch.equal(target, torch.add(weight.double(), (weight.double().abs() + 1e-6) * sign, alpha=-1e-3))


def test_derivatives_of_a_large_embedding_take_no_copies_of_it() -> None:
    """As of Gemma 3 270M: 168 of its 268 million weights embed words."""
    embedding = nn.Embedding(20_000, 64)
    probe = large_gradients._Probe(embedding, lambda network: network(TOKENS).square().sum(), 0)
    gradient = 4 * embedding.weight.numel()
    assert peak_bytes(probe.derivatives) < 1.5 * gradient + 64 * large_gradients.CHUNK


def test_the_referee_takes_it_for_large_networks_alone(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    from nftbench.running import releases

    taken: list[str] = []

    def note(name: str) -> Callable[..., float]:
        return lambda *_: taken.append(name) or 0.0  # type: ignore[func-returns-value]

    monkeypatch.setattr(releases, "gradient_error", note("full"))
    monkeypatch.setattr(large_gradients, "gradient_error", note("large"))
    releases._checked_gradients(network, loss, 0)
    monkeypatch.setattr(networks, "LARGE", 10)
    releases._checked_gradients(network, loss, 0)
    assert taken == ["full", "large"]
