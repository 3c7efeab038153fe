"""The engine: masked weights keep their bits, and steps agree with optimizers written by hand."""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_with_min_lr_schedule_with_warmup,
    get_polynomial_decay_schedule_with_warmup,
    get_scheduler,
    get_wsd_schedule,
)

from nftbench.device import CPU
from nftbench.errors import NftbenchError
from nftbench.suites.schema import Pretraining
from nftbench.testing import ARCHITECTURES
from nftbench.training import engine
from nftbench.training.engine import Stepper
from tests.checkpoints import fresh

Weights = dict[str, Tensor]
OPTIMIZERS = ("adamw", "sgd", "muon")


class Net(nn.Module):
    """Two matrices, a norm, an embedding: everything that optimizers treat differently."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.norm = nn.LayerNorm(6)
        self.hidden = nn.Linear(6, 5)
        self.head = nn.Linear(5, 3)

    def get_output_embeddings(self) -> nn.Linear:
        return self.head

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.hidden(self.norm(self.table(ids).mean(1)))))  # type: ignore[no-any-return]


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net()


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randint(11, (8, 4), generator=generator), torch.randint(3, (8,), generator=generator)


def loss(network: nn.Module, step: int) -> Tensor:
    ids, labels = batch(step)
    return nn.functional.cross_entropy(network(ids), labels)


def weights(network: nn.Module) -> Weights:
    return {name: weight.detach().clone() for name, weight in network.named_parameters()}


def random_mask(network: nn.Module, ratio: float = 0.5, seed: int = 1) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(weight.shape, generator=generator) < ratio for name, weight in network.named_parameters()}


def stepper(network: nn.Module, optimizer: Any = "adamw", **changes: Any) -> Stepper:
    options: dict[str, Any] = {"factor": lambda _: 1.0, "weight_decay": 0.1, "clip": 1.0, **changes}
    return Stepper(network, optimizer, options.pop("rate", 1e-2), **options)


def run_steps(network: nn.Module, one: Stepper, count: int = 6) -> None:
    for step in range(count):
        one.step(loss(network, step))


# --------------------------------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_masked_weights_keep_their_bits_and_the_others_change(optimizer: str) -> None:
    network = net()
    mask, before = random_mask(network), weights(network)
    run_steps(network, stepper(network, optimizer, mask=mask))
    moved = frozen = 0
    for name, after in weights(network).items():
        kept = mask[name]
        assert torch.equal(after[~kept], before[name][~kept]), name
        moved += int((after != before[name])[kept].sum())
        frozen += int((~kept).sum())
    assert frozen > 50
    assert moved == sum(int(kept.sum()) for kept in mask.values())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_without_restoring_a_mask_would_leak(optimizer: str) -> None:
    """Zeroed gradients alone are not enough: weight decay moves the rest, and Muon mixes coordinates."""
    network = net()
    mask, before = random_mask(network), weights(network)
    one = stepper(network, optimizer)
    for step in range(3):
        hooks = [weight.register_hook(mask[name].float().mul) for name, weight in network.named_parameters()]
        one.step(loss(network, step))
        for hook in hooks:
            hook.remove()
    name = "hidden.weight"
    assert not torch.equal(weights(network)[name][~mask[name]], before[name][~mask[name]])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_mask_that_keeps_all_changes_nothing(optimizer: str) -> None:
    plain, masked = net(), net()
    run_steps(plain, stepper(plain, optimizer))
    everything = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in masked.named_parameters()}
    run_steps(masked, stepper(masked, optimizer, mask=everything))
    assert all(torch.equal(one, weights(masked)[name]) for name, one in weights(plain).items())


def test_clipping_takes_the_norm_of_the_free_weights_alone() -> None:
    network = net()
    mask = random_mask(network, 0.1)
    one = stepper(network, clip=1e-3, mask=mask)
    one.step(loss(network, 0) * 1e3)
    norm = torch.sqrt(sum((weight.grad.square().sum() for weight in network.parameters()), torch.tensor(0.0)))  # type: ignore[union-attr]
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)
    assert all(not weight.grad[~mask[name]].any() for name, weight in network.named_parameters())  # type: ignore[index]


@settings(max_examples=25)
@given(
    ratio=st.sampled_from([0.2, 0.7, 1.0]),
    decay=st.sampled_from([0.0, 0.1]),
    clip=st.sampled_from([None, 0.05, 1.0]),
    betas=st.sampled_from([(0.9, 0.999), (0.9, 0.95)]),
    warmup=st.integers(0, 4),
)
def test_masked_adamw_agrees_with_one_written_by_hand(
    ratio: float, decay: float, clip: float | None, betas: tuple[float, float], warmup: int
) -> None:
    """Loshchilov and Hutter 2019, algorithm 2, in float64 numpy, with gradients and decay only where the mask is."""
    network = net().double()
    mask = random_mask(network, ratio)
    theirs = copy.deepcopy(network)
    value = {name: weight.detach().numpy().copy() for name, weight in theirs.named_parameters()}
    first = {name: np.zeros_like(one) for name, one in value.items()}
    second = {name: np.zeros_like(one) for name, one in value.items()}
    factor = lambda step: min(1.0, step / max(warmup, 1))  # noqa: E731
    one = stepper(network, mask=mask, weight_decay=decay, clip=clip, betas=betas, factor=factor)
    for step in range(1, 7):
        one.step(loss(network, step))
        with torch.no_grad():
            for name, weight in theirs.named_parameters():
                weight.copy_(torch.from_numpy(value[name]))
        gradients = torch.autograd.grad(loss(theirs, step), list(theirs.parameters()))
        gradient = {name: g.numpy() * mask[name].numpy() for name, g in zip(value, gradients, strict=True)}
        if clip is not None:
            norm = np.sqrt(sum(np.square(g).sum() for g in gradient.values()))
            gradient = {name: g * min(1.0, clip / (norm + 1e-6)) for name, g in gradient.items()}
        rate = 1e-2 * factor(step)
        for name, g in gradient.items():
            first[name] = betas[0] * first[name] + (1 - betas[0]) * g
            second[name] = betas[1] * second[name] + (1 - betas[1]) * g**2
            update = (first[name] / (1 - betas[0] ** step)) / (np.sqrt(second[name] / (1 - betas[1] ** step)) + 1e-8)
            shrink = rate * (decay if value[name].ndim >= 2 else 0.0)
            value[name] = value[name] - mask[name].numpy() * (shrink * value[name] + rate * update)
    for name, weight in network.named_parameters():
        np.testing.assert_allclose(weight.detach().numpy(), value[name], rtol=1e-10, atol=1e-12, err_msg=name)


def test_sgd_agrees_with_momentum_written_by_hand() -> None:
    network = net().double()
    theirs, momentum = copy.deepcopy(network), {}
    one = stepper(network, "sgd", weight_decay=0.1, clip=None)
    for step in range(5):
        one.step(loss(network, step))
        gradients = torch.autograd.grad(loss(theirs, step), list(theirs.parameters()))
        with torch.no_grad():
            for (name, weight), g in zip(theirs.named_parameters(), gradients, strict=True):
                g = g + (0.1 * weight if weight.ndim >= 2 else 0)
                momentum[name] = 0.9 * momentum[name] + g if name in momentum else g
                weight.sub_(1e-2 * momentum[name])
    for (name, one_), other in zip(network.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one_, other, rtol=1e-10, atol=1e-12, msg=name)


def test_muon_takes_hidden_matrices_and_adamw_the_rest() -> None:
    network = net()
    muon, adamw = stepper(network, "muon").optimizers
    assert isinstance(muon, torch.optim.Muon)
    assert [id(weight) for group in muon.param_groups for weight in group["params"]] == [id(network.hidden.weight)]
    rest = {id(weight) for weight in network.parameters()} - {id(network.hidden.weight)}
    assert {id(weight) for group in adamw.param_groups for weight in group["params"]} == rest


def test_matrices_decay_and_vectors_do_not() -> None:
    for optimizer in OPTIMIZERS:
        for one in stepper(net(), optimizer).optimizers:
            for group in one.param_groups:
                assert {group["weight_decay"]} == {0.1 if weight.ndim >= 2 else 0.0 for weight in group["params"]}


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ({}, "the mask has no entry for parameter 'table.weight'"),
        ({"table.weight": torch.ones(3)}, "the mask has no entry for parameter 'norm.weight'"),
        (
            {**random_mask(net()), "norm.weight": torch.ones(7, dtype=torch.bool)},
            r"mask of 'norm.weight' has shape \(7,\), not \(6,\)",
        ),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(mask: Weights, expected: str) -> None:
    with pytest.raises(NftbenchError, match=expected):
        stepper(net(), mask=mask)


def test_a_network_without_trainable_weights_is_refused() -> None:
    with pytest.raises(NftbenchError, match="nothing to train"):
        stepper(net().requires_grad_(False))


def test_parameters_that_need_no_gradient_are_left_alone() -> None:
    network = net()
    network.hidden.requires_grad_(False)
    before = weights(network)
    run_steps(network, stepper(network))
    for name, after in weights(network).items():
        assert torch.equal(after, before[name]) == name.startswith("hidden"), name


def test_gradients_are_kept_until_after_the_step() -> None:
    network = net()
    stepper(network).step(loss(network, 0))
    assert all(weight.grad is not None for weight in network.parameters())


# ---------------------------------------------------------------------------------------------------------- schedules


RECIPE = Pretraining(steps=40, warmup=10, batch=4, learning_rate=1e-2)


def library_schedule(recipe: Pretraining) -> list[float]:
    """The multiples of the learning rate that the schedule of this name in transformers gives at each step."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    warmup, steps, final = recipe.warmup, recipe.steps, recipe.final
    found = {
        "constant": lambda: get_constant_schedule_with_warmup(optimizer, warmup),
        "cosine": lambda: get_cosine_with_min_lr_schedule_with_warmup(optimizer, warmup, steps, min_lr_rate=final),
        "linear": lambda: get_polynomial_decay_schedule_with_warmup(optimizer, warmup, steps, lr_end=final, power=1.0),
        "wsd": lambda: get_wsd_schedule(
            optimizer, warmup, round(recipe.decay * steps), steps, decay_type="linear", min_lr_ratio=final
        ),
    }[recipe.schedule]()
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        found.step()
    return rates


@pytest.mark.parametrize("kind", ["constant", "cosine", "linear", "wsd"])
@pytest.mark.parametrize("warmup", [0, 1, 10, 28])
@pytest.mark.parametrize("final", [0.0, 0.1])
def test_schedules_are_those_of_transformers(kind: str, warmup: int, final: float) -> None:
    recipe = RECIPE.model_copy(update={"schedule": kind, "warmup": warmup, "final": final})
    factors = [engine.schedule(recipe, step) for step in range(1, 41)]
    expected = library_schedule(recipe)
    if kind == "wsd" and final:  # that one warms up from `final`, all others from zero, as ours does
        expected[:warmup] = [step / warmup for step in range(warmup)]
    assert factors == pytest.approx(expected, rel=1e-12, abs=1e-15)
    assert factors[0] == (0.0 if warmup else 1.0)


def test_without_a_final_share_the_linear_and_cosine_schedules_are_the_ones_that_trainers_use() -> None:
    for kind in ("linear", "cosine"):
        recipe = RECIPE.model_copy(update={"schedule": kind, "final": 0.0})
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule = get_scheduler(kind, optimizer, num_warmup_steps=10, num_training_steps=40)
        for step in range(1, 41):
            assert engine.schedule(recipe, step) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-15)
            optimizer.step()
            schedule.step()


@pytest.mark.parametrize("kind", ["constant", "cosine", "linear", "wsd"])
def test_a_run_shorter_than_its_warm_up_only_rises(kind: str) -> None:
    recipe = RECIPE.model_copy(update={"schedule": kind, "warmup": 60})
    assert [engine.schedule(recipe, step) for step in range(1, 41)] == [step / 60 for step in range(40)]


@pytest.mark.parametrize("kind", ["cosine", "linear", "wsd"])
def test_schedules_end_one_step_before_their_final_rate(kind: str) -> None:
    recipe = RECIPE.model_copy(update={"schedule": kind})
    assert engine.schedule(recipe, 40) > engine.schedule(recipe, 41) == pytest.approx(recipe.final)


def test_the_first_step_of_a_warm_up_changes_no_weight() -> None:
    seen: list[Weights] = []
    before, _ = pretrained(each_step=lambda network, step: seen.append(weights(network)))
    assert all(torch.equal(weight, seen[0][name]) for name, weight in before.items())
    assert not all(torch.equal(weight, seen[1][name]) for name, weight in before.items())


# ------------------------------------------------------------------------------------------------------------- batches


@given(count=st.integers(1, 30), size=st.integers(1, 40), seed=st.integers(0, 9))
def test_every_epoch_sees_every_document_once(count: int, size: int, seed: int) -> None:
    drawn = list(itertools.islice(itertools.chain.from_iterable(engine.shuffled(count, size, seed)), 3 * count))
    for epoch in range(3):
        assert Counter(drawn[epoch * count : (epoch + 1) * count]) == Counter(range(count))
    assert all(len(one) == size for one in itertools.islice(engine.shuffled(count, size, seed), 4))


def test_batches_depend_on_the_seed_alone() -> None:
    first, again, other = (list(itertools.islice(engine.shuffled(20, 6, seed), 8)) for seed in (3, 3, 4))
    assert first == again != other
    assert first[0] + first[1] + first[2] != first[3] + first[4] + first[5]


# -------------------------------------------------------------------------------------------------------- pre-training


def pretrained(architecture: str = "gpt2", seed: int = 5, **changes: Any) -> tuple[Weights, Weights]:
    """Weights before and after ten steps."""
    network = fresh(architecture)
    blocks = torch.randint(50, (30, 12), generator=torch.Generator().manual_seed(0))
    before = weights(network)
    engine.pretrain(network, blocks, RECIPE.model_copy(update={"steps": 10}), seed, CPU, **changes)
    return before, weights(network)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_masked_pretraining_leaves_the_complement_at_its_initial_value(architecture: str) -> None:
    before, _ = pretrained(architecture)
    generator = torch.Generator().manual_seed(1)
    mask = {name: torch.rand(weight.shape, generator=generator) < 0.5 for name, weight in before.items()}
    _, after = pretrained(architecture, mask=mask)
    for name, weight in after.items():
        assert torch.equal(weight[~mask[name]], before[name][~mask[name]]), name
        assert not torch.equal(weight[mask[name]], before[name][mask[name]]), name


def test_pretraining_is_reproducible_and_leaves_the_global_random_state_alone() -> None:
    state = torch.get_rng_state()
    _, first = pretrained()
    _, again = pretrained()
    _, other = pretrained(seed=6)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(weight, again[name]) for name, weight in first.items())
    assert not all(torch.equal(weight, other[name]) for name, weight in first.items())


def test_a_stopped_run_has_the_weights_of_the_whole_run_at_that_step() -> None:
    seen: list[Weights] = []

    def look(network: nn.Module, step: int) -> bool:
        seen.append(weights(network))
        return False

    pretrained(each_step=look)
    assert len(seen) == 10
    _, stopped = pretrained(each_step=lambda network, step: step == 4)
    assert all(torch.equal(weight, seen[3][name]) for name, weight in stopped.items())


def test_pretraining_learns() -> None:
    network = fresh()
    blocks = torch.arange(50).repeat(30, 1)[:, :12].contiguous()

    def value() -> float:
        with torch.no_grad():
            return float(network(input_ids=blocks, labels=blocks).loss)

    before = value()
    engine.pretrain(network, blocks, RECIPE, 0, CPU)
    assert value() < before - 1
    assert not network.training


def test_the_engine_trains_on_the_models_own_loss() -> None:
    """One step of SGD-like size: AdamW's first step is the learning rate times the gradient's sign."""
    network = fresh()
    blocks = torch.randint(50, (4, 12), generator=torch.Generator().manual_seed(0))
    recipe = Pretraining(steps=1, warmup=0, batch=4, learning_rate=1e-3, weight_decay=0.0, schedule="constant")
    ids = next(engine.token_batches(blocks, 4, 0, "cpu"))
    network(input_ids=ids, labels=ids).loss.backward()
    expected = {name: (weight.detach().clone(), weight.grad.sign()) for name, weight in network.named_parameters()}  # type: ignore[union-attr]
    strong = {name: weight.grad.abs() > 1e-5 for name, weight in network.named_parameters()}  # type: ignore[union-attr]
    network.zero_grad()
    engine.pretrain(network, blocks, recipe, 0, CPU)
    for name, weight in network.named_parameters():
        start, sign = expected[name]
        torch.testing.assert_close(
            weight.detach()[strong[name]], (start - 1e-3 * sign)[strong[name]], rtol=0, atol=5e-6, msg=name
        )
