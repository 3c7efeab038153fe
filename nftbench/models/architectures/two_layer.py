"""Causal LMs in which some linear layers are products of two: GPT-2, Llama or Qwen3 with `TwoLayer` modules.

A release of this family has the same function as a standard model, but other parameters: y = W x + b is computed as
y = outer(inner(x)) with outer.weight @ inner.weight = W. SpecDef publishes such models (Rosati et al. 2026,
https://arxiv.org/abs/2602.18868, section 4). Whoever has the weights can multiply them again; `fused` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
)
from transformers.pytorch_utils import Conv1D

from nftbench.errors import NftbenchError
from nftbench.models.architectures import families
from nftbench.models.architectures.families import Family, OwnDecoder

# ---------------------------------------------------------------------------------------------------------- networks


class TwoLayer(nn.Module):
    """Computes outer(inner(x)), without a function in between.

    With n inputs and m outputs, `inner` is [min(n, m), n] without a bias and `outer` is [m, min(n, m)]. So the factors
    have min(n, m)² weights more than their product.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__()
        middle = min(inputs, outputs)
        self.inner = nn.Linear(inputs, middle, bias=False)
        self.outer = nn.Linear(middle, outputs, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.outer(self.inner(x))
        return y

    @torch.no_grad()
    def product(self) -> Tensor:
        """outer.weight @ inner.weight [outputs, inputs] in float64."""
        return self.outer.weight.double() @ self.inner.weight.double()


def weight_of(layer: nn.Module) -> Tensor:
    """The weight of a linear layer as a view [outputs, inputs]; GPT-2's Conv1D holds it transposed."""
    weight: Tensor = layer.weight.detach()  # type: ignore[operator]
    return weight.mT if isinstance(layer, Conv1D) else weight


# ------------------------------------------------------------------------------------------------------------ models


class _Factored:
    """Mixin for a family's decoder. It replaces the layers that the configuration names after they are built."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        self._replace_layers(config.two_layer or ())
        self.post_init()  # type: ignore[attr-defined]

    def _replace_layers(self: Any, names: Sequence[str]) -> None:
        for name in names:
            layer = self.get_submodule(name)
            outputs, inputs = weight_of(layer).shape
            self.set_submodule(name, TwoLayer(inputs, outputs, layer.bias is not None))


class TwoLayerGPT2Config(GPT2Config):  # type: ignore[misc]
    model_type = "two-layer-gpt2"
    two_layer: list[str] | None = None


class TwoLayerLlamaConfig(LlamaConfig):  # type: ignore[misc]
    model_type = "two-layer-llama"
    two_layer: list[str] | None = None


class TwoLayerQwen3Config(Qwen3Config):  # type: ignore[misc]
    model_type = "two-layer-qwen3"
    two_layer: list[str] | None = None


class TwoLayerGPT2Model(_Factored, GPT2Model):  # type: ignore[misc]
    config_class = TwoLayerGPT2Config


class TwoLayerGPT2LMHeadModel(OwnDecoder, GPT2LMHeadModel):  # type: ignore[misc]
    config_class = TwoLayerGPT2Config
    decoder = TwoLayerGPT2Model


class TwoLayerLlamaModel(_Factored, LlamaModel):  # type: ignore[misc]
    config_class = TwoLayerLlamaConfig


class TwoLayerLlamaForCausalLM(OwnDecoder, LlamaForCausalLM):  # type: ignore[misc]
    config_class = TwoLayerLlamaConfig
    decoder = TwoLayerLlamaModel


class TwoLayerQwen3Model(_Factored, Qwen3Model):  # type: ignore[misc]
    config_class = TwoLayerQwen3Config


class TwoLayerQwen3ForCausalLM(OwnDecoder, Qwen3ForCausalLM):  # type: ignore[misc]
    config_class = TwoLayerQwen3Config
    decoder = TwoLayerQwen3Model


FAMILIES = {
    "gpt2": Family(TwoLayerGPT2Config, TwoLayerGPT2Model, TwoLayerGPT2LMHeadModel),
    "llama": Family(TwoLayerLlamaConfig, TwoLayerLlamaModel, TwoLayerLlamaForCausalLM),
    "qwen3": Family(TwoLayerQwen3Config, TwoLayerQwen3Model, TwoLayerQwen3ForCausalLM),
}


STANDARD = {
    "gpt2": Family(GPT2Config, GPT2Model, GPT2LMHeadModel),
    "llama": Family(LlamaConfig, LlamaModel, LlamaForCausalLM),
    "qwen3": Family(Qwen3Config, Qwen3Model, Qwen3ForCausalLM),
}


def register() -> None:
    """Register the factored families with transformers' Auto classes."""
    families.register(FAMILIES.values())


# ------------------------------------------------------------------------------------------------- there and back


def layers(network: PreTrainedModel) -> list[str]:
    """The names of the decoder's linear layers, as `factored` takes them: without embeddings and output head.

    Raises:
        NftbenchError: the architecture is not one of `FAMILIES`.
    """
    if network.config.model_type not in FAMILIES:
        raise NftbenchError(
            f"{network.config.model_type} has no family of two-layer models; supported are {', '.join(FAMILIES)}"
        )
    named = network.base_model.named_modules()
    return [name for name, module in named if isinstance(module, nn.Linear | Conv1D)]


@torch.no_grad()
def factored(network: PreTrainedModel, factors: Mapping[str, tuple[Tensor, Tensor]]) -> PreTrainedModel:
    """A copy of a causal LM in which some layers are factored. All other weights are copied.

    Args:
        factors: by name of the layer in the decoder, its outer weight [m, min(n, m)] and inner weight [min(n, m), n].

    Raises:
        NftbenchError: the architecture is not one of `FAMILIES`.
    """
    known = layers(network)
    assert set(factors) <= set(known), set(factors) - set(known)
    two_layer = _converted(network, FAMILIES[network.config.model_type], two_layer=list(factors))
    weights = dict(network.state_dict())
    for name, (outer, inner) in factors.items():
        full = f"{network.base_model_prefix}.{name}"
        del weights[f"{full}.weight"]
        weights |= {f"{full}.outer.weight": outer, f"{full}.inner.weight": inner}
        if f"{full}.bias" in weights:
            weights[f"{full}.outer.bias"] = weights.pop(f"{full}.bias")
    two_layer.load_state_dict(weights)
    return two_layer.train(network.training)


def is_factored(network: PreTrainedModel) -> bool:
    """Whether the network is of one of the factored families, which `fused` turns into standard models."""
    return _standard(network) is not None


def _standard(network: PreTrainedModel) -> Family | None:
    """The standard family in the place of which the network's stands; None for other networks."""
    return next((STANDARD[name] for name, one in FAMILIES.items() if isinstance(network.config, one.config)), None)


@torch.no_grad()
def fused(network: PreTrainedModel) -> PreTrainedModel:
    """The standard causal LM with the same function: each `TwoLayer` is multiplied out. Others are returned as is."""
    family = _standard(network)
    if family is None:
        return network
    standard = _converted(network, family)
    del standard.config.two_layer
    weights = dict(network.state_dict())
    for name, module in network.named_modules():
        if isinstance(module, TwoLayer):
            del weights[f"{name}.inner.weight"], weights[f"{name}.outer.weight"]
            product = module.product().to(module.outer.weight.dtype)
            layer = standard.get_submodule(name)
            weights[f"{name}.weight"] = product.mT if isinstance(layer, Conv1D) else product
            if module.outer.bias is not None:
                weights[f"{name}.bias"] = weights.pop(f"{name}.outer.bias")
    standard.load_state_dict(weights)
    return standard.train(network.training)


def _converted(network: PreTrainedModel, family: Family, **changes: Any) -> PreTrainedModel:
    """A fresh model of another family with the settings of `network`, in its precision and on its device."""
    config = families.settings_of(network, family.config, **changes)
    with torch.random.fork_rng():  # weights are drawn, and overwritten
        found: PreTrainedModel = family.causal(config).to(device=network.device, dtype=network.dtype)
    return found
