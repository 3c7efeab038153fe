"""One engine step against a bare hand-written PyTorch loop on the same model and batches: time and memory."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from nftbench.contract import Measurement
from nftbench.data.loglikelihood import Batch
from nftbench.training.sweep import Sweep
from nftbench.training.trainer import Trainer
from tests.allocated import peak_bytes
from tests.benchmarks.conftest import Wrapped
from tests.benchmarks.measure import Line, by_turns, ratio, within

STEPS, ROUNDS, RATE = 50, 24, 1e-3
MOST_TIME, MOST_MEMORY = 1.05, 1.1


class Unscored(Wrapped):
    """The task, with an evaluation that costs nothing."""

    def evaluate(self, network: nn.Module, split: Any) -> Measurement:
        return Measurement("acc", 0.5, 0.0, len(split), 0.25, loss=1.0)


def engine(bench: Any) -> nn.Module:
    """`STEPS` steps as every attack takes them: the sweep's own trajectory."""
    run = Sweep(Trainer(0, bench.budget), bench.model, Unscored(bench.task))
    return run.trajectory(RATE, 0, (STEPS,))[1]


def bare(bench: Any, batches: Sequence[Batch]) -> nn.Module:
    """The same steps, written out for this one model and its batches, which lie ready."""
    network = copy.deepcopy(bench.model.network).train()
    parameters = list(network.parameters())
    groups = [
        {"params": [one for one in parameters if one.ndim >= 2]},
        {"params": [one for one in parameters if one.ndim < 2]},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE, weight_decay=0.0, fused=True)
    for step, batch in enumerate(batches, 1):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, step / bench.budget.warmup)
        logits = network(input_ids=batch.ids, use_cache=False, logits_to_keep=batch.kept).logits
        loss = nn.functional.cross_entropy(logits[batch.rows, batch.columns], batch.targets)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    return network


def plain(bench: Any, batches: Sequence[Batch]) -> nn.Module:
    """The loop of the tutorials: labels go to the network, which computes every logit."""
    network = copy.deepcopy(bench.model.network).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.0, fused=True)
    for batch in batches:
        labels = torch.full((len(batch.ids), batch.ids.shape[1] + 1), -100)
        first = batch.ids.shape[1] - batch.kept
        labels[batch.rows, first + batch.columns + 1] = batch.targets
        ids = nn.functional.pad(batch.ids, (0, 1))
        loss = network(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    return network


@pytest.fixture(scope="module")
def batches(bench: Any) -> list[Batch]:
    stream = Sweep(Trainer(0, bench.budget), bench.model, bench.task).batches(0)
    return [next(stream) for _ in range(STEPS)]


def test_time(bench: Any, batches: list[Batch], benchmark: Any, table: dict[str, Line]) -> None:
    ours, theirs = engine(bench), bare(bench, batches)
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other), f"the two loops do not train the same: {name}"
    actions = {
        "engine": lambda: engine(bench),
        "bare": lambda: bare(bench, batches),
        "again": lambda: bare(bench, batches),
        "plain": lambda: plain(bench, batches),
    }
    found = within(lambda: by_turns(actions, ROUNDS), "engine", "bare", MOST_TIME)
    benchmark.pedantic(actions["engine"], rounds=5)
    measured, control = ratio(found["engine"], found["bare"]), ratio(found["again"], found["bare"])
    tutorial = ratio(found["engine"], found["plain"])
    step = 1000 * sorted(found["engine"])[ROUNDS // 2] / STEPS
    table["3 step"] = Line(
        "engine step over a bare loop, CPU time",
        f"≤ {MOST_TIME}×",
        str(measured),
        str(control),
        f"{ROUNDS} rounds of {STEPS} steps by turns, same bits; {step:.2f} ms a step; "
        f"{tutorial.value:.2f}× a loop that passes labels",
    )
    assert measured.value <= MOST_TIME


def test_memory(bench: Any, batches: list[Batch], benchmark: Any, table: dict[str, Line]) -> None:
    theirs = peak_bytes(lambda: bare(bench, batches))
    again = peak_bytes(lambda: bare(bench, batches))
    ours = benchmark.pedantic(lambda: peak_bytes(lambda: engine(bench)), rounds=1)
    table["4 memory"] = Line(
        "engine step over a bare loop, peak memory",
        f"≤ {MOST_MEMORY}×",
        f"{ours / theirs:.3f}×",
        f"{again / theirs:.3f}×",
        f"peak of torch's allocator over {STEPS} steps, weights, gradients and optimizer included: "
        f"{ours / 2**20:.2f} MiB against {theirs / 2**20:.2f}",
    )
    assert ours / theirs <= MOST_MEMORY
