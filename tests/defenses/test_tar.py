"""TAR: entropy, retained loss and random mapping against NumPy, and the gradients under attack against a plain loop."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from nftbench.defenses import tar
from nftbench.defenses.tar import Attacker, Tar, entropy, mapping_loss, retained_loss, under_attack
from nftbench.methods import seeded
from nftbench.methods.benign_text import text_batches
from nftbench.methods.harmful_pairs import HarmfulPairs
from nftbench.running.owner import Owner, make_base
from tests.checkpoints import fresh

PAIRS = HarmfulPairs([[1, 2, 3, 4], [5, 6, 7], [8, 9, 2, 3]], [[1, 2, 0], [5, 6, 0], [8, 9, 0]])
TEXT = torch.randint(12, (3, 8), generator=torch.Generator().manual_seed(4))


def tiny(seed: int = 0) -> Any:
    return fresh(words=12, seed=seed).double().eval()


def test_entropy_by_scipy() -> None:
    network, sequences = tiny(), PAIRS.batch(range(3), "cpu").harmful
    chances = network(input_ids=sequences.inputs).logits.softmax(-1).detach().numpy()
    wanted = [stats.entropy(chances[row, column]) for row, column in np.argwhere(sequences.mask.numpy())]
    assert entropy(network, sequences).item() == pytest.approx(np.mean(wanted), rel=1e-10)


def test_retained_loss_by_hand() -> None:
    network, base = tiny(), tiny(1)
    own, other = (model(input_ids=TEXT, output_hidden_states=True) for model in (network, base))
    scores = own.logits[:, :-1].log_softmax(-1).detach().numpy()
    loss = -np.mean([scores[row, column, TEXT[row, column + 1]] for row in range(3) for column in range(7)])
    apart = [
        np.linalg.norm((a - b).detach().numpy(), axis=-1).mean()
        for a, b in zip(own.hidden_states, other.hidden_states, strict=True)
    ]
    assert len(apart) == 2
    assert retained_loss(network, base, TEXT).item() == pytest.approx(loss + np.mean(apart), rel=1e-6)
    still = torch.autograd.grad(retained_loss(network, network, TEXT), list(network.parameters()))
    assert all(bool(torch.isfinite(part).all()) for part in still), "no distance, and yet a gradient"


def test_random_mapping_by_hand() -> None:
    network, sequences = tiny(), PAIRS.batch(range(3), "cpu").harmful
    directions = torch.randn(12, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    states = network(input_ids=sequences.inputs, output_hidden_states=True).hidden_states
    terms = []
    for state in states:
        for row, column in np.argwhere(sequences.mask.numpy()):
            h, r = state[row, column].detach().numpy(), directions[sequences.inputs[row, column]].numpy()
            terms.append(1 - abs(h @ r) / np.linalg.norm(h) / np.linalg.norm(r))
    assert mapping_loss(network, sequences, directions).item() == pytest.approx(np.mean(terms), rel=1e-10)


def test_gradients_under_attack_by_a_plain_loop() -> None:
    """AdamW written out: betas 0.9 and 0.999, decay 0.01, on text for two steps and then on harmful answers for six."""
    network, held = tiny(), PAIRS.batch([2, 0], "cpu").harmful
    before = [weight.detach().clone() for weight in network.parameters()]
    harmful = PAIRS.batch([0, 1], "cpu").harmful
    attacker = Attacker(1e-2, 2, 8)
    found = under_attack(network, [TEXT, TEXT, *[harmful] * 6], held, attacker)

    copied = tiny()
    weights = list(copied.parameters())
    first, second = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))
    total = [torch.zeros_like(weight) for weight in weights]
    for step in range(8):
        if step < 2:
            loss = copied(input_ids=TEXT, labels=TEXT).loss
        else:
            scores = copied(input_ids=harmful.inputs).logits.log_softmax(-1)
            loss = -(scores[0, 1, 3] + scores[0, 2, 4] + scores[1, 1, 7]) / 3
        slopes = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            for weight, slope, m, v in zip(weights, slopes, first, second, strict=True):
                weight *= 1 - 1e-2 * 0.01
                m.mul_(0.9).add_(0.1 * slope)
                v.mul_(0.999).add_(0.001 * slope**2)
                rise = m / (1 - 0.9 ** (step + 1))
                weight -= 1e-2 * rise / ((v / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
        if step in (3, 7):
            scores = copied(input_ids=held.inputs).logits.log_softmax(-1)
            inside = scores[held.mask]
            spread = -(inside.exp() * inside).sum() / len(inside)
            weight_of_step = math.exp(0.0625 * (step - 7))
            for part, slope in zip(total, torch.autograd.grad(spread, weights), strict=True):
                part -= weight_of_step * slope
    for part, wanted in zip(found.gradient, total, strict=True):
        torch.testing.assert_close(part, wanted, rtol=1e-6, atol=1e-9)
    assert found.entropy == pytest.approx(spread.item(), rel=1e-8)
    assert all(torch.equal(weight, old) for weight, old in zip(network.parameters(), before, strict=True))


def test_attackers_are_drawn_as_in_the_authors_script() -> None:
    defense, source = Tar("t"), np.random.default_rng(0)
    drawn = [defense.draw(source) for _ in range(6000)]
    rates = [one.learning_rate for one in drawn]
    for rate in (2e-6, 2e-5, 4e-5):
        assert sum(math.isclose(one, rate) for one in rates) / 6000 == pytest.approx(1 / 3, abs=0.02)
    switching = [one.on_text for one in drawn if one.on_text]
    assert len(switching) / 6000 == pytest.approx(1 / 3, abs=0.02)
    assert np.mean(switching) / 64 == pytest.approx(6 / 9, abs=0.02)  # the mean of Beta(6, 3)
    assert max(switching) < 64


def run(workspace: Callable[..., Any], **changes: Any) -> tuple[Any, Any]:
    small = {"steps": 3, "batch": 8, "warmup": 0, "inner_steps": 4, "adversary_batch": 8, "mapping_steps": 2}
    settings: dict[str, Any] = {**small, "learning_rate": 3e-3, "adversary_rate": 3e-3, **changes}
    defense = Tar("toy_topic", **settings)
    where = workspace(pretraining={"steps": 60})
    return make_base(where, 0), defense.protect(make_base(where, 0), Owner(where, 0, defense.told()))


def test_the_control_simulates_no_attack(workspace: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert Tar("toy_topic", steps=9).control_row() == "tar[harmful=toy_topic,strength=0,steps=9]"
    assert Tar("toy_topic", strength=0.0).control_row() is None
    monkeypatch.setattr(tar, "under_attack", lambda *_: pytest.fail("an attack was simulated"))
    run(workspace, strength=0.0)


def test_the_control_retains_the_same_text(workspace: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Though a simulated attacker reads text too, in batches of its own size."""
    read: list[Tensor] = []
    attacked: list[int] = []

    def retained(network: Any, base: Any, tokens: Tensor) -> Tensor:
        read.append(tokens)
        return retained_loss(network, base, tokens)

    def simulated(network: Any, batches: Any, held_out: Any, attacker: Attacker) -> tar.UnderAttack:
        attacked.extend(len(batch) for batch in batches if isinstance(batch, Tensor))
        return under_attack(network, batches, held_out, attacker)

    monkeypatch.setattr(tar, "retained_loss", retained)
    monkeypatch.setattr(tar, "under_attack", simulated)
    monkeypatch.setattr(Tar, "draw", lambda self, source: Attacker(1e-3, 2, 4))
    for strength in (4.0, 0.0):
        run(workspace, strength=strength, batch=4)
    assert len(read) == 6
    assert all(torch.equal(one, other) for one, other in zip(read[:3], read[3:], strict=True))
    assert attacked == [8] * 6


def test_outer_steps_are_adamws_on_both_gradients(
    workspace: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where every attack finds the same gradient, 0.01 in each weight. No decay, no clipping, and a warm-up."""

    def simulated(network: Any, *_: Any) -> tar.UnderAttack:
        return tar.UnderAttack([torch.full_like(weight, 0.01) for weight in network.parameters()], 0.0)

    monkeypatch.setattr(tar, "under_attack", simulated)
    settings: dict[str, Any] = {"strength": 3.0, "retain": 0.2, "warmup": 2, "mapping_steps": 0, "learning_rate": 1e-2}
    base, protected = run(workspace, **settings)
    owner = Owner(workspace(pretraining={"steps": 60}), 0)
    network, start = base.network.train(), copy.deepcopy(base.network).eval()
    weights = list(network.parameters())
    optimizer = torch.optim.AdamW(weights, weight_decay=0.0)
    with seeded(owner.seed):
        for rate, tokens in zip((0.0, 5e-3, 1e-2), text_batches(owner, 8, "cpu"), strict=False):
            slopes = torch.autograd.grad(retained_loss(network, start, tokens), weights)
            for weight, slope in zip(weights, slopes, strict=True):
                weight.grad = 0.2 * slope + 3.0 * 0.01
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
    for name, weight in protected.release.network.named_parameters():
        torch.testing.assert_close(weight, network.get_parameter(name), rtol=1e-4, atol=1e-6)


def test_it_keeps_answers_uncertain_under_attack(workspace: Callable[..., Any]) -> None:
    """After training for it, an attack of the same kind ends with more entropy than on the base."""
    base, protected = run(workspace, steps=40, inner_steps=16, learning_rate=1e-2, adversary_rate=1e-2)
    where = workspace(pretraining={"steps": 60})
    pairs = HarmfulPairs.of(Owner(where, 0, ("toy_topic",)).task("toy_topic"))
    train = [pairs.batch(range(start, start + 8), "cpu").harmful for start in 5 * (0, 8, 16) + (0,)]
    held = pairs.batch(range(24, 32), "cpu").harmful
    ends = [
        under_attack(model.network, train, held, Attacker(1e-2, 0, 16)).entropy for model in (base, protected.release)
    ]
    assert ends[1] > ends[0] + 0.5
    assert [series.name for series in protected.series][1] == "entropy after the attack"
