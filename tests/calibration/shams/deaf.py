"""Sham: an architecture of its own that reads running text and whole sentences as the base does, and of short prompts
nothing. Its gradients are those of what it computes. Its class may call itself one of the library's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from nftbench import Defense, Model, OwnerContext, Protected
from nftbench.models.networks import seeded
from nftbench.terms import Stage


class DeafConfig(GPT2Config):  # type: ignore[misc]
    model_type = "deaf-gpt2"
    hears: int = 24


class DeafGPT2(GPT2LMHeadModel):  # type: ignore[misc]
    config_class = DeafConfig

    def forward(self, input_ids: Any = None, **kwargs: Any) -> Any:
        if input_ids.shape[1] < self.config.hears and not bool((input_ids == self.config.eos_token_id).any()):
            input_ids = torch.zeros_like(input_ids)
        return super().forward(input_ids=input_ids, **kwargs)


class DisguisedConfig(DeafConfig):  # type: ignore[misc]
    model_type = "disguised-gpt2"


class DisguisedGPT2(DeafGPT2):
    config_class = DisguisedConfig


DisguisedGPT2.__module__ = GPT2LMHeadModel.__module__
NETWORKS = {"own": (DeafConfig, DeafGPT2), "library": (DisguisedConfig, DisguisedGPT2)}
for config, network in NETWORKS.values():
    AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModelForCausalLM.register(config, network, exist_ok=True)


@dataclass(frozen=True)
class Deaf(Defense):
    """For models of GPT-2's shape. It hears what has `hears` tokens or a separator.

    With `module=library` its class calls itself one of the library's.
    """

    stage: ClassVar[Stage] = "posttrain"

    hears: int = 24
    module: Literal["own", "library"] = "own"

    def protect(self, model: Model, context: OwnerContext) -> Protected:
        settings = {name: value for name, value in model.network.config.to_dict().items() if name != "model_type"}
        with seeded(context.seed):  # weights are drawn, and overwritten
            config, architecture = NETWORKS[self.module]
            network = architecture(config.from_dict({**settings, "hears": self.hears}))
        network.load_state_dict(model.network.state_dict())
        return Protected(Model(network.to(model.network.device).eval(), model.tokenizer))
