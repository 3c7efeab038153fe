"""How fast the engine trains on the CPU: pre-training in tokens a second, fine-tuning in steps a second. No bound.

tests/gpu/throughput.py measures the same on a GPU.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from nftbench.device import CPU
from nftbench.models import networks
from nftbench.suites.schema import Pretraining
from nftbench.training import engine
from nftbench.training.sweep import Sweep
from nftbench.training.trainer import Trainer
from tests.benchmarks.conftest import MODEL
from tests.benchmarks.measure import Line
from tests.benchmarks.test_step import Unscored

ROUNDS, BLOCK = 5, 32


def per_second(action: Any, units: int, benchmark: Any) -> tuple[float, float, float]:
    """Units a second of CPU time: median, worst, best."""
    action()
    found = []

    def timed() -> None:
        begun = time.process_time()
        action()
        found.append(units / (time.process_time() - begun))

    benchmark.pedantic(timed, rounds=ROUNDS)
    found.sort()
    return found[len(found) // 2], found[0], found[-1]


def named(network: torch.nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in network.parameters()) / 1e6:.2g} M parameters on one CPU thread"


def test_pretraining(bench: Any, benchmark: Any, table: dict[str, Line]) -> None:
    recipe, tokenizer = Pretraining(steps=30, warmup=5), bench.model.tokenizer
    network = networks.build(MODEL, tokenizer, 0, "cpu").network
    blocks = torch.randint(len(tokenizer), (4096, BLOCK), generator=torch.Generator().manual_seed(0))
    tokens = recipe.steps * recipe.batch * BLOCK
    rate, low, high = per_second(lambda: engine.pretrain(network, blocks, recipe, 0, CPU), tokens, benchmark)
    table["9 cpu pretraining"] = Line(
        f"pre-training throughput, {named(network)}",
        "none",
        f"{rate:,.0f} tokens/s [{low:,.0f}, {high:,.0f}]",
        "",
        f"{recipe.steps} steps of {recipe.batch} × {BLOCK} tokens, {ROUNDS} rounds",
    )


def test_fine_tuning(bench: Any, benchmark: Any, table: dict[str, Line]) -> None:
    steps = 50
    run = Sweep(Trainer(0, bench.budget), bench.model, Unscored(bench.task))
    rate, low, high = per_second(lambda: run.trajectory(1e-4, 0, (steps,)), steps, benchmark)
    table["9 cpu tuning"] = Line(
        f"fine-tuning throughput, {named(bench.model.network)}",
        "none",
        f"{rate:,.0f} steps/s [{low:,.0f}, {high:,.0f}]",
        "",
        f"{steps} steps of {bench.budget.batch} documents, {ROUNDS} rounds",
    )
