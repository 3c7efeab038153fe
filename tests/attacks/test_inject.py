"""Injection: the release at first, products afterwards, and indifferent to scales between two layers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from nftbench.attacks.inject import Inject, Injected, Split
from nftbench.methods import matrices
from nftbench.models import networks, returned
from nftbench.testing import ARCHITECTURES
from tests.attacks.planted import Both, attacked, broken_by, loud_inside, same, undefended
from tests.checkpoints import fresh

KINDS = ["identity", "split"]


@pytest.mark.parametrize("what", KINDS)
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_it_starts_at_the_release_and_trains_injected_layers_alone(kind: str, what: str) -> None:
    network = fresh(kind, 12)
    adapted = Inject(what=what).adapter(copy.deepcopy(network), 0)  # type: ignore[arg-type]
    assert same(network, adapted, 1e-5)
    tables = {name for name, module in adapted.named_modules() if isinstance(module, nn.Embedding)}
    trained = {name for name, weight in adapted.named_parameters() if weight.requires_grad}
    injected = {name for name in trained if "parametrizations" in name}
    assert trained - injected == {f"{name}.weight" for name in tables}
    assert len(injected) == len(matrices.of(network)) * (1 if what == "identity" else 2)


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (2, 3, 5)])
def test_products(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    own = Injected(weight, output_first=True)
    layer = own.right_inverse(weight)
    assert layer.shape == (*shape[:-2], 3, 3)
    torch.testing.assert_close(own(2 * layer), 2 * weight)
    torch.testing.assert_close(Split()(*Split().right_inverse(weight)), weight)
    left, right = Split().right_inverse(weight)
    torch.testing.assert_close(left.mT @ left, right @ right.mT, atol=1e-5, rtol=0)


def test_a_matrix_of_zeros_is_trained_itself() -> None:
    network = networks.build({"model_type": "linear", "input_dim": 4}, None, 0, "cpu").network
    adapted = Inject().adapter(network, 0)
    assert not network.head.weight.any()
    assert {name for name, weight in adapted.named_parameters() if weight.requires_grad} == {
        "head.weight",
        "extractor.parametrizations.weight.original",
    }


def test_scales_between_two_layers_do_not_change_the_attack() -> None:
    plain, loud = undefended("gpt_neox"), loud_inside()
    assert same(plain, loud)
    (_, one), (_, two) = (attacked("inject", network) for network in (plain, loud))
    assert len(one.curve) == len(two.curve) > 2
    for first, second in zip(one.curve, two.curve, strict=True):
        assert second.loss == pytest.approx(first.loss, rel=0.02)


@pytest.mark.slow
def test_it_breaks_loud_units_and_some_other_attacks_do_too() -> None:
    """`full` ends at 0.80 here. `inject` is not alone, so that it adds nothing here and is not in `standard`."""
    assert broken_by(loud_inside(), 0.87) == {"inject", "long", "reinit", "repair", "scratch"}


@pytest.mark.parametrize("what", KINDS)
def test_the_attacked_network_leaves_its_process_as_plain_layers(what: str, tmp_path: object) -> None:
    network = undefended()
    _, outcome = attacked(f"inject[what={what}]", network)
    task, path = Both(), tmp_path / "network.pt"  # type: ignore[operator]
    returned.save(outcome.network, path)
    back = returned.load(path, network, "cpu")
    assert not any(nn.utils.parametrize.is_parametrized(module) for module in back.modules())
    measured = task.evaluate(back, task.split("validation"))
    assert outcome.validation is not None
    assert measured.loss == pytest.approx(outcome.validation.loss, rel=1e-3)
