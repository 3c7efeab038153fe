"""Public text as the benign data of a defense: what the released model must still be able to read."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from nftbench.contract import OwnerContext
from nftbench.training.engine import token_batches


def text_batches(context: OwnerContext, size: int, device: torch.device | str) -> Iterator[Tensor]:
    """Endless batches [size, block] of the owner's training text, or of all blocks where there are fewer."""
    blocks = context.corpus.train
    return token_batches(blocks, min(size, len(blocks)), context.seed, str(device))


def text_loss(network: nn.Module, tokens: Tensor) -> Tensor:
    """Mean negative log-likelihood of the next token on blocks [batch, block], in nats."""
    loss: Tensor = network(input_ids=tokens, labels=tokens).loss
    return loss
