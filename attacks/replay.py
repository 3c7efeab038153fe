"""Replay: fine-tuning on the task together with text that the release itself generated, so that it forgets less.

Pseudo-rehearsal (Robins 1995, https://doi.org/10.1080/09540099550039318), with the language model as its own generator
as in LAMOL (Sun et al. 2020, https://arxiv.org/abs/1909.03329, section 3). No other text is needed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nftbench import Attack, AttackerContext, Model, NftbenchError, Outcome, Prepared, Release, Task
from nftbench.methods import seeded
from nftbench.methods.with_text import WithText

MEMORIES = ("past_key_values", "cache_params")
"""What transformers calls that which a network keeps of the text so far: keys and values, or the states of Mamba."""


@dataclass(frozen=True)
class Replay(Attack):
    """`share`: the weight of the generated text in the loss. The text consists of `blocks` sequences of `length`
    tokens, or of fewer tokens if the model's window is shorter."""

    share: float = 0.1
    blocks: int = 512
    length: int = 64

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"share must lie between 0 and 1, not {self.share:g}")
        if self.blocks < 1 or self.length < 2:
            raise ValueError("blocks must be at least 1 and length at least 2")

    def prepare(self, release: Release, context: AttackerContext) -> Prepared:
        network = release.model.network
        length = min(self.length, getattr(network.config, "max_position_embeddings", self.length))
        with seeded(context.seed):
            return _Remembered(release.model, text=written(network, start(release.model), self.blocks, length))

    def adapt(self, prepared: Prepared, task: Task, context: AttackerContext) -> Outcome:
        assert isinstance(prepared, _Remembered)
        return context.sweep(prepared.model, WithText(task, prepared.text, self.share))


def start(model: Model) -> int:
    """The token that begins a text."""
    tokenizer = model.tokenizer
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if tokenizer is not None else ():
        if token is not None:
            return int(token)
    raise NftbenchError("replay: the release has no token to begin a text with, and can write none")


@torch.no_grad()
def written(network: PreTrainedModel, first: int, count: int, length: int) -> Tensor:
    """Text [count, length] sampled from the model's distribution, token by token, beginning with the token `first`.

    It does not use `generate`, which obeys the generation settings in the release. `generate` also stops at the end of
    a document, while blocks of pre-training text continue with the next document.
    """
    network.eval()
    tokens = torch.full((count, 1), first, device=network.device)
    memory: dict[str, Any] = {}
    while tokens.shape[1] < length:
        output = network(input_ids=tokens[:, -1:] if memory else tokens, use_cache=True, **memory)
        memory = {name: output[name] for name in MEMORIES if name in output}
        drawn = torch.multinomial(output.logits[:, -1].float().softmax(-1), 1)
        tokens = torch.cat([tokens, drawn], 1)
    return tokens


@dataclass(frozen=True)
class _Remembered(Prepared):
    """`text`: the text that the release generated [blocks, length]."""

    text: Tensor = field(kw_only=True)
