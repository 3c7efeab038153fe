"""The attacker's sweep: every learning rate and duration of the budget, the best on validation, run again.

Each learning rate is one trajectory from the release, read at each duration: with a linear warm-up and then a constant
rate a duration sweep gives bit for bit the weights of separate runs. A rate that decays needs those separate runs.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from nftbench.contract import Adapter, Candidates, Cost, Mask, Measurement, Model, Outcome, Point, Task
from nftbench.device import Device
from nftbench.errors import NftbenchError
from nftbench.models.networks import seeded
from nftbench.suites.schema import Budget
from nftbench.terms import Optimizer
from nftbench.training.costs import step_cost
from nftbench.training.engine import Stepper, autocast, shuffled
from nftbench.training.trainer import CellTimeoutError, Trainer

Side = Literal["low", "high"]
Attempt = Literal["plain", "float32", "float64", "clipped", "head"]
CLIPPED = 0.01
"""Gradient norm of the attempt `clipped`: a hundredth of the usual 1.0 keeps steps short where the loss is steep."""
AVERAGED = 0.25
"""The share of a run's steps, its last ones, whose weights `average` takes the mean of: stochastic weight averaging
(Izmailov et al. 2018, arXiv:1803.05407), at every step and with a share that is our choice."""
COLLATED = 8
"""Batches made at a time."""


class NonFiniteError(Exception):
    """Not one trained point is finite, whatever was tried."""


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
    """Spend the trainer's budget on one release and task.

    The grid is extended where its edge is best. The picked recipe is run again with `budget.restarts` fresh attack
    seeds, and the best of those stands. Where no trained point is finite, or some are not and none of the others helps,
    the sweep is tried again in float32, in float64, clipped, and on the head alone, and what helps stands.

    Args:
        adapter: makes the trained network from a fresh copy of the release and the attack seed (LoRA, an untied head).
        gradient_mask: only what it marks changes.
        lr_scale: multiplies the grid's learning rates.
        changes: fields of the budget.

    Raises:
        NftbenchError: the budget has no learning rates for the optimizer.
        NonFiniteError: nothing helped.
        CellTimeoutError: the budget's seconds are used up.
    """
    budget = Budget.model_validate({**trainer.budget.model_dump(), **changes})
    if optimizer not in budget.learning_rates:
        raise NftbenchError(f"budget.learning_rates has no grid for {optimizer!r}")
    run = _Run(dataclasses.replace(trainer, budget=budget), model, task, adapter, gradient_mask, optimizer)
    grid = [rate * lr_scale for rate in budget.learning_rates[optimizer]]
    finite: tuple[Attempt, list[Point], bool] | None = None
    for attempt in _attempts(model, trainer.device):
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
        # Some rates blow up and none of the others helps: what resists may only be the arithmetic.
    if finite is None:
        raise NonFiniteError("no learning rate stays finite: in float32 and float64, clipped, and on the head alone")
    run.attempt, curve, at_edge = finite
    return run.outcome(curve, at_edge)


def unchanged(trainer: Trainer, model: Model, task: Task) -> Outcome:
    """The outcome of not training at all: the release as it is. A utility task has no validation split."""
    if not task.trainable:
        return Outcome(model.network, None, Point(0.0, 0, None, None))
    with autocast(trainer.device):
        validation = task.evaluate(model.network, task.split("validation"))
    point = _point(validation, 0.0, 0, None, 0)
    return Outcome(model.network, validation, point, (point,))


def select(trainer: Trainer, task: Task, candidates: Candidates) -> Outcome:
    """Try networks instead of learning rates: the best on validation stands.

    Raises:
        NonFiniteError: no candidate is finite.
    """
    started = time.monotonic()
    validation = task.split("validation")
    curve: list[Point] = []
    found: tuple[Point, nn.Module, Measurement] | None = None
    for network, setting, steps in candidates:
        with autocast(trainer.device):
            measurement = task.evaluate(network, validation)
        point = _point(measurement, setting, steps, None, 0)
        curve.append(point)
        if point.score is None:
            continue
        if found is None or best([found[0], point], measurement.higher_is_better) is point:
            found = point, copy.deepcopy(network), measurement
    if found is None:
        raise NonFiniteError("no candidate is finite")
    point, network, measurement = found
    cost = Cost(steps=sum(one.step for one in curve), seconds=time.monotonic() - started)
    return Outcome(network.eval(), measurement, point, tuple(curve), cost=cost, stuck=point.step == 0)


def best(points: Sequence[Point], higher_is_better: bool) -> Point:
    """The point with the best validation score, then the lower validation loss, then fewer steps.

    Raises:
        ValueError: no point is finite.
    """
    sign = 1.0 if higher_is_better else -1.0
    finite = [point for point in points if point.score is not None and point.loss is not None]
    if not finite:
        raise ValueError("no finite point")
    return max(finite, key=lambda point: (sign * (point.score or 0.0), -(point.loss or 0.0), -point.step))


def edge(points: Sequence[Point], higher_is_better: bool) -> Side | None:
    """The side of the grid at which the best learning rate lies, if it strictly beats its neighbour there."""
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


def _attempts(model: Model, device: Device) -> tuple[Attempt, ...]:
    """The plain sweep, and what is tried where it is finite nowhere or helps nowhere."""
    already = device.autocast is None and model.network.dtype == torch.float32
    return ("plain", "float64", "clipped", "head") if already else ("plain", "float32", "float64", "clipped", "head")


@dataclass
class _Run:
    """One sweep under way."""

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

    def search(self, grid: Sequence[float]) -> tuple[list[Point], bool]:
        """The points of all learning rates, and whether the best still lies at an edge after extension."""
        curve: list[Point] = []
        for index, rate in enumerate(grid):
            stops = self.trainer.budget.durations if index == 0 else self.trainer.budget.durations[1:]
            curve += self.points(rate, stops)
        if all(point.score is None for point in curve):
            return curve, False
        rates = list(grid)
        added = {"low": 0, "high": 0}
        while sides := [side for side in self.sides(curve) if added[side] < self.trainer.budget.extension]:
            for side in sides:
                added[side] += 1
                if side == "low":
                    rates.insert(0, rates[0] * rates[0] / rates[1])
                else:
                    rates.append(rates[-1] * rates[-1] / rates[-2])
                new = rates[0] if side == "low" else rates[-1]
                curve += self.points(new, self.trainer.budget.durations[1:])
        return curve, edge(curve, self.higher_is_better) is not None

    def sides(self, curve: Sequence[Point]) -> tuple[Side, ...]:
        """Where the grid has to grow: beyond its best edge, and on both sides where no rate beats not training."""
        if best(curve, self.higher_is_better).step == 0:
            return ("low", "high")
        side = edge(curve, self.higher_is_better)
        return (side,) if side is not None else ()

    def outcome(self, curve: Sequence[Point], at_edge: bool) -> Outcome:
        """Run the picked recipe again with fresh attack seeds; the best on validation stands."""
        picked = best(curve, self.higher_is_better)
        start = next(point for point in curve if point.step == 0)
        seeds = range(1, self.trainer.budget.restarts + 1) if picked.step else ()
        restarts: list[Point] = []
        found: tuple[Point, nn.Module, Measurement] | None = None
        # Attack seed 0 was chosen among all points and flatters itself: it stands in only where no fresh seed is finite
        # or where not training is best, and not training stays a choice to the end.
        for attack_seed in (*seeds, 0):
            if attack_seed == 0 and found is not None:
                break
            points, network, measurement = self.trajectory(picked.learning_rate, attack_seed, (picked.step,))
            restarts += points if attack_seed else []
            rivals = [points[0], *([found[0]] if found is not None else [])]
            if points[0].score is not None and best(rivals, self.higher_is_better) is points[0]:
                found = points[0], network, measurement
        assert found is not None  # attack seed 0 was finite when it was picked, and repeats itself
        if best([start, found[0]] if start.score is not None else [found[0]], self.higher_is_better) is start:
            points, network, measurement = self.trajectory(0.0, 0, (0,))
            found = start, network, measurement
        point, network, validation = found
        cost = step_cost(
            self.network(0), lambda net: self.stepper(net, picked.learning_rate, 1), self.loss_of_first_batch
        )
        return Outcome(
            network=network,
            validation=validation,
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
        )

    def points(self, learning_rate: float, stops: Sequence[int]) -> list[Point]:
        """One learning rate at each duration."""
        runs = [(stop,) for stop in stops] if self.trainer.budget.decay else [tuple(stops)]
        return [point for run in runs for point in self.trajectory(learning_rate, 0, run)[0]]

    def trajectory(
        self, learning_rate: float, attack_seed: int, stops: Sequence[int]
    ) -> tuple[list[Point], nn.Module, Measurement]:
        """Train to the last stop and read every stop: the points, the network there, its last measurement."""
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
                begun = time.perf_counter()
                network.train()
                for step in range(reached + 1, stop + 1):
                    with autocast(self.trainer.device, self.attempt == "plain"):
                        loss = self.task.loss(network, next(batches))
                    stepper.step(loss)
                    losses.append(loss.detach())
                    for late in self.averaged(stops, step):
                        if late not in means:  # a copy of the weights, only while it is needed
                            means[late] = AveragedModel(network)
                        means[late].update_parameters(network)
                    if time.monotonic() - self.started > self.trainer.budget.timeout:
                        raise CellTimeoutError(f"more than {self.trainer.budget.timeout:g} s")
                train_loss = float(torch.stack(losses).float().mean()) if losses else None
                self.steps += stop - reached
                self.step_seconds += time.perf_counter() - begun
                reached, losses = stop, []
                found = means.pop(stop).module if stop in means else network
                with autocast(self.trainer.device, self.attempt == "plain"):
                    measurement = self.task.evaluate(found, validation)
                self.higher_is_better = measurement.higher_is_better
                points.append(_point(measurement, learning_rate if stop else 0.0, stop, train_loss, attack_seed))
                if points[-1].score is None:
                    left = [late for late in stops if late > stop]
                    points += [Point(learning_rate, late, None, None, None, attack_seed) for late in left]
                    break
        return points, found.eval(), measurement

    def averaged(self, stops: Sequence[int], step: int) -> list[int]:
        """The stops at which the weights after this step count towards the mean that is read."""
        return [stop for stop in stops if self.trainer.budget.average and (1 - AVERAGED) * stop < step <= stop]

    def network(self, attack_seed: int) -> nn.Module:
        """What a trajectory trains: a fresh copy of the release, adapted, in the attempt's precision."""
        base = copy.deepcopy(self.model.network)
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
        """The attacker's optimizer: linear warm-up, then constant, or falling so that step `last` is the last."""
        warmup, decay = max(self.trainer.budget.warmup, 1), self.trainer.budget.decay
        if decay:  # a short run would end before it has risen, let alone fallen
            warmup = max(min(warmup, last // 2), 1)

        def factor(step: int) -> float:
            rising = min(1.0, step / warmup)
            return min(rising, (last + 1 - step) / (last + 1 - warmup)) if decay else rising

        clip = CLIPPED if self.attempt in ("clipped", "head") else self.trainer.budget.clip
        return Stepper(
            network,
            self.optimizer,
            learning_rate,
            factor=factor,
            weight_decay=self.trainer.budget.weight_decay,
            clip=clip,
            mask=self.mask,
        )

    def batches(self, attack_seed: int) -> Iterator[Any]:
        """Training batches without end, in the attack seed's order."""
        train = self.task.split("train")
        order = shuffled(len(train), self.trainer.budget.batch, _mix(self.trainer.seed, attack_seed))
        while True:
            # A step leaves the processor's caches cold, and then collating takes eight times as long.
            yield from [train.batch(indices) for indices in itertools.islice(order, COLLATED)]

    def loss_of_first_batch(self, network: nn.Module) -> Tensor:
        """The loss of one step, as the trajectories compute it."""
        with autocast(self.trainer.device, self.attempt == "plain"):
            return self.task.loss(network, next(self.batches(0)))


def _mix(seed: int, attack_seed: int) -> int:
    """One number for base seed and attack seed: attack seeds are crossed with base seeds."""
    return seed * 1009 + attack_seed


def _point(measurement: Measurement, rate: float, step: int, train_loss: float | None, attack_seed: int) -> Point:
    loss = measurement.loss
    finite = math.isfinite(measurement.value) and (loss is None or math.isfinite(loss))
    if train_loss is not None and not math.isfinite(train_loss):
        train_loss = None
    score, loss = (measurement.value, loss if loss is not None else 0.0) if finite else (None, None)
    return Point(rate, step, score, loss, train_loss, attack_seed)
