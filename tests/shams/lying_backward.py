"""Sham: an architecture of its own, whose outputs are the base's and whose backward pass gives zeros or NaN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedConfig

from nftbench import Defense, Model, OwnerContext, Protected
from nftbench.model import seeded
from nftbench.types import Stage


class Lie(torch.autograd.Function):
    """The identity, and as its gradient a constant times nothing."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return torch.full_like(gradients[0], ctx.factor), None


class LyingConfig(GPT2Config):  # type: ignore[misc]
    model_type = "lying-gpt2"
    lie: str = "zero"
    last_only: bool = False


class StrangeConfig(PreTrainedConfig):  # type: ignore[misc]
    model_type = "strange"
    attribute_map = GPT2Config.attribute_map
    lie: str = "zero"
    last_only: bool = False


class LyingGPT2(GPT2LMHeadModel):  # type: ignore[misc]
    config_class = LyingConfig

    def forward(self, *args: Any, logits_to_keep: int = 0, **kwargs: Any) -> Any:
        output = super().forward(*args, logits_to_keep=logits_to_keep, **kwargs)
        if logits_to_keep or not self.config.last_only:
            output.logits = Lie.apply(output.logits, {"zero": 0.0, "nan": float("nan")}[self.config.lie])
        return output


class StrangeGPT2(LyingGPT2):
    config_class = StrangeConfig


for config, architecture in ((LyingConfig, LyingGPT2), (StrangeConfig, StrangeGPT2)):
    AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModelForCausalLM.register(config, architecture, exist_ok=True)


@dataclass(frozen=True)
class LyingBackward(Defense):
    """For models of GPT-2's shape. With `last_only` it lies for the last positions alone, which training asks for.

    A `strange` one does not say that its weights are GPT-2's.
    """

    stage: ClassVar[Stage] = "posttrain"

    gradient: Literal["zero", "nan"] = "zero"
    last_only: bool = False
    strange: bool = False

    def protect(self, model: Model, context: OwnerContext) -> Protected:
        settings = {name: value for name, value in model.network.config.to_dict().items() if name != "model_type"}
        architecture = StrangeGPT2 if self.strange else LyingGPT2
        settings |= {"lie": self.gradient, "last_only": self.last_only}
        with seeded(context.seed):  # weights are drawn, and overwritten
            network = architecture(architecture.config_class.from_dict(settings))
        network.load_state_dict(model.network.state_dict())
        return Protected(Model(network.to(model.network.device).eval(), model.tokenizer))
