"""Paired sequences of a task: each prompt once with its right answer (harmful) and once with a refusal (harmless).

Defenses against harmful fine-tuning of chat models train on such pairs of a harmful answer and a refusal to one prompt.
In a classification task the right label is the harmful answer. The refusal is the token that ends a document: the model
stops instead of answering. It says nothing about the label, whereas a wrong label would rule one out.

The mask M marks where the two sequences of a pair differ, as in Rosati et al. 2024 (RepNoise, arXiv:2405.14577, and
loss.py of its code). Prompts are equal, so M marks the answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nftbench.contract import Task
from nftbench.data.splits import TextSplit
from nftbench.errors import NftbenchError
from nftbench.training.engine import shuffled


class Masked(NamedTuple):
    """Sequences padded on the right. `targets` [batch, length] are the tokens that follow `inputs` [batch, length].

    `mask` [batch, length] is M, moved by one: it is True where the *target* belongs to M. Training on M therefore
    means the outputs at these positions. Padding is False. As in all of nftbench no attention mask is needed, because
    under causal attention no token attends to padding behind it.
    """

    inputs: Tensor
    targets: Tensor
    mask: Tensor


class Pair(NamedTuple):
    """A batch of pairs: row i of both has the same prompt."""

    harmful: Masked
    harmless: Masked


@dataclass(frozen=True)
class HarmfulPairs:
    """The pairs of a task's training documents, as sequences of tokens."""

    harmful: Sequence[Sequence[int]]
    harmless: Sequence[Sequence[int]]

    @classmethod
    def of(cls, task: Task) -> HarmfulPairs:
        """The pairs of a task.

        Raises:
            NftbenchError: the task has no text, or its model's tokenizer no token that ends a document.
        """
        split = task.split("train")
        if not isinstance(split, TextSplit):
            raise NftbenchError("harmful and harmless answers need a text task, whose documents have prompts")
        end = split.encoder.tokenizer.eos_token_id
        if end is None:
            raise NftbenchError("the tokenizer has no token that ends a document, which is the harmless answer")
        encoded = split.encoder.encode([document.pairs[document.gold[0]] for document in split.documents])
        size = split.encoder.max_length + 1  # the last token of a sequence is a target only
        # As the task cuts it. Both sequences keep the same prompt, or M would mark the prompt too.
        prompts = [context[max(len(context) + len(answer) - size, 0) :] for context, answer in encoded]
        return cls(
            [prompt + answer for prompt, (_, answer) in zip(prompts, encoded, strict=True)],
            [[*prompt, int(end)] for prompt in prompts],
        )

    def __len__(self) -> int:
        return len(self.harmful)

    def batch(self, indices: Sequence[int], device: torch.device | str) -> Pair:
        """The chosen pairs."""
        chosen = [(self.harmful[index], self.harmless[index]) for index in indices]
        return Pair(_masked(chosen, device), _masked([(other, one) for one, other in chosen], device))

    def batches(self, size: int, seed: int, device: torch.device | str) -> Iterator[Pair]:
        """Endless batches of `size` pairs, or of all pairs where there are fewer. Each epoch has a new order."""
        for indices in shuffled(len(self), min(size, len(self)), seed):
            yield self.batch(indices, device)

    def parted(self, share: float) -> tuple[HarmfulPairs, HarmfulPairs]:
        """The pairs in two parts, the second with this share of them. Both have at least one pair."""
        cut = min(max(round(len(self) * (1 - share)), 1), len(self) - 1)
        return (
            HarmfulPairs(self.harmful[:cut], self.harmless[:cut]),
            HarmfulPairs(self.harmful[cut:], self.harmless[cut:]),
        )


def _masked(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], device: torch.device | str) -> Masked:
    """The first sequence of each pair, with M against the second."""
    length = max(len(own) for own, _ in pairs)
    tokens = torch.zeros(len(pairs), length, dtype=torch.long)
    differs = torch.zeros(len(pairs), length, dtype=torch.bool)
    for row, (own, other) in enumerate(pairs):
        tokens[row, : len(own)] = torch.tensor(own)
        marks = [index >= len(other) or token != other[index] for index, token in enumerate(own)]
        differs[row, : len(own)] = torch.tensor(marks)
    return Masked(tokens[:, :-1].to(device), tokens[:, 1:].to(device), differs[:, 1:].to(device))


def cross_entropy(logits: Tensor, sequences: Masked) -> Tensor:
    """CE_M: mean negative log-likelihood of the targets in M, in nats, from logits [batch, length, vocabulary]."""
    return nn.functional.cross_entropy(logits[sequences.mask], sequences.targets[sequences.mask])


def answer_tokens(task: Task) -> list[int]:
    """The first tokens of all answers that the training documents offer, each once and in increasing order.

    Raises:
        NftbenchError: the task has no text, or its answers all begin with the same token.
    """
    split = task.split("train")
    if not isinstance(split, TextSplit):
        raise NftbenchError("answers to choose from need a text task")
    pairs = [pair for document in split.documents for pair in document.pairs[: document.choices]]
    found = sorted({one.continuation[0] for one in split.encoder.encode(pairs)})
    if len(found) < 2:
        raise NftbenchError("all answers of the task begin with the same token, so none can be preferred")
    return found
