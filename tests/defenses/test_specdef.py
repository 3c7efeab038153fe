"""SpecDef: its factors against NumPy's SVD, the function in both precisions, the curvature, and the ways out."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nftbench.contract import Model
from nftbench.defenses.specdef import SpecDef
from nftbench.errors import NftbenchError
from nftbench.methods import symmetries, two_layer
from nftbench.methods.overhead import kl
from nftbench.models import networks
from nftbench.planning import registry
from nftbench.suites.reading import parse
from nftbench.testing import tiny_suite

LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 88,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_layer": 2, "n_embd": 32, "n_head": 2, "n_positions": 64},
    "llama": {**LLAMA, "mlp_bias": True, "attention_bias": True},
    "qwen3": {**LLAMA, "head_dim": 16, "tie_word_embeddings": True},
}
TOKENS = torch.randint(50, (4, 24), generator=torch.Generator().manual_seed(0))
each_shape = pytest.mark.parametrize("kind", list(SHAPES))
both_forms = pytest.mark.parametrize("form", ["two_layer", "folded"])


def base(kind: str) -> PreTrainedModel:
    """A random model with biases that are not zero."""
    settings = {"model_type": kind, **SHAPES[kind], "vocab_size": 50, "initializer_range": 0.1}
    network = networks.build(settings, None, 0, "cpu").network.eval()
    generator = torch.Generator().manual_seed(1)
    for name, weight in network.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(weight, std=0.1, generator=generator)
    return network


def released(network: PreTrainedModel, seed: int = 0, **parameters: Any) -> PreTrainedModel:
    context: Any = SimpleNamespace(seed=seed)
    return SpecDef(**{"layers": 99, **parameters}).protect(Model(copy.deepcopy(network)), context).release.network


@torch.no_grad()
def logits(network: PreTrainedModel) -> Tensor:
    found: Tensor = network(input_ids=TOKENS).logits.double()
    return found


# -------------------------------------------------------------------------------------------------------- the factors


@pytest.mark.parametrize(("outputs", "inputs", "k"), [(6, 10, 2), (10, 6, 2), (8, 8, 3), (9, 9, 25)])
def test_factors_are_those_of_the_singular_value_decomposition(outputs: int, inputs: int, k: int) -> None:
    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(0))
    outer, inner = SpecDef(alpha=1e4, k=k).factors(weight)
    left, values, right = np.linalg.svd(weight.double().numpy(), full_matrices=False)
    larger = values.copy()
    larger[: min(k, len(values) // 2)] *= 1e4
    inflated = left * larger @ right
    if outputs <= inputs:
        wanted = (left * (values / larger)) @ left.T, inflated
    else:
        wanted = inflated, (right.T * (values / larger)) @ right
    np.testing.assert_allclose(outer.numpy(), wanted[0], rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(inner.numpy(), wanted[1], rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose((outer @ inner).numpy(), weight.double().numpy(), atol=1e-10)


def test_layers_are_drawn_by_the_seed() -> None:
    network = base("llama")
    draws = [tuple(released(network, seed, layers=5, alpha=10.0).config.two_layer) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert len(set(draws[0])) == 5
    assert sorted(draws[0]) == sorted(set(draws[0]) & set(two_layer.layers(network)))


# ------------------------------------------------------------------------------------------------------- the function


@each_shape
@both_forms
def test_the_function_is_kept(kind: str, form: str) -> None:
    """In float64, as the paper says. In float32 the error grows with alpha: here a few percent of the logits' spread,
    and too little for any probability to change by 1 %."""
    network = base(kind)
    precise = copy.deepcopy(network).double()
    wanted = logits(precise)
    assert float((logits(released(precise, form=form)) - wanted).abs().max() / wanted.std()) < 2e-6
    found = logits(released(network, form=form))
    assert float((found - wanted).abs().max() / wanted.std()) < 5e-2
    assert float(kl(found, wanted)) < 1e-5
    assert float(kl(logits(released(network, form=form, alpha=100.0)), wanted)) < 1e-8


@both_forms
def test_float32_does_not_hold_the_function_at_1e8(form: str) -> None:
    network = base("gpt2")
    assert float(kl(logits(released(network, form=form, alpha=1e8)), logits(network))) > 0.01


@each_shape
def test_a_release_is_saved_and_fused(kind: str, tmp_path: Path) -> None:
    network = base(kind)
    locked = released(network)
    networks.save(Model(locked), tmp_path)
    again = networks.load(tmp_path).network
    assert (type(again), again.config.model_type) == (type(locked), f"two-layer-{kind}")
    assert torch.equal(logits(again), logits(locked))
    assert not networks.has_custom_code(again)
    fused, weights = two_layer.fused(again), network.state_dict()
    assert type(fused) is type(network)
    for name, weight in fused.state_dict().items():
        torch.testing.assert_close(weight, weights[name], atol=2e-3 * float(weights[name].abs().max()), rtol=0)
    assert two_layer.fused(network) is network


def test_without_inflation_the_weights_are_the_bases() -> None:
    network = base("gpt2")
    assert torch.equal(logits(released(network, alpha=1.0, form="folded")), logits(network))
    torch.testing.assert_close(logits(released(network, alpha=1.0)), logits(network))


# ------------------------------------------------------------------------------------------------------------- folded


def test_folded_values_have_larger_singular_values_and_outputs_smaller() -> None:
    before, after = base("gpt2"), released(base("gpt2"), form="folded", k=3)
    for layer in (0, 1):
        for head in (0, 1):
            own = slice(64 + 16 * head, 64 + 16 * (head + 1))  # of 96 outputs the last 32 are values
            values = [
                np.linalg.svd(one.transformer.h[layer].attn.c_attn.weight.detach().double().numpy()[:, own])
                for one in (before, after)
            ]
            wanted = values[0][1].copy()
            wanted[:3] *= 1e4
            np.testing.assert_allclose(values[1][1], wanted, rtol=1e-2)
            outputs = [
                one.transformer.h[layer].attn.c_proj.weight.detach()[16 * head :][:16] for one in (before, after)
            ]
            directions = torch.tensor(values[0][2][:3])
            torch.testing.assert_close(
                (directions @ outputs[1].double()) * 1e4, directions @ outputs[0].double(), rtol=1e-2, atol=1e-2
            )


def test_folded_units_are_the_largest_and_stay_with_their_columns() -> None:
    before, after = base("llama"), released(base("llama"), form="folded", k=5)
    for old, new in zip(before.model.layers, after.model.layers, strict=True):
        rows = old.mlp.up_proj.weight.detach().norm(dim=1)
        scale = torch.ones(88)
        scale[rows.sort(descending=True).indices[:5]] = 1e4
        torch.testing.assert_close(new.mlp.up_proj.weight, old.mlp.up_proj.weight * scale[:, None])
        torch.testing.assert_close(new.mlp.up_proj.bias, old.mlp.up_proj.bias * scale)
        torch.testing.assert_close(new.mlp.down_proj.weight, old.mlp.down_proj.weight / scale)
        assert torch.equal(new.mlp.gate_proj.weight, old.mlp.gate_proj.weight)


@each_shape
def test_rebalancing_undoes_both_forms(kind: str) -> None:
    """The largest weight is then that of the rebalanced base."""
    network = base(kind)

    def largest(one: PreTrainedModel) -> float:
        one = symmetries.as_gpt2(one)
        symmetries.canonical(one)
        return max(float(weight.detach().abs().max()) for weight in one.parameters())

    wanted = largest(copy.deepcopy(network))
    for form in ("two_layer", "folded"):
        locked = released(network, form=form)
        assert max(float(weight.detach().abs().max()) for weight in locked.parameters()) > 100 * wanted
        assert symmetries.unknown(locked) is None
        assert largest(locked) == pytest.approx(wanted, rel=0.05)


# ------------------------------------------------------------------------------------------------- what it protects


@each_shape
@both_forms
def test_the_loss_curves_more_than_alpha_times_as_much_along_its_gradient(kind: str, form: str) -> None:
    """So a learning rate that is stable for the base is more than alpha times too large."""
    network = base(kind).double()

    def curvature(one: PreTrainedModel) -> float:
        """v·H·v for the direction v of the gradient and the Hessian H, by central differences of the gradient."""
        weights = list(one.parameters())

        def gradient() -> list[Tensor]:
            return list(torch.autograd.grad(one(input_ids=TOKENS, labels=TOKENS).loss, weights))

        here = gradient()
        length = torch.stack([part.norm() for part in here]).norm()
        slopes = []
        for move in (1e-7, -2e-7):
            for weight, part in zip(weights, here, strict=True):
                weight.data += move * part / length
            slopes.append(sum(float((other * part).sum()) for other, part in zip(gradient(), here, strict=True)))
        return abs(slopes[0] - slopes[1]) / 2e-7 / float(length)

    assert curvature(released(network, form=form, alpha=100.0)) > 100 * curvature(network)


# ---------------------------------------------------------------------------------------------------------- the plugin


def test_control_rows() -> None:
    def control(spec: str) -> str | None:
        found: str | None = registry.create("defenses", spec).control_row()
        return found

    assert control("specdef") == "specdef[alpha=1]"
    assert control("specdef[alpha=100,k=3]") == "specdef[alpha=1,k=3]"
    assert control("specdef[alpha=1]") is None
    assert control("specdef[form=folded]") is None


def test_other_architectures_are_refused_before_anything_runs() -> None:
    suite = tiny_suite("llama")
    gptj = {"model_type": "gptj", "n_layer": 1, "n_embd": 16, "n_head": 2, "rotary_dim": 4, "n_positions": 32}
    other = parse({**suite.model_dump(), "model": gptj})
    for spec in ("specdef", "specdef[form=folded]"):
        registry.create("defenses", spec).check(suite)
    with pytest.raises(
        NftbenchError, match=r"gptj has no family of two-layer models; supported are gpt2, llama, qwen3"
    ):
        registry.create("defenses", "specdef").check(other)
    with pytest.raises(NftbenchError, match=r"specdef\[form=folded\] knows no blocks as in gptj"):
        registry.create("defenses", "specdef[form=folded]").check(other)
