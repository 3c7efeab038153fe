"""A network's layers seen one by one: their outputs, and the loss that the output head would have on each of them.

Rosati et al. 2024 (RepNoise, https://arxiv.org/abs/2405.14577; loss.py of its code, commit 03689ff) raise the loss of
harmful answers in every layer. Wang et al. 2025 (SEAM, https://arxiv.org/abs/2505.12186) take the same term.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nftbench.errors import NftbenchError
from nftbench.methods.harmful_pairs import Masked, cross_entropy


class Traced(NamedTuple):
    """What a forward pass computes: logits [batch, length, vocabulary], and activations [batch, length, width].

    `hidden` holds the embeddings and the output of each of the L layers, the last one after the final norm. `mlps`
    holds the output of each MLP.
    """

    logits: Tensor
    hidden: tuple[Tensor, ...]
    mlps: list[Tensor]


def traced(network: PreTrainedModel, inputs: Tensor) -> Traced:
    """A forward pass over tokens [batch, length], with the outputs of layers and MLPs.

    Raises:
        NftbenchError: no module of the network is named `mlp`.
    """
    modules = [module for name, module in network.named_modules() if name.rpartition(".")[2] == "mlp"]
    if not modules:
        raise NftbenchError(f"{type(network).__name__} has no modules named mlp, whose outputs could be read")
    outputs: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    handles = [module.register_forward_hook(keep) for module in modules]
    try:
        found = network(input_ids=inputs, output_hidden_states=True, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return Traced(found.logits, found.hidden_states, outputs)


def final_norm(network: PreTrainedModel) -> nn.Module:
    """The norm between the last layer and the output head.

    Raises:
        NftbenchError: the network has none.
    """
    norms: list[nn.Module] = [
        module for module in network.base_model.children() if "norm" in type(module).__name__.lower()
    ]
    if not norms:
        raise NftbenchError(f"{type(network).__name__} has no norm before its output head")
    return norms[-1]


def raised_loss(network: PreTrainedModel, seen: Traced, sequences: Masked) -> Tensor:
    """log(1 + [CE_M(y) + Σ_{l=0..L} CE_M(head(norm(h_l)))] / (L + 1)) on sequences with answers y.

    RepNoise and SEAM maximise it. The logarithm slows the ascent, which has no upper bound. The authors' code applies
    the final norm to h_L once more, although transformers has already done so; here each h_l is normed once.
    """
    head, norm = network.get_output_embeddings(), final_norm(network)
    own = cross_entropy(seen.logits, sequences)
    states = [*map(norm, seen.hidden[:-1]), seen.hidden[-1]]
    layers = torch.stack([cross_entropy(head(state), sequences) for state in states])
    return torch.log1p((own + layers.sum()) / len(states))
