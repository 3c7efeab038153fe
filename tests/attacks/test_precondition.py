"""Preconditioned heads: each solver finds the optimum at any condition number, and the sweep starts there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor, nn
from transformers import PreTrainedModel

from nftbench.attacks import precondition
from nftbench.contract import Attack, Measurement, Model, Outcome, Prepared, Split, Task
from nftbench.methods import WhiteHead, conditioning
from nftbench.models import networks
from nftbench.planning import registry
from nftbench.running.attacker import Attacker
from nftbench.running.owner import Owner
from nftbench.running.workspace import TaskSetting, Workspace, make_corpus
from nftbench.suites.schema import Budget
from nftbench.terms import SplitName
from nftbench.testing import ARCHITECTURES, FirstWord

MakeWorkspace = Callable[..., Workspace]
SOLVERS = ("whitening", "newton", "lbfgs")
BUDGET = Budget(learning_rates={"adamw": (1e-4, 1e-3)}, durations=(10, 30), batch=32, warmup=2, extension=0, restarts=1)


@dataclass(frozen=True)
class Rows:
    """Inputs [N, D] and targets [N, 1]; a batch and a split at once."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def batch(self, indices: Sequence[int]) -> Rows:
        return Rows(self.inputs[list(indices)], self.targets[list(indices)])


@dataclass(frozen=True)
class Table(Task):
    """Regression by squares, or classification into ±1; every split has the same rows."""

    rows: Rows
    classes: bool = False

    def split(self, name: SplitName) -> Split:
        return self.rows

    def features(self, network: nn.Module, batch: Rows) -> Tensor:
        found: Tensor = network(inputs=batch.inputs).features
        return found

    def loss(self, network: nn.Module, batch: Rows) -> Tensor:
        outputs, targets = network(inputs=batch.inputs).outputs, batch.targets.to(next(network.parameters()))
        return (
            nn.functional.softplus(-targets * outputs).mean()
            if self.classes
            else (outputs - targets).square().mean() / 2
        )

    @torch.no_grad()
    def evaluate(self, network: nn.Module, split: Split) -> Measurement:
        assert isinstance(split, Rows)
        loss = float(self.loss(network, split))
        return Measurement("loss", loss, 0.0, len(split), 10.0, higher_is_better=False, loss=loss)


def table(classes: bool) -> tuple[PreTrainedModel, Table]:
    """A linear model in float64 with features of condition number 1e8, and a task that takes all of them."""
    generator = torch.Generator().manual_seed(0)
    inputs, noise = (torch.randn(shape, generator=generator).double() for shape in ((200, 6), (200, 1)))
    network = networks.build({"model_type": "linear", "input_dim": 6, "output_dim": 1}, None, 0, "cpu").network.double()
    with torch.no_grad():
        network.extractor.weight.copy_(torch.diag(torch.logspace(-4, 0, 6, dtype=torch.float64)))
    plain = inputs @ torch.ones(6, 1).double() + noise
    return network, Table(Rows(inputs, plain.sign() if classes else plain), classes)


def optimum(network: PreTrainedModel, task: Table) -> float:
    """The least loss of any head, by other means: least squares, and scipy on features of ordinary size."""
    features = (task.rows.inputs @ network.extractor.weight.detach().mT).numpy()
    targets = task.rows.targets.numpy()
    if not task.classes:
        found = np.linalg.lstsq(features, targets, rcond=None)[0]
        return float(np.square(features @ found - targets).mean() / 2)
    features = features / features.std(0)
    result = minimize(
        lambda weight: np.logaddexp(0, -targets[:, 0] * (features @ weight)).mean(), np.zeros(6), tol=1e-12
    )
    return float(result.fun)


def adapted(spec: str, network: PreTrainedModel, task: Task, budget: Budget = BUDGET) -> Outcome:
    plugin: Attack = registry.create("attacks", spec)
    return plugin.adapt(Prepared(Model(network)), task, Attacker(seed=0, budget=budget))


def start(outcome: Outcome) -> float:
    return next(point.loss for point in outcome.curve if point.step == 0 and point.loss is not None)


@pytest.mark.parametrize("by", SOLVERS)
@pytest.mark.parametrize("classes", [False, True], ids=["squares", "classes"])
def test_the_sweep_begins_at_the_best_head(classes: bool, by: str) -> None:
    network, task = table(classes)
    best = optimum(network, task)
    plain = adapted("full", network, task)
    assert min(point.loss or np.inf for point in plain.curve) > best + 0.05  # what gradient descent gets to meanwhile
    budget = BUDGET.model_copy(update={"durations": (0, 400)}) if by == "lbfgs" else BUDGET
    assert start(adapted(f"precondition[by={by}]", network, task, budget)) == pytest.approx(best, abs=1e-4)


def test_one_whitened_step_is_least_squares() -> None:
    network, task = table(classes=False)
    problem = precondition._Problem.of(network, task)
    _, weight = precondition._whitened(problem, 1)
    features = task.features(network, task.rows).detach()
    expected = conditioning.least_squares(features, task.rows.targets)
    assert torch.allclose(features @ weight.mT, features @ expected, atol=1e-3)


def test_newton_follows_a_falling_penalty_to_the_optimum() -> None:
    network, task = table(classes=True)
    problem = precondition._Problem.of(network, task)
    best = optimum(network, task)
    weights = list(precondition._newton(problem))
    gaps = [float(problem.loss(weight).detach()) - best for weight in weights]
    assert gaps[0] > 0.1
    read = gaps[:: precondition.NEWTON_STEPS]
    assert read == sorted(read, reverse=True)
    assert abs(gaps[-1]) < 1e-7
    # With a penalty, the solution is where the penalised loss is flat.
    steps, penalised = precondition.NEWTON_STEPS, replace(problem, penalty=precondition.PENALTIES[1])
    flat = penalised.slope(weights[2 * steps])[1] @ problem.inverse
    assert float(flat.norm()) < 1e-2 * float((penalised.slope(weights[0])[1] @ problem.inverse).norm())


def test_a_white_head_is_the_head_on_white_features() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(500, 6, generator=generator).double() * torch.logspace(-2, 1, 6).double()
    head = nn.Linear(6, 9).double()
    covariance = conditioning.covariance(features) / len(features)
    white = precondition._white_head(head, covariance)
    assert torch.allclose(white(features), head(features))
    found = conditioning.covariance(features @ white.white) / len(features)
    assert torch.allclose(found, torch.eye(6).double(), atol=0.02)
    assert {name for name, _ in white.named_parameters()} == {"weight", "bias"}


@pytest.mark.parametrize("by", SOLVERS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_causal_lm_gets_a_better_head_and_keeps_its_embeddings(
    architecture: str, by: str, workspace: MakeWorkspace
) -> None:
    here = workspace(**({"architecture": architecture} if architecture != "gpt2" else {}))
    model = Owner(here, 0).build()
    task = FirstWord().load(TaskSetting(model, 0, here.suite, None, None, lambda: make_corpus(here, 0)))
    problem = precondition._Problem.of(precondition._untied(model.network), task)
    solvers = {"whitening": precondition._whitened, "lbfgs": precondition._lbfgs}
    weights = precondition._newton(problem) if by == "newton" else solvers[by](problem, 8)
    losses = [float(problem.loss(weight).detach()) for weight in weights]
    losses = losses[:: precondition.NEWTON_STEPS] if by == "newton" else losses
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.7 * losses[0]
    words = [one.network.get_input_embeddings().weight for one in (problem, model)]
    assert torch.equal(words[0].float(), words[1])
    outcome = adapted(f"precondition[by={by}]", model.network, task, here.suite.budget)
    assert isinstance(outcome.network, PreTrainedModel)
    assert isinstance(outcome.network.get_output_embeddings(), WhiteHead) == (by == "whitening")
    steps = sum({0.0: 0}.get(point.learning_rate, point.step) for point in outcome.curve if point.step == 4)
    assert outcome.cost.steps >= steps + len(task.split("train")) // here.suite.budget.batch


def test_nothing_but_the_head_moves_before_the_sweep() -> None:
    network, task = table(classes=False)
    before = network.extractor.weight.detach().clone()
    problem = precondition._Problem.of(network, task)
    list(precondition._lbfgs(problem, 3))
    assert torch.equal(problem.network.extractor.weight, before)
