"""The attacker's sweep: a grid of learning rates and durations, whose best point is also run with new attack seeds.

With a linear warm-up and then a constant learning rate, one run per learning rate is enough. It is evaluated at each
duration, where its weights are exactly those of a separate run of that duration. A learning rate that decays needs a
separate run for each duration.

On the CPU runs are trained one after another, on a GPU at once where that is possible (`stack.py`). Both give the same
points, up to the order of summation.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from nftbench.contract import (
    Adapter,
    Candidates,
    Cost,
    EachSplit,
    EvenSplit,
    Mask,
    Measurement,
    Model,
    Outcome,
    PartedBatch,
    Point,
    Split,
    Task,
)
from nftbench.device import Device
from nftbench.errors import NftbenchError
from nftbench.models.copies import copied
from nftbench.models.networks import seeded
from nftbench.suites.schema import Budget
from nftbench.terms import Optimizer
from nftbench.training.costs import step_cost
from nftbench.training.engine import Stepper, autocast, shuffled, warmed
from nftbench.training.stack import CannotStackError, Stack
from nftbench.training.trainer import CellTimeoutError, Trainer

Side = Literal["low", "high"]
Attempt = Literal["plain", "float32", "float64", "clipped", "head"]
CLIPPED = 0.01
"""Largest gradient norm in the attempt `clipped`: a hundredth of the usual 1.0, to keep steps short on steep losses."""
AVERAGED = 0.25
"""If the budget averages weights, the mean is over the last steps of a run, this share of them. This is stochastic
weight averaging (Izmailov et al. 2018, arXiv:1803.05407) at every step; the share is our choice."""
COLLATED = 8
"""The number of batches that are collated at a time."""


@dataclass(frozen=True)
class Run:
    """One training run of a sweep. It is evaluated after each number of steps in `stops`, of which the last ends it."""

    learning_rate: float
    attack_seed: int
    stops: tuple[int, ...]


@dataclass(frozen=True)
class Trained:
    """A run that has ended: the points of all its stops, and what its network is and scored at the last one reached."""

    points: list[Point]
    network: Callable[[], nn.Module]
    measurement: Measurement


class NonFiniteError(Exception):
    """No trained point has a finite score, whatever was tried."""


def sweep(
    trainer: Trainer,
    model: Model,
    task: Task,
    *,
    adapter: Adapter | None = None,
    gradient_mask: Mask | None = None,
    optimizer: Optimizer = "adamw",
    lr_scale: float = 1.0,
    **changes: Any,
) -> Outcome:
    """Fine-tune a release on a task within the trainer's budget, and return the best network on validation.

    The grid of learning rates is extended while its best rate lies at an edge. The best point is then run again with
    `budget.restarts` new attack seeds. The outcome is the best of these runs and the sweep's own.

    A release may resist only by numerical trouble. This is suspected if no trained point has a finite score, or if some
    have none and no other point beats not training. The sweep is then repeated in float32, in float64, with stronger
    clipping, and on the output head alone, until an attempt beats not training.

    Args:
        adapter: makes the network to train from a copy of the release and the attack seed (LoRA, an untied head).
        gradient_mask: True where a parameter may change.
        lr_scale: multiplies the grid's learning rates.
        changes: fields of the budget.

    Raises:
        NftbenchError: the budget has no learning rates for the optimizer, or the trainer's ledger allows no more sweep.
        NonFiniteError: no attempt has a finite trained point.
        CellTimeoutError: the budget's seconds are used up.
    """
    budget = Budget.model_validate({**trainer.budget.model_dump(), **changes})
    if optimizer not in budget.learning_rates:
        raise NftbenchError(f"budget.learning_rates has no grid for {optimizer!r}")
    trainer.ledger.begin_sweep()
    run = Sweep(dataclasses.replace(trainer, budget=budget), model, task, adapter, gradient_mask, optimizer)
    if trainer.device.kind == "cuda":
        run.serial = None
    grid = [rate * lr_scale for rate in budget.learning_rates[optimizer]]
    finite: tuple[Attempt, list[Point], bool] | None = None
    for attempt in attempts(model, trainer.device):
        run.attempt = attempt
        curve, at_edge = run.search(grid)
        trained = [point for point in curve if point.step]
        if all(point.score is None for point in trained):
            continue
        finite = finite or (attempt, curve, at_edge)
        if best(curve, run.higher_is_better).step:
            finite = attempt, curve, at_edge
            break
        if all(point.score is not None for point in trained):
            break
        # Some rates diverge and no other rate helps. The next attempt shows whether only the arithmetic resists.
    if finite is None:
        raise NonFiniteError("no learning rate stays finite: in float32 and float64, clipped, and on the head alone")
    run.attempt, curve, at_edge = finite
    outcome = run.outcome(curve, at_edge)
    trainer.ledger.end_sweep(outcome.cost)
    return outcome


def unchanged(trainer: Trainer, model: Model, task: Task) -> Outcome:
    """The outcome of not training: the release as it is. Utility tasks have no validation split and thus no score."""
    if not task.trainable:
        return Outcome(model.network, None, Point(0.0, 0, None, None))
    with autocast(trainer.device):
        validation = task.evaluate(model.network, task.split("validation"))
    point = _point(validation, 0.0, 0, None, 0)
    return Outcome(model.network, validation, point, (point,))


def select(trainer: Trainer, task: Task, candidates: Candidates) -> Outcome:
    """Evaluate candidate networks and return the best one on validation, as `sweep` does for learning rates.

    Each candidate is a network, a setting (stored as the point's learning rate) and a number of steps.

    Raises:
        NonFiniteError: no candidate has a finite score.
    """
    started = time.monotonic()
    validation = task.split("validation")
    curve: list[Point] = []
    winner: tuple[Point, nn.Module, Measurement] | None = None
    for network, setting, steps in candidates:
        with autocast(trainer.device):
            measurement = task.evaluate(network, validation)
        point = _point(measurement, setting, steps, None, 0)
        curve.append(point)
        if point.score is None:
            continue
        if winner is None or best([winner[0], point], measurement.higher_is_better) is point:
            winner = point, copied(network), measurement
    if winner is None:
        raise NonFiniteError("no candidate is finite")
    point, network, measurement = winner
    cost = Cost(steps=sum(one.step for one in curve), seconds=time.monotonic() - started)
    return Outcome(network.eval(), measurement, point, tuple(curve), cost=cost, stuck=point.step == 0)


def best(points: Sequence[Point], higher_is_better: bool) -> Point:
    """The point with the best validation score; among equals the one with the lowest loss, then with the fewest steps.

    Raises:
        ValueError: no point has a finite score.
    """
    sign = 1.0 if higher_is_better else -1.0
    finite = [point for point in points if point.score is not None and point.loss is not None]
    if not finite:
        raise ValueError("no finite point")
    return max(finite, key=lambda point: (sign * (point.score or 0.0), -(point.loss or 0.0), -point.step))


def edge(points: Sequence[Point], higher_is_better: bool) -> Side | None:
    """The end of the grid at which the best learning rate lies, or None.

    It is None, too, if the best score only equals that of the neighbouring learning rate.
    """
    winner = best(points, higher_is_better)
    rates = sorted({point.learning_rate for point in points if point.step})
    if winner.step == 0 or len(rates) < 2 or rates[0] < winner.learning_rate < rates[-1]:
        return None
    neighbour = rates[1] if winner.learning_rate == rates[0] else rates[-2]
    scores = [point.score for point in points if point.learning_rate == neighbour and point.score is not None]
    rival = (max if higher_is_better else min)(scores, default=None)
    if rival is not None and winner.score == rival:
        return None
    return "low" if winner.learning_rate == rates[0] else "high"


def attempts(model: Model, device: Device) -> tuple[Attempt, ...]:
    """The attempts in their order; without `float32` if the plain sweep computes in float32 already."""
    in_float32 = device.autocast is None and model.network.dtype == torch.float32
    return ("plain", "float64", "clipped", "head") if in_float32 else ("plain", "float32", "float64", "clipped", "head")


@dataclass
class Sweep:
    """A sweep in progress: its settings, the current attempt, and the steps and seconds spent so far."""

    trainer: Trainer
    model: Model
    task: Task
    adapter: Adapter | None = None
    mask: Mask | None = None
    optimizer: Optimizer = "adamw"
    attempt: Attempt = "plain"
    started: float = field(default_factory=time.monotonic)
    steps: int = 0
    step_seconds: float = 0.0
    higher_is_better: bool = True
    serial: str | None = "on the CPU"
    """Why runs are trained one after another; None where they are trained at once."""
    without_graphs: str | None = None
    """Why runs that were trained at once had no CUDA graphs; None where they had, and without a GPU."""
    padded: str | None = None
    """Why the documents of runs that were trained at once were padded; None where they were packed into rows."""
    scored_alone: str | None = None
    """Why networks that were trained at once were scored one by one; None where they were scored at once."""

    def search(self, grid: Sequence[float]) -> tuple[list[Point], bool]:
        """The points of all learning rates, and whether the best one still lies at an edge after extension."""
        durations = self.trainer.budget.durations
        curve = self.points([(rate, durations if index == 0 else durations[1:]) for index, rate in enumerate(grid)])
        if all(point.score is None for point in curve):
            return curve, False
        rates = list(grid)
        added = {"low": 0, "high": 0}
        while sides := [side for side in self.sides(curve) if added[side] < self.trainer.budget.extension]:
            new = []
            for side in sides:
                added[side] += 1
                if side == "low":
                    rates.insert(0, rates[0] * rates[0] / rates[1])
                else:
                    rates.append(rates[-1] * rates[-1] / rates[-2])
                new.append(rates[0] if side == "low" else rates[-1])
            curve += self.points([(rate, durations[1:]) for rate in new])
        return curve, edge(curve, self.higher_is_better) is not None

    def sides(self, curve: Sequence[Point]) -> tuple[Side, ...]:
        """The sides on which the grid must grow: beyond its best edge, or both if no rate beats not training."""
        if best(curve, self.higher_is_better).step == 0:
            return ("low", "high")
        side = edge(curve, self.higher_is_better)
        return (side,) if side is not None else ()

    def outcome(self, curve: Sequence[Point], at_edge: bool) -> Outcome:
        """The best of all runs: the best point of the sweep, and its recipe run again with new attack seeds.

        The score of the sweep's own run is the highest of many on validation, and so somewhat too high there. That
        only decides between runs of one recipe: the reported score comes from the test split, which chose nothing.
        """
        picked = best(curve, self.higher_is_better)
        restarts: list[Point] = []
        winner: tuple[Point, Trained] | None = None
        seeds = range(1, self.trainer.budget.restarts + 1) if picked.step else ()
        again = [Run(picked.learning_rate, attack_seed, (picked.step,)) for attack_seed in seeds]
        for ended in self.trained(again):
            (point,) = ended.points
            restarts.append(point)
            if best([picked, *restarts], self.higher_is_better) is point:
                winner = point, ended
        if winner is None:
            # The sweep keeps no network, because a copy at each improvement would be in memory all along. Its run is
            # deterministic and is repeated here.
            (ended,) = self.trained([Run(picked.learning_rate, 0, (picked.step,))])
            winner = ended.points[0], ended
        point, ended = winner
        cost = step_cost(
            self.network(0), lambda net: self.stepper(net, picked.learning_rate, 1), self.loss_of_first_batch
        )
        return Outcome(
            network=ended.network(),
            validation=ended.measurement,
            picked=point,
            curve=tuple(curve),
            restarts=tuple(restarts),
            cost=dataclasses.replace(
                cost,
                steps=self.steps,
                seconds=time.monotonic() - self.started,
                step_seconds=self.step_seconds / max(self.steps, 1),
            ),
            at_edge=at_edge,
            stuck=picked.step == 0,
            retried=None if self.attempt == "plain" else self.attempt,
            trained=self.trained_how,
        )

    def points(self, wanted: Sequence[tuple[float, Sequence[int]]]) -> list[Point]:
        """The points of learning rates, each at its durations."""
        decay = self.trainer.budget.decay
        runs = [
            Run(rate, 0, stops)
            for rate, durations in wanted
            for stops in ([(stop,) for stop in durations] if decay else [tuple(durations)])
        ]
        found = []
        for ended in self.trained(runs):
            found += ended.points
            del ended  # its network, before the next one is trained
        return found

    def trained(self, runs: Sequence[Run]) -> Iterator[Trained]:
        """Train these runs: all at once on a GPU where that is possible, else one after another."""
        if self.serial is None and runs:
            try:
                yield from self.at_once(runs)
            except CannotStackError as error:
                self.serial = str(error)
            else:
                return
        for run in runs:
            yield self.alone(run)

    def alone(self, run: Run) -> Trained:
        """Train one run."""
        points, network, measurement = self.trajectory(run.learning_rate, run.attack_seed, run.stops)
        return Trained(points, lambda: network, measurement)

    def at_once(self, runs: Sequence[Run]) -> list[Trained]:
        """What `trajectory` gives for each run, from a stack of all their networks.

        Raises:
            CannotStackError: the runs cannot be trained at once.
        """
        stack = self.stack(runs, max(run.stops[-1] for run in runs))
        validation = self.task.split("validation")
        points: dict[Run, list[Point]] = {run: [] for run in runs}
        losses: dict[Run, list[Tensor]] = {run: [] for run in runs}
        ended: dict[Run, Trained] = {}
        left, reached, steps, seconds = list(runs), 0, 0, 0.0
        with seeded(_mix(self.trainer.seed, runs[0].attack_seed)):
            batches = self.checked_batches(stack, left)
            for stop in sorted({stop for run in runs for stop in run.stops}):
                started = time.perf_counter()
                for run, column in zip(left, self.steps_at_once(stack, batches, stop - reached), strict=True):
                    losses[run].append(column)
                due = [(place, run) for place, run in enumerate(left) if stop in run.stops]
                means = {run: float(torch.cat(losses[run]).mean()) if stop else None for _, run in due}
                steps += (stop - reached) * len(left)
                seconds += time.perf_counter() - started
                reached = stop
                rows = stack.weights.detach()[[place for place, _ in due]]
                for (_, run), row, measurement in zip(due, rows, self.scores(stack, rows, validation), strict=True):
                    losses[run] = []
                    self.higher_is_better = measurement.higher_is_better
                    rate = run.learning_rate if stop else 0.0
                    points[run].append(_point(measurement, rate, stop, means[run], run.attack_seed))
                    if points[run][-1].score is None:
                        points[run] += _unreached(run, stop)
                    if len(points[run]) == len(run.stops):
                        ended[run] = Trained(points[run], functools.partial(stack.copy, row.clone()), measurement)
                staying = [place for place, run in enumerate(left) if run not in ended]
                if not staying:
                    break
                if len(staying) < len(left):
                    stack.keep(staying)
                    left[:] = [left[place] for place in staying]
        self.steps += steps
        self.step_seconds += seconds
        self.without_graphs = self.without_graphs or stack.without_graphs
        return [ended[run] for run in runs]

    def scores(self, stack: Stack, rows: Tensor, validation: Split) -> Sequence[Measurement]:
        """The scores of a stack's networks with these trained weights: at once if possible, else one after another."""

        def alone(network: nn.Module) -> Measurement:
            # For each network anew, because it keeps rounded copies of weights until its end.
            with autocast(self.trainer.device, self.attempt == "plain"):
                return self.task.evaluate(network, validation)

        if len(rows) > 1 and self.scored_alone is None:
            try:
                if not isinstance(validation, EachSplit):
                    raise CannotStackError("the task scores one network at a time")
                with autocast(self.trainer.device, self.attempt == "plain"):
                    return stack.scores(rows, validation, alone, self.arithmetic(stack))
            except CannotStackError as error:
                self.scored_alone = str(error)
        return [alone(stack.network(row)) for row in rows]

    def arithmetic(self, stack: Stack) -> torch.dtype:
        """The precision that a stack's networks are computed in."""
        mixed = self.attempt == "plain" and self.trainer.device.autocast is not None
        return torch.bfloat16 if mixed else stack.weights.dtype

    def steps_at_once(self, stack: Stack, batches: Iterator[Sequence[Any]], count: int) -> Tensor:
        """So many steps of a stack; the losses [networks, steps] before them.

        Raises:
            CellTimeoutError: the budget's seconds are used up.
        """
        stack.layers.train()
        losses = torch.empty(count, len(stack.weights), device=stack.weights.device)
        for index, batch in enumerate(itertools.islice(batches, count)):
            with autocast(self.trainer.device, self.attempt == "plain"):
                losses[index] = stack.step(batch)
            if time.monotonic() - self.started > self.trainer.budget.timeout:
                raise CellTimeoutError(f"more than {self.trainer.budget.timeout:g} s")
        return losses.T

    def checked_batches(self, stack: Stack, runs: list[Run]) -> Iterator[Sequence[Any]]:
        """Batches for a stack, of which the first gives it the losses and gradients that each network has alone.

        Raises:
            CannotStackError: it gives others.
        """
        train = self.task.split("train")
        seeds = list(dict.fromkeys(run.attack_seed for run in runs))
        plain = {seed: train.batch(next(self.order(seed))) for seed in seeds}
        alone = [plain[run.attack_seed] for run in runs] if len(seeds) > 1 else list(plain.values())
        while True:
            batches = self.batches_at_once(runs)
            first = next(batches)
            try:
                with autocast(self.trainer.device, self.attempt == "plain"):
                    stack.check(first, alone, self.arithmetic(stack))
            except CannotStackError as error:
                if self.padded is not None or not isinstance(train, EvenSplit):
                    raise
                self.padded = str(error)
            else:
                return itertools.chain([first], batches)

    def batches_at_once(self, runs: list[Run]) -> Iterator[Sequence[Any]]:
        """Endless batches: one for all runs where they share the order of data, else one for each. Runs may end."""
        train = self.task.split("train")
        orders = {run.attack_seed: self.order(run.attack_seed) for run in runs}
        while True:
            drawn = {seed: next(orders[seed]) for seed in dict.fromkeys(run.attack_seed for run in runs)}
            made = dict(zip(drawn, _even_batches(train, list(drawn.values()), self.padded is None), strict=True))
            yield [made[run.attack_seed] for run in runs] if len(made) > 1 else list(made.values())

    def stack(self, runs: Sequence[Run], longest: int) -> Stack:
        """The networks of these runs, with the learning rates of `longest` steps.

        Raises:
            CannotStackError: they cannot be trained at once.
        """
        if self.trainer.budget.average:
            raise CannotStackError("the weights are averaged")
        if self.trainer.budget.tokens_at_once is not None:
            raise CannotStackError("batches are trained on in parts")
        networks = {run.attack_seed: self.network(run.attack_seed).train() for run in runs}
        factors = [(run, self.factor(run.stops[-1])) for run in runs]
        rates = [
            [run.learning_rate * factor(step) if step <= run.stops[-1] else 0.0 for run, factor in factors]
            for step in range(1, longest + 1)
        ]
        return Stack(
            [networks[run.attack_seed] for run in runs],
            self.task.loss,
            self.optimizer,
            torch.tensor(rates, dtype=torch.float64).view(longest, len(runs)),
            weight_decay=self.trainer.budget.weight_decay,
            clip=self.clip,
            mask=self.mask,
        )

    @property
    def trained_how(self) -> str | None:
        """How runs were trained on a GPU: at once, or one by one and why. None on the CPU."""
        if self.trainer.device.kind == "cpu":
            return None
        if self.serial is not None:
            return f"one by one: {self.serial}"
        exceptions = {
            "without CUDA graphs": self.without_graphs,
            "padded": self.padded,
            "scored one by one": self.scored_alone,
        }
        return ", ".join(["at once", *(f"{what}: {why}" for what, why in exceptions.items() if why)])

    def trajectory(
        self, learning_rate: float, attack_seed: int, stops: Sequence[int]
    ) -> tuple[list[Point], nn.Module, Measurement]:
        """Train to the last stop, and evaluate at every stop.

        Returns the points of all stops, the network at the last one that was reached, and its measurement.
        """
        network = self.network(attack_seed)
        stepper = self.stepper(network, learning_rate, stops[-1])
        means: dict[int, AveragedModel] = {}
        batches = self.batches(attack_seed)
        validation = self.task.split("validation")
        points: list[Point] = []
        losses: list[Tensor] = []
        reached = 0
        with seeded(_mix(self.trainer.seed, attack_seed)):
            for stop in stops:
                started = time.perf_counter()
                network.train()
                for step in range(reached + 1, stop + 1):
                    losses.append(stepper.step(self.losses(network, next(batches))))
                    for end in self.averaged(stops, step):
                        if end not in means:  # a mean takes a copy of the weights, so it is made only when needed
                            means[end] = AveragedModel(network)
                        means[end].update_parameters(network)
                    if time.monotonic() - self.started > self.trainer.budget.timeout:
                        raise CellTimeoutError(f"more than {self.trainer.budget.timeout:g} s")
                train_loss = float(torch.stack(losses).float().mean()) if losses else None
                self.steps += stop - reached
                self.step_seconds += time.perf_counter() - started
                reached, losses = stop, []
                evaluated = means.pop(stop).module if stop in means else network
                with autocast(self.trainer.device, self.attempt == "plain"):
                    measurement = self.task.evaluate(evaluated, validation)
                self.higher_is_better = measurement.higher_is_better
                points.append(_point(measurement, learning_rate if stop else 0.0, stop, train_loss, attack_seed))
                if points[-1].score is None:
                    points += _unreached(Run(learning_rate, attack_seed, tuple(stops)), stop)
                    break
        network.zero_grad()  # whoever keeps the network keeps no gradients
        return points, evaluated.eval(), measurement

    def averaged(self, stops: Sequence[int], step: int) -> list[int]:
        """The stops whose averaged weights include the weights after this step."""
        return [stop for stop in stops if self.trainer.budget.average and (1 - AVERAGED) * stop < step <= stop]

    def network(self, attack_seed: int) -> nn.Module:
        """The network that a trajectory trains: an adapted copy of the release, in the attempt's precision."""
        base = copied(self.model.network)
        with seeded(_mix(self.trainer.seed, attack_seed)):
            network = self.adapter(base, attack_seed) if self.adapter is not None else base
        if self.attempt == "float32":
            network.float()
        elif self.attempt != "plain":
            network.double()
        if self.attempt == "head":
            head = base.get_output_embeddings()
            network.requires_grad_(False)
            (head if head is not None else list(network.children())[-1]).requires_grad_(True)
        return network

    def stepper(self, network: nn.Module, learning_rate: float, last: int) -> Stepper:
        """The optimizer: linear warm-up, then a constant rate or, with `budget.decay`, one that falls to 0."""
        return Stepper(
            network,
            self.optimizer,
            learning_rate,
            factor=self.factor(last),
            weight_decay=self.trainer.budget.weight_decay,
            clip=self.clip,
            mask=self.mask,
        )

    def factor(self, last: int) -> Callable[[int], float]:
        """The multiple of the learning rate at each step, counted from 1, in a run of `last` steps."""
        warmup, decay = self.trainer.budget.warmup, self.trainer.budget.decay
        if decay:  # in a run shorter than the warm-up the rate would never decay
            warmup = min(warmup, last // 2)
        return lambda step: warmed(step, warmup, last if decay else None)

    @property
    def clip(self) -> float | None:
        """The largest norm of a gradient."""
        return CLIPPED if self.attempt in ("clipped", "head") else self.trainer.budget.clip

    def batches(self, attack_seed: int) -> Iterator[Any]:
        """Endless training batches, in the order of the attack seed."""
        train, order = self.task.split("train"), self.order(attack_seed)
        while True:
            # Collating directly after a step takes eight times as long, because the step empties the CPU's caches.
            yield from [train.batch(indices) for indices in itertools.islice(order, COLLATED)]

    def losses(self, network: nn.Module, batch: Any) -> Iterator[Tensor]:
        """The loss on a batch, or on parts of it that have at most the budget's tokens and add up to it."""
        tokens = self.trainer.budget.tokens_at_once
        parts = [(1.0, batch)] if tokens is None or not isinstance(batch, PartedBatch) else batch.parts(tokens)
        for share, part in parts:
            with autocast(self.trainer.device, self.attempt == "plain"):
                loss = self.task.loss(network, part)
            yield loss if share == 1.0 else loss * share

    def order(self, attack_seed: int) -> Iterator[list[int]]:
        """The documents of endless training batches, by their indices."""
        return shuffled(len(self.task.split("train")), self.trainer.budget.batch, _mix(self.trainer.seed, attack_seed))

    def loss_of_first_batch(self, network: nn.Module) -> Iterator[Tensor]:
        """The loss on the first batch, in the precision of the trajectories, to count the cost of a step."""
        return self.losses(network, next(self.batches(0)))


def _mix(seed: int, attack_seed: int) -> int:
    """One seed for a pair of base seed and attack seed. Every base seed is attacked with the same attack seeds."""
    return seed * 1009 + attack_seed


def _unreached(run: Run, stop: int) -> list[Point]:
    """The points of a run's stops after one at which its score is not finite."""
    return [Point(run.learning_rate, end, None, None, None, run.attack_seed) for end in run.stops if end > stop]


def _even_batches(split: Split, several: Sequence[Sequence[int]], packed: bool) -> Sequence[Any]:
    """Batches of these documents, in one shape if the split can do that."""
    if isinstance(split, EvenSplit):
        return split.even_batches(several, packed=packed)
    return [split.batch(indices) for indices in several]


def _point(measurement: Measurement, rate: float, step: int, train_loss: float | None, attack_seed: int) -> Point:
    """A point of the curve. Score and loss are None if either is not finite, since JSON records cannot hold them."""
    loss = measurement.loss
    finite = math.isfinite(measurement.value) and (loss is None or math.isfinite(loss))
    if train_loss is not None and not math.isfinite(train_loss):
        train_loss = None
    score, loss = (measurement.value, loss if loss is not None else 0.0) if finite else (None, None)
    return Point(rate, step, score, loss, train_loss, attack_seed)
