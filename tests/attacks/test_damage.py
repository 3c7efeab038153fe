"""Noise, pruning and quantisation: what each does to the weights, once, before fine-tuning of all of them."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from nftbench.contract import Attack, Model, Prepared, Release
from nftbench.models import networks
from nftbench.models.architectures import dlr
from nftbench.planning import registry
from nftbench.testing import ARCHITECTURES

SHAPES = {
    **ARCHITECTURES,
    "llama": {**ARCHITECTURES["llama"], "mlp_bias": True},
    "qwen3": {**ARCHITECTURES["qwen3"], "tie_word_embeddings": True},
}
NETWORKS = [*SHAPES, *(f"dlr-{kind}" for kind in SHAPES)]


class Context:
    seed = 5


def base(kind: str) -> PreTrainedModel:
    ordinary = kind.removeprefix("dlr-")
    network = networks.build({"model_type": ordinary, **SHAPES[ordinary], "vocab_size": 50}, None, 0, "cpu").network
    return dlr.lock(network, 3) if ordinary != kind else network


def prepared(spec: str, network: PreTrainedModel) -> PreTrainedModel:
    attack: Attack = registry.create("attacks", spec)
    return attack.prepare(Release(Model(copy.deepcopy(network))), Context()).model.network  # type: ignore[arg-type]


def changed(before: PreTrainedModel, after: PreTrainedModel) -> set[str]:
    was = dict(before.named_parameters())
    return {name for name, weight in after.named_parameters() if not torch.equal(weight, was[name])}


# --------------------------------------------------------------------------------------------------------------- noise


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("scale", [0.05, 0.5])
def test_noise_is_as_large_as_it_says(kind: str, scale: float) -> None:
    network = base(kind)
    noisy = dict(prepared(f"noise[scale={scale}]", network).named_parameters())
    for name, weight in network.named_parameters():
        size, noise = weight.detach().numpy(), (noisy[name] - weight).detach().numpy()
        found = np.sqrt((noise**2).mean()) / (scale * max(np.sqrt((size**2).mean()), 1e-30))
        # The mean square of n normal numbers deviates from 1 by sqrt(2/n), its root by half of that.
        assert found == pytest.approx(1 if size.any() else 0, abs=4 / math.sqrt(2 * weight.numel())), name
    assert noisy.keys() == dict(network.named_parameters()).keys()


def test_noise_comes_from_the_seed() -> None:
    network = base("gpt2")
    first, second = prepared("noise", network), prepared("noise", network)
    assert changed(first, second) == set()
    assert changed(network, first)


# --------------------------------------------------------------------------------------------------------------- prune


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("share", [0.2, 0.9])
def test_global_pruning_zeroes_exactly_the_smallest_share(kind: str, share: float) -> None:
    network = base(kind)
    pruned = dict(prepared(f"prune[share={share}]", network).named_parameters())
    sizes, kept = [], []
    for name, weight in network.named_parameters():
        if weight.ndim < 2:
            assert torch.equal(pruned[name], weight)
            continue
        left = (pruned[name] != 0).flatten()
        assert torch.equal(pruned[name].flatten()[left], weight.flatten()[left])
        sizes.append(weight.detach().abs().flatten().numpy())
        kept.append(left.numpy())
    size, left = np.concatenate(sizes), np.concatenate(kept)
    zero = int((~left).sum())
    # What was zero before (a fresh DLR-Net's B) is zero after.
    assert zero == max(math.floor(share * len(left)), int((size == 0).sum()))
    assert size[~left].max() <= size[left].min()


@pytest.mark.parametrize("kind", list(SHAPES))
def test_pruning_per_tensor_zeroes_the_same_share_of_each(kind: str) -> None:
    network = base(kind)
    for name, weight in prepared("prune[share=0.3,scope=per_tensor]", network).named_parameters():
        if weight.ndim == 2:
            assert int((weight == 0).sum()) == math.floor(0.3 * weight.numel()), name


def test_pruned_weights_are_free_to_move() -> None:
    attack: Attack = registry.create("attacks", "prune[share=0.5]")
    network, tokens = prepared("prune[share=0.5]", base("gpt2")), torch.arange(24).view(2, 12)
    was = {name: weight.detach().clone() for name, weight in network.named_parameters()}

    class Training(Context):
        def sweep(self, model: Model, task: Any, **options: Any) -> None:
            assert not options  # such as a mask of gradients
            model.network(input_ids=tokens, labels=tokens).loss.backward()
            torch.optim.SGD(model.network.parameters(), lr=0.1).step()

    attack.adapt(Prepared(Model(network)), None, Training())  # type: ignore[arg-type]
    for name, weight in network.named_parameters():
        if "mlp" in name and weight.ndim == 2:
            assert weight[was[name] == 0].count_nonzero() == int((was[name] == 0).sum()), name


# ------------------------------------------------------------------------------------------------------------ quantize


def channels(network: PreTrainedModel) -> dict[str, np.ndarray[Any, Any]]:
    """The weights of the linear layers [channel, input], in float64; GPT-2 stores the transpose."""
    head = network.get_output_embeddings()
    found = {}
    for name, module in network.named_modules():
        kind = type(module).__name__
        if kind in ("Linear", "Down", "Up", "Conv1D") and module is not head:
            weight = module.get_parameter("weight").detach().double().numpy()
            found[name] = weight.T if kind == "Conv1D" else weight
    return found


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_weights_are_within_half_a_step(kind: str, bits: int) -> None:
    network = base(kind)
    with torch.no_grad():
        network.get_parameter(next(name for name, _ in network.named_parameters() if "attn" in name))[:, 3] = 0
    coarse = prepared(f"quantize[bits={bits}]", network)
    before, after = channels(network), channels(coarse)
    most = 2 ** (bits - 1) - 1
    assert before
    worst = 0.0
    for name, weight in before.items():
        step = np.abs(weight).max(1, keepdims=True) / most
        assert (np.abs(after[name] - weight) <= 0.5 * step * (1 + 1e-5)).all(), name
        levels = after[name] / np.where(step > 0, step, 1)
        assert np.abs(levels - levels.round()).max() < 1e-4
        assert np.abs(levels).max() < most + 1e-3
        worst = max(worst, float((np.abs(after[name] - weight) / np.where(step > 0, step, 1)).max()))
    assert worst > 0.4
    assert changed(network, coarse) <= {f"{name}.weight" for name in before}


def test_quantised_weights_stay_when_quantised_again() -> None:
    once = prepared("quantize[bits=4]", base("llama"))
    for name, weight in prepared("quantize[bits=4]", once).named_parameters():
        torch.testing.assert_close(weight, once.get_parameter(name), rtol=1e-6, atol=0)
