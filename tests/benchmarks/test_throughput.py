"""How fast the engine trains: pre-training in tokens a second, fine-tuning in steps a second. For comparison, no bound.

On the CPU a model of the suite `small`'s size, on CUDA the suite `wiki`'s model and batches; `make gpu` runs this too.
"""

from __future__ import annotations

import os
import time
from typing import Any

import pytest
import torch

from nftbench import suites
from nftbench.contract import Model
from nftbench.device import Device
from nftbench.models import networks
from nftbench.training import engine
from nftbench.training.sweep import Sweep
from nftbench.training.trainer import Trainer
from tests.benchmarks.conftest import MODEL
from tests.benchmarks.measure import Line
from tests.benchmarks.test_step import Unscored

DEVICES = [os.environ["NFTBENCH_DEVICE"]] if "NFTBENCH_DEVICE" in os.environ else ["cpu", "cuda"]
ROUNDS = 5

pytestmark = pytest.mark.parametrize("device", DEVICES)


def clock(device: str) -> float:
    """CPU time on the CPU; the wall's on a GPU, once it has done all its work."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def per_second(device: str, action: Any, units: int, benchmark: Any) -> tuple[float, float, float]:
    """Units a second: median, worst, best."""
    if device != "cpu" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    action()
    found = []

    def timed() -> None:
        begun = clock(device)
        action()
        found.append(units / (clock(device) - begun))

    benchmark.pedantic(timed, rounds=ROUNDS)
    found.sort()
    return found[len(found) // 2], found[0], found[-1]


def recipe(device: str) -> tuple[dict[str, Any], int, suites.Pretraining]:
    """Model, block and pre-training for this kind of device."""
    steps = 30
    if device == "cpu":
        return MODEL, 32, suites.Pretraining(steps=steps, warmup=5)
    wiki = suites.read("wiki")
    return wiki.model, wiki.corpus.block, wiki.pretraining.model_copy(update={"steps": steps})


def named(device: str, network: torch.nn.Module) -> str:
    size = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    where = "one CPU thread" if device == "cpu" else torch.cuda.get_device_name()
    return f"{size:.2g} M parameters on {where}"


def test_pretraining(bench: Any, device: str, benchmark: Any, table: dict[str, Line]) -> None:
    settings, block, plan = recipe(device)
    if device != "cpu" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    tokenizer = bench.model.tokenizer
    network = networks.build(settings, tokenizer, 0, device).network
    blocks = torch.randint(len(tokenizer), (4096, block), generator=torch.Generator().manual_seed(0))
    tokens = plan.steps * plan.batch * block
    rate, low, high = per_second(device, lambda: engine.pretrain(network, blocks, plan, 0, device), tokens, benchmark)
    table[f"9 {device} pretraining"] = Line(
        f"pre-training throughput, {named(device, network)}",
        "none",
        f"{rate:,.0f} tokens/s [{low:,.0f}, {high:,.0f}]",
        "",
        f"{plan.steps} steps of {plan.batch} × {block} tokens, {ROUNDS} rounds",
    )


def test_fine_tuning(bench: Any, device: str, benchmark: Any, table: dict[str, Line]) -> None:
    if device != "cpu" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    tokenizer, steps = bench.model.tokenizer, 50
    network = networks.build(recipe(device)[0], tokenizer, 0, device).network
    run = Sweep(Trainer(0, bench.budget, Device.parse(device)), Model(network, tokenizer), Unscored(bench.task))
    rate, low, high = per_second(device, lambda: run.trajectory(1e-4, 0, (steps,)), steps, benchmark)
    table[f"9 {device} tuning"] = Line(
        f"fine-tuning throughput, {named(device, network)}",
        "none",
        f"{rate:,.0f} steps/s [{low:,.0f}, {high:,.0f}]",
        "",
        f"{steps} steps of {bench.budget.batch} documents, {ROUNDS} rounds",
    )
