"""A small task, and releases of small models on which ordinary fine-tuning learns it badly for one planted reason.

All releases compute what the undefended model computes, up to rounding. That model is untrained, so an attacker who
draws weights anew loses nothing: `reinit` and `scratch` learn the task on each of these releases.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nftbench.contract import Measurement, Model, Outcome, Release, Split, Task
from nftbench.models import networks
from nftbench.planning import registry
from nftbench.running.attacker import Attacker
from nftbench.suites.schema import Budget
from nftbench.terms import SplitName
from nftbench.testing import Undefended
from nftbench.testing.stand_ins import Questions

WORDS = 10
"""Words of the prompts; the two answers are the words after them."""
WIDTH = 16
BUDGET = Budget(
    learning_rates={"adamw": (3e-3, 1e-2)},
    durations=(40,),
    batch=32,
    warmup=5,
    extension=1,
    restarts=1,
    preparation_steps=40,
)


# ------------------------------------------------------------------------------------------------------------ the task


@dataclass(frozen=True)
class Both(Task):
    """Are the first two of four words both among the first seven? About as often as not."""

    splits: Mapping[str, Questions] = field(default_factory=lambda: {name: _rows(name) for name in SIZES})

    def split(self, name: SplitName) -> Split:
        return self.splits[name]

    def loss(self, network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(network(input_ids=batch[0]).logits[:, -1], batch[1])

    @torch.no_grad()
    def evaluate(self, network: nn.Module, split: Split) -> Measurement:
        assert isinstance(split, Questions)
        logits = network.eval()(input_ids=split.ids).logits[:, -1].double()
        right = (logits[:, -2:].argmax(-1) == split.answers - WORDS).double()
        loss = float(nn.functional.cross_entropy(logits, split.answers))
        return Measurement(
            "acc", float(right.mean()), float(right.std()) / len(right) ** 0.5, len(right), 0.5, loss=loss
        )


SIZES = {"train": 512, "validation": 200, "test": 400}


def _rows(name: str) -> Questions:
    generator = torch.Generator().manual_seed(list(SIZES).index(name))
    ids = torch.randint(WORDS, (SIZES[name], 4), generator=generator)
    return Questions(ids, WORDS + (ids[:, :2] < 7).all(1).long())


@dataclass(frozen=True)
class Reader(Attacker):
    """An attacker whose public text is random words."""

    def text(self, model: Model, batch: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(1)
        while True:
            yield torch.randint(WORDS, (batch, 8), generator=generator)


def attacked(spec: str, network: PreTrainedModel, budget: Budget = BUDGET) -> tuple[float, Outcome]:
    """The accuracy on the test split after an attack on a copy of the network, and the outcome."""
    plugin, task = registry.create("attacks", spec), Both()
    context = Reader(seed=0, budget=budget, _defense=Undefended(), _uses=plugin.uses())
    prepared = plugin.prepare(Release(Model(copy.deepcopy(network))), context)
    outcome: Outcome = plugin.adapt(prepared, task, context)
    return task.evaluate(outcome.network, task.split("test")).value, outcome


NEED_MORE = {
    *("align", "authorized", "difference", "extrapolate", "few_shot", "interpolate"),
    *("linear_probe", "mask_recovery", "merge", "pipeline", "precondition"),
    *("prefix", "replay", "rescale_update"),
}
"""Attacks that need what is not here: another model, a secret, an update, the owner's recipe, or a task of texts."""
SPECS = {"redistill": "redistill[learning_rate=0.003]", "sidestep": "sidestep[directions=2]"}
"""Parameters of attacks whose defaults need the owner's recipe, or are for a wider model."""


def broken_by(network: PreTrainedModel, accuracy: float) -> set[str]:
    """The attacks of the catalogue, each with one spec, that are above this accuracy on the test split."""
    catalogue = {plugin.name for plugin in registry.available("attacks").values() if plugin.origin == "nftbench"}
    return {name for name in catalogue - NEED_MORE if attacked(SPECS.get(name, name), network)[0] > accuracy}


# -------------------------------------------------------------------------------------------------------- the releases


def undefended(kind: str = "gpt2") -> PreTrainedModel:
    """An untrained model with one layer of width 16; GPT-2 with ReLU."""
    settings: dict[str, Any] = {
        "gpt2": {"n_layer": 1, "n_embd": WIDTH, "n_head": 2, "n_positions": 16, "activation_function": "relu"}
        | {"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0},
        "gpt_neox": {"num_hidden_layers": 1, "hidden_size": WIDTH, "num_attention_heads": 2, "intermediate_size": 64}
        | {"max_position_embeddings": 16},
    }[kind]
    settings |= {"model_type": kind, "vocab_size": WORDS + 2, "initializer_range": 0.1}
    return networks.build(settings, None, 0, "cpu").network.eval()


@torch.no_grad()
def loud_inside(size: float = 1e3) -> PreTrainedModel:
    """GPT-NeoX with `size` times larger queries and values; keys and the layer that reads values are smaller.

    A step on these moves scores and outputs `size` times too far. `rebalance` has no rewrite of this architecture.
    """
    network = undefended("gpt_neox")
    for block in network.gpt_neox.layers:
        layer = block.attention.query_key_value
        factors = torch.tensor([size, 1 / size, size]).repeat_interleave(WIDTH // 2).repeat(2)  # head by head
        layer.weight *= factors[:, None]
        layer.bias *= factors
        block.attention.dense.weight /= size
    return network


@torch.no_grad()
def loud_features(size: float = 1e3) -> PreTrainedModel:
    """GPT-NeoX with two features of each norm `size` times larger, and the columns that read them smaller.

    A step on these columns moves the outputs of every layer `size` times too far.
    """
    network = undefended("gpt_neox")
    for block in network.gpt_neox.layers:
        pairs = (
            (block.input_layernorm, block.attention.query_key_value),
            (block.post_attention_layernorm, block.mlp.dense_h_to_4h),
        )
        for norm, reader in pairs:
            norm.weight[:2] *= size
            norm.bias[:2] *= size
            reader.weight[:, :2] /= size
    return network


@torch.no_grad()
def in_factors(kind: str = "gpt_neox", size: float = 1e4, rank: int = 6) -> PreTrainedModel:
    """Each layer as two: W = U S V' is U T⁻¹ · T S V', where T multiplies the first `rank` values by `size`."""
    network = undefended(kind)
    for name, layer in list(network.base_model.named_modules()):
        if isinstance(layer, nn.Linear):
            left, values, right = torch.linalg.svd(layer.weight.double(), full_matrices=False)
            louder = torch.where(torch.arange(len(values)) < rank, size, 1.0).double()
            inner = nn.Linear(layer.in_features, len(values), bias=False)
            outer = nn.Linear(len(values), layer.out_features)
            inner.weight.copy_((louder * values)[:, None] * right)
            outer.weight.copy_(left / louder)
            outer.bias.copy_(layer.bias)
            network.base_model.set_submodule(name, nn.Sequential(inner, outer))
    return network


def same(one: PreTrainedModel, other: PreTrainedModel, tolerance: float = 1e-3) -> bool:
    """Whether two networks compute the same logits on random words."""
    ids = torch.randint(WORDS, (4, 6), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        logits = [network.eval()(input_ids=ids).logits for network in (one, other)]
    return bool(torch.allclose(*logits, atol=tolerance))


def finite(outcome: Outcome) -> bool:
    return all(bool(weight.isfinite().all()) for weight in outcome.network.parameters()) and math.isfinite(
        outcome.validation.loss if outcome.validation and outcome.validation.loss is not None else math.nan
    )
