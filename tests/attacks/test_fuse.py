"""Fusing: modules that compute a linear map become one layer with the same function, and no other module changes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nftbench.attacks.fuse import as_linear, fuse
from nftbench.models import networks
from nftbench.models.architectures import dlr
from nftbench.testing import ARCHITECTURES
from tests.attacks.planted import attacked, in_factors, same, undefended
from tests.checkpoints import fresh

X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    """x + 2·B(A(x)): linear, though neither a chain nor of a known class."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 3), nn.Linear(3, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + 2 * self.b(self.a(x))


class Mixing(nn.Module):
    """A linear map of the whole text, which no layer for single positions computes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.b(self.a(x).cumsum(1))
        return found


def chain(*between: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 3, bias=False), *between, nn.Linear(3, 6))


@pytest.mark.parametrize("module", [chain(), chain(nn.Dropout(0.5)), chain(nn.Linear(3, 3)), Residual()])
def test_a_linear_map_becomes_one_layer(module: nn.Module) -> None:
    module.eval()
    layer = as_linear(module, X)
    assert layer is not None
    torch.testing.assert_close(layer(X), module(X))


@pytest.mark.parametrize("module", [*(chain(one()) for one in (nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh)), Mixing()])
def test_other_modules_are_no_layer(module: nn.Module) -> None:
    assert as_linear(module.eval(), X) is None
    with torch.no_grad():  # nearly linear, because its inputs are small
        assert as_linear(module, 1e-3 * X) is None


@pytest.mark.parametrize("kind", ["gpt_neox"])
def test_factors_are_multiplied_out(kind: str) -> None:
    plain, release = undefended(kind), in_factors(kind)
    fused = copy.deepcopy(release)
    names = fuse(fused)
    assert len(names) == sum(isinstance(module, nn.Linear) for module in plain.base_model.modules()) == 4
    assert same(plain, fused, 1e-5)
    weights, wanted = fused.state_dict(), plain.state_dict()
    assert weights.keys() == wanted.keys()
    assert all(torch.allclose(weights[name], wanted[name], atol=1e-5) for name in weights)


@pytest.mark.parametrize("kind", [*ARCHITECTURES, "dlr-gpt2", "dlr-llama"])
def test_standard_and_locked_models_have_nothing_to_fuse(kind: str) -> None:
    base = kind.removeprefix("dlr-")
    network = fresh(base, 12)
    network = dlr.lock(network, 2) if base != kind else network
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.1)  # a fresh lock computes zeros, which is linear
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    assert fuse(network) == []
    assert all(torch.equal(weight, before[name]) for name, weight in network.state_dict().items())


def test_a_model_that_reads_no_words_is_left_as_it_is() -> None:
    assert fuse(networks.build({"model_type": "linear", "input_dim": 4}, None, 0, "cpu").network) == []


def gets(spec: str, release: PreTrainedModel) -> float:
    return attacked(spec, release)[0]


@pytest.mark.slow
def test_it_breaks_factors_that_nothing_else_does() -> None:
    release: Any = in_factors()
    assert gets("fuse", release) > 0.95
    for spec in ("full", "lora", "rebalance", "heal", "noise", "inject", "sidestep", "kick_settle"):
        assert gets(spec, release) < 0.85, spec
