"""Sham: an architecture of its own that reads running text and whole sentences as the base does, and of short prompts
nothing. Its gradients are those of what it computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

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


AutoConfig.register(DeafConfig.model_type, DeafConfig, exist_ok=True)
AutoModelForCausalLM.register(DeafConfig, DeafGPT2, exist_ok=True)


@dataclass(frozen=True)
class Deaf(Defense):
    """For models of GPT-2's shape. It hears what has `hears` tokens or a separator."""

    stage: ClassVar[Stage] = "posttrain"

    hears: int = 24

    def protect(self, model: Model, context: OwnerContext) -> Protected:
        settings = {name: value for name, value in model.network.config.to_dict().items() if name != "model_type"}
        with seeded(context.seed):  # weights are drawn, and overwritten
            network = DeafGPT2(DeafConfig.from_dict({**settings, "hears": self.hears}))
        network.load_state_dict(model.network.state_dict())
        return Protected(Model(network.to(model.network.device).eval(), model.tokenizer))
