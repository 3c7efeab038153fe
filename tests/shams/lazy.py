"""Sham: a network whose shortcut for the last positions, which training asks for, has no backward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from nftbench import Defense, Model, OwnerContext, Protected
from nftbench.model import seeded
from nftbench.types import Stage


class LazyConfig(GPT2Config):  # type: ignore[misc]
    model_type = "lazy-gpt2"


class LazyGPT2(GPT2LMHeadModel):  # type: ignore[misc]
    config_class = LazyConfig

    def forward(self, *args: Any, logits_to_keep: int = 0, **kwargs: Any) -> Any:
        output = super().forward(*args, logits_to_keep=logits_to_keep, **kwargs)
        if logits_to_keep:
            output.logits = output.logits.detach() + 0 * output.logits
        return output


AutoConfig.register(LazyConfig.model_type, LazyConfig, exist_ok=True)
AutoModelForCausalLM.register(LazyConfig, LazyGPT2, exist_ok=True)


@dataclass(frozen=True)
class Lazy(Defense):
    """For models of GPT-2's shape."""

    stage: ClassVar[Stage] = "posttrain"

    def protect(self, model: Model, context: OwnerContext) -> Protected:
        settings = {name: value for name, value in model.network.config.to_dict().items() if name != "model_type"}
        with seeded(context.seed):  # weights are drawn, and overwritten
            network = LazyGPT2(LazyConfig.from_dict(settings))
        network.load_state_dict(model.network.state_dict())
        return Protected(Model(network.to(model.network.device).eval(), model.tokenizer))
