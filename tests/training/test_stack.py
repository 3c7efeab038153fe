"""Networks that are trained at once take the steps that each would take alone; what cannot be stacked is not."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nftbench.cli.overview import training
from nftbench.contract import Measurement, Model, Point, Split, Task
from nftbench.data import loglikelihood
from nftbench.data.loglikelihood import Batch, Encoded, PassPlanner, Rows
from nftbench.device import Device
from nftbench.methods import adapters
from nftbench.planning.plan import plan
from nftbench.terms import SplitName
from nftbench.testing import ARCHITECTURES, tiny_suite
from nftbench.training import stack as stacks, sweep as sweeps
from nftbench.training.engine import Stepper
from nftbench.training.stack import CannotStackError, Graphs, Stack
from nftbench.training.sweep import CellTimeoutError, Run, sweep
from nftbench.training.trainer import Trainer
from tests.training.test_sweep import BUDGET, Parity, Words, model, same, under_way, weights

RUNS = (Run(3e-3, 0, (0, 2, 6)), Run(1e-2, 0, (2, 6)), Run(3e-2, 0, (2, 6)), Run(1e-2, 1, (6,)), Run(1e-2, 2, (6,)))
"""A first rate, which is evaluated before training, two further ones, and two restarts."""


def at_once(**changes: Any) -> sweeps.Sweep:
    """A sweep on the CPU that trains its runs at once."""
    return under_way(Parity(), changes.pop("budget", BUDGET), serial=None, **changes)


def assert_same_points(found: Sequence[Point], expected: Sequence[Point]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert dataclasses.replace(one, loss=None, train_loss=None) == dataclasses.replace(
            other, loss=None, train_loss=None
        )
        for value, wanted in ((one.loss, other.loss), (one.train_loss, other.train_loss)):
            assert value == (wanted if wanted is None else pytest.approx(wanted, rel=2e-4))


def assert_as_alone(here: sweeps.Sweep, runs: Sequence[Run]) -> None:
    """Points, measurements and networks of the runs in a stack against those of each alone."""
    for run, ended in zip(runs, here.at_once(runs), strict=True):
        points, network, measured = here.trajectory(run.learning_rate, run.attack_seed, run.stops)
        assert_same_points(ended.points, points)
        assert ended.measurement.value == measured.value
        for name, weight in ended.network().state_dict().items():
            # AdamW divides by the size of a gradient, so that rounding shows in weights with hardly any gradient.
            torch.testing.assert_close(weight, network.state_dict()[name], rtol=2e-3, atol=5e-4, msg=name)


# ------------------------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_runs_at_once_are_those_of_each_alone(architecture: str, optimizer: str) -> None:
    assert_as_alone(at_once(model=model(architecture), optimizer=optimizer), RUNS)


@pytest.mark.parametrize(
    "changes", [{"clip": None}, {"clip": 0.02}, {"weight_decay": 0.3}, {"warmup": 0}, {"decay": True}], ids=str
)
def test_a_budget_s_settings_hold_in_a_stack(changes: dict[str, Any]) -> None:
    runs = RUNS[1:] if "decay" not in changes else [Run(1e-2, 0, (stop,)) for stop in (0, 2, 3, 7)]
    # AdamW hardly depends on the length of a gradient.
    here = at_once(budget=BUDGET.model_copy(update=changes), optimizer="sgd")
    assert_as_alone(here, runs)
    run = Run(1e-2, 0, (6,))
    (plain,), (changed,) = at_once(optimizer="sgd").at_once([run]), here.at_once([run])
    assert changed.points[0].loss != pytest.approx(plain.points[0].loss, rel=1e-5), "the setting changes something"


def test_each_step_s_loss_is_that_of_a_stepper_in_float64() -> None:
    """Twenty steps, to rounding."""
    task, rates = Parity(), [1e-3, 1e-2, 3e-2]
    here = under_way(task, attempt="float64", mask=None)
    factor = here.factor(20)
    stack = Stack(
        [network := here.network(0).train()] * 3,
        task.loss,
        "adamw",
        torch.tensor([[rate * factor(step) for rate in rates] for step in range(1, 21)], dtype=torch.float64),
        weight_decay=0.1,
        clip=0.5,
    )
    alone = [here.network(0).train() for _ in rates]
    steppers = [
        Stepper(one, "adamw", rate, factor=factor, weight_decay=0.1, clip=0.5)
        for one, rate in zip(alone, rates, strict=True)
    ]
    batches = here.batches(0)
    for _ in range(20):
        batch = next(batches)
        expected = [task.loss(one, batch) for one in alone]
        found = stack.step([batch])
        for stepper, loss in zip(steppers, expected, strict=True):
            stepper.step(loss)
        torch.testing.assert_close(found, torch.stack(expected).detach(), rtol=1e-7, atol=0)
    for one, row in zip(alone, stack.weights.detach(), strict=True):
        for name, weight in stack.network(row).named_parameters():
            torch.testing.assert_close(weight, one.get_parameter(name), rtol=1e-6, atol=1e-9, msg=name)
    assert stack.network(stack.weights[0]) is network


def test_lora_updates_lie_side_by_side_on_one_base() -> None:
    def adapter(network: PreTrainedModel, attack_seed: int) -> nn.Module:
        return adapters.lora(network, 2, 4.0)

    here = at_once(adapter=adapter)
    assert_as_alone(here, RUNS)
    stack = here.stack(RUNS, 6)
    assert stack.weights.shape[1] < sum(weight.numel() for weight in here.model.network.parameters()) / 2
    own = stack.layers.get_parameter("base_model.model.transformer.wte.weight")
    stack.step([next(here.batches(0))])
    assert torch.equal(own, here.model.network.get_parameter("transformer.wte.weight"))


def test_weights_that_the_mask_holds_keep_every_bit() -> None:
    release = model()
    generator = torch.Generator().manual_seed(0)
    mask = {name: torch.rand(one.shape, generator=generator) < 0.3 for name, one in release.network.named_parameters()}
    here = at_once(model=release, mask=mask, budget=BUDGET.model_copy(update={"weight_decay": 0.1}))
    assert_as_alone(here, RUNS)
    for ended in here.at_once(RUNS):
        for name, weight in ended.network().named_parameters():
            before = release.network.get_parameter(name)
            assert torch.equal(weight[~mask[name]], before[~mask[name]])


def test_one_network_that_diverges_leaves_the_others_alone() -> None:
    runs = [Run(1e-2, 0, (2, 4, 6)), Run(1e30, 0, (2, 4, 6)), Run(3e-2, 0, (2, 4, 6))]
    here = at_once(budget=BUDGET.model_copy(update={"warmup": 0}))
    calm, wild, warm = here.at_once(runs)
    assert [point.score for point in wild.points] == [None] * 3
    assert [point.step for point in wild.points] == [2, 4, 6]
    assert here.steps == 6 + 2 + 6, "a run ends where its score is not finite"
    for run, ended in ((runs[0], calm), (runs[2], warm)):
        assert_same_points(ended.points, here.trajectory(run.learning_rate, 0, run.stops)[0])


def test_training_at_once_is_reproducible_and_leaves_release_and_random_state_alone() -> None:
    here, state = at_once(), torch.get_rng_state()
    before = weights(here.model.network)
    first, second = here.at_once(RUNS), here.at_once(RUNS)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(weight, before[name]) for name, weight in weights(here.model.network).items())
    for one, other in zip(first, second, strict=True):
        assert one.points == other.points
        assert same(one.network(), other.network())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("lora", [False, True])
def test_networks_are_stacked_in_bfloat16_as_a_gpu_computes(
    architecture: str, lora: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Device, "autocast", "bfloat16")  # torch has this arithmetic on the CPU too
    adapter = (lambda network, seed: adapters.lora(network, 2, 4.0)) if lora else None
    here = at_once(model=model(architecture), adapter=adapter)
    for run, ended in zip(RUNS, here.at_once(RUNS), strict=True):
        expected = here.trajectory(run.learning_rate, run.attack_seed, run.stops)[0]
        for one, other in zip(ended.points, expected, strict=True):
            assert one.loss == pytest.approx(other.loss, rel=2e-2)


@pytest.mark.parametrize("attempt", ["plain", "float64", "clipped", "head"])
def test_every_attempt_of_a_sweep_can_be_stacked(attempt: str) -> None:
    assert_as_alone(at_once(attempt=attempt), RUNS)


# --------------------------------------------------------------------------------------------------------------- sweep


@pytest.mark.parametrize("changes", [{}, {"decay": True}, {"extension": 0}], ids=str)
def test_a_stacked_sweep_has_the_grid_picks_and_cost_of_a_serial_one(changes: dict[str, Any]) -> None:
    budget = BUDGET.model_copy(update=changes)
    grid = budget.learning_rates["adamw"]
    found = []
    for serial in ("on the CPU", None):
        here = under_way(Parity(), budget, serial=serial)
        curve, at_edge = here.search(grid)
        found.append((here, curve, here.outcome(curve, at_edge)))
        assert here.serial == serial, "the stack was used to the end"
    (one, curve, serial_outcome), (other, stacked_curve, outcome) = found
    assert_same_points(stacked_curve, curve)
    assert_same_points(outcome.restarts, serial_outcome.restarts)
    assert_same_points([outcome.picked], [serial_outcome.picked])
    assert (outcome.at_edge, outcome.stuck, outcome.retried) == (
        serial_outcome.at_edge,
        serial_outcome.stuck,
        serial_outcome.retried,
    )
    assert other.steps == one.steps == outcome.cost.steps == serial_outcome.cost.steps
    assert outcome.cost.step_flops == serial_outcome.cost.step_flops
    assert outcome.validation == one.task.evaluate(outcome.network, one.task.split("validation"))


def test_a_sweep_on_a_gpu_is_stacked_and_says_so_and_on_the_cpu_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[int] = []
    at_once = sweeps.Sweep.at_once
    monkeypatch.setattr(sweeps.Sweep, "at_once", lambda here, runs: (called.append(len(runs)), at_once(here, runs))[1])
    assert sweep(Trainer(0, BUDGET), model(), Parity()).trained is None
    assert called == []
    monkeypatch.setattr(Device, "autocast", None)  # bfloat16 has too few digits for models of this size
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    outcome = sweep(Trainer(0, BUDGET, Device("cuda")), model(), Parity())  # the weights lie on the CPU
    assert outcome.trained == "at once, scored one by one: the task scores one network at a time"
    assert called[0] == len(BUDGET.learning_rates["adamw"])
    outcome = sweep(Trainer(0, BUDGET, Device("cuda")), model(), Parity(), optimizer="muon")
    assert outcome.trained == "one by one: muon does not update each weight by itself"


STACKED = """
import dataclasses

@dataclass(frozen=True)
class Stacked(Attack):
    \"\"\"Says that its sweep was trained at once.\"\"\"

    def adapt(self, prepared, task, context):
        return dataclasses.replace(context.sweep(prepared.model, task), trained="at once")
"""


def test_a_record_s_provenance_says_how_a_gpu_trained_the_sweep(
    plugin: Callable[[str, str], Any], workspace: Callable[..., Any], run_all: Callable[..., dict[Any, Any]]
) -> None:
    plugin("stacked", STACKED)
    records = {attack: one for (_, attack, _, _), one in run_all(workspace(attacks=["full", "stacked"])).items()}
    assert records["stacked"].status == "ok", records["stacked"].reason
    assert records["stacked"].provenance["training"] == "at once"
    assert "training" not in records["full"].provenance


def test_a_plan_for_a_gpu_says_which_attacks_are_stacked() -> None:
    suite = tiny_suite(attacks=["none", "full", "full[optimizer=muon]", "full[optimizer=sgd]"])
    assert training(plan(suite)) == []
    (line,) = training(plan(suite, device=Device("cuda")))
    assert line.endswith("; one by one in any case: full[optimizer=muon]")


def test_a_stack_keeps_to_the_time_limit() -> None:
    with pytest.raises(CellTimeoutError):
        at_once(budget=BUDGET.model_copy(update={"timeout": 1e-9})).at_once(RUNS)


# ------------------------------------------------------------------------------------------------------ what is refused


def refusal(here: sweeps.Sweep, runs: Sequence[Run] = RUNS) -> str:
    """Why runs cannot be stacked. They are then trained one by one, as if nothing had been tried."""
    with pytest.raises(CannotStackError) as error:
        here.at_once(runs)
    assert here.steps == 0
    for run, ended in zip(runs, here.trained(runs), strict=True):
        assert ended.points == here.trajectory(run.learning_rate, run.attack_seed, run.stops)[0]
    assert here.serial == str(error.value)
    return here.serial


def hooked(network: PreTrainedModel, attack_seed: int) -> nn.Module:
    network.transformer.ln_f.register_forward_hook(lambda *_: None)
    return network


def half_frozen(network: PreTrainedModel, attack_seed: int) -> nn.Module:
    network.transformer.wte.requires_grad_(False).weight.data.add_(0.01 * attack_seed)
    return network


def other_parts(network: PreTrainedModel, attack_seed: int) -> nn.Module:
    network.transformer.h[0].mlp.requires_grad_(attack_seed == 0)
    return network


def with_a_spare(network: PreTrainedModel, attack_seed: int) -> nn.Module:
    network.transformer.h[0].spare = nn.Linear(2, 2)
    return network


def mixed(network: PreTrainedModel, attack_seed: int) -> nn.Module:
    network.transformer.ln_f.bias.data = network.transformer.ln_f.bias.data.double()
    return network


@pytest.mark.parametrize(
    ("adapter", "why"),
    [
        (hooked, "the network has hooks"),
        (half_frozen, "the networks differ in weights that are not trained"),
        (other_parts, "the networks train different weights"),
        (with_a_spare, "some trained weights do not influence the loss"),
    ],
)
def test_networks_that_cannot_be_stacked_are_trained_one_by_one(adapter: Any, why: str) -> None:
    assert refusal(at_once(adapter=adapter)) == why


def test_mixed_precision_of_weights_is_refused() -> None:
    with pytest.raises(CannotStackError, match="differ in precision"):
        at_once(adapter=mixed).stack(RUNS, 6)


def test_averaged_weights_are_trained_one_by_one() -> None:
    assert refusal(at_once(budget=BUDGET.model_copy(update={"average": True}))) == "the weights are averaged"


def test_dropout_is_refused_because_each_network_would_draw_its_own() -> None:
    runs = [Run(1e-2, 0, (2,)), Run(3e-2, 0, (2,))]
    assert "random" in refusal(at_once(model=model(resid_pdrop=0.5)), runs)


class Branching(Parity):
    """A loss that depends on a number of the network in Python."""

    def loss(self, network: nn.Module, batch: Any) -> Tensor:
        value = super().loss(network, batch)
        return value if float(value.detach()) > 0 else -value


class Tilted(torch.autograd.Function):
    """The identity, whose gradient in a stack is wrong."""

    @staticmethod
    def forward(value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(context: Any, inputs: Any, output: Any) -> None:
        context.batched = False

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient

    @staticmethod
    def vmap(info: Any, dims: Any, value: Tensor) -> Any:
        return value.detach() + 0.5 * (value - value.detach()), dims[0]


class Misleading(Parity):
    def loss(self, network: nn.Module, batch: Any) -> Tensor:
        found: Tensor = Tilted.apply(super().loss(network, batch))
        return found


class Restless(Parity):
    """A loss that is another one with each call."""

    def loss(self, network: nn.Module, batch: Any) -> Tensor:
        self.scale += 1
        return super().loss(network, batch) * self.scale


@pytest.mark.parametrize(
    ("task", "why"),
    [
        (Branching, "RuntimeError: vmap: .*item"),
        (Misleading, "the gradient in the stack differs from that alone"),
        (Restless, "the loss in the stack differs from that alone"),
    ],
)
def test_losses_that_cannot_be_stacked_are_noticed_on_the_first_batch(task: type[Parity], why: str) -> None:
    here = under_way(task(), serial=None)
    with pytest.raises(CannotStackError, match=why):
        here.at_once(RUNS[:3])
    assert here.steps == 0


def test_batches_of_different_shapes_are_refused() -> None:
    here = at_once()
    stack = here.stack(RUNS[3:], 6)
    short = (torch.zeros(8, 3, dtype=torch.int64), torch.zeros(8, dtype=torch.int64))
    with pytest.raises(CannotStackError, match="differ in shape"):
        stack.step([next(here.batches(0)), short])


# ---------------------------------------------------------------------------------------------------------- text tasks


def rows(seed: int = 0, window: int = 24) -> Rows:
    """Forty documents with one to three answers' tokens."""
    draw = np.random.default_rng(seed)
    words = lambda most: draw.integers(0, 50, draw.integers(1, most)).tolist()  # noqa: E731
    return Rows([Encoded(words(20), words(4)) for _ in range(40)], window)


@dataclass(frozen=True)
class Texts(Task):
    """A task of random documents. `spoiled`: packed documents have another loss, as in a network that mixes them."""

    rows: Rows
    spoiled: bool
    packed: list[bool] = field(default_factory=list)
    """Whether each batch was packed."""

    def __len__(self) -> int:
        return len(self.rows.lengths)

    def split(self, name: SplitName) -> Any:
        return self

    def batch(self, indices: Sequence[int]) -> Batch:
        return self.rows.batch(indices)

    def even_batches(self, several: Sequence[Sequence[int]], *, packed: bool) -> Sequence[Batch]:
        return self.rows.even_batches(several, packed=packed)

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        self.packed.append(batch.positions is not None)
        return loglikelihood.loss(network, batch) * (1.01 if self.spoiled and batch.positions is not None else 1.0)

    @torch.no_grad()
    def evaluate(self, network: nn.Module, split: Any) -> Measurement:
        value = float(loglikelihood.loss(network.eval(), self.rows.batch(range(40))))
        return Measurement("nll", 0.5, 0.0, 40, 0.5, loss=value)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("packed", [False, True])
def test_even_batches_agree_in_shape_and_have_the_same_losses(architecture: str, packed: bool) -> None:
    split, network = rows(), model(architecture).network
    several = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 8]]
    even = split.even_batches(several, packed=packed)
    assert all((batch.positions is not None) == packed for batch in even)
    shapes = {tuple(part.shape if isinstance(part, Tensor) else part for part in batch) for batch in even}
    assert len(shapes) == 1
    for indices, batch in zip(several, even, strict=True):
        expected = loglikelihood.loss(network, split.batch(indices))
        torch.testing.assert_close(loglikelihood.loss(network, batch), expected, rtol=1e-5, atol=0)


def test_few_shapes_of_batches_arise_and_none_is_longer_than_the_window() -> None:
    split = rows(window=20)
    batches = [split.even_batches([range(start, start + 4)], packed=False)[0] for start in range(36)]
    assert {batch.ids.shape[1] for batch in batches} <= {16, 20}
    assert all(batch.kept == batch.ids.shape[1] for batch in batches)


def test_documents_of_one_length_are_neither_padded_nor_packed() -> None:
    split = Rows([Encoded([1, 2, 3], [4]), Encoded([5, 6, 7], [8])], 20)
    (batch,) = split.even_batches([[0, 1]], packed=True)
    assert batch.ids.tolist() == [[1, 2, 3], [5, 6, 7]]


def test_packed_rows_hold_each_document_once_and_little_padding() -> None:
    split = rows(window=60)
    first, second = split.even_batches([range(32), range(8, 40)], packed=True)
    assert first.ids.shape == second.ids.shape
    assert first.ids.shape[1] == loglikelihood.PACKED_LENGTH
    most = max(int(split.lengths[:32].sum()), int(split.lengths[8:].sum()))
    assert len(first.ids) == -(-most // loglikelihood.PACKED_LENGTH)
    for batch, indices in ((first, range(32)), (second, range(8, 40))):
        assert batch.positions is not None
        beginnings = [
            (row, int(place)) for row in range(len(batch.ids)) for place in batch.positions[row].eq(0).nonzero()
        ]
        found = Counter()
        for row, start in beginnings:
            size = 1
            while start + size < batch.ids.shape[1] and batch.positions[row, start + size] == size:
                size += 1
            found[tuple(batch.ids[row, start : start + size].tolist())] += 1
        for index in indices:
            begin = int(split.offsets[index])
            document = tuple(split.tokens[begin : begin + int(split.lengths[index])].tolist())
            assert found[document] >= 1
        assert int((batch.targets != loglikelihood.IGNORED).sum()) == int(split.answers[list(indices)].sum())


def test_a_document_sees_nothing_of_the_others_in_its_row() -> None:
    """Other words before and after it change no logit of it."""
    network = model().network
    logits = []
    for other in (9, 30):
        split = Rows([Encoded([other] * 40, [1]), Encoded([2, 3, 4], [5]), Encoded([other], [6])], 60)
        (batch,) = split.even_batches([[0, 1, 2]], packed=True)
        assert batch.positions is not None
        place = batch.ids[0].tolist().index(2)
        apart = loglikelihood._apart(batch.positions)
        logits.append(network(input_ids=batch.ids, **apart).logits[0, place : place + 3])
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-5, atol=1e-6)


def test_a_stack_is_trained_on_packed_documents_or_padded_ones_where_packing_changes_the_loss() -> None:
    """The first batch is compared with the one that a network alone is trained on."""
    for spoiled in (False, True):
        task = Texts(rows(window=60), spoiled)
        here = under_way(task, serial=None)
        found = here.at_once(RUNS)
        assert here.padded == ("the loss in the stack differs from that alone" if spoiled else None)
        assert task.packed[-1] != spoiled
        for run, ended in zip(RUNS, found, strict=True):
            assert_same_points(ended.points, here.trajectory(run.learning_rate, run.attack_seed, run.stops)[0])


def test_answers_at_every_position_stay_apart_from_padding() -> None:
    """Where rows hold answers alone, as many answers' tokens as positions would be read in order."""
    split = Rows([Encoded([1], [2] * 16), Encoded([1], [3] * 5)], 16)
    (batch,) = split.even_batches([[0, 1]], packed=False)
    assert len(batch.rows) != batch.ids.numel()
    network = model().network
    expected = loglikelihood.loss(network, split.batch([0, 1]))
    torch.testing.assert_close(loglikelihood.loss(network, batch), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("with_adapter", [False, True])
def test_a_text_task_s_runs_and_restarts_are_stacked(workspace: Callable[..., Any], with_adapter: bool) -> None:
    from nftbench.planning.specs import task_spec
    from nftbench.running.workspace import load_task, make_corpus

    here = workspace()
    from nftbench.models import networks

    built = networks.build(here.suite.model, make_corpus(here, 0).tokenizer, 0, "cpu")
    task = load_task(here, task_spec("toy_topic"), 0, built)
    adapter = (lambda network, seed: adapters.lora(network, 2, 4.0)) if with_adapter else None
    run = sweeps.Sweep(Trainer(0, here.suite.budget), Model(built.network), task, adapter, serial=None)
    assert_as_alone(run, RUNS)
    assert run.scored_alone is None


# ------------------------------------------------------------------------------------------------------------- scoring


def requests() -> list[Encoded]:
    """Contexts with several answers of one to four tokens each, so many that sharing contexts is worth it."""
    draw = np.random.default_rng(0)
    words = lambda number: draw.integers(0, 50, number).tolist()  # noqa: E731
    contexts = [words(draw.choice([16, 20])) for _ in range(40)]
    return [Encoded(context, words(draw.integers(1, 5))) for context in contexts for _ in range(4)]


def planner(network: PreTrainedModel) -> PassPlanner:
    return PassPlanner(24, network.config.vocab_size, torch.device("cpu"))


def trained_stack(**changes: Any) -> Stack:
    """Three networks after five steps."""
    here = at_once(**changes)
    stack = here.stack(RUNS[:3], 6)
    for batch in itertools.islice(here.batches(0), 5):
        stack.step([batch])
    return stack


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("share", [False, True])
def test_likelihoods_of_networks_at_once_are_those_of_each(architecture: str, share: bool) -> None:
    stack = trained_stack(model=model(architecture))
    passes = planner(stack.layers).plan(requests(), share=share)
    assert any(forward.tail is not None for forward in passes.forwards) == share
    found = loglikelihood.likelihoods_of_each(stack.of_each(stack.weights.detach()), passes)
    assert len({tuple(one.values) for one in found}) == len(stack.weights), "networks differ"
    for row, likelihoods in zip(stack.weights.detach(), found, strict=True):
        expected = loglikelihood.loglikelihoods(stack.network(row), passes)
        np.testing.assert_allclose(likelihoods.values, expected.values, rtol=1e-4)
        assert (likelihoods.greedy == expected.greedy).all()
    assert stack.layers.training, "scoring leaves the mode as it was"


@pytest.mark.parametrize("share", [False, True])
def test_networks_at_once_compute_no_more_than_one_pass_may(share: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the limit is: the tokens and logits of all networks that are computed at once stay below it."""
    stack = trained_stack()
    device, seen, found = torch.device("cpu"), list[int](), []
    of_each = stack.of_each(stack.weights.detach())

    def counted(function: Any, at_once: int) -> Any:
        seen.append(at_once)
        return of_each(function, at_once)

    for tokens, logits in ((2**20, 2**25), (300, 2**25), (2**20, 9000), (1, 1)):
        monkeypatch.setattr(loglikelihood, "_token_budget", lambda device, most=tokens: most)
        monkeypatch.setattr(loglikelihood, "_logit_budget", lambda device, most=logits: most)
        passes = PassPlanner(24, 50, device).plan(requests(), share=share)
        seen.clear()
        found.append(loglikelihood.likelihoods_of_each(counted, passes))
        for forward, networks in zip(passes.forwards, seen, strict=True):
            parts = forward.with_tail
            size = sum(part.ids.numel() for part in parts)
            read = 50 * (sum(len(part.ids) * part.kept for part in parts) if forward.tail else len(forward.targets))
            assert networks == 1 or (networks * size <= tokens and networks * read <= logits)
        assert max(seen) > 1 or tokens + logits < 2**25, "without a limit several are"
    for one in found[1:]:
        for likelihoods, expected in zip(one, found[0], strict=True):
            np.testing.assert_allclose(likelihoods.values, expected.values, rtol=1e-4)


@dataclass(frozen=True)
class Scored(Words):
    """A split that scores networks at once, as `Parity` scores each."""

    bias: float = 0.0
    """Added to each loss, which is then wrong."""
    sizes: list[int] = field(default_factory=list)
    """How many networks were scored, each time."""

    def evaluate_each(self, of_each: Any) -> list[Measurement]:
        (logits,) = of_each(lambda network: (network(input_ids=self.ids).logits[:, -1].double(),), 2)
        self.sizes.append(len(logits))
        return [self.measured(one) for one in logits]

    def measured(self, logits: Tensor) -> Measurement:
        right = logits[:, 48:50].argmax(-1) == self.answers - 48
        loss = float(nn.functional.cross_entropy(logits, self.answers)) + self.bias
        return Measurement("acc", float(right.double().mean()), 0.01, len(self), 0.5, loss=loss)


@dataclass
class ParityOfEach(Parity):
    """`Parity` whose validation split scores networks at once; `evaluated` counts those that are scored alone."""

    bias: float = 0.0
    sizes: list[int] = field(default_factory=list)

    def split(self, name: SplitName) -> Split:
        split = super().split(name)
        if name == "train":
            return split
        assert isinstance(split, Words)
        return Scored(split.name, split.ids, split.answers, self.bias, self.sizes)


def test_a_sweep_s_networks_are_scored_at_once_after_one_was_scored_alone() -> None:
    task = ParityOfEach()
    here = under_way(task, serial=None)
    found = here.at_once(RUNS)
    assert task.sizes == [3, 5], "at step 0 there is one network; three at step 2; with the restarts five at step 6"
    assert len(task.evaluated) == 2, "the one at step 0, and one to compare with"
    assert here.scored_alone is None
    for run, ended in zip(RUNS, found, strict=True):
        points, _, measurement = here.trajectory(run.learning_rate, run.attack_seed, run.stops)
        assert_same_points(ended.points, points)
        assert ended.measurement.loss == pytest.approx(measurement.loss, rel=2e-4)


def test_wrong_scores_of_networks_at_once_are_noticed_and_replaced() -> None:
    task = ParityOfEach(bias=0.01)
    here = under_way(task, serial=None)
    found = here.at_once(RUNS)
    assert here.scored_alone == "a score in the stack differs from the score alone"
    assert task.sizes == [3], "they are not tried again"
    for run, ended in zip(RUNS, found, strict=True):
        assert_same_points(ended.points, here.trajectory(run.learning_rate, run.attack_seed, run.stops)[0])


def test_what_cannot_be_scored_at_once_is_scored_one_by_one_and_the_reason_is_kept() -> None:
    task = ParityOfEach()
    split = task.split("validation")
    assert isinstance(split, Scored)
    here = under_way(task, serial=None)
    stack = here.stack(RUNS[:3], 6)
    read = dataclasses.replace(split, ids=split.ids)
    object.__setattr__(read, "evaluate_each", lambda of_each: of_each(lambda network: (float(network.p),), 1))
    found = here.scores(stack, stack.weights.detach(), read)
    assert found == [task.evaluate(stack.network(row), split) for row in stack.weights.detach()]
    assert (here.scored_alone or "").startswith("AttributeError")
    here = at_once()
    here.at_once(RUNS)
    assert here.scored_alone == "the task scores one network at a time"


def test_networks_whose_scores_are_not_finite_do_not_hide_a_wrong_one() -> None:
    """The first finite score is compared, and none is as long as there is none."""
    wild = [Run(1e30, 0, (2, 4)), Run(1e-2, 0, (2, 4)), Run(3e-2, 0, (2, 4))]
    budget = BUDGET.model_copy(update={"warmup": 0})
    for bias, why in ((0.0, None), (0.01, "a score in the stack differs from the score alone")):
        here = under_way(ParityOfEach(bias=bias), budget, serial=None)
        found = here.at_once(wild)
        assert here.scored_alone == why
        assert [point.score for point in found[0].points] == [None, None]
        for run, ended in zip(wild[1:], found[1:], strict=True):
            assert_same_points(ended.points, here.trajectory(run.learning_rate, 0, run.stops)[0])


# ------------------------------------------------------------------------------------------------------------ optimizer


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("masked", [False, True])
def test_each_network_is_updated_as_by_pytorch_s_fused_optimizer_at_its_own_rate(optimizer: str, masked: bool) -> None:
    """Given the same gradients, weights agree to the last digits, also after a network has left the stack."""
    release = model()
    generator = torch.Generator().manual_seed(0)
    mask = {name: torch.rand(one.shape, generator=generator) < 0.3 for name, one in release.network.named_parameters()}
    rates = torch.tensor([[1e-3, 1e-1, 1e-2], [2e-3, 0.0, 3e-2], [1e-3, 1e-1, 1e-2]], dtype=torch.float64)
    changes: dict[str, Any] = {"weight_decay": 0.3, "clip": 0.5, "mask": mask if masked else None}
    stack = Stack([release.network] * 3, Parity().loss, optimizer, rates, **changes)  # type: ignore[arg-type]
    networks = [copy.deepcopy(release.network) for _ in range(3)]
    steppers = [
        Stepper(network, optimizer, 1.0, factor=lambda step, own=own: float(own[step - 1]), **changes)  # type: ignore
        for network, own in zip(networks, rates.T, strict=True)
    ]
    left = [0, 1, 2]
    for step in range(3):
        gradients = torch.randn(len(left), stack.weights.shape[1], generator=generator) * 10.0 ** (1 - step)
        for place, own in zip(left, gradients, strict=True):
            named = dict(
                zip(stack.shapes, torch.split(own, [one.numel() for one in stack.shapes.values()]), strict=True)
            )
            weights = {name: networks[place].get_parameter(name) for name in named}
            loss = sum((weights[name] * given.view_as(weights[name])).sum() for name, given in named.items())
            steppers[place].step(loss)  # type: ignore[arg-type]  # the loss's gradient is the given one
        stack._update(gradients.clone())
        if step == 1:
            stack.keep([0, 2])
            left = [0, 2]
    for place, row in zip(left, stack.weights.detach(), strict=True):
        for name, weight in stack.network(row).named_parameters():
            torch.testing.assert_close(weight, networks[place].get_parameter(name), rtol=1e-5, atol=1e-7, msg=name)


# -------------------------------------------------------------------------------------------------------------- graphs


def test_on_the_cpu_no_step_is_recorded() -> None:
    graphs, calls = Graphs(), []
    structure: Any = stacks._Structure(None, (), True)  # type: ignore[arg-type]
    for _ in range(5):
        graphs.run(structure, [torch.zeros(2)], lambda inputs: calls.append(1) or inputs[0])
    assert len(calls) == 5
    assert graphs.refused is None


@pytest.mark.parametrize("texts", [False, True])
def test_a_step_waits_for_no_number_of_the_gpu(texts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA graph can hold no step in which Python reads a tensor. On the CPU, reading is made an error here."""
    here = under_way(Texts(rows(window=60), False) if texts else Parity(), serial=None)
    runs = list(RUNS[:3])
    stack = here.stack(runs, 6)
    batches = next(here.batches_at_once(runs))
    assert not texts or batches[0].positions is not None, "documents are packed"

    def read(self: Tensor, *_: Any) -> Any:
        raise AssertionError("a number was read")

    for name in ("item", "__bool__", "__float__", "__int__", "tolist", "nonzero"):
        monkeypatch.setattr(Tensor, name, read)
    monkeypatch.setattr("transformers.masking_utils.is_tracing", lambda tensor=None: True)  # as while recording
    found = stack.step(batches)
    monkeypatch.undo()
    torch.testing.assert_close(found, here.stack(runs, 6).step(batches), rtol=1e-5, atol=0)
