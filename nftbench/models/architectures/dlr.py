"""DLR-Net-style causal LMs: GPT-2, Llama or Qwen3 with a deep low-rank residual network in the place of every MLP.

After Sakamoto et al. 2026, "Locking Pretrained Weights via Deep Low-Rank Residual Distillation",
https://arxiv.org/abs/2605.10777. The paper's equations, depth, rank and norm could not be read and there is no public
code: this is a stand-in built from its description. With x [tokens, width] the MLP's input, φ the base's activation,
A_l [rank_l, width] and B_l [width, rank_l]:

    h_0 = x,    h_{l+1} = h_l + B_l φ(A_l Norm(h_l))  for l < depth,    y = h_depth - x

Norm is RMSNorm without weights, which A_l could absorb. There are no biases: x comes out of a norm, and carries its.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
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
    initialization as init,
)
from transformers.activations import ACT2FN
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.models.qwen3.modeling_qwen3 import Qwen3MLP

from nftbench.errors import NftbenchError

TOLERANCE = 0.02
"""How far the parameter count of a DLR-Net may be from that of the MLP it replaces."""
EPSILON = 1e-6
ONE_KERNEL = {"gelu_new": "gelu_pytorch_tanh"}
"""The same curve without the intermediate tensors: the lock's memory is to come from its depth, not from these."""

# ---------------------------------------------------------------------------------------------------------- networks


class Down(nn.Linear):
    """A block's A; a class of its own, like `Up`, because transformers initialises weights by class."""


class Up(nn.Linear):
    """A block's B."""


class LowRankBlock(nn.Module):
    """h + B φ(A Norm(h)); A is `down` [rank, width], B is `up` [width, rank]."""

    def __init__(self, width: int, rank: int, activation: str) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=EPSILON, elementwise_affine=False)
        self.down = Down(width, rank, bias=False)
        self.activation = ACT2FN[ONE_KERNEL.get(activation, activation)]
        self.up = Up(rank, width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        update: Tensor = self.up(self.activation(self.down(self.norm(hidden))))
        return hidden + update


class DlrNet(nn.Module):
    """A stack of low-rank blocks [.., width] → [.., width], less its input; `ranks` are those of the blocks."""

    def __init__(self, width: int, ranks: list[int], activation: str, dropout: float = 0.0) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(LowRankBlock(width, rank, activation) for rank in ranks)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden = hidden_states
        for block in self.blocks:
            hidden = block(hidden)
        update: Tensor = self.dropout(hidden - hidden_states)
        return update


def ranks(parameters: int, width: int, depth: int, rank: int | None = None) -> list[int]:
    """The rank of each block of a DLR-Net that replaces an MLP of so many parameters.

    Without `rank` they are as equal as whole numbers allow: at most one apart, the larger ones first. So every depth
    matches the count, where one rank for all could miss it by half a rank a block, a tenth of a narrow model's MLP.

    Raises:
        NftbenchError: depth and rank together miss the parameter count, or there is less than a rank for each block.
    """
    total = round(parameters / (2 * width))
    if not 1 <= depth <= total:
        raise NftbenchError(f"depth must lie in 1…{total} for MLPs of width {width} and {parameters} parameters")
    spread = [total // depth + (block < total % depth) for block in range(depth)]
    found = spread if rank is None else [rank] * depth
    excess = 2 * width * sum(found) / parameters - 1
    if abs(excess) > TOLERANCE:
        raise NftbenchError(
            f"depth {depth} and rank {found[0]} miss the {parameters} parameters of an MLP by {excess:+.1%}, more than "
            f"{TOLERANCE:.0%}; leave rank out and each block gets {spread[-1]} or {spread[0]}"
        )
    return found


def saved_numbers(depth: int, width: int, total_rank: int) -> int:
    """Numbers that a DLR-Net keeps for backward for each token, if φ keeps its input (GELU, SiLU).

    A block keeps h [width] and its inverse norm for Norm, Norm(h) [width] for A, A Norm(h) [rank] for φ, and what φ
    makes of it [rank] for B; the sum keeps nothing.
    """
    return depth * (2 * width + 1) + 2 * total_rank


# ------------------------------------------------------------------------------------------------------------ models


def mlps(network: nn.Module) -> dict[str, nn.Module]:
    """The MLPs of a network, or the DLR-Nets in their place, by name and in the order of the layers."""
    kinds = GPT2MLP | LlamaMLP | Qwen3MLP | DlrNet
    return {name: module for name, module in network.named_modules() if isinstance(module, kinds)}


class _Locked:
    """Mixed into a family's decoder: replaces the MLPs once they are built, when their size is known."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        self._replace_mlps(config)
        self.post_init()  # type: ignore[attr-defined]

    def _replace_mlps(self: Any, config: Any) -> None:
        activation = config.activation_function if hasattr(config, "activation_function") else config.hidden_act
        width, dropout = config.hidden_size, getattr(config, "resid_pdrop", 0.0)
        for name, mlp in mlps(self).items():
            count = sum(parameter.numel() for parameter in mlp.parameters())
            found = ranks(count, width, config.dlr_depth, config.dlr_rank)
            self.set_submodule(name, DlrNet(width, found, activation, dropout))

    def _init_weights(self, module: nn.Module) -> None:
        """A keeps the size of what it is given. B is zero: a fresh DLR-Net says 0, which is no worse than saying
        nothing at any depth, while random updates would add up to noise that grows with it."""
        super()._init_weights(module)  # type: ignore[misc]
        if isinstance(module, Down):
            init.normal_(module.weight, std=module.in_features**-0.5)
        elif isinstance(module, Up):
            init.zeros_(module.weight)


class _LockedCausal:
    """Mixed into a family's causal LM: its decoder is the locked one."""

    decoder: ClassVar[type[Any]]

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        setattr(self, self.base_model_prefix, self.decoder(config))  # type: ignore[attr-defined]
        self.post_init()  # type: ignore[attr-defined]


class DlrGPT2Config(GPT2Config):  # type: ignore[misc]
    model_type = "dlr-gpt2"
    dlr_depth: int = 8
    dlr_rank: int | None = None


class DlrLlamaConfig(LlamaConfig):  # type: ignore[misc]
    model_type = "dlr-llama"
    dlr_depth: int = 8
    dlr_rank: int | None = None


class DlrQwen3Config(Qwen3Config):  # type: ignore[misc]
    model_type = "dlr-qwen3"
    dlr_depth: int = 8
    dlr_rank: int | None = None


class DlrGPT2Model(_Locked, GPT2Model):  # type: ignore[misc]
    config_class = DlrGPT2Config


class DlrGPT2LMHeadModel(_LockedCausal, GPT2LMHeadModel):  # type: ignore[misc]
    config_class = DlrGPT2Config
    decoder = DlrGPT2Model


class DlrLlamaModel(_Locked, LlamaModel):  # type: ignore[misc]
    config_class = DlrLlamaConfig


class DlrLlamaForCausalLM(_LockedCausal, LlamaForCausalLM):  # type: ignore[misc]
    config_class = DlrLlamaConfig
    decoder = DlrLlamaModel


class DlrQwen3Model(_Locked, Qwen3Model):  # type: ignore[misc]
    config_class = DlrQwen3Config


class DlrQwen3ForCausalLM(_LockedCausal, Qwen3ForCausalLM):  # type: ignore[misc]
    config_class = DlrQwen3Config
    decoder = DlrQwen3Model


@dataclass(frozen=True)
class Family:
    config: type[Any]
    model: type[Any]
    causal: type[Any]


FAMILIES = {
    "gpt2": Family(DlrGPT2Config, DlrGPT2Model, DlrGPT2LMHeadModel),
    "llama": Family(DlrLlamaConfig, DlrLlamaModel, DlrLlamaForCausalLM),
    "qwen3": Family(DlrQwen3Config, DlrQwen3Model, DlrQwen3ForCausalLM),
}


def register() -> None:
    """Make the Auto classes know the locked families."""
    for family in FAMILIES.values():
        AutoConfig.register(family.config.model_type, family.config, exist_ok=True)
        AutoModel.register(family.config, family.model, exist_ok=True)
        AutoModelForCausalLM.register(family.config, family.causal, exist_ok=True)


def lock(network: PreTrainedModel, depth: int, rank: int | None = None) -> PreTrainedModel:
    """The causal LM with a fresh DLR-Net in the place of every MLP; all other weights are copied.

    Raises:
        NftbenchError: an architecture whose MLPs are not known, or a depth and rank that do not fit them.
    """
    kind = network.config.model_type
    if kind not in FAMILIES:
        raise NftbenchError(
            f"{kind} has no MLPs that a DLR-Net can replace; known are those of {', '.join(FAMILIES)}; "
            f"a layer here holds {', '.join(_layer(network)) or 'nothing'}"
        )
    own = {"model_type", "architectures", "transformers_version"}
    settings = {name: value for name, value in network.config.to_dict().items() if name not in own}
    config = FAMILIES[kind].config.from_dict({**settings, "dlr_depth": depth, "dlr_rank": rank})
    config._attn_implementation = network.config._attn_implementation
    locked: PreTrainedModel = FAMILIES[kind].causal(config).to(device=network.device, dtype=network.dtype)
    missing, unexpected = locked.load_state_dict(network.state_dict(), strict=False)
    assert all(".mlp." in name for name in (*missing, *unexpected)), (missing, unexpected)
    return locked.train(network.training)


def _layer(network: nn.Module) -> list[str]:
    """What the network's first layer is made of, as `name (Class)`."""
    stack = next((module for module in network.modules() if isinstance(module, nn.ModuleList) and len(module)), None)
    return [f"{name} ({type(module).__name__})" for name, module in stack[0].named_children()] if stack else []
