"""DLR-Net-style causal LMs: GPT-2, Llama or Qwen3 with every MLP replaced by a deep low-rank residual network.

After Sakamoto et al. 2026, "Locking Pretrained Weights via Deep Low-Rank Residual Distillation",
https://arxiv.org/abs/2605.10777. This is a stand-in built from the paper's description: there is no public code, and
the paper's equations, depth, rank and norm were not available to us. Let x [tokens, width] be the MLP's input, φ the
base's activation, A_l [rank_l, width] and B_l [width, rank_l]. The DLR-Net computes y from x by

    h_0 = x,    h_{l+1} = h_l + B_l φ(A_l Norm(h_l))  for l < depth,    y = h_depth - x

Norm is RMSNorm without weights, because A_l could absorb them. There are no biases, because x comes out of a norm layer
that may add its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

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
    initialization as init,
)
from transformers.activations import ACT2FN

from nftbench.errors import NftbenchError
from nftbench.models.architectures import families
from nftbench.models.architectures.families import Family, OwnDecoder

TOLERANCE = 0.02
"""Largest relative difference between the parameter counts of a DLR-Net and of the MLP that it replaces."""
EPSILON = 1e-6
ONE_KERNEL = {"gelu_new": "gelu_pytorch_tanh"}
"""Replaces GPT-2's GELU by the same function in one kernel. The original saves intermediate tensors for the backward
pass, and the memory that the lock costs should come from its depth alone."""

# ---------------------------------------------------------------------------------------------------------- networks


class Down(nn.Linear):
    """The matrix A of a block. `Down` and `Up` are classes because transformers initialises weights by class."""


class Up(nn.Linear):
    """The matrix B of a block."""


class LowRankBlock(nn.Module):
    """Computes h + B φ(A Norm(h)); A is `down` [rank, width], B is `up` [width, rank]."""

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
    """A stack of low-rank blocks, minus its input: [.., width] to [.., width]; `ranks` has one rank for each block."""

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
    """The rank of each of the `depth` blocks of a DLR-Net that replaces an MLP with `parameters` parameters.

    Without `rank` the ranks differ by at most one, the larger ones first, so that any depth matches the parameter
    count. A single rank for all blocks could miss the count by half a rank for each block, which is a tenth of the MLP
    of a narrow model.

    Raises:
        NftbenchError: depth and rank together miss the parameter count, or a block would have a rank below 1.
    """
    total = round(parameters / (2 * width))
    if not 1 <= depth <= total:
        raise NftbenchError(f"depth must lie in 1…{total} for MLPs of width {width} and {parameters} parameters")
    even = [total // depth + (block < total % depth) for block in range(depth)]
    chosen = even if rank is None else [rank] * depth
    excess = 2 * width * sum(chosen) / parameters - 1
    if abs(excess) > TOLERANCE:
        raise NftbenchError(
            f"depth {depth} and rank {chosen[0]} miss the {parameters} parameters of an MLP by {excess:+.1%}, more "
            f"than {TOLERANCE:.0%}; leave rank out and each block gets {even[-1]} or {even[0]}"
        )
    return chosen


def saved_numbers(depth: int, width: int, total_rank: int) -> int:
    """How many numbers a DLR-Net saves for the backward pass for each token.

    The formula holds for activations φ that save their input (GELU, SiLU). A block saves h [width] and its inverse norm
    for Norm, Norm(h) [width] for A, A Norm(h) [rank] for φ, and φ(A Norm(h)) [rank] for B. The sum saves nothing.
    """
    return depth * (2 * width + 1) + 2 * total_rank


# ------------------------------------------------------------------------------------------------------------ models


def mlps(network: nn.Module) -> dict[str, nn.Module]:
    """The MLPs of a network, or the DLR-Nets that replace them, by name and in the order of the layers.

    An MLP is the part of a block that reads the hidden states and nothing else, as a mixture of experts does too.
    Attention also reads a mask, and a state-space mixer a cache. OPT has two such parts, for its MLP is no module. In
    BLOOM and MPT the MLP also reads the residual stream, so its layers stand for it. Where no part is an MLP all parts
    are taken: Mamba's mixer, which an MLP is merged into (Gu & Dao 2023, arXiv:2312.00752, section 3.4).
    """
    parts = {
        f"{path}.{own}": part
        for path, block in _blocks(network, "")
        for own, part in block.named_children()
        if _has_matrix(part)
    }
    layers = {
        f"{name}.{own}": layer
        for name, part in parts.items()
        if not hasattr(part, "layer_idx")  # by which attention and mixers find their place in the cache
        for own, layer in part.named_children()
        if _has_matrix(layer)
    }
    return {name: part for name, part in parts.items() if _reads_hidden_states_alone(part)} or layers or parts


def _blocks(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """The members of the outermost lists of modules, with their names. An inner list may hold a block's experts."""
    for own, child in module.named_children():
        if isinstance(child, nn.ModuleList):
            yield from ((f"{path}{own}.{index}", block) for index, block in enumerate(child))
        else:
            yield from _blocks(child, f"{path}{own}.")


def _has_matrix(module: nn.Module) -> bool:
    return any(weight.ndim > 1 for weight in module.parameters())


def _reads_hidden_states_alone(module: nn.Module) -> bool:
    named = (one for one in inspect.signature(module.forward).parameters.values() if one.kind != one.VAR_KEYWORD)
    return len(list(named)) == 1


class _Locked:
    """Mixin for a family's decoder. It replaces the MLPs after they are built, because it must know their sizes."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        self._replace_mlps(config)
        self.post_init()  # type: ignore[attr-defined]

    def _replace_mlps(self: Any, config: Any) -> None:
        activation = config.activation_function if hasattr(config, "activation_function") else config.hidden_act
        width, dropout = config.hidden_size, getattr(config, "resid_pdrop", 0.0)
        for name, mlp in mlps(self).items():
            count = sum(parameter.numel() for parameter in mlp.parameters())
            block_ranks = ranks(count, width, config.dlr_depth, config.dlr_rank)
            self.set_submodule(name, DlrNet(width, block_ranks, activation, dropout))

    def _init_weights(self, module: nn.Module) -> None:
        """A preserves the scale of its input, and B is zero, so that a fresh DLR-Net outputs 0 at any depth. With a
        random B the blocks would add up to noise that grows with depth."""
        super()._init_weights(module)  # type: ignore[misc]
        if isinstance(module, Down):
            init.normal_(module.weight, std=module.in_features**-0.5)
        elif isinstance(module, Up):
            init.zeros_(module.weight)


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


class DlrGPT2LMHeadModel(OwnDecoder, GPT2LMHeadModel):  # type: ignore[misc]
    config_class = DlrGPT2Config
    decoder = DlrGPT2Model


class DlrLlamaModel(_Locked, LlamaModel):  # type: ignore[misc]
    config_class = DlrLlamaConfig


class DlrLlamaForCausalLM(OwnDecoder, LlamaForCausalLM):  # type: ignore[misc]
    config_class = DlrLlamaConfig
    decoder = DlrLlamaModel


class DlrQwen3Model(_Locked, Qwen3Model):  # type: ignore[misc]
    config_class = DlrQwen3Config


class DlrQwen3ForCausalLM(OwnDecoder, Qwen3ForCausalLM):  # type: ignore[misc]
    config_class = DlrQwen3Config
    decoder = DlrQwen3Model


FAMILIES = {
    "gpt2": Family(DlrGPT2Config, DlrGPT2Model, DlrGPT2LMHeadModel),
    "llama": Family(DlrLlamaConfig, DlrLlamaModel, DlrLlamaForCausalLM),
    "qwen3": Family(DlrQwen3Config, DlrQwen3Model, DlrQwen3ForCausalLM),
}


def register() -> None:
    """Register the locked families with transformers' Auto classes."""
    families.register(FAMILIES.values())


def lock(network: PreTrainedModel, depth: int, rank: int | None = None) -> PreTrainedModel:
    """A copy of a causal LM with a fresh DLR-Net in the place of every MLP. All other weights are copied.

    Raises:
        NftbenchError: the architecture is not one of `FAMILIES`, or depth and rank do not fit its MLPs.
    """
    kind = network.config.model_type
    if kind not in FAMILIES:
        raise NftbenchError(
            f"{kind} has no MLPs that a DLR-Net can replace; supported are {', '.join(FAMILIES)}; "
            f"a layer of this model consists of {', '.join(_layer(network)) or 'nothing'}"
        )
    config = families.settings_of(network, FAMILIES[kind].config, dlr_depth=depth, dlr_rank=rank)
    locked: PreTrainedModel = FAMILIES[kind].causal(config).to(device=network.device, dtype=network.dtype)
    missing, unexpected = locked.load_state_dict(network.state_dict(), strict=False)
    assert all(".mlp." in name for name in (*missing, *unexpected)), (missing, unexpected)
    return locked.train(network.training)


def _layer(network: nn.Module) -> list[str]:
    """The parts of the network's first layer, each as `name (Class)`."""
    stack = next((module for module in network.modules() if isinstance(module, nn.ModuleList) and len(module)), None)
    return [f"{name} ({type(module).__name__})" for name, module in stack[0].named_children()] if stack else []
