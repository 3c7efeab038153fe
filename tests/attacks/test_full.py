"""Attacks on all weights or on the first or last blocks: their changes to the budget, and what they train."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from nftbench.contract import Model, Prepared
from nftbench.errors import NftbenchError
from nftbench.models.networks import build
from nftbench.planning import registry
from nftbench.suites.schema import Budget
from nftbench.testing import ARCHITECTURES
from tests.watched import Watched

BUDGET = Budget(learning_rates={"adamw": (1e-3, 1e-2)}, durations=(10, 30), clip=0.5, warmup=7)
OTHER = Budget(learning_rates={"adamw": (1e-3, 1e-2)}, durations=(8,), clip=None, warmup=0, decay=True, average=True)


def asked_by(spec: str, budget: Budget) -> tuple[Budget, dict[str, Any]]:
    """The budget that the attack's sweep is given, and the sweep's other options."""
    context = Watched(seed=0, budget=budget)
    registry.create("attacks", spec).adapt(Prepared(Model(None)), None, context)  # type: ignore[arg-type]
    (asked,) = context.asked
    return asked.budget, asked.options


@pytest.mark.parametrize(
    ("spec", "changes"),
    [
        ("full", {}),
        ("full[optimizer=sgd]", {}),
        ("full[clip=false]", {"clip": None}),
        ("full[warmup=0]", {"warmup": 0}),
        ("full[warmup=100]", {"warmup": 100}),
        ("full[decay=true]", {"decay": True}),
        ("full[average=true]", {"average": True}),
        ("full[clip=false,decay=true,average=true]", {"clip": None, "decay": True, "average": True}),
        ("long", {"durations": (0, 10, 30, 95, 300)}),
        ("long[times=4]", {"durations": (0, 10, 30, 60, 120)}),
    ],
)
def test_an_attack_changes_what_it_names_of_the_budget_and_nothing_else(spec: str, changes: dict[str, Any]) -> None:
    budget, options = asked_by(spec, BUDGET)
    assert budget == BUDGET.model_copy(update=changes)
    assert options.pop("optimizer", "adamw") == ("sgd" if "sgd" in spec else "adamw")
    assert options == {}


def test_other_settings_of_the_budget_are_kept() -> None:
    assert asked_by("full", OTHER)[0] == OTHER
    assert asked_by("full[warmup=3]", OTHER)[0] == OTHER.model_copy(update={"warmup": 3})
    long, _ = asked_by("long", OTHER)
    assert long == OTHER.model_copy(update={"durations": (0, 8, 25, 80)})


# -------------------------------------------------------------------------------------------------------------- layers

FIELDS = {"gpt2": "n_layer", "llama": "num_hidden_layers", "qwen3": "num_hidden_layers"}


def network_of(kind: str, blocks: int, *, tied: bool) -> PreTrainedModel:
    base = kind.removeprefix("dlr-")
    # A DLR-Net gets as many blocks as the decoder: the attack must pick the decoder's list.
    locked = {"dlr_depth": blocks} if base != kind else {}
    settings = {"model_type": kind, **ARCHITECTURES[base], **locked, FIELDS[base]: blocks, "tie_word_embeddings": tied}
    return build({**settings, "vocab_size": 50}, None, 0, "cpu").network


def named(kind: str, block: int) -> str:
    return f"transformer.h.{block}." if kind.endswith("gpt2") else f"model.layers.{block}."


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3", "dlr-gpt2", "dlr-llama"])
@pytest.mark.parametrize(
    ("end", "share", "trained"),
    [
        ("first", 0.5, (0, 1)),
        ("last", 0.5, (2, 3)),
        ("last", 0.25, (3,)),
        ("first", 0.01, (0,)),
        ("last", 1.0, range(4)),
    ],
)
def test_only_the_blocks_at_one_end_are_trained(kind: str, end: str, share: float, trained: Any, tied: bool) -> None:
    network = network_of(kind, 4, tied=tied)
    before = {name: weight.detach().clone() for name, weight in network.named_parameters(remove_duplicate=False)}
    ids = torch.randint(50, (5, 6), generator=torch.Generator().manual_seed(0))
    expected = network(input_ids=ids).logits
    adapted = registry.create("attacks", f"layers[end={end},share={share}]").adapter(network, 0)
    logits = adapted(input_ids=ids).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=0)
    nn.functional.cross_entropy(logits[:, -1], ids[:, 0]).backward()
    torch.optim.SGD([weight for weight in adapted.parameters() if weight.requires_grad], lr=1.0).step()
    moved = {name for name, weight in adapted.named_parameters() if not torch.equal(weight, before[name])}
    tables = {name for name in before if "wte" in name or "wpe" in name or "embed" in name}
    behind = {name for name in before if "ln_f" in name or name == "model.norm.weight" or "lm_head" in name}
    blocks = {name for block in trained for name in before if name.startswith(named(kind, block))}
    assert {name for name, weight in adapted.named_parameters() if weight.requires_grad} == blocks | (
        tables if end == "first" else behind
    )
    # A free parameter without a gradient, such as the bias of the keys, stays as it is.
    assert moved <= blocks | (tables if end == "first" else behind)
    assert moved & blocks
    assert moved & (tables if end == "first" else behind)


def test_a_network_without_blocks_is_refused() -> None:
    linear = build({"model_type": "linear", "input_dim": 4}, None, 0, "cpu").network
    with pytest.raises(NftbenchError, match="the network has no list of blocks"):
        registry.create("attacks", "layers").adapter(linear, 0)
