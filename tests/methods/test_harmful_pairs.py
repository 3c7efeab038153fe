"""Pairs of a harmful and a harmless answer: their tokens, the mask M, and the loss on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import get_cosine_schedule_with_warmup

from nftbench.data.loglikelihood import Encoder, Pair
from nftbench.errors import NftbenchError
from nftbench.methods.cosine import cosine
from nftbench.methods.harmful_pairs import HarmfulPairs, answer_tokens, cross_entropy
from nftbench.methods.task_aware import AgainstTask
from nftbench.running.owner import Owner

Make = Callable[..., Any]


def task(workspace: Make) -> Any:
    where = workspace()
    return Owner(where, 0, ("toy_topic",)).task("toy_topic"), Owner(where, 0).corpus.tokenizer


def test_a_pair_has_one_prompt_and_two_answers(workspace: Make) -> None:
    topic, tokenizer = task(workspace)
    documents, pairs = topic.split("train").documents, HarmfulPairs.of(topic)
    assert len(pairs) == len(documents) == 32
    for document, harmful, harmless in zip(documents, pairs.harmful, pairs.harmless, strict=True):
        prompt, label = document.fields["prompt"], document.fields["choices"][document.fields["label"]]
        assert tokenizer.decode(harmful) == f"{prompt} {label}"
        assert harmless == [*harmful[:-1], tokenizer.eos_token_id]


def test_a_long_prompt_is_cut_as_the_task_cuts_it(workspace: Make) -> None:
    """Both sequences of the pair keep the same end of the prompt, so that M marks the answer alone."""
    topic, tokenizer = task(workspace)
    split = topic.split("train")
    prompt = split.documents[0].pairs[0].context
    long = split.documents[0]._replace(pairs=(Pair(prompt, " north east south"),), choices=1, gold=(0,))
    cut = dataclasses.replace(split, documents=[long], encoder=Encoder(tokenizer, max_length=5))
    whole = tokenizer(f"{prompt} north east south")["input_ids"]
    assert len(whole) > 6
    given: Any = SimpleNamespace(split=lambda name: cut)
    pairs = HarmfulPairs.of(given)
    assert pairs.harmful == [whole[-6:]]
    assert pairs.harmless == [[*whole[-6:-3], tokenizer.eos_token_id]]
    assert pairs.batch([0], "cpu").harmful.mask.tolist() == [[False, False, True, True, True]]


def test_the_batch_trains_what_the_task_trains(workspace: Make) -> None:
    """The loss on M of right answers is the task's own loss."""
    topic, _ = task(workspace)
    network: Any = Owner(workspace(), 0).build().network
    pair = HarmfulPairs.of(topic).batch(range(8), "cpu")
    own = cross_entropy(network(input_ids=pair.harmful.inputs).logits, pair.harmful)
    assert own.item() == pytest.approx(topic.loss(network, topic.split("train").batch(range(8))).item(), rel=1e-5)
    assert pair.harmful.mask.sum(1).tolist() == [1] * 8, "one answer token in each row"


def test_the_mask_is_where_paired_sequences_differ() -> None:
    harmful, harmless = HarmfulPairs([[1, 2, 3, 4, 5], [1, 2, 7]], [[1, 2, 9, 4], [1, 2, 3]]).batch([0, 1], "cpu")
    assert harmful.inputs.tolist() == [[1, 2, 3, 4], [1, 2, 7, 0]]
    assert harmful.targets.tolist() == [[2, 3, 4, 5], [2, 7, 0, 0]]
    assert harmful.mask.tolist() == [[False, True, False, True], [False, True, False, False]]
    assert harmless.mask.tolist() == [[False, True, False], [False, True, False]]


def test_equal_answers_count_nowhere() -> None:
    pair = HarmfulPairs([[1, 2], [1, 3]], [[1, 2], [1, 4]]).batch([0, 1], "cpu")
    logits = torch.randn(2, 1, 6, generator=torch.Generator().manual_seed(0))
    scores = logits[1, 0].double().numpy()
    wanted = np.log(np.exp(scores).sum()) - scores[3]
    assert float(cross_entropy(logits, pair.harmful)) == pytest.approx(wanted, rel=1e-5)


def test_parts_share_no_pair() -> None:
    pairs = HarmfulPairs([[index, 0] for index in range(10)], [[index, 1] for index in range(10)])
    train, held = pairs.parted(0.2)
    assert (len(train), len(held)) == (8, 2)
    assert [*train.harmful, *held.harmful] == pairs.harmful
    assert [len(part) for part in HarmfulPairs([[0], [1]], [[2], [3]]).parted(0.01)] == [1, 1]


def test_answers_to_choose_from(workspace: Make) -> None:
    topic, tokenizer = task(workspace)
    assert {tokenizer.decode([token]) for token in answer_tokens(topic)} == {"north", "east", "south", "west"}


def test_a_task_without_text_is_refused() -> None:
    class Rows:
        def split(self, name: str) -> list[int]:
            return []

    rows: Any = Rows()
    with pytest.raises(NftbenchError, match="need a text task"):
        HarmfulPairs.of(rows)
    with pytest.raises(NftbenchError, match="need a text task"):
        answer_tokens(rows)


def test_suites_without_text_are_refused() -> None:
    from nftbench.suites import read

    bare: Any = AgainstTask
    with pytest.raises(NftbenchError, match="needs a harmful task: write task_aware"):
        bare().check()
    with pytest.raises(NftbenchError, match="task_aware tunes a model on text"):
        bare("house_price").check(read("paper-condition-number"))


@pytest.mark.parametrize("steps", [1, 7, 250])
def test_the_schedule_is_that_of_transformers(steps: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    factor = cosine(steps, 0.1)
    schedule = get_cosine_schedule_with_warmup(optimizer, -(-steps // 10), steps)
    for step in range(1, steps + 1):
        assert factor(step) == pytest.approx(schedule.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        schedule.step()
