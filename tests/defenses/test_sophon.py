"""SOPHON: its divergence against SciPy, its gradient through an unrolled fine-tuning, its stop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch.func import functional_call

from nftbench.defenses import sophon
from nftbench.defenses.sophon import AfterFinetuning, Sophon, accuracy, after_finetuning, divergence
from nftbench.methods import seeded
from nftbench.methods.benign_text import text_batches, text_loss
from nftbench.methods.gradient_vectors import norm, weights_of
from nftbench.methods.harmful_pairs import HarmfulPairs
from nftbench.running.owner import Owner, make_base
from tests.checkpoints import fresh

WORDS = torch.tensor([3, 7, 11])
PAIRS = HarmfulPairs([[1, 2, 3], [5, 6, 7], [8, 9, 11, 3], [2, 2, 7]], [[1, 2, 0], [5, 6, 0], [8, 9, 0], [2, 2, 0]])


def tiny() -> Any:
    return fresh(words=12).double().eval()


def test_divergence_by_scipy() -> None:
    """Only the first token of an answer counts, and only the answers' words."""
    network, sequences = tiny(), PAIRS.batch(range(4), "cpu").harmful
    scores = network(input_ids=sequences.inputs).logits[:, 1, WORDS]
    wanted = [stats.entropy([1 / 3] * 3, row) for row in scores.softmax(-1).detach().numpy()]
    assert divergence(network, sequences, WORDS).item() == pytest.approx(np.mean(wanted), rel=1e-9)


def test_the_gradient_through_an_unrolled_finetuning() -> None:
    """First-order: each step's own gradient is a constant, and the copy's weights are the model's minus constants."""
    network, batches = tiny(), [PAIRS.batch(rows, "cpu").harmful for rows in ([0, 1, 2], [3, 2, 0])]
    found = after_finetuning(network, batches, WORDS, 0.5)
    unrolled = dict(network.named_parameters())
    values: list[torch.Tensor] = []
    for batch in batches:
        scores = functional_call(network, unrolled, kwargs={"input_ids": batch.inputs}).logits.log_softmax(-1)
        trained = batch.mask.clone()
        trained[0] = False  # the first of three rows is set aside
        loss = -scores[trained].gather(1, batch.targets[trained][:, None]).mean()
        slopes = torch.autograd.grad(loss, list(unrolled.values()), retain_graph=True)
        unrolled = {
            name: weight - 0.5 * slope.detach() for (name, weight), slope in zip(unrolled.items(), slopes, strict=True)
        }
        ahead = functional_call(network, unrolled, kwargs={"input_ids": batch.inputs}).logits[0, 1, WORDS]
        values.append(-ahead.log_softmax(-1).mean() - np.log(3))
    mean = torch.stack(values).mean()
    assert found.divergence == pytest.approx(mean.item(), rel=1e-8)
    for part, wanted in zip(found.gradient, torch.autograd.grad(mean, list(network.parameters())), strict=True):
        torch.testing.assert_close(part, wanted, rtol=1e-7, atol=1e-10)


def test_accuracy_by_hand() -> None:
    network = tiny().train()
    tokens = torch.randint(12, (5, 9), generator=torch.Generator().manual_seed(0))
    logits = network(input_ids=tokens).logits.detach().numpy()
    hits = [logits[row, column].argmax() == tokens[row, column + 1] for row in range(5) for column in range(8)]
    assert accuracy(network, tokens) == pytest.approx(np.mean(hits))
    assert network.training


def run(workspace: Callable[..., Any], **changes: Any) -> tuple[Any, Any]:
    small = {"steps": 3, "batch": 16, "inner_steps": 2, "learning_rate": 3e-3, "inner_rate": 0.3}
    settings: dict[str, Any] = {**small, **changes}
    defense = Sophon("toy_topic", **settings)
    where = workspace(pretraining={"steps": 60})
    return make_base(where, 0), defense.protect(make_base(where, 0), Owner(where, 0, defense.told()))


def test_loops_are_adams_on_both_gradients(workspace: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the first simulated fine-tuning finds a gradient that is clipped, and the second one that is not."""
    sizes = iter((1.0, -1e-3))

    def simulated(network: Any, *_: Any) -> AfterFinetuning:
        size = next(sizes)
        return AfterFinetuning([torch.full_like(weight, size) for weight in network.parameters()], 0.0)

    monkeypatch.setattr(sophon, "after_finetuning", simulated)
    monkeypatch.setattr(sophon, "KEPT", -1.0)
    base, protected = run(workspace, steps=2, alpha=2.0, beta=0.5, reinforce_steps=2, learning_rate=1e-3)
    owner = Owner(workspace(pretraining={"steps": 60}), 0)
    network, text = base.network.train(), text_batches(owner, 16, "cpu")
    weights = list(network.parameters())
    suppression, reinforcement = (torch.optim.Adam(weights, lr=rate) for rate in (2e-3, 5e-4))
    length = sum(weight.numel() for weight in weights) ** 0.5
    assert 1e-3 * length < 0.5 < length
    with seeded(owner.seed):
        for size in (0.5 / length, -1e-3):
            for weight in weights:
                weight.grad = torch.full_like(weight, size)
            suppression.step()
            for _ in range(2):
                for weight, slope in zip(
                    weights, torch.autograd.grad(text_loss(network, next(text)), weights), strict=True
                ):
                    weight.grad = slope
                reinforcement.step()
    for name, weight in protected.release.network.named_parameters():  # keys' biases have rounding for a gradient
        torch.testing.assert_close(weight, network.get_parameter(name), rtol=1e-4, atol=1e-5)


def test_steps_down_its_gradient_spoil_the_finetuning() -> None:
    network, batches = tiny(), [PAIRS.batch(rows, "cpu").harmful for rows in ([0, 1, 2], [3, 2, 0])]
    first = after_finetuning(network, batches, WORDS, 1.0)
    for _ in range(30):
        slope = after_finetuning(network, batches, WORDS, 1.0).gradient
        with torch.no_grad():
            for weight, part in zip(weights_of(network), slope, strict=True):
                weight -= 0.05 * part / norm(slope)
    assert after_finetuning(network, batches, WORDS, 1.0).divergence < 0.7 * first.divergence


def test_a_loop_that_spoils_the_original_task_is_taken_back(workspace: Callable[..., Any]) -> None:
    base, protected = run(workspace, learning_rate=3.0, reinforce_steps=0)
    released = dict(protected.release.network.named_parameters())
    assert len(protected.series[0].y) == 1
    for name, weight in base.network.named_parameters():
        assert torch.equal(weight, released[name]), name


def test_the_control_only_reinforces(workspace: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert Sophon("toy_topic", steps=9).control_row() == "sophon[harmful=toy_topic,alpha=0,steps=9]"
    assert Sophon("toy_topic", alpha=0.0).control_row() is None
    monkeypatch.setattr(sophon, "after_finetuning", lambda *_: pytest.fail("a fine-tuning was simulated"))
    base, protected = run(workspace, alpha=0.0)
    changed = dict(protected.release.network.named_parameters())
    assert any(not torch.equal(weight, changed[name]) for name, weight in base.network.named_parameters())
