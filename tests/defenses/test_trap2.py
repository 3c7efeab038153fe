"""Trap²: its objective against numbers by hand, its release and adapter, and the attacks and the yardstick on them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import get_linear_schedule_with_warmup

from nftbench.attacks.merge import COEFFICIENTS, DENSITIES, Merge, combine, distillation, logits, trained
from nftbench.attacks.rescale_update import SCALES, RescaleUpdate
from nftbench.contract import Model, Prepared, Protected, Update
from nftbench.defenses.trap2 import Trap2
from nftbench.errors import NftbenchError
from nftbench.methods import shuffled
from nftbench.models import updates
from nftbench.models.networks import load, seeded
from nftbench.planning import registry
from nftbench.planning.plan import plan
from nftbench.records.spec import Spec
from nftbench.running.owner import Owner, make_base
from nftbench.running.releases import make_release
from nftbench.running.workspace import Workspace, load_task
from nftbench.suites.reading import read
from nftbench.testing import tiny_suite
from nftbench.yardsticks import scale_loss

LORA = "trap2[task=toy_topic,rank=4,learning_rate=0.01,steps=12,batch=8]"
FULL = "trap2[task=toy_topic,update=full,learning_rate=0.01,steps=12,batch=8]"
both_kinds = pytest.mark.parametrize("spec", [LORA, FULL])
Make = Callable[..., Workspace]


def trap(**changes: Any) -> Trap2:
    return Trap2(**{"task": "toy_topic", "rank": 4, "learning_rate": 0.01, "steps": 12, "batch": 8, **changes})


def protect(workspace: Workspace, defense: Trap2) -> tuple[Model, Protected]:
    """The base, and what the defense makes of it."""
    return make_base(workspace, 0), defense.protect(make_base(workspace, 0), Owner(workspace, 0, defense.told()))


# ----------------------------------------------------------------------------------------------------- the objective


def test_scales_are_uniform_outside_the_band() -> None:
    defense, scales = trap(minimum=0.1, maximum=1.5, band=0.2), np.random.default_rng(0)
    drawn = np.array([defense.draw(scales) for _ in range(20_000)])
    assert drawn.min() >= 0.1
    assert drawn.max() <= 1.5
    assert not ((drawn > 0.8) & (drawn < 1.2)).any()
    for low, high in ((0.1, 0.45), (0.45, 0.8), (1.2, 1.5)):  # of the allowed length, 1.0
        assert ((drawn >= low) & (drawn < high)).mean() == pytest.approx(high - low, abs=0.015)


@pytest.mark.parametrize(("weighting", "power"), [("inv", -1.0), ("inv_sqrt", -0.5), ("none", 0.0)])
def test_the_objective_by_hand(weighting: Any, power: float) -> None:
    defense = trap(strength=0.3, weighting=weighting, cap=2.0)
    for seed in range(20):
        scale = defense.draw(np.random.default_rng(seed))
        weight = torch.tensor(1.1, requires_grad=True)
        found = defense.objective(lambda s, w=weight: w * s**2, np.random.default_rng(seed), 0)
        inside = 1.1 * scale**2 < 2.0
        factor = 0.3 * scale**power
        assert found.item() == pytest.approx(1.1 - factor * min(1.1 * scale**2, 2.0), rel=1e-5)
        found.backward()
        wanted = 1.0 - (factor * scale**2 if inside else 0.0)  # beyond the cap there is nothing to gain
        assert weight.grad is not None
        assert float(weight.grad) == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def test_both_passes_use_the_same_dropout() -> None:
    defense, scales = trap(strength=0.5, weighting="none", cap=100.0), np.random.default_rng(3)
    scale = defense.draw(np.random.default_rng(3))
    found = defense.objective(lambda s: s * torch.nn.functional.dropout(torch.ones(1000)).sum(), scales, 7)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        own = float(torch.nn.functional.dropout(torch.ones(1000)).sum())
    assert own not in (0.0, 1000.0)
    assert float(found) == pytest.approx(own - 0.5 * min(scale * own, 100.0))


def test_without_strength_one_pass_is_enough() -> None:
    asked: list[float] = []

    def loss(scale: float) -> Tensor:
        asked.append(scale)
        return torch.tensor(2.0)

    assert float(trap(strength=0.0).objective(loss, np.random.default_rng(0), 0)) == 2.0
    assert asked == [1.0]


@pytest.mark.parametrize("steps", [1, 12, 130, 1000])
def test_the_learning_rate_is_that_of_transformers_linear_schedule(steps: int) -> None:
    """With a warm-up over a fiftieth of the steps, as in the authors' script."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    schedule = get_linear_schedule_with_warmup(optimizer, int(0.02 * steps), steps)
    for step in range(1, steps + 1):
        assert trap(steps=steps).decay(step) == pytest.approx(schedule.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        schedule.step()


def test_an_adapter_takes_the_steps_of_the_authors_script(workspace: Make) -> None:
    """Three steps on one batch by torch's own AdamW, against the released adapter."""
    where, defense = workspace(), trap(steps=3, dropout=0.0, batch=10**6, learning_rate=0.02)
    _, protected = protect(where, defense)
    assert protected.update is not None
    owner, base = Owner(where, 0, defense.told()), make_base(where, 0)
    task = owner.task("toy_topic")
    rows, scales = task.split("train"), np.random.default_rng([owner.seed, 1])
    with seeded(owner.seed):
        network, loss_at, found = defense.lora(base.network)
    trained = [weight for weight in network.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.02, fused=True)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, 3)
    batch = rows.batch(next(shuffled(len(rows), len(rows), owner.seed)))
    for _ in range(3):
        scale = defense.draw(scales)
        optimizer.zero_grad()
        (loss_at(task, batch, 1.0) - 0.01 / scale**0.5 * loss_at(task, batch, scale)).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
    wanted = updates.dense(found())
    for name, weight in updates.dense(protected.update).items():
        torch.testing.assert_close(weight, wanted[name], rtol=1e-3, atol=1e-5)
        assert float(weight.abs().max()) > 1e-3


@both_kinds
@pytest.mark.parametrize("scale", [-0.5, 0.3, 1.0, 1.7])
def test_a_scaled_pass_is_that_of_the_scaled_update(spec: str, scale: float, workspace: Make) -> None:
    """Equal loss; and the gradient by the update D at W0 + s·D is s times the gradient by the weights."""
    where, defense = workspace(), replace(registry.create("defenses", spec), dropout=0.0)
    base = make_base(where, 0)
    task = Owner(where, 0, defense.told()).task("toy_topic")
    batch = task.split("train").batch(range(8))
    network, loss_at, found = (defense.lora if defense.update == "lora" else defense.full)(base.network)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in (weight for weight in network.parameters() if weight.requires_grad):
            weight += 0.5 * torch.randn(weight.shape, generator=generator)
    loss = loss_at(task, batch, scale)
    moved = updates.added(base.network, updates.dense(found()), scale).train()
    wanted = task.loss(moved, batch)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-4)
    assert loss.item() != pytest.approx(task.loss(base.network, batch).item(), rel=1e-3)
    if defense.update == "full":
        loss.backward()
        wanted.backward()
        theirs = dict(moved.named_parameters())
        for name, weight in network.named_parameters():
            assert weight.grad is not None
            torch.testing.assert_close(weight.grad, scale * theirs[name].grad, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("update", ["lora", "full"])
def test_a_huge_strength_stays_finite(update: Any, workspace: Make) -> None:
    """Without the cap J has no lower bound; with it, J and the weights stay finite."""
    _, protected = protect(workspace(), trap(update=update, strength=1e6, weighting="inv", steps=40))
    assert protected.update is not None
    for weight in (*protected.release.network.parameters(), *protected.update.weights.values()):
        assert bool(torch.isfinite(weight).all())
    defense = trap(strength=1e6, weighting="inv", cap=5.0)
    found = [defense.objective(lambda s: torch.tensor(1e9), np.random.default_rng(seed), 0) for seed in range(50)]
    assert min(map(float, found)) >= -1e6 * 5.0 / defense.minimum


def test_it_raises_the_loss_at_other_scales_and_not_at_one(workspace: Make) -> None:
    where = workspace(pretraining={"steps": 60})
    losses = {}
    for strength in (0.0, 0.3):
        base, protected = protect(where, trap(update="full", strength=strength, steps=100))
        assert protected.update is not None
        task = load_task(where, Spec.parse("toy_topic"), 0, base)
        weights, batch = updates.dense(protected.update), task.split("train").batch(range(32))
        with torch.no_grad():
            losses[strength] = [
                float(task.loss(updates.added(base.network, weights, scale), batch)) for scale in (0.5, 1.0, 1.5)
            ]
    plain, trapped = losses[0.0], losses[0.3]
    assert trapped[0] + trapped[2] > 1.5 * (plain[0] + plain[2])
    assert trapped[1] < 0.5 * min(trapped[0], trapped[2])


# ------------------------------------------------------------------------------------------------ settings and refusals


def test_without_an_owners_task_it_is_refused() -> None:
    with pytest.raises(NftbenchError, match=r"an update for a task of the owner's own: write trap2\[task=…\]"):
        plan(tiny_suite(defenses=["none", "trap2"]))
    with pytest.raises(NftbenchError, match="'toy_tone' is not among the suite's tasks"):
        plan(tiny_suite(defenses=["none", "trap2[task=toy_tone]"]))


def test_the_control_is_the_same_without_strength() -> None:
    def control(text: str) -> str | None:
        found: str | None = registry.create("defenses", text).control_row()
        return found

    plain = "trap2[task=toy_topic,update=full,strength=0,steps=50]"
    assert control("trap2[task=toy_topic,update=full,steps=50]") == plain
    assert control("trap2[task=toy_topic,update=full,strength=3,weighting=inv,cap=2,band=0.2,steps=50]") == plain
    assert str(registry.spec_of("trap2", registry.create("defenses", plain))) == plain
    assert control(plain) is None


def test_a_model_without_attention_is_refused_an_adapter() -> None:
    network: Any = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pytest.raises(NftbenchError, match=r"no attention layers for an adapter; write update=full"):
        trap().lora(network)


# --------------------------------------------------------------------------------------------------------- the release


@both_kinds
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")  # PEFT calls what transformers renames
def test_the_release_is_the_base_with_its_adapter(spec: str, workspace: Make) -> None:
    where = workspace(defenses=["none", spec])
    base = make_base(where, 0).network
    job = next(job for job in where.plan.jobs() if job.defense.name == "trap2")
    folder = make_release(where, job.defense, 0, job.release)
    update = updates.load(folder / "adapter")
    assert update is not None
    tokens = torch.randint(20, (4, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        released = load(folder).network(input_ids=tokens).logits
        plain = base(input_ids=tokens).logits
        added = updates.added(base, updates.dense(update))(input_ids=tokens).logits
        torch.testing.assert_close(added, released, atol=1e-5, rtol=0)
        assert float((released - plain).abs().max()) > 1e-2
        if update.config is not None:
            peft = PeftModel.from_pretrained(copy.deepcopy(base), str(folder / "adapter")).eval()
            torch.testing.assert_close(peft(input_ids=tokens).logits, released, atol=1e-5, rtol=0)


# --------------------------------------------------------------------------------------------------------- the attacks

SUITE = {
    "tasks": ["toy_topic", "toy_tone", "toy_agreement"],
    "attacks": ["none", "merge", "merge[operator=ties]", "merge[operator=dare_ties,distilled=true]", "rescale_update"],
    "yardsticks": ["scale_loss"],
}


@both_kinds
def test_a_run_records_every_coefficient_and_the_yardstick(spec: str, workspace: Make, run_all: Any) -> None:
    where = workspace(defenses=["none", spec], **SUITE)
    found = run_all(where)
    name = str(next(job.defense for job in where.plan.jobs() if job.defense.name == "trap2"))
    for attack in SUITE["attacks"][1:]:
        one = found[name, attack, "toy_topic", 0]
        way = "rescaling" if attack == "rescale_update" else "merging"
        assert (one.status, one.adaptation, one.knowledge, one.against) == ("ok", way, ("base",), ("trap2",))
        assert [key for key in found if key[1] == attack] == [(name, attack, "toy_topic", 0)]
        assert 1.0 in {point.learning_rate for point in one.curve}
        assert one.validation is not None
        assert one.picked in one.curve
        assert one.picked.score == max(point.score for point in one.curve)
    merged = found[name, "merge", "toy_topic", 0]
    assert [point.learning_rate for point in merged.curve] == list(COEFFICIENTS)
    assert {point.step for point in merged.curve} == {2 * 4}  # two other tasks, the longest duration
    assert merged.cost.steps == 8
    distilled = found[name, "merge[operator=dare_ties,distilled=true]", "toy_topic", 0]
    assert len(distilled.curve) == len(COEFFICIENTS) * len(DENSITIES["dare_ties"])
    assert distilled.cost.steps == 8 + 10 * 4
    alone = found[name, "rescale_update", "toy_topic", 0]
    assert [point.learning_rate for point in alone.curve] == list(SCALES)
    standing = found[name, "none", "toy_topic", 0]
    assert alone.curve[0].loss == pytest.approx(standing.picked.loss, rel=1e-4)
    # the yardstick, from the saved update alone
    reading = found[name, "none", "scale_loss", 0].reading
    assert ("none", "none", "scale_loss", 0) not in found
    losses = dict(zip(reading.series[0].x, reading.series[0].y, strict=True))
    assert list(losses) == [tenths / 10 for tenths in range(-5, 21)]
    assert losses[1.0] == reading.values["loss_at_1"] == pytest.approx(standing.attacked.loss, rel=1e-4)
    assert losses[0.0] == pytest.approx(found["none", "none", "toy_topic", 0].attacked.loss, rel=1e-5)
    others = [loss for scale, loss in losses.items() if scale > 0 and scale != 1.0]
    assert reading.values["rise"] == pytest.approx(sum(others) / 19 - losses[1.0])
    assert reading.values["worst_below"] == max(loss for scale, loss in losses.items() if 0 < scale < 1)
    assert reading.series[1].y[15] == pytest.approx(standing.attacked.value)


def test_updates_merged_by_hand() -> None:
    """Task arithmetic adds; TIES trims to the largest, elects a sign by their sum, and averages who agrees with it."""
    members = [
        {"w": torch.tensor([4.0, -3.0, 1.0, 0.5]), "only": torch.tensor([2.0])},
        {"w": torch.tensor([2.0, 5.0, -6.0, 0.1])},
    ]
    added = combine("task_arithmetic", members, 1.0)
    assert added["w"].tolist() == pytest.approx([6.0, 2.0, -5.0, 0.6])
    assert added["only"].tolist() == [2.0]
    # half are kept: [4, -3, 0, 0] and [0, 5, -6, 0]; signs +, +, -, +
    trimmed = [np.array([4.0, -3.0, 0.0, 0.0]), np.array([0.0, 5.0, -6.0, 0.0])]
    elected = np.where(sum(trimmed) >= 0, 1, -1)
    agree = [np.sign(member) == elected for member in trimmed]
    wanted = sum(member * kept for member, kept in zip(trimmed, agree, strict=True)) / np.maximum(sum(agree), 1)
    assert combine("ties", members, 0.5)["w"].tolist() == pytest.approx(wanted.tolist())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dared = combine("dare_ties", [{"w": torch.ones(10_000)}], 0.2)["w"]
    assert set(dared.tolist()) == {0.0, 5.0}  # what is kept counts for what is dropped
    assert float(dared.mean()) == pytest.approx(1.0, abs=0.1)


def test_every_operator_is_linear_in_the_coefficient(workspace: Make) -> None:
    """As `merges` has it: PEFT with every weight 0.7 gives 0.7 times what it gives with weights 1."""
    from peft.utils import merge_utils

    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(30, generator=generator) for _ in range(3)]
    for operator, densities in DENSITIES.items():
        options = {} if operator == "task_arithmetic" else {"density": densities[0]}
        with torch.random.fork_rng():
            torch.manual_seed(1)
            direct = getattr(merge_utils, operator)(tensors, torch.full((3,), 0.7), **options)
            torch.manual_seed(1)
            ours = combine(operator, [{"w": tensor} for tensor in tensors], densities[0])["w"]
        torch.testing.assert_close(0.7 * ours, direct)


@dataclass(frozen=True)
class Context:
    """What the attacks ask of an `AttackerContext`."""

    base: Model
    budget: Any
    others: dict[str, Any] = field(default_factory=dict)
    seed: int = 0


def test_attacks_without_an_update_or_another_task_are_refused(workspace: Make) -> None:
    where = workspace()
    base = make_base(where, 0)
    task = load_task(where, Spec.parse("toy_topic"), 0, base)
    context: Any = Context(base, where.suite.budget)
    for attack in (Merge(), RescaleUpdate()):
        with pytest.raises(NftbenchError, match="the release has no update beside it"):
            attack.adapt(Prepared(base), task, context)
    with pytest.raises(NftbenchError, match="no other ranked task"):
        Merge().adapt(Prepared(base, update=Update({})), task, context)


@both_kinds
def test_distillation_learns_the_releases_logits(spec: str, workspace: Make) -> None:
    where = workspace(budget={"learning_rates": {"adamw": [3e-3, 1e-2]}})
    base, protected = protect(where, replace(registry.create("defenses", spec), steps=60))
    assert protected.update is not None
    task = load_task(where, Spec.parse("toy_topic"), 0, base)
    context: Any = Context(base, where.suite.budget)
    teacher = protected.release.network
    before = copy.deepcopy(teacher.state_dict())
    weights = trained(base.network, protected.update, task, distillation(teacher, task), 150, context)
    assert weights.keys() == updates.dense(protected.update).keys()
    batch = task.split("train").batch(range(32))
    student = updates.added(base.network, weights)
    with torch.no_grad():
        distance = [float(distillation(teacher, task)(one, batch)) for one in (base.network, student)]
        probabilities = logits(teacher, task, batch).softmax(-1)
    assert distance[1] < 0.2 * distance[0]
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    answers = probabilities[torch.arange(len(batch.targets)), batch.targets]
    assert -float(answers.log().mean()) == pytest.approx(task.loss(teacher, batch).item(), rel=1e-4)


def test_the_yardstick_applies_to_defenses_that_release_an_update() -> None:
    yardstick = scale_loss.ScaleLoss()
    assert yardstick.applies(trap()) is None
    assert yardstick.applies(registry.create("defenses", "none")) == "the defense releases no update"


# ---------------------------------------------------------------------------------------------------- the paper's suite


def test_the_paper_suite_plans_every_row_and_attack_of_its_claims() -> None:
    suite = read("paper-trap2")
    whole = plan(suite)
    rows = {str(cell.defense) for cell in whole.cells}
    attacks = {str(cell.attack) for cell in whole.cells}
    for claim in suite.claims:
        for quantity in filter(None, (claim.read, claim.minus, claim.over)):
            assert set(quantity.rows) <= rows
            assert set(quantity.attacks) <= attacks
    for text in suite.defenses:
        control = registry.create("defenses", text).control_row()
        assert control is None or control in rows
