"""Text without its first token: what is cut from the corpus, and the bits at which a network reads it, by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nftbench.running.owner import make_base
from nftbench.running.plain_text import SHORTEST, PlainTexts, collect, padded, read, read_ahead
from nftbench.running.workspace import Workspace, make_corpus


class Bigram(nn.Module):
    """Predicts the next of three tokens from this one, by a table of shares; `after_two` where a 2 came before."""

    def __init__(self, after_two: list[float] | None = None) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.5, 0.25, 0.25]]).log())
        self.after_two = after_two

    def forward(self, input_ids: Tensor) -> Any:
        logits = self.table[input_ids]
        if self.after_two:
            seen = (input_ids == 2).cumsum(1) > 0
            logits = torch.where(seen[..., None], torch.tensor(self.after_two).log(), logits)
        return SimpleNamespace(logits=logits)


def texts(**changes: Any) -> PlainTexts:
    return PlainTexts(**{"blocks": [[0, 0, 1]], "passages": [], "prompts": {}, "beginning": 2, **changes})


def test_padding_is_on_the_right() -> None:
    ids, real = padded([[1, 2, 3], [4]])
    assert ids.tolist() == [[1, 2, 3], [4, 0, 0]]
    assert real.tolist() == [[True, True, True], [True, False, False]]


def test_bits_are_counted_for_each_token_but_the_first() -> None:
    found = read(Bigram(), texts(passages=[[0, 1], [1, 1, 1, 0]], prompts={"topic": [[0], [0, 2]]}))
    assert found["text"] == pytest.approx((1 + 2) / 2)
    assert found["passages"] == pytest.approx((2 + 1 + 1 + 2) / 4)
    assert found["prompts of topic"] == pytest.approx(2)


def test_a_beginning_that_changes_nothing_moves_nothing() -> None:
    assert read(Bigram(), texts(prompts={"topic": [[0, 1], [1]]}))["beginning of topic"] == pytest.approx(0, abs=1e-9)


class Peeking(Bigram):
    """Knows nothing of what comes next where something does."""

    def forward(self, input_ids: Tensor) -> Any:
        logits = super().forward(input_ids).logits.clone()
        logits[:, :-1] = 0.0
        return SimpleNamespace(logits=logits)


def test_later_words_that_change_predictions_are_measured_by_their_divergence() -> None:
    blocks = [[0] * 9, [0] * 9]
    assert read_ahead(Bigram(), texts(blocks=blocks)) == pytest.approx(0, abs=1e-9)
    expected = math.log2(1 / 3) - (math.log2(0.5) + 2 * math.log2(0.25)) / 3
    assert read_ahead(Peeking(), texts(blocks=blocks)) == pytest.approx(expected)


def test_a_beginning_that_changes_predictions_is_measured_by_their_divergence() -> None:
    network = Bigram(after_two=[0.25, 0.25, 0.5])
    found = read(network, texts(prompts={"topic": [[0]]}))["beginning of topic"]
    assert found == pytest.approx(0.25 * math.log2(0.25 / 0.5) + 0.5 * math.log2(0.5 / 0.25))
    assert "beginning of topic" not in read(network, texts(prompts={"topic": [[0]]}, beginning=None))


def test_passages_and_prompts_have_no_special_token_and_no_answer(workspace: Any) -> None:
    here: Workspace = workspace()
    model, corpus = make_base(here, 0), make_corpus(here, 0)
    found = collect(here, 0, model)
    assert corpus.tokenizer.eos_token_id == found.beginning
    assert found.passages
    assert found.prompts.keys() == {"toy_topic"}
    for text in (*found.passages, *found.prompts["toy_topic"]):
        assert not set(text) & set(corpus.tokenizer.all_special_ids)
    assert min(map(len, found.passages)) >= SHORTEST
    answers = {"north", "south", "east", "west"}
    assert not answers & {word for text in found.prompts["toy_topic"] for word in corpus.tokenizer.decode(text).split()}
    assert read(model.network, found).keys() == {"text", "passages", "prompts of toy_topic", "beginning of toy_topic"}
