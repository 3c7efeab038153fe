"""Prefix: the task's prompts are read behind other text, and every weight is fine-tuned.

A release may read prompts unlike running text, because packed text contains the token that ends a document, and prompts
do not. In front of the prompts the attacker puts that token, or text like the pre-training text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn
from transformers import PreTrainedModel

from nftbench import Attack, AttackerContext, Knowledge, NftbenchError, Outcome, Prepared, Task
from nftbench.methods import Prefixed, adapters, window


@dataclass(frozen=True)
class Prefix(Attack):
    """`text`: `end` for the token that ends a document, `passage` for the end of a passage of public text and that
    token. `length`: of the passage, in tokens. `frozen`: how many of the first blocks are not trained. Whatever looks
    for the beginning of text in them stays as it is."""

    text: Literal["end", "passage"] = "end"
    length: int = 8
    frozen: int = 0

    def __post_init__(self) -> None:
        if self.length < 1 or self.frozen < 0:
            raise ValueError("length must be at least 1 and frozen at least 0")

    @property
    def knowledge(self) -> frozenset[Knowledge]:
        return frozenset({"method", "data"} if self.text == "passage" else {"method"})

    def adapt(self, prepared: Prepared, task: Task, context: AttackerContext) -> Outcome:
        model = prepared.model
        if model.tokenizer is None:
            raise NftbenchError("prefix: the model reads no text")
        end = model.tokenizer.eos_token_id
        if end is None:
            raise NftbenchError("prefix: the tokenizer has no token that ends a document")
        passage: list[int] = next(context.text(model, 1))[0, -self.length :].tolist() if self.text == "passage" else []

        def adapter(network: PreTrainedModel, attack_seed: int) -> nn.Module:
            blocks = adapters.blocks(network)
            if len(blocks) < self.frozen:
                raise NftbenchError(f"prefix: the network has {len(blocks)} blocks, not {self.frozen}")
            blocks[: self.frozen].requires_grad_(False)
            return Prefixed(network, [*passage, end], window(model))

        return context.sweep(model, task, adapter=adapter)
