"""Re-initialised blocks: which are drawn anew, with which seed, and how many."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from nftbench.contract import Model, Prepared
from nftbench.errors import NftbenchError
from nftbench.models import networks
from nftbench.models.architectures import dlr
from nftbench.planning import registry
from nftbench.testing import ARCHITECTURES

DEPTH = {"gpt2": "n_layer", "llama": "num_hidden_layers", "qwen3": "num_hidden_layers"}


@torch.no_grad()
def release(architecture: str) -> PreTrainedModel:
    """Three blocks with weights that no initialisation draws."""
    settings = {**ARCHITECTURES[architecture], DEPTH[architecture]: 3}
    network = networks.build({"model_type": architecture, **settings, "vocab_size": 50}, None, 0, "cpu").network
    for parameter in network.parameters():
        parameter.add_(7)
    return network


def redrawn(spec: str, network: PreTrainedModel, attack_seed: int = 0) -> PreTrainedModel:
    """What the attack would train."""
    context: Any = SimpleNamespace(
        sweep=lambda model, task, adapter: adapter,
        untrained=lambda model, seed: networks.untrained(model.network, seed),
    )
    adapter: Any = registry.create("attacks", spec).adapt(Prepared(Model(network)), None, context)
    changed: PreTrainedModel = adapter(networks.untrained(network, 0), attack_seed)  # overwritten below
    changed.load_state_dict(network.state_dict())
    return adapter(changed, attack_seed)  # type: ignore[no-any-return]


@pytest.mark.parametrize("locked", [False, True], ids=["plain", "dlr"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("spec", "drawn"), [("reinit", {2}), ("reinit[count=2]", {1, 2}), ("reinit[blocks=first]", {0})]
)
def test_the_chosen_blocks_are_drawn_anew_and_the_rest_is_kept(
    spec: str, drawn: set[int], architecture: str, locked: bool
) -> None:
    network = release(architecture)
    if locked:
        network = dlr.lock(network, 3)
    fresh = dict(networks.untrained(network, 5).named_parameters())
    old = dict(network.named_parameters())
    for name, weight in redrawn(spec, network, attack_seed=5).named_parameters():
        numbers = [int(part) for part in name.split(".")[:3] if part.isdigit()]  # transformer.h.1, model.layers.1
        assert torch.equal(weight, (fresh if numbers and numbers[0] in drawn else old)[name]), name


def test_each_attack_seed_draws_its_own() -> None:
    network = release("gpt2")
    first, again, other = (redrawn("reinit", network, seed).transformer.h[2] for seed in (1, 1, 2))
    assert torch.equal(first.mlp.c_fc.weight, again.mlp.c_fc.weight)
    assert not torch.equal(first.mlp.c_fc.weight, other.mlp.c_fc.weight)


def test_more_blocks_than_the_network_has_are_refused() -> None:
    with pytest.raises(NftbenchError, match="has 3 blocks, not 4"):
        redrawn("reinit[count=4]", release("gpt2"))
