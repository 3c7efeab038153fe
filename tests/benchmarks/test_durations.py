"""A duration sweep costs its longest run and the evaluations, and gives bit for bit the weights of separate runs."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from nftbench.contract import Measurement
from nftbench.training.sweep import Sweep
from nftbench.training.trainer import Trainer
from tests.benchmarks.conftest import Wrapped
from tests.benchmarks.measure import Line, by_turns, ratio, within

ROUNDS, RATE, MOST = 9, 1e-3, 1.05


@dataclasses.dataclass(frozen=True)
class Watched(Wrapped):
    """The task, which keeps the weights of every evaluation."""

    weights: list[dict[str, torch.Tensor]]

    def evaluate(self, network: nn.Module, split: Any) -> Measurement:
        self.weights.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        measurement: Measurement = self.task.evaluate(network, split)
        return measurement


def trajectory(bench: Any, stops: tuple[int, ...], task: Any = None) -> tuple[Any, ...]:
    return Sweep(Trainer(0, bench.budget), bench.model, task or bench.task).trajectory(RATE, 0, stops)


def test_durations(bench: Any, benchmark: Any, table: dict[str, Line]) -> None:
    stops = bench.budget.durations
    watched = Watched(bench.task, [])
    points = trajectory(bench, stops, watched)[0]
    for stop, weights, point in zip(stops, watched.weights, points, strict=True):
        (alone,), network, _ = trajectory(bench, (stop,))
        assert dataclasses.replace(alone, train_loss=None) == dataclasses.replace(point, train_loss=None)
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, weights[name]), f"step {stop}: {name} differs from the run that ends there"

    validation = bench.task.split("validation")

    def separately() -> None:
        network = trajectory(bench, stops[-1:])[1]
        for _ in stops[:-1]:
            bench.task.evaluate(network, validation)

    actions = {"sweep": lambda: trajectory(bench, stops), "separately": separately, "again": lambda: separately()}
    found = within(lambda: by_turns(actions, ROUNDS), "sweep", "separately", MOST)
    every = by_turns({"every": lambda: [trajectory(bench, (stop,)) for stop in stops]}, 1)["every"]
    benchmark.pedantic(actions["sweep"], rounds=2)
    measured, control = ratio(found["sweep"], found["separately"]), ratio(found["again"], found["separately"])
    saved = every[0] / sorted(found["sweep"])[ROUNDS // 2]
    table["5 durations"] = Line(
        "durations of one trajectory over its longest run and the evaluations, CPU time",
        f"≤ {MOST}×",
        str(measured),
        str(control),
        f"durations {', '.join(map(str, stops))}; {ROUNDS} rounds; weights bitwise those of separate runs, "
        f"which take {saved:.1f}× as long",
    )
    assert measured.value <= MOST
