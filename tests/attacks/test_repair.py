"""Repair: utility on text is measured by its definition, and no result below the guard is returned."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nftbench.attacks.repair import share
from nftbench.contract import Model, Prepared
from nftbench.methods.with_text import WithText
from nftbench.planning import registry
from nftbench.training.engine import Stepper
from tests.attacks.planted import BUDGET, WORDS, Both, Reader, attacked, undefended

TEXT = torch.arange(WORDS).repeat(16, 2)[:, :8]  # a text that is easy to predict


def loss(network: nn.Module, tokens: Tensor) -> float:
    with torch.no_grad():
        logits = network(input_ids=tokens).logits[:, :-1].double().log_softmax(-1)
    return -float(logits.gather(-1, tokens[:, 1:, None]).mean())


def reader() -> PreTrainedModel:
    """A network that has learnt the text."""
    network = undefended()
    stepper = Stepper(network, "adamw", 1e-2, factor=lambda step: 1.0, weight_decay=0.0, clip=1.0)
    for _ in range(30):
        stepper.step(network(input_ids=TEXT, labels=TEXT).loss)
    return network.eval()


def test_utility_is_the_gain_over_the_frequencies_of_tokens() -> None:
    release, other = reader(), undefended()
    with torch.no_grad():
        for own, trained in zip(other.parameters(), release.parameters(), strict=True):
            own.lerp_(trained, 0.8)
    floor = math.log(8)  # eight words, equally often
    wanted = (floor - loss(other, TEXT)) / (floor - loss(release, TEXT))
    assert share(release, release, TEXT) == pytest.approx(1.0)
    assert share(other, release, TEXT) == pytest.approx(wanted, rel=1e-4)
    assert wanted < 1


def test_a_release_without_utility_has_none_to_lose() -> None:
    assert share(undefended(), undefended(), TEXT) == 1.0


def test_the_loss_is_the_weighted_sum_and_scores_do_not_change() -> None:
    network, task = undefended(), Both()
    mixed = WithText(task, TEXT, 0.25)
    rows = mixed.split("train").batch([3, 20])
    text = TEXT[[3, 4]]
    wanted = 0.75 * float(task.loss(network, task.split("train").batch([3, 20])).detach()) + 0.25 * loss(network, text)
    assert float(mixed.loss(network, rows).detach()) == pytest.approx(wanted, rel=1e-4)
    test = task.split("test")
    assert mixed.evaluate(network, mixed.split("test")) == task.evaluate(network, test)


def test_the_result_keeps_utility_where_plain_training_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    release = reader()
    monkeypatch.setattr("tests.attacks.planted.Reader.text", lambda *_: iter(lambda: TEXT, None))
    longer = BUDGET.model_copy(update={"preparation_steps": 150})
    plain, repaired = attacked("full", release), attacked("repair", release, longer)
    assert plain[0] > 0.95
    assert share(plain[1].network, release, TEXT) < 0.9 <= share(repaired[1].network, release, TEXT)
    assert repaired[0] > 0.9


def test_steps_of_the_second_stage_count_once() -> None:
    """They are steps of preparation, which what an attacker has spent by a point of the curve adds to the point's."""
    task, plugin = Both(), registry.create("attacks", "repair")
    context = Reader(seed=0, budget=BUDGET)
    outcome = plugin.adapt(Prepared(Model(undefended())), task, context)
    assert context.ledger.steps == BUDGET.preparation_steps
    assert max(point.step for point in outcome.curve) == max(BUDGET.durations)
    assert outcome.picked.learning_rate > 0
    assert not outcome.stuck


def test_without_a_network_above_the_guard_the_release_is_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    release = reader()
    monkeypatch.setattr("tests.attacks.planted.Reader.text", lambda *_: iter(lambda: TEXT, None))
    monkeypatch.setattr("nftbench.attacks.repair.share", lambda network, release, text: float(network is release))
    _, outcome = attacked("repair", release)
    assert outcome.picked.step == 0
    weights = zip(outcome.network.parameters(), release.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in weights)
    assert outcome.stuck
