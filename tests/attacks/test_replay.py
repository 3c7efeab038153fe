"""Replay: the text is the release's own, drawn token by token, and the loss is the weighted sum."""

from __future__ import annotations

import copy
from importlib import import_module
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from nftbench.contract import Attack, Model, Release
from nftbench.errors import NftbenchError
from nftbench.methods.with_text import WithText
from nftbench.models.architectures import dlr
from nftbench.models.networks import seeded
from nftbench.planning import registry
from nftbench.testing import ARCHITECTURES, FirstWord, attack_inputs, task_context, temporary_workspace, tiny_suite
from nftbench.training.engine import Stepper
from tests.checkpoints import fresh

replay = import_module("nftbench.attacks.replay")


def base(kind: str, **changes: Any) -> PreTrainedModel:
    """A network with unequal word probabilities; those of a fresh one are nearly equal."""
    network = fresh(kind, 12, **changes)
    generator = torch.Generator().manual_seed(1)
    for weight in network.parameters():
        if weight.ndim == 2:
            nn.init.normal_(weight, std=0.4, generator=generator)
    return network.eval()


def released(spec: str, kind: str = "gpt2") -> tuple[Attack, Release, Any, Any]:
    """An attack, the tiny release, the attack's context and a task."""
    attack: Attack = registry.create("attacks", spec)
    with temporary_workspace(tiny_suite(kind)) as workspace:
        release, context = attack_inputs(workspace, attack)
        return attack, release, context, FirstWord().load(task_context(workspace, release.model))


# ------------------------------------------------------------------------------------------------------------ the text


@pytest.mark.parametrize(
    ("kind", "locked"), [*product(ARCHITECTURES, [False, True]), *product(["mamba", "mamba2", "falcon_h1"], [False])]
)
def test_each_token_is_drawn_given_all_tokens_before_it(kind: str, locked: bool) -> None:
    """The same random draws without a cache: one pass over the whole text for each token."""
    network = dlr.lock(base(kind), 2).eval() if locked else base(kind)
    with seeded(4):
        found = replay.written(network, 3, 6, 20)
    tokens = torch.full((6, 1), 3)
    with seeded(4), torch.no_grad():
        for _ in range(19):
            shares = network(input_ids=tokens).logits[:, -1].softmax(-1)
            tokens = torch.cat([tokens, torch.multinomial(shares, 1)], 1)
    assert torch.equal(found, tokens)
    assert len({tuple(row) for row in found.tolist()}) == 6


def test_words_are_as_frequent_as_the_model_says() -> None:
    network, count = base("gpt2"), 4000
    with seeded(0):
        text = replay.written(network, 3, count, 3)
    with torch.no_grad():
        first = network(input_ids=torch.tensor([[3]])).logits[0, -1].double().softmax(-1)
        second = network(input_ids=torch.tensor([[3, word] for word in range(12)])).logits[:, -1].double().softmax(-1)
    for column, shares in ((1, first), (2, first @ second)):
        found = torch.bincount(text[:, column], minlength=12) / count
        errors = (found - shares) / (shares * (1 - shares) / count).sqrt()
        assert float(errors.abs().max()) < 4
    assert float((first - 1 / 12).abs().max()) > 0.05


def test_generation_settings_of_the_release_are_ignored() -> None:
    """Generation settings are published with a release, and a text does not end where a document does."""
    network, other = base("gpt2"), base("gpt2", eos_token_id=3, bos_token_id=3)
    other.generation_config.update(top_k=1, temperature=0.1, repetition_penalty=5.0, eos_token_id=3, max_length=4)
    texts = []
    for one in (network, other):
        with seeded(2):
            texts.append(replay.written(one, 3, 50, 30))
    assert torch.equal(*texts)
    assert bool((texts[0][:, 1:-1] == 3).any())


def test_text_fits_the_window(cache: Any) -> None:
    attack, release, context, _ = released("replay[blocks=3,length=500]")
    text = attack.prepare(release, context).text  # type: ignore[attr-defined]
    assert text.shape == (3, 64)
    assert (text[:, 0] == release.model.tokenizer.bos_token_id).all()  # type: ignore[union-attr]
    again = attack.prepare(release, context).text  # type: ignore[attr-defined]
    assert torch.equal(text, again)


def test_a_release_without_words_is_refused(cache: Any) -> None:
    attack, release, context, _ = released("replay")
    with pytest.raises(NftbenchError, match="no token to begin a text with"):
        attack.prepare(Release(Model(release.model.network)), context)


# ------------------------------------------------------------------------------------------------------------ the loss


class Sweeping:
    """A context whose sweep returns the task that it is given."""

    def sweep(self, model: Model, task: Any, **options: Any) -> Any:
        assert not options
        return task


def mixed(spec: str) -> tuple[Any, Any, Release, Any]:
    """The mixed task, the plain one, the release and the context."""
    attack, release, context, task = released(spec)
    return attack.adapt(attack.prepare(release, context), task, Sweeping()), task, release, context  # type: ignore[arg-type]


def test_the_loss_is_the_weighted_sum(cache: Any) -> None:
    both, task, release, _ = mixed("replay[share=0.3,blocks=10,length=9]")
    network, rows = release.model.network, [0, 7, 13, 63]
    tokens = both.text[[0, 7, 3, 3]]
    with torch.no_grad():
        found = both.loss(network, both.split("train").batch(rows))
        likely = network(input_ids=tokens).logits[:, :-1].double().log_softmax(-1).gather(-1, tokens[:, 1:, None])
        own = task.loss(network, task.split("train").batch(rows))
    assert float(found) == pytest.approx(0.7 * float(own) - 0.3 * float(likely.mean()), rel=1e-5)


def test_replayed_text_is_mixed_into_training_only(cache: Any) -> None:
    both, task, release, _ = mixed("replay[blocks=4,length=5]")
    assert len(both.split("train")) == len(task.split("train"))
    for name in ("validation", "test"):
        assert both.split(name) is task.split(name)
    network = release.model.network
    assert both.evaluate(network, both.split("test")) == task.evaluate(network, task.split("test"))


def test_replay_keeps_the_text_loss_lower() -> None:
    network = base("gpt2")
    plain = FirstWord().load(SimpleNamespace(model=Model(network)))  # type: ignore[arg-type]
    with seeded(9):
        text, heldout = replay.written(network, 3, 256, 24).split(128)

    def losses(network: nn.Module) -> tuple[float, float]:
        """On text of the release's that is not replayed, and on the task."""
        with torch.no_grad():
            own = plain.loss(network, plain.split("train").batch(range(64)))
            return float(network(input_ids=heldout, labels=heldout).loss), float(own)

    def trained(task: Any) -> tuple[float, float]:
        own = copy.deepcopy(network)
        stepper = Stepper(own, "adamw", 1e-2, factor=lambda step: 1.0, weight_decay=0.0, clip=1.0)
        for _ in range(30):
            stepper.step(task.loss(own, task.split("train").batch(range(64))))
        return losses(own)

    before, kept, forgot = losses(network), trained(WithText(plain, text, 0.7)), trained(plain)
    assert before[0] <= kept[0] < forgot[0] - 0.2
    assert kept[1] < before[1] - 0.5
