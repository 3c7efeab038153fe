"""The attacker's sweep: one trajectory for all durations, grids that grow, selection, restarts, further attempts."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor, nn
from transformers import PreTrainedModel, get_scheduler

from nftbench.attacks import head
from nftbench.contract import Measurement, Model, Point, Split, Task
from nftbench.device import CPU, Device
from nftbench.errors import NftbenchError
from nftbench.models.networks import build, derive, untrained
from nftbench.planning import registry
from nftbench.running.workspace import Workspace
from nftbench.suites.schema import Budget
from nftbench.terms import SplitName
from nftbench.testing import ARCHITECTURES
from nftbench.training import sweep as sweeps
from nftbench.training.sweep import CellTimeoutError, NonFiniteError, attempts, best, edge, sweep
from nftbench.training.trainer import Trainer
from tests.allocated import peak_bytes

BUDGET = Budget(
    learning_rates={"adamw": (1e-3, 3e-2), "sgd": (1e-2, 1e-1), "muon": (1e-3, 3e-2)},
    durations=(2, 6),
    batch=8,
    warmup=3,
    extension=1,
)


@dataclass(frozen=True)
class Words:
    """A split: ids [count, 4] and the id of the answer."""

    name: str
    ids: Tensor
    answers: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        return self.ids[list(indices)], self.answers[list(indices)]


@dataclass
class Parity(Task):
    """Is the last of four words odd? Counts what is asked of it."""

    scale: float = 1.0
    """Multiplies the loss, and so can make it overflow."""
    spoil: Callable[[nn.Module], bool] = field(default=lambda network: False)
    evaluated: list[str] = field(default_factory=list)
    batches: list[tuple[int, ...]] = field(default_factory=list)

    def split(self, name: SplitName) -> Split:
        generator = torch.Generator().manual_seed({"train": 0, "validation": 1, "test": 2}[name])
        ids = torch.randint(8, (64, 4), generator=generator)
        split = Words(name, ids, 48 + ids[:, -1] % 2)
        if name == "train":
            object.__setattr__(split, "batch", functools.partial(self.drawn, split))
        return split

    def drawn(self, split: Words, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        self.batches.append(tuple(indices))
        return split.ids[list(indices)], split.answers[list(indices)]

    def loss(self, network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        ids, answers = batch
        value = nn.functional.cross_entropy(network(input_ids=ids).logits[:, -1], answers)
        return value * self.scale / self.scale if self.scale != 1 else value

    @torch.no_grad()
    def evaluate(self, network: nn.Module, split: Split) -> Measurement:
        assert isinstance(split, Words)
        self.evaluated.append(split.name)
        network.eval()
        logits = network(input_ids=split.ids).logits[:, -1].double()
        right = logits[:, 48:50].argmax(-1) == split.answers - 48
        loss = float(nn.functional.cross_entropy(logits, split.answers))
        if self.spoil(network):
            loss = float("nan")
        return Measurement("acc", float(right.double().mean()), 0.01, len(split), 0.5, loss=loss)


def model(architecture: str = "gpt2", seed: int = 0, **changes: Any) -> Model:
    settings = {"model_type": architecture, **ARCHITECTURES[architecture], "vocab_size": 50, **changes}
    return build(settings, None, seed, "cpu")


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in network.state_dict().items()}


def same(first: nn.Module, second: nn.Module) -> bool:
    one, other = weights(first), weights(second)
    return one.keys() == other.keys() and all(torch.equal(weight, other[name]) for name, weight in one.items())


def under_way(task: Task, budget: Budget = BUDGET, **changes: Any) -> sweeps.Sweep:
    return sweeps.Sweep(
        **{"trainer": Trainer(changes.pop("seed", 0), budget), "model": model(), "task": task, **changes}
    )


# -------------------------------------------------------------------------------------------------------- trajectories


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_a_duration_sweep_is_bit_for_bit_separate_runs(architecture: str, optimizer: str) -> None:
    here = under_way(Parity(), model=model(architecture), optimizer=optimizer)
    points, network, measured = here.trajectory(1e-2, 1, (0, 2, 5, 7))
    for point in points:
        (alone,), apart, measurement = here.trajectory(1e-2, 1, (point.step,))
        assert dataclasses.replace(alone, train_loss=point.train_loss) == point
        if point.step == 7:
            assert same(apart, network)
            assert measurement == measured
    assert not same(network, here.model.network)


def test_a_trajectory_is_warm_up_then_constant_over_the_training_batches() -> None:
    """Against a loop written by hand."""
    task = Parity()
    here = under_way(task)
    _, network, _ = here.trajectory(1e-2, 2, (0, 3, 7))
    drawn = list(task.batches)[:7]  # batches are made some time ahead
    own = here.network(2).train()
    moments = {name: (torch.zeros_like(weight), torch.zeros_like(weight)) for name, weight in own.named_parameters()}
    for step, indices in enumerate(drawn, start=1):
        gradients = torch.autograd.grad(task.loss(own, Words("", *_of(task)).batch(indices)), list(own.parameters()))
        norm = torch.sqrt(sum((g.square().sum() for g in gradients), torch.tensor(0.0)))
        rate = 1e-2 * min(1.0, (step - 1) / 3)
        with torch.no_grad():
            for (name, weight), g in zip(own.named_parameters(), gradients, strict=True):
                g = g * min(1.0, 1.0 / (float(norm) + 1e-6))
                first, second = moments[name]
                first.mul_(0.9).add_(g, alpha=0.1)
                second.mul_(0.999).add_(g * g, alpha=0.001)
                weight.sub_(rate * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8))
    assert len(drawn) == 7
    assert sorted(index for one in task.batches[:8] for index in one) == list(range(64))
    for (name, weight), other in zip(network.named_parameters(), own.parameters(), strict=True):
        torch.testing.assert_close(weight, other, rtol=2e-3, atol=2e-5, msg=name)


def _of(task: Parity) -> tuple[Tensor, Tensor]:
    split = task.split("train")
    assert isinstance(split, Words)
    return split.ids, split.answers


@dataclass(frozen=True)
class ByHand:
    """A run computed by a plain loop, on the batches that a trajectory drew: weights after each step, from step 1."""

    steps: list[list[Tensor]]

    def mean(self, first: int, last: int) -> list[Tensor]:
        """Of the weights after steps `first` to `last`."""
        return [torch.stack(weights).mean(0) for weights in zip(*self.steps[first - 1 : last], strict=True)]


def by_hand(here: sweeps.Sweep, attack_seed: int, rates: Sequence[float]) -> ByHand:
    """AdamW at `rates[step - 1]`, one tensor at a time."""
    task = here.task
    assert isinstance(task, Parity)
    network = here.network(attack_seed).train()
    parameters = list(network.parameters())
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.0, foreach=False)
    found = []
    for rate, indices in zip(rates, task.batches, strict=False):
        optimizer.zero_grad()
        task.loss(network, Words("", *_of(task)).batch(indices)).backward()  # type: ignore[no-untyped-call]
        if here.trainer.budget.clip is not None:
            nn.utils.clip_grad_norm_(parameters, here.trainer.budget.clip)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        found.append([parameter.detach().clone() for parameter in parameters])
    return ByHand(found)


def assert_close(network: nn.Module, expected: Sequence[Tensor]) -> None:
    for (name, weight), other in zip(network.named_parameters(), expected, strict=True):
        torch.testing.assert_close(weight.detach(), other, rtol=2e-3, atol=2e-5, msg=name)


FACTORS = {  # by warm-up and last step
    (3, 7): [0, 1 / 3, 2 / 3, 1, 3 / 4, 2 / 4, 1 / 4],
    (0, 4): [1, 3 / 4, 2 / 4, 1 / 4],
    (1, 4): [0, 1, 2 / 3, 1 / 3],
    (4, 4): [0, 1 / 2, 1, 1 / 2],  # a warm-up takes half of a run at most
    (100, 5): [0, 1 / 2, 1, 2 / 3, 1 / 3],
    (100, 1): [1],
}


@pytest.mark.parametrize(("warmup", "last"), FACTORS)
def test_a_decaying_rate_falls_to_zero_within_the_run(warmup: int, last: int) -> None:
    here = under_way(Parity(), BUDGET.model_copy(update={"decay": True, "warmup": warmup}))
    _, network, _ = here.trajectory(1e-2, 1, (last,))
    expected = by_hand(here, 1, [1e-2 * factor for factor in FACTORS[warmup, last]])
    assert len(expected.steps) == last
    assert_close(network, expected.steps[-1])


@pytest.mark.parametrize(("warmup", "last"), [(0, 1), (0, 7), (3, 7), (1, 4)])
@pytest.mark.parametrize("decay", [False, True])
def test_a_sweep_s_learning_rates_are_hugging_face_s(warmup: int, last: int, decay: bool) -> None:
    """transformers' own schedule of the same names, over a whole run."""
    here = under_way(Parity(), BUDGET.model_copy(update={"decay": decay, "warmup": warmup}), optimizer="sgd")
    network = here.network(0)
    stepper = here.stepper(network, 1e-2, last)
    kind, steps = ("linear", last) if decay else ("constant_with_warmup", None)
    own = torch.optim.SGD(here.network(0).parameters(), lr=1e-2)
    schedule = get_scheduler(kind, own, num_warmup_steps=warmup, num_training_steps=steps)
    for _ in range(last):
        stepper.step(here.loss_of_first_batch(network))
        assert stepper.optimizers[0].param_groups[0]["lr"] == pytest.approx(own.param_groups[0]["lr"], rel=1e-12)
        own.step()
        schedule.step()


def test_a_decaying_rate_takes_a_run_of_its_own_for_each_duration() -> None:
    here = under_way(Parity(), BUDGET.model_copy(update={"decay": True}))
    points = here.points([(1e-2, (0, 3, 8))])
    assert here.steps == 3 + 8
    alone = [point for stop in (0, 3, 8) for point in here.trajectory(1e-2, 0, (stop,))[0]]
    assert points == alone
    (_, _, constant), *_ = under_way(Parity()).trajectory(1e-2, 0, (0, 3, 8))
    assert points[-1].loss != constant.loss


@pytest.mark.parametrize(("warmup", "last"), [(0, 3), (3, 5), (100, 4)])
def test_without_decay_a_warm_up_longer_than_the_run_is_cut_off(warmup: int, last: int) -> None:
    here = under_way(Parity(), BUDGET.model_copy(update={"warmup": warmup}))
    _, network, _ = here.trajectory(1e-2, 1, (2, last))
    rates = [1e-2 * (min(1.0, (step - 1) / warmup) if warmup else 1.0) for step in range(1, last + 1)]
    assert_close(network, by_hand(here, 1, rates).steps[-1])


@pytest.mark.parametrize("clip", [None, 0.05])
def test_gradients_are_clipped_or_not(clip: float | None) -> None:
    here = under_way(Parity(), BUDGET.model_copy(update={"clip": clip, "warmup": 0}), optimizer="sgd")
    _, network, _ = here.trajectory(1e-2, 1, (1,))
    own = here.network(1)
    task = Parity()
    loss = task.loss(own, Words("", *_of(task)).batch(here.task.batches[0]))  # type: ignore[attr-defined]
    gradients = torch.autograd.grad(loss, list(own.parameters()))
    norm = float(torch.cat([gradient.flatten() for gradient in gradients]).norm())
    assert norm > 0.05
    shrunk = 1.0 if clip is None else clip / norm
    with torch.no_grad():
        expected = [weight - 1e-2 * shrunk * g for weight, g in zip(own.parameters(), gradients, strict=True)]
    assert_close(network, expected)


@pytest.mark.parametrize("decay", [False, True])
@pytest.mark.parametrize(("last", "first"), [(1, 1), (2, 2), (4, 4), (5, 4), (8, 7), (9, 7)])
def test_an_average_is_the_mean_of_the_weights_over_the_last_quarter(last: int, first: int, decay: bool) -> None:
    here = under_way(Parity(), BUDGET.model_copy(update={"average": True, "decay": decay, "warmup": 0}))
    (point,), network, measurement = here.trajectory(1e-2, 1, (last,))
    rates = [1e-2 * ((last + 1 - step) / last if decay else 1.0) for step in range(1, last + 1)]
    assert_close(network, by_hand(here, 1, rates).mean(first, last))
    assert (point.score, point.loss) == (measurement.value, measurement.loss)
    assert here.task.evaluate(network, here.task.split("validation")) == measurement


def test_an_average_at_each_duration_is_bit_for_bit_that_of_a_separate_run() -> None:
    here = under_way(Parity(), BUDGET.model_copy(update={"average": True}))
    points, network, _ = here.trajectory(1e-2, 1, (0, 2, 7, 8))  # the last quarters of 7 and 8 overlap
    for point in points:
        (alone,), apart, _ = here.trajectory(1e-2, 1, (point.step,))
        assert dataclasses.replace(alone, train_loss=point.train_loss) == point
    assert same(apart, network)
    _, plain, _ = under_way(Parity()).trajectory(1e-2, 1, (8,))
    assert not same(plain, network)


def test_averaging_changes_no_weight_that_the_mask_holds() -> None:
    release = model()
    mask = {name: torch.zeros_like(weight, dtype=torch.bool) for name, weight in release.network.named_parameters()}
    free = "transformer.ln_f.weight"
    mask[free] |= True
    here = under_way(Parity(), BUDGET.model_copy(update={"average": True}), model=release, mask=mask)
    _, network, _ = here.trajectory(3e-2, 1, (8,))
    for name, weight in network.named_parameters():
        assert torch.equal(weight, release.network.get_parameter(name)) == (name != free)


@pytest.mark.parametrize("changes", [{"decay": True}, {"average": True}, {"decay": True, "average": True}])
def test_restarts_use_the_decay_and_averaging_of_the_sweep(changes: dict[str, bool]) -> None:
    budget = BUDGET.model_copy(update={**changes, "extension": 0})
    task = Parity()
    outcome = sweep(Trainer(0, budget), model(), task)
    assert outcome.picked.step > 0
    assert outcome.validation == task.evaluate(outcome.network, task.split("validation"))
    (point,), network, _ = under_way(Parity(), budget).trajectory(
        outcome.picked.learning_rate, outcome.picked.attack_seed, (outcome.picked.step,)
    )
    assert dataclasses.replace(outcome.picked, train_loss=point.train_loss) == point
    assert same(network, outcome.network)
    each = sum(budget.durations) if "decay" in changes else max(budget.durations)
    again = outcome.picked.attack_seed == 0  # the sweep keeps no network
    assert outcome.cost.steps == each * 2 + (3 + again) * outcome.picked.step
    assert [point.step for point in outcome.curve] == [0, 2, 6, 2, 6]


def test_a_trajectory_that_diverges_has_no_scores_from_there_on() -> None:
    task = Parity(spoil=lambda network: float(next(network.parameters()).detach().abs().max()) > 0.5)
    points, *_ = under_way(task).trajectory(0.3, 0, (0, 1, 4, 9))
    scores = [point.score for point in points]
    assert scores[0] is not None
    assert scores[-1] is None
    first = scores.index(None)
    assert scores[first:] == [None] * (4 - first)
    assert [point.step for point in points] == [0, 1, 4, 9]


def test_a_sweep_does_not_change_the_release() -> None:
    release = model()
    before = weights(release.network)
    sweep(Trainer(0, BUDGET), release, Parity())
    assert all(torch.equal(weight, before[name]) for name, weight in weights(release.network).items())


@dataclass
class Unscored(Parity):
    """Parity with an evaluation that takes no memory."""

    def evaluate(self, network: nn.Module, split: Split) -> Measurement:
        return Measurement("acc", 0.5, 0.01, len(split), 0.5, loss=1.0 / len(self.batches) if self.batches else 2.0)


@pytest.mark.parametrize(("attack", "most"), [("lora[rank=1]", 0.5), ("head", 0.5), ("full", 5.5)])
def test_a_sweep_takes_memory_for_what_it_trains(attack: str, most: float) -> None:
    """In sizes of the release, which is there already. A full one takes weights, gradients and two moments, and the
    network that is best so far; a copy of each network to come back to would not fit."""
    release = model(n_embd=256, n_layer=4)
    size = sum(weight.nbytes for weight in release.network.parameters())
    budget = BUDGET.model_copy(update={"batch": 1, "restarts": 2, "extension": 0})
    plugin = registry.create("attacks", attack)
    adapter = {"lora": getattr(plugin, "adapter", None), "head": head._head_only}.get(attack.split("[")[0])
    peak = peak_bytes(lambda: sweep(Trainer(0, budget), release, Unscored(), adapter=adapter))
    assert peak < most * size


def test_a_sweep_is_reproducible_and_leaves_the_global_random_state_alone() -> None:
    state = torch.get_rng_state()
    first, second = (sweep(Trainer(3, BUDGET), model(), Parity()) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    assert (first.curve, first.restarts, first.picked) == (second.curve, second.restarts, second.picked)
    assert same(first.network, second.network)
    other = sweep(Trainer(4, BUDGET), model(), Parity())
    assert other.curve != first.curve


def test_what_a_sweep_reports() -> None:
    task = Parity()
    outcome = sweep(Trainer(0, BUDGET), model(), task)
    assert set(task.evaluated) == {"validation"}
    start = [point for point in outcome.curve if point.step == 0]
    assert len(start) == 1
    assert start[0].learning_rate == 0.0
    assert start[0].train_loss is None
    rates = {point.learning_rate for point in outcome.curve if point.step}
    assert {1e-3, 3e-2} <= rates
    for rate in rates:
        assert [point.step for point in outcome.curve if point.learning_rate == rate] == [2, 6]
    assert [point.attack_seed for point in outcome.restarts] == [1, 2, 3]
    assert {(point.learning_rate, point.step) for point in outcome.restarts} == {
        (best(outcome.curve, True).learning_rate, best(outcome.curve, True).step)
    }
    assert outcome.validation is not None
    assert outcome.validation == task.evaluate(outcome.network, task.split("validation"))
    assert (outcome.picked.score, outcome.picked.loss) == (outcome.validation.value, outcome.validation.loss)
    again = outcome.picked.attack_seed == 0  # the sweep keeps no network
    assert outcome.cost.steps == 6 * len(rates) + (3 + again) * outcome.restarts[0].step
    assert outcome.cost.step_flops > 0
    assert outcome.cost.saved_bytes > 0
    assert outcome.retried is None


def test_durations_and_rates_are_the_budgets() -> None:
    outcome = sweep(Trainer(0, BUDGET.model_copy(update={"extension": 0})), model(), Parity(), lr_scale=3.0)
    assert {point.learning_rate for point in outcome.curve if point.step} == {3e-3, 9e-2}
    with pytest.raises(NftbenchError, match="no grid for 'lion'"):
        sweep(Trainer(0, BUDGET), model(), Parity(), optimizer="lion")  # type: ignore[arg-type]


def test_weights_that_the_gradient_mask_holds_do_not_change() -> None:
    release = model()
    generator = torch.Generator().manual_seed(0)
    mask = {
        name: torch.rand(weight.shape, generator=generator) < 0.3 for name, weight in release.network.named_parameters()
    }
    outcome = sweep(Trainer(0, BUDGET.model_copy(update={"weight_decay": 0.1})), release, Parity(), gradient_mask=mask)
    _, network, _ = under_way(Parity(), model=release, mask=mask).trajectory(1e-2, 1, (5,))
    for trained in (outcome.network, network):
        for name, weight in trained.named_parameters():
            before = release.network.get_parameter(name)
            assert torch.equal(weight[~mask[name]], before[~mask[name]])
    assert not same(network, release.network)


# ------------------------------------------------------------------------------------------------------------- restarts


Score = Callable[[float, int, int], float | None]
"""The validation score by learning rate, step and attack seed."""


@dataclass
class Scripted(sweeps.Sweep):
    """A sweep that trains nothing: its scores are given. Notes each trajectory as learning rate, seed and stops."""

    score: Score = field(kw_only=True)
    asked: list[tuple[float, int, tuple[int, ...]]] = field(default_factory=list)

    def trajectory(self, learning_rate: float, attack_seed: int, stops: Sequence[int]) -> Any:
        self.asked.append((learning_rate, attack_seed, tuple(stops)))
        points = []
        for stop in stops:
            value = self.score(learning_rate, stop, attack_seed)
            loss = None if value is None else 1 - value
            points.append(Point(learning_rate if stop else 0.0, stop, value, loss, None, attack_seed))
        last = points[-1].score
        network = nn.Linear(1, 1)
        network.origin = self.asked[-1]  # type: ignore[assignment]
        return points, network, Measurement("acc", last if last is not None else float("nan"), 0.0, 1, 0.5)


def scripted(score: Score, budget: Budget = BUDGET) -> Scripted:
    return Scripted(Trainer(0, budget), model(), Parity(), score=score)


GRID = (1e-3, 1e-2, 1e-1)
LONG = BUDGET.model_copy(update={"extension": 3, "durations": (0, 2, 4)})


@pytest.mark.parametrize(
    ("first", "chosen"),
    [(0.9, 0), (0.79, 2), (0.8, 0)],  # among equals the sweep's own run, which comes first
)
def test_the_outcome_is_the_best_of_the_sweep_s_run_and_three_new_seeds_of_its_recipe(
    first: float, chosen: int
) -> None:
    chances = {0: first, 1: 0.6, 2: 0.8, 3: 0.7}
    here = scripted(lambda rate, step, seed: 0.5 if not step else chances[seed] if rate == 1e-2 else 0.55, LONG)
    curve, _ = here.search(GRID)
    here.asked.clear()
    found = here.outcome(curve, False)
    # Four steps would beat two only with a lower loss: both are equal, so the fewer steps are picked.
    restarts = [(1e-2, 1, (2,)), (1e-2, 2, (2,)), (1e-2, 3, (2,))]
    assert here.asked == (restarts if chosen else [*restarts, (1e-2, 0, (2,))]), "run again only where it is best"
    assert found.picked.attack_seed == chosen
    assert found.picked.score == found.validation.value == max(chances.values())
    assert found.network.origin == (1e-2, chosen, (2,))
    assert [point.score for point in found.restarts] == [0.6, 0.8, 0.7]
    assert not found.stuck


def test_the_sweep_s_own_run_is_the_outcome_where_no_new_seed_is_finite() -> None:
    here = scripted(lambda rate, step, seed: None if seed else 0.5 + 0.1 * bool(step))
    curve, _ = here.search(GRID)
    found = here.outcome(curve, False)
    assert found.picked.attack_seed == 0
    assert found.picked.score == 0.6


def test_the_outcome_is_never_worse_than_the_best_point_of_the_sweep() -> None:
    """Restarts that all end below not training: brittle training does not hide what the sweep has found."""
    here = scripted(lambda rate, step, seed: 0.5 if not step else 0.3 if seed else 0.6)
    curve, _ = here.search(GRID)
    found = here.outcome(curve, False)
    assert (found.picked.score, found.picked.attack_seed, found.stuck) == (0.6, 0, False)
    assert found.network.origin == (1e-3, 0, (2,))


def test_the_outcome_is_stuck_where_no_rate_beats_not_training() -> None:
    here = scripted(lambda rate, step, seed: 0.5 - 0.1 * bool(step))
    curve, at_edge = here.search(GRID)
    found = here.outcome(curve, False)
    assert found.stuck
    assert not at_edge
    assert found.picked.step == 0
    assert found.restarts == ()
    assert found.network.origin == (0.0, 0, (0,))


# ------------------------------------------------------------------------------------------------------------ extension


def searched(score: Callable[[float, int], float | None], extension: int = 3) -> tuple[list[float], bool, list[Any]]:
    here = scripted(lambda rate, step, _: score(rate, step), LONG.model_copy(update={"extension": extension}))
    curve, at_edge = here.search(GRID)
    return sorted({point.learning_rate for point in curve if point.step}), at_edge, here.asked


def test_a_grid_whose_best_is_inside_does_not_grow() -> None:
    rates, at_edge, asked = searched(lambda rate, step: 0.5 if not step else 0.9 if rate == 1e-2 else 0.6)
    assert rates == sorted(GRID)
    assert not at_edge
    assert [stops for *_, stops in asked] == [(0, 2, 4), (2, 4), (2, 4)], "step 0 is measured once"


@pytest.mark.parametrize("extension", [0, 1, 2, 3])
@pytest.mark.parametrize("side", ["low", "high"])
def test_a_grid_grows_at_most_so_far_beyond_its_best_edge(side: str, extension: int) -> None:
    slope = 0.01 if side == "high" else -0.01
    rates, at_edge, _ = searched(lambda rate, step: 0.5 if not step else 0.8 + slope * math.log10(rate), extension)
    assert at_edge
    factor = [10.0**power for power in range(1, extension + 1)]
    new = [1e-1 * one for one in factor] if side == "high" else [1e-3 / one for one in factor]
    assert rates == pytest.approx(sorted([*GRID, *new]))


def test_a_grid_stops_growing_once_the_best_is_inside() -> None:
    rates, at_edge, _ = searched(lambda rate, step: 0.5 if not step else {1e-1: 0.7, 1.0: 0.8}.get(round(rate, 6), 0.6))
    assert rates == pytest.approx([1e-3, 1e-2, 1e-1, 1.0, 10.0])
    assert not at_edge


def test_an_edge_that_only_equals_its_neighbour_does_not_grow() -> None:
    rates, at_edge, _ = searched(lambda rate, step: 0.5 if not step else 0.8 if rate > 5e-3 else 0.6)
    assert rates == sorted(GRID)
    assert not at_edge


def test_a_grid_grows_on_both_sides_where_no_rate_beats_not_training() -> None:
    rates, at_edge, _ = searched(lambda rate, step: 0.5 if not step else 0.4)
    assert rates == pytest.approx([1e-6, 1e-5, 1e-4, *GRID, 1.0, 10.0, 100.0])
    assert not at_edge
    rates, _, _ = searched(lambda rate, step: 0.5 if not step else 0.9 if rate < 2e-5 else 0.4)
    assert min(rates) == pytest.approx(1e-6), "the rate that helps is found below the grid"


def test_a_diverging_neighbour_is_beaten() -> None:
    rates, _, _ = searched(lambda rate, step: 0.5 if not step else 0.7 if rate < 2e-3 else None, extension=1)
    assert len(rates) == 4
    assert min(rates) == pytest.approx(1e-4)


# ------------------------------------------------------------------------------------------------------------ selection

POINTS = st.builds(
    Point,
    learning_rate=st.sampled_from([1e-4, 1e-3, 1e-2, 1e-1]),
    step=st.sampled_from([0, 2, 5, 10]),
    score=st.none() | st.sampled_from([0.25, 0.5, 0.75]),
    loss=st.sampled_from([0.1, 0.5, 1.0]),
)


@given(points=st.lists(POINTS, min_size=1, max_size=12), higher=st.booleans())
def test_selection_is_score_then_loss_then_fewer_steps(points: list[Point], higher: bool) -> None:
    points = [dataclasses.replace(point, loss=None if point.score is None else point.loss) for point in points]
    finite = [point for point in points if point.score is not None]
    if not finite:
        with pytest.raises(ValueError, match="no finite point"):
            best(points, higher)
        return
    winner = best(points, higher)
    scores = [point.score for point in finite if point.score is not None]
    top = max(scores) if higher else min(scores)
    assert winner.score == top
    tied = [point for point in finite if point.score == top]
    lowest = min(point.loss for point in tied if point.loss is not None)
    assert winner.loss == lowest
    assert winner.step == min(point.step for point in tied if point.loss == lowest)


@given(points=st.lists(POINTS, min_size=1, max_size=12), higher=st.booleans())
def test_an_edge_is_strictly_better_than_its_neighbour(points: list[Point], higher: bool) -> None:
    finite = [point for point in points if point.score is not None]
    if not finite:
        return
    side = edge(points, higher)
    rates = sorted({point.learning_rate for point in points if point.step})
    if side is None:
        return
    winner = best(points, higher)
    at, neighbour = (rates[0], rates[1]) if side == "low" else (rates[-1], rates[-2])
    assert winner.learning_rate == at
    assert winner.step > 0
    for point in finite:
        if point.learning_rate == neighbour and point.step and point.score is not None and winner.score is not None:
            assert winner.score > point.score if higher else winner.score < point.score


# ------------------------------------------------------------------------------------------------------------- failures


def test_a_loss_that_overflows_in_float32_is_trained_in_float64() -> None:
    outcome = sweep(Trainer(0, BUDGET), model(), Parity(scale=1e38))
    assert outcome.retried is None, "1e38 still fits into float32"
    outcome = sweep(Trainer(0, BUDGET), model(), Parity(scale=1e39))
    assert outcome.retried == "float64"
    assert outcome.picked.step > 0
    assert next(outcome.network.parameters()).dtype == torch.float64
    assert outcome.validation is not None
    assert outcome.validation.loss is not None


@dataclass
class Stubborn(Parity):
    """A task on which nothing that was trained has a finite score; notes which attempt trained each network."""

    trained: list[str] = field(default_factory=list)

    def evaluate(self, network: nn.Module, split: Split) -> Measurement:
        start = dict(model().network.named_parameters())
        moved = {
            name: (weight.detach().double() - start[name].detach()).norm()
            for name, weight in network.named_parameters()
        }
        if not any(moved.values()):
            return super().evaluate(network, split)
        if not all(weight.requires_grad for weight in network.parameters()):
            self.trained.append("head")
        elif next(network.parameters()).dtype == torch.float64:
            # with two steps of SGD along a gradient of this norm at most
            short = torch.stack([*moved.values()]).norm() <= 2 * sweeps.CLIPPED * RATE
            self.trained.append("clipped" if short else "float64")
        else:
            self.trained.append("plain")
        return dataclasses.replace(super().evaluate(network, split), loss=float("nan"))


RATE = 0.1


def test_attempts_are_made_in_turn() -> None:
    task, changes = Stubborn(), {"learning_rates": {"sgd": (RATE / 2, RATE)}, "durations": (2,), "extension": 0}
    with pytest.raises(NonFiniteError, match="float32 and float64, clipped, and on the head alone"):
        sweep(Trainer(0, BUDGET), model(), task, optimizer="sgd", **changes)
    assert [attempt for attempt, _ in itertools.groupby(task.trained)] == ["plain", "float64", "clipped", "head"]


def test_float32_is_an_attempt_of_its_own_where_the_release_is_computed_in_less() -> None:
    half = model()
    half.network.to(torch.bfloat16)
    assert attempts(model(), CPU) == ("plain", "float64", "clipped", "head")
    assert attempts(half, CPU) == ("plain", "float32", "float64", "clipped", "head")
    assert attempts(model(), Device("cuda", 0)) == ("plain", "float32", "float64", "clipped", "head")


@dataclass
class Steep(Parity):
    """At the high rate a network has no finite score, at the low one it is worse than untrained.

    Where the head alone is trained, it scores `head` at either rate.
    """

    head: float = 0.0

    def evaluate(self, network: nn.Module, split: Split) -> Measurement:
        start = dict(model().network.named_parameters())
        moved = max(
            float((weight.detach().double() - start[name].detach()).abs().max())
            for name, weight in network.named_parameters()
        )
        if moved == 0.0:
            value = 0.5
        elif not all(weight.requires_grad for weight in network.parameters()):
            value = self.head
        else:
            value = 0.4 if moved < 1.0 else float("nan")
        return Measurement("acc", value, 0.01, len(split), 0.5, loss=1.0)


@pytest.mark.parametrize(("head", "retried"), [(0.45, None), (0.6, "head")])
def test_another_attempt_is_used_only_where_it_beats_not_training(head: float, retried: str | None) -> None:
    task, two_rates = Steep(head=head), {"sgd": (1e-2, 1e30)}
    outcome = sweep(Trainer(0, BUDGET), model(), task, optimizer="sgd", learning_rates=two_rates, extension=0)
    assert (outcome.retried, outcome.stuck) == (retried, retried is None)


def test_one_diverging_rate_is_a_point_of_the_curve() -> None:
    budget = BUDGET.model_copy(update={"learning_rates": {"adamw": (1e-2, 1e30)}, "extension": 0, "clip": None})
    outcome = sweep(Trainer(0, budget), model(), Parity())
    assert outcome.retried is None
    assert [point.score for point in outcome.curve if point.learning_rate == 1e30] == [None, None]
    assert outcome.picked.learning_rate in (0.0, 1e-2)


def test_a_sweep_ends_when_the_budgets_seconds_are_used_up() -> None:
    with pytest.raises(CellTimeoutError, match=r"more than 1e-09 s"):
        sweep(Trainer(0, BUDGET.model_copy(update={"timeout": 1e-9})), model(), Parity())


def test_an_attacker_sweeps_once() -> None:
    trainer = Trainer(0, BUDGET)
    outcome = sweep(trainer, model(), Parity())
    with pytest.raises(NftbenchError, match=r"context\.sweep may run once, or once for each attack"):
        sweep(trainer, model(), Parity())
    assert trainer.ledger.swept_steps == outcome.cost.steps
    assert sweep(Trainer(0, BUDGET), model(), Parity()).curve == outcome.curve, "another cell has a budget of its own"


TWICE = """
@dataclass(frozen=True)
class Twice(Attack):
    \"\"\"Sweeps the release twice itself, or lets two attacks sweep it.\"\"\"
    parts: tuple[str, ...] = ()
    times: int = 1

    def uses(self):
        return self.parts

    def adapt(self, prepared, task, context):
        parts = [context.attack(spec) for _ in range(self.times) for spec in self.parts]
        if parts:
            return [part.adapt(prepared, task, context) for part in parts][-1]
        return [context.sweep(prepared.model, task) for _ in range(2)][-1]
"""


def test_a_second_sweep_is_refused_and_several_attacks_sweeps_are_all_counted(
    plugin: Callable[[str, str], Any], workspace: Callable[..., Workspace], run_all: Callable[..., dict[Any, Any]]
) -> None:
    plugin("twice", TWICE)
    two = "twice[parts=full+full[warmup=0]]"
    again = "twice[parts=full,times=2]"
    here = workspace(attacks=["none", "full", "full[warmup=0]", "twice", two, again])
    records = {attack: record for (_, attack, _, _), record in run_all(here).items()}
    for refused in ("twice", again):
        assert records[refused].status == "failed"
        assert "the budget of a cell is spent" in records[refused].reason
    alone = [records["full"], records["full[warmup=0]"]]
    assert records[two].status == "ok", records[two].reason
    assert records[two].cost.steps == sum(one.cost.steps for one in alone)
    assert records[two].cost.seconds > records[two].cost.step_seconds
    assert records[two].curve == alone[1].curve


def test_a_cell_that_runs_out_of_time_has_the_status_timeout(
    workspace: Callable[..., Workspace], run_all: Callable[..., dict[Any, Any]]
) -> None:
    records = run_all(workspace(attacks=["none", "full"], budget={"timeout": 1e-6}))
    assert records["none", "full", "toy_topic", 0].status == "timeout"
    assert records["none", "none", "toy_topic", 0].status == "ok"


# ------------------------------------------------------------------------------------------------------- our attacks


@dataclass(frozen=True)
class Context:
    """Hands on what an attack asks of its sweep."""

    asked: dict[str, Any]
    seed: int = 5
    budget: Budget = BUDGET

    def sweep(self, given: Model, task: Task, **options: Any) -> None:
        self.asked.update(model=given, **options)

    def untrained(self, given: Model, seed: int) -> PreTrainedModel:
        return untrained(given.network, derive(self.seed, "untrained", str(seed)))


def asked_by(spec: str, given: Model) -> dict[str, Any]:
    from nftbench.contract import Prepared

    context = Context({})
    registry.create("attacks", spec).adapt(Prepared(given), Parity(), context)
    return context.asked


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("targets", ["all", "attention", "mlp"])
def test_lora_starts_equal_to_the_release(architecture: str, targets: str) -> None:
    import copy

    given = model(architecture)
    asked = asked_by(f"lora[targets={targets},rank=2]", given)
    assert asked["lr_scale"] > 1
    network = asked["adapter"](copy.deepcopy(given.network), 0)
    ids = torch.randint(50, (3, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(network(input_ids=ids).logits, given.network(input_ids=ids).logits, rtol=0, atol=0)
    trained = {name for name, weight in network.named_parameters() if weight.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    attention = [name for name in trained if "attn" in name]
    assert bool(attention) == (targets != "mlp")
    assert (len(attention) < len(trained)) == (targets != "attention")
    assert not any("lm_head" in name for name in trained)


def test_lora_draws_from_the_attack_seed() -> None:
    here = under_way(Parity(), adapter=registry.create("attacks", "lora").adapter)
    assert same(here.network(1), here.network(1))
    assert not same(here.network(1), here.network(2))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("tied", [True, False])
def test_head_only_moves_the_head_and_the_last_norm(architecture: str, tied: bool) -> None:
    given = model(architecture, tie_word_embeddings=tied)
    assert (given.network.get_output_embeddings().weight is given.network.get_input_embeddings().weight) == tied
    asked = asked_by("head", given)
    here = under_way(Parity(), model=given, adapter=asked["adapter"])
    _, network, _ = here.trajectory(1e-2, 1, (4,))
    before = weights(given.network)
    moved = {name for name, weight in weights(network).items() if not torch.equal(weight, before[name])}
    last = {"gpt2": {"transformer.ln_f.weight", "transformer.ln_f.bias"}}.get(architecture, {"model.norm.weight"})
    assert moved == {"lm_head.weight", *last}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scratch_has_other_weights_for_each_attack_seed(architecture: str) -> None:
    given = model(architecture)
    here = under_way(Parity(), model=given, adapter=asked_by("scratch", given)["adapter"])
    networks = [here.network(seed) for seed in (0, 1, 2, 1)]
    assert same(networks[1], networks[3])
    for first, second in ((0, 1), (1, 2), (0, 2)):
        assert not same(networks[first], networks[second])
    matrix = max(weights(given.network), key=lambda name: weights(given.network)[name].numel())
    for network in networks:
        assert not torch.equal(weights(network)[matrix], weights(given.network)[matrix])
        assert float(weights(network)[matrix].std()) == pytest.approx(0.02, rel=0.2)


def test_full_trains_with_the_optimizer_that_it_names() -> None:
    assert asked_by("full[optimizer=muon]", model())["optimizer"] == "muon"
    assert asked_by("full", model())["optimizer"] == "adamw"
