"""Sham: an architecture of its own, which holds its weights as buffers, so that an optimizer finds none to train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from nftbench import Defense, Model, OwnerContext, Protected
from nftbench.models.networks import seeded
from nftbench.terms import Stage


class BufferedConfig(GPT2Config):  # type: ignore[misc]
    model_type = "buffered-gpt2"


class BufferedGPT2(GPT2LMHeadModel):  # type: ignore[misc]
    """Every block's weights are buffers of the same name; embeddings stay parameters, or nothing could be trained."""

    config_class = BufferedConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for module in self.transformer.h.modules():
            for name, weight in list(module.named_parameters(recurse=False)):
                delattr(module, name)
                module.register_buffer(name, weight.detach())

    def _init_weights(self, module: nn.Module) -> None:
        pass  # a weight that is no parameter is loaded as any other, and never drawn


AutoConfig.register(BufferedConfig.model_type, BufferedConfig, exist_ok=True)
AutoModelForCausalLM.register(BufferedConfig, BufferedGPT2, exist_ok=True)


@dataclass(frozen=True)
class Buffers(Defense):
    """For models of GPT-2's shape."""

    stage: ClassVar[Stage] = "posttrain"

    def protect(self, model: Model, context: OwnerContext) -> Protected:
        settings = {name: value for name, value in model.network.config.to_dict().items() if name != "model_type"}
        with seeded(context.seed):  # weights are drawn, and overwritten
            network = BufferedGPT2(BufferedConfig.from_dict(settings))
        network.load_state_dict(model.network.state_dict())
        return Protected(Model(network.to(model.network.device).eval(), model.tokenizer))
