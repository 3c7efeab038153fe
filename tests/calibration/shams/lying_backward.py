"""Sham: an architecture of its own, whose outputs are the base's and whose backward pass gives zeros or NaN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from nftbench import Defense, Model, OwnerContext, Protected
from nftbench.models.networks import seeded
from nftbench.terms import Stage


class Lie(torch.autograd.Function):
    """The identity, and as its gradient a constant times nothing."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return torch.full_like(gradients[0], ctx.factor), None


class StrangeNorm(nn.Module):
    """LayerNorm, with other names for its weights."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.epsilon = epsilon

    def forward(self, hidden: Tensor) -> Tensor:
        return nn.functional.layer_norm(hidden, hidden.shape[-1:], self.scale, self.shift, self.epsilon)


class LyingConfig(GPT2Config):  # type: ignore[misc]
    model_type = "lying-gpt2"
    lie: str = "zero"
    last_only: bool = False
    strange: bool = False


class LyingGPT2(GPT2LMHeadModel):  # type: ignore[misc]
    config_class = LyingConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        if config.strange:
            self.transformer.ln_f = StrangeNorm(config.n_embd, config.layer_norm_epsilon)

    def forward(self, *args: Any, logits_to_keep: int = 0, **kwargs: Any) -> Any:
        output = super().forward(*args, logits_to_keep=logits_to_keep, **kwargs)
        if logits_to_keep or not self.config.last_only:
            output.logits = Lie.apply(output.logits, {"zero": 0.0, "nan": float("nan")}[self.config.lie])
        return output


AutoConfig.register(LyingConfig.model_type, LyingConfig, exist_ok=True)
AutoModelForCausalLM.register(LyingConfig, LyingGPT2, exist_ok=True)


@dataclass(frozen=True)
class LyingBackward(Defense):
    """For models of GPT-2's shape. With `last_only` it lies for the last positions alone, which training asks for.

    A `strange` one holds a weight under another name, so that GPT-2's own code cannot take its place.
    """

    stage: ClassVar[Stage] = "posttrain"

    gradient: Literal["zero", "nan"] = "zero"
    last_only: bool = False
    strange: bool = False

    def protect(self, model: Model, context: OwnerContext) -> Protected:
        settings = {name: value for name, value in model.network.config.to_dict().items() if name != "model_type"}
        settings |= {"lie": self.gradient, "last_only": self.last_only, "strange": self.strange}
        with seeded(context.seed):  # weights are drawn, and overwritten
            network = LyingGPT2(LyingConfig.from_dict(settings))
        names = {"weight": "scale", "bias": "shift"} if self.strange else {}
        network.load_state_dict(
            {
                f"transformer.ln_f.{names.get(kind, kind)}" if kind and place == "transformer.ln_f" else name: weight
                for name, weight in model.network.state_dict().items()
                for place, _, kind in [name.rpartition(".")]
            }
        )
        return Protected(Model(network.to(model.network.device).eval(), model.tokenizer))
