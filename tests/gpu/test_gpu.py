"""On a GPU the engine computes what it computes on the CPU, up to rounding.

Each test is written for a device, and runs on the CPU too, so that the test itself is known to work. `make gpu` begins
with those for the GPU, `pytest -m gpu`.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from nftbench.contract import Model
from nftbench.data import loglikelihood
from nftbench.data.loglikelihood import PassPlanner
from nftbench.device import CPU, Device
from nftbench.methods import adapters
from nftbench.models import networks
from nftbench.planning.plan import plan
from nftbench.records.store import Store
from nftbench.running.executors import steps
from nftbench.running.executors.local import LocalExecutor
from nftbench.running.workspace import Workspace
from nftbench.suites.schema import Budget, Pretraining
from nftbench.testing import tiny_suite
from nftbench.training import costs, engine, stack as stacks
from nftbench.training.engine import Stepper
from nftbench.training.sweep import Run, Sweep, sweep
from nftbench.training.trainer import Trainer
from tests.gpu.throughput import LENGTH, Answers, gpt2

GPU = pytest.param(
    Device("cuda"),
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")],
    id="cuda",
)
pytestmark = pytest.mark.parametrize("device", [pytest.param(CPU, id="cpu", marks=pytest.mark.slow), GPU])
VOCABULARY, BLOCK = 64, 32
BUDGET = Budget(
    learning_rates={"adamw": (1e-3, 3e-3, 1e-2)}, durations=(5, 20), batch=16, warmup=3, weight_decay=0.01, extension=0
)


def network(device: Device, seed: int = 0, **changes: Any) -> Any:
    """A GPT-2 of two layers; its weights are drawn on the CPU, so they are the same on every device."""
    fields = {**gpt2(2, 48, 2), "vocab_size": VOCABULARY, "n_positions": BLOCK, **changes}
    return networks.build(fields, None, seed, "cpu").network.to(str(device))


def text(count: int = 64) -> torch.Tensor:
    """Blocks that can be learnt: each token is the one before it and three more, and some are random."""
    draw = torch.Generator().manual_seed(0)
    start = torch.randint(VOCABULARY, (count, 1), generator=draw)
    blocks = (start + 3 * torch.arange(BLOCK)) % VOCABULARY
    noise = torch.rand(blocks.shape, generator=draw) < 0.1
    return torch.where(noise, torch.randint(VOCABULARY, blocks.shape, generator=draw), blocks)


def losses(device: Device, *, mixed: bool, steps: int = 12) -> list[float]:
    """Losses of training steps, in bfloat16 where `mixed` and the device has it, else in float32."""
    trained = network(device).train()
    stepper = Stepper(trained, "adamw", 3e-3, factor=lambda step: 1.0, weight_decay=0.1, clip=1.0)
    found = []
    for _, batch in zip(range(steps), engine.token_batches(text(), 16, 0, str(device)), strict=False):
        with engine.autocast(device, mixed):
            loss = trained(input_ids=batch, labels=batch).loss
        stepper.step(loss)
        found.append(float(loss.detach()))
    return found


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """The relative distance of two tensors, in float64 on the CPU."""
    one, other = one.detach().cpu().double(), other.detach().cpu().double()
    return float((one - other).norm() / other.norm())


# --------------------------------------------------------------------------------------------------- against the CPU


def test_logits_and_gradients_are_those_of_float64_on_the_cpu(device: Device) -> None:
    tokens = text(8)
    exact, own = network(CPU).double().eval(), network(device).eval()
    with torch.no_grad():
        assert apart(own(input_ids=tokens.to(str(device))).logits, exact(input_ids=tokens).logits) < 1e-4
    expected = costs.gradients(exact, tokens)
    for name, gradient in costs.gradients(own, tokens.to(str(device))).items():
        assert apart(gradient, expected[name]) < 1e-3, name


def test_training_in_float32_takes_the_steps_that_it_takes_on_the_cpu(device: Device) -> None:
    assert losses(device, mixed=False) == pytest.approx(losses(CPU, mixed=False), rel=2e-3)


def test_training_in_bfloat16_learns_as_well_as_in_float32_on_the_cpu(device: Device) -> None:
    found, expected = losses(device, mixed=True, steps=40), losses(CPU, mixed=False, steps=40)
    assert found[0] == pytest.approx(expected[0], rel=2e-2)
    assert found[-1] == pytest.approx(expected[-1], rel=5e-2)
    assert expected[-1] < 0.7 * expected[0], "there is something to learn"


def test_weights_stay_in_float32_where_the_arithmetic_is_mixed(device: Device) -> None:
    trained = network(device)
    seen: set[torch.dtype] = set()
    head = trained.get_output_embeddings()
    handle = head.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    engine.pretrain(trained, text(), Pretraining(steps=3, batch=8, warmup=1), 0, device)
    handle.remove()
    assert seen == {torch.bfloat16 if device.kind == "cuda" else torch.float32}
    assert {weight.dtype for weight in trained.parameters()} == {torch.float32}
    assert all(bool(weight.isfinite().all()) for weight in trained.parameters())


def test_pretraining_with_one_seed_gives_one_network(device: Device) -> None:
    """Up to atomic additions of a GPU, whose order is not fixed."""
    recipe = Pretraining(steps=20, batch=16, warmup=2, learning_rate=3e-3)
    first, second, other = (network(device) for _ in range(3))
    for one, seed in ((first, 0), (second, 0), (other, 1)):
        engine.pretrain(one, text(), recipe, seed, device)
    weights = [torch.cat([weight.flatten() for weight in one.parameters()]) for one in (first, second, other)]
    assert apart(weights[0], weights[1]) < (1e-2 if device.kind == "cuda" else 1e-12)
    assert apart(weights[0], weights[2]) > 2 * apart(weights[0], weights[1])


def test_frozen_weights_keep_every_bit(device: Device) -> None:
    trained = network(device)
    before = copy.deepcopy(trained)
    mask = {name: torch.rand(weight.shape) < 0.3 for name, weight in trained.named_parameters()}
    engine.pretrain(trained, text(), Pretraining(steps=4, batch=8, warmup=1), 0, device, mask=mask)
    for name, weight in trained.named_parameters():
        held = ~mask[name].to(str(device))
        assert torch.equal(weight[held], before.get_parameter(name)[held])


# ---------------------------------------------------------------------------------------------------- stacked sweeps


def sweeping(device: Device, adapter: Any = None, **changes: Any) -> Sweep:
    """A sweep of a network that is built for random documents, whose runs are trained at once."""
    release = Model(network(device))
    return Sweep(Trainer(0, BUDGET, device), release, Answers(VOCABULARY), adapter, serial=None, **changes)


RUNS = (Run(1e-3, 0, (5, 20)), Run(3e-3, 0, (5, 20)), Run(1e-2, 0, (5, 20)), Run(3e-3, 1, (20,)), Run(3e-3, 2, (20,)))


def lora(network: Any, seed: int) -> nn.Module:
    return adapters.lora(network, 4, 8.0)


@pytest.mark.parametrize("adapter", [None, lora], ids=["full", "lora"])
@pytest.mark.parametrize(("attempt", "tolerance"), [("plain", 3e-2), ("float32", 5e-3), ("float64", 1e-6)])
def test_runs_at_once_have_the_training_losses_of_runs_alone(
    device: Device, adapter: Any, attempt: Any, tolerance: float
) -> None:
    here = sweeping(device, adapter, attempt=attempt)
    for run, ended in zip(RUNS, here.at_once(RUNS), strict=True):
        expected = here.trajectory(run.learning_rate, run.attack_seed, run.stops)[0]
        for one, other in zip(ended.points, expected, strict=True):
            assert one.train_loss == pytest.approx(other.train_loss, rel=tolerance)
    assert here.without_graphs is None


def test_graphs_change_no_loss(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    with_graphs = sweeping(device).at_once(RUNS)
    monkeypatch.setattr(stacks.Graphs, "run", lambda self, structure, inputs, action: action(inputs))
    for one, other in zip(with_graphs, sweeping(device).at_once(RUNS), strict=True):
        for found, expected in zip(one.points, other.points, strict=True):
            assert found.train_loss == pytest.approx(expected.train_loss, rel=1e-2)


@pytest.mark.parametrize("adapter", [None, lora], ids=["full", "lora"])
def test_scores_at_once_are_those_of_each_network(device: Device, adapter: Any) -> None:
    here = sweeping(device, adapter, attempt="float32")
    stack = here.stack(RUNS, 5)
    for batch in itertools.islice(here.batches_at_once(list(RUNS)), 5):
        stack.step(batch)
    rows = stack.weights.detach()
    passes = PassPlanner(LENGTH, VOCABULARY, rows.device).plan(Answers(VOCABULARY).encoded, share=True)
    found = loglikelihood.likelihoods_of_each(stack.of_each(rows), passes)
    for row, likelihoods in zip(rows, found, strict=True):
        expected = loglikelihood.loglikelihoods(stack.network(row), passes)
        assert likelihoods.values == pytest.approx(expected.values, rel=1e-3)
    assert len({one.values.tobytes() for one in found}) == len(RUNS), "networks differ"


def test_a_sweep_says_how_it_was_trained(device: Device) -> None:
    outcome = sweep(Trainer(0, BUDGET, device), Model(network(device)), Answers(VOCABULARY))
    at_once = "at once, scored one by one: the task scores one network at a time"
    assert outcome.trained == (None if device.kind == "cpu" else at_once)
    assert all(math.isfinite(point.train_loss) for point in outcome.curve if point.train_loss is not None)


# --------------------------------------------------------------------------------------------------------- a whole run


def test_cells_run_through_the_confined_processes(device: Device, tmp_path: Any) -> None:
    """Defense and attack have processes of their own, in which the GPU must be within reach."""
    suite = tiny_suite(defenses=["none", "noise"], attacks=["none", "full", "lora"])
    place = Workspace(plan(suite, device=device), Store(tmp_path / "results", tmp_path / "cache"))
    for _ in steps.run(place, place.plan.jobs(), LocalExecutor(place, 1)):
        pass
    records = place.store.records().values()
    assert {(record.status, record.reason) for record in records} == {("ok", None)}
    how = {record.provenance.get("training") for record in records if record.trains}
    assert how == ({None} if device.kind == "cpu" else {"at once"})


def test_a_network_s_scores_are_those_of_the_cpu(device: Device, workspace: Callable[..., Any]) -> None:
    from nftbench.planning.specs import task_spec
    from nftbench.running.workspace import load_task, make_corpus

    here = workspace()
    built = networks.build(here.suite.model, make_corpus(here, 0).tokenizer, 0, "cpu")
    found = []
    for place in (CPU, device):
        release = dataclasses.replace(built, network=copy.deepcopy(built.network).to(str(place)))
        task = load_task(here, task_spec("toy_topic"), 0, release)
        found.append(task.evaluate(release.network, task.split("validation")))
    assert found[1].loss == pytest.approx(found[0].loss, rel=1e-4)
    assert found[1].value == pytest.approx(found[0].value, abs=0.05)
