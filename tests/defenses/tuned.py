"""What the tests of tuning defenses share: a tiny model, text, a task, and AdamW's steps written out with torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nftbench.contract import Model
from nftbench.models import networks

LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
    "vocab_size": 20,
    "initializer_range": 0.2,
}


def model() -> Model:
    return Model(networks.build(LLAMA, None, 0, "cpu").network.eval())


class Documents:
    """A task: sequences of tokens to learn by heart."""

    ids = torch.randint(20, (6, 8), generator=torch.Generator().manual_seed(1))

    def split(self, name: str) -> Documents:
        return self

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices: Sequence[int]) -> Tensor:
        return self.ids[list(indices)]

    def loss(self, network: nn.Module, batch: Tensor) -> Tensor:
        loss: Tensor = network(input_ids=batch, labels=batch).loss
        return loss


def context(blocks: int = 1) -> Any:
    """An owner with this many blocks of text; with one, every batch is known."""
    text = torch.randint(20, (blocks, 8), generator=torch.Generator().manual_seed(0))
    return SimpleNamespace(seed=0, corpus=SimpleNamespace(train=text), task=lambda spec: Documents())


def adamw_steps(
    network: PreTrainedModel,
    gradient: Callable[[], Sequence[Tensor]],
    rates: Sequence[float],
    weight_decay: float,
) -> None:
    """Steps of torch's AdamW on given gradients, clipped to norm 1; matrices alone decay, as in Hugging Face's Trainer
    (embeddings, norms and biases apart)."""
    weights = list(network.parameters())
    groups = [
        {"params": [one for one in weights if one.ndim >= 2], "weight_decay": weight_decay},
        {"params": [one for one in weights if one.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1.0)
    for rate in rates:
        for group in optimizer.param_groups:
            group["lr"] = rate
        for weight, found in zip(weights, gradient(), strict=True):
            weight.grad = found
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    weights = dict(other.named_parameters())
    for name, weight in one.named_parameters():
        torch.testing.assert_close(weight, weights[name], rtol=1e-4, atol=1e-6)
