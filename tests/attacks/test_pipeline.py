"""The pipeline: which preparation and tuner it picks, what it counts as cost, and which specs it accepts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nftbench.contract import Attack, Measurement, Model, Outcome, Prepared, Release, Task
from nftbench.errors import NftbenchError
from nftbench.planning import registry
from nftbench.planning.plan import narrow, plan
from nftbench.planning.specs import canonical
from nftbench.running.attacker import Attacker
from nftbench.running.owner import Owner
from nftbench.running.workspace import AttackersTask, Workspace, make_corpus
from nftbench.suites.schema import Suite
from nftbench.testing import FirstWord, task_context, tiny_suite
from nftbench.training.trainer import Ledger
from tests.by_heart import by_heart

MakeWorkspace = Callable[..., Workspace]
WriteFile = Callable[[str, str], Path]
RunAll = Callable[..., dict[tuple[str, str, str, int], Any]]

WEIGHTS = """
@dataclass(frozen=True)
class Weights(Attack):
    \"\"\"Multiplies every weight; as a tuner it trains nothing.\"\"\"
    knowledge: ClassVar = frozenset({"method"})
    by: float = 1.0

    def applies(self, defense):
        return "the defense keeps no secret" if self.by == 7 and not defense.keeps_secret else None

    def prepare(self, release, context):
        assert not self.applies(context.defense), "it is not to be tried where it does not apply"
        with torch.no_grad():
            for weight in release.model.network.parameters():
                weight.mul_(self.by)
        return Prepared(release.model, update=release.update)

    def adapt(self, prepared, task, context):
        return context.unchanged(prepared.model, task)
"""
TRAINS = """
@dataclass(frozen=True)
class Trains(Attack):
    \"\"\"Trains on public text before anything.\"\"\"
    knowledge: ClassVar = frozenset({"data"})
    steps: int = 3

    def prepare(self, release, context):
        text = context.text(release.model, 4)

        def loss(network, step):
            tokens = next(text)
            return network(input_ids=tokens, labels=tokens).loss

        context.train(release.model.network, loss, steps=self.steps, learning_rate=1e-3)
        return Prepared(release.model)

    def adapt(self, prepared, task, context):
        return context.sweep(prepared.model, task)
"""


@pytest.fixture
def parts(plugin: WriteFile) -> None:
    plugin("weights", WEIGHTS)
    plugin("trains", TRAINS)


def pipeline(**parameters: Any) -> Attack:
    found: Attack = registry.create("attacks", "pipeline")
    return replace(found, **parameters)  # type: ignore[type-var]


def scene(workspace: Workspace) -> tuple[Model, Task, Callable[[Attack], Attacker]]:
    """A release trained on every split of the task, the task, and the context of an attack on it."""
    model = Owner(workspace, 0).build()
    task = FirstWord().load(task_context(workspace, model))
    by_heart(model.network, task)

    def context(attack: Attack) -> Attacker:
        return Attacker(
            seed=3,
            budget=workspace.suite.budget,
            _corpus=make_corpus(workspace, 0),
            _defense=registry.create("defenses", "none"),
            _suite=workspace.suite,
            _uses=attack.uses(),
        )

    return model, AttackersTask(task), context


def attacked(attack: Attack, scaled: float, here: Workspace) -> tuple[Outcome, Prepared, Attacker, Task]:
    """The attack on a release whose weights are all multiplied."""
    model, task, make = scene(here)
    with torch.no_grad():
        for weight in model.network.parameters():
            weight.mul_(scaled)
    context = make(attack)
    prepared = attack.prepare(Release(model), context)
    before = [weights(part.model) for part in (prepared, *prepared.parts)]
    context = replace(context, ledger=Ledger())
    outcome = attack.adapt(prepared, task, context)
    after = [weights(part.model) for part in (prepared, *prepared.parts)]
    for one, other in zip(before, after, strict=True):
        assert same(one, other), "the next task finds every part as it was prepared"
    return outcome, prepared, context, task


def weights(model: Model) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.network.named_parameters()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.allclose(weight, other[name], rtol=0, atol=0, equal_nan=True) for name, weight in one.items())


def score(task: Task, outcome: Outcome) -> float:
    found: Measurement = task.evaluate(outcome.network, task.split("validation"))
    assert found == outcome.validation
    return found.value


# ----------------------------------------------------------------------------------------------------------- the choice


@pytest.mark.parametrize("order", [("weights[by=0.01]", "weights[by=100]"), ("weights[by=100]", "weights[by=0.01]")])
def test_the_best_preparation_by_validation_stands(
    parts: None, order: tuple[str, ...], workspace: MakeWorkspace
) -> None:
    """All weights were divided by 100; one of the two preparations undoes that, in either order."""
    attack = pipeline(preparations=order, tuners=("weights",))
    outcome, prepared, _, task = attacked(attack, 0.01, workspace())
    assert [part.model.network is prepared.model.network for part in prepared.parts] == [True, False, False]
    assert score(task, outcome) > 0.85
    mended = prepared.parts[1 + order.index("weights[by=100]")]
    assert same(weights(mended.model), weights(Model(outcome.network)))  # type: ignore[arg-type]


def test_where_no_preparation_helps_the_release_stays(parts: None, workspace: MakeWorkspace) -> None:
    for spoiled in ("weights[by=0.0]", "weights[by=.nan]"):
        outcome, prepared, _, task = attacked(pipeline(preparations=(spoiled,), tuners=("weights",)), 1.0, workspace())
        assert same(weights(prepared.model), weights(Model(outcome.network)))  # type: ignore[arg-type]
        assert score(task, outcome) > 0.85


def test_where_short_tuning_diverges_the_release_stays(parts: None, workspace: MakeWorkspace) -> None:
    here = workspace(budget={"learning_rates": {"adamw": [1e37, 1e38]}})
    outcome, _, _, task = attacked(pipeline(preparations=("weights[by=2]",), tuners=("weights",)), 1.0, here)
    assert score(task, outcome) > 0.85


@pytest.mark.parametrize("order", [("weights", "full"), ("lora[rank=2]", "full")])
def test_the_best_tuner_stands_and_the_cost_is_that_of_all(
    parts: None, order: tuple[str, ...], workspace: MakeWorkspace
) -> None:
    here = workspace()
    whole, _, context, task = attacked(pipeline(preparations=(), tuners=order), 0.05, here)
    alone = [attacked(pipeline(preparations=(), tuners=(one,)), 0.05, here)[0] for one in order]
    best = max(alone, key=lambda one: (score(task, one), -one.validation.loss))  # type: ignore[union-attr,operator]
    assert whole.validation == best.validation
    assert (whole.curve, whole.restarts, whole.picked) == (best.curve, best.restarts, best.picked)
    assert whole.picked.step > 0, "training beats leaving it"
    assert whole.cost.step_flops == best.cost.step_flops > 0
    cost = context.ledger.whole(whole.cost)
    assert cost.steps == sum(one.cost.steps for one in alone) > 0
    assert cost.seconds >= whole.cost.seconds > 0
    assert context.ledger.peak_memory_bytes >= max(one.cost.peak_memory_bytes for one in alone)


def test_a_tuner_runs_its_own_preparation_on_a_copy(parts: None, workspace: MakeWorkspace) -> None:
    """The tuner prepares a copy of what the chosen preparation made."""
    outcome, prepared, *_ = attacked(pipeline(preparations=(), tuners=("weights[by=2]",)), 1.0, workspace())
    doubled = {name: 2 * weight for name, weight in weights(prepared.model).items()}
    assert same(doubled, weights(Model(outcome.network)))  # type: ignore[arg-type]


def test_a_preparation_is_tried_only_where_it_applies(parts: None, workspace: MakeWorkspace) -> None:
    attack = pipeline(preparations=("weights[by=7]", "weights[by=2]"), tuners=("weights",))
    model, _, make = scene(workspace())
    context = make(attack)
    release = Release(model)
    assert len(attack.prepare(release, context).parts) == 2, "none keeps no secret"
    secretive = replace(context, _defense=registry.create("defenses", "random_mask"))
    assert len(attack.prepare(release, secretive).parts) == 3


# ----------------------------------------------------------------------------------------------------------- the record


def test_records_count_every_step_once_and_a_resumed_run_writes_the_same(
    parts: None, workspace: MakeWorkspace, run_all: RunAll, bare: Callable[[Any], Any]
) -> None:
    """The cost counts each preparation and each short tuning once; a resumed job writes the same records."""
    spec = "pipeline[preparations=trains[steps=2]+weights[by=2]+trains,tuners=full+weights]"
    both = ["toy_topic", "toy_tone"]

    def found(results: str, *tasks: str) -> dict[Any, Any]:
        here = workspace(results=results, attacks=["none", spec], tasks=both)
        only = narrow(here.plan, attacks=[spec], tasks=tasks)
        return {key: bare(record) for key, record in run_all(replace(here, plan=only)).items()}

    whole = found("whole")
    assert len(whole) == 2
    for record in whole.values():
        assert record.status == "ok", record.reason
        assert record.knowledge == ("data", "method")
        assert record.cost.preparation_steps == 2 + 3 + 4 * 4, "two preparations train, four parts are tuned once"
        assert record.cost.preparation_flops > 0
    found("resumed", "toy_tone")
    assert found("resumed") == whole


# ------------------------------------------------------------------------------------------------------------- the spec


def suite(*attacks: str) -> Suite:
    return tiny_suite(attacks=["none", *attacks])


def test_brackets_within_a_list_are_read(parts: None) -> None:
    spec = "pipeline[preparations=trains[steps=2]+weights,tuners=lora[rank=4,targets=mlp]+full]"
    found = registry.create("attacks", spec)
    assert found.preparations == ("trains[steps=2]", "weights")
    assert found.tuners == ("lora[rank=4,targets=mlp]", "full")
    assert str(canonical("attacks", spec)) == spec
    assert {str(cell.attack) for cell in plan(suite(spec)).cells} == {"none", spec}


def test_unknown_attacks_and_missing_knowledge_are_refused_while_planning(parts: None) -> None:
    with pytest.raises(NftbenchError, match="no attack is named 'fulll'; did you mean 'full'"):
        plan(suite("pipeline[preparations=weights,tuners=fulll]"))
    with pytest.raises(NftbenchError, match="uses 'authorized', which needs more knowledge; add to its own: secret"):
        plan(suite("pipeline[preparations=weights,tuners=full+authorized]"))
    with pytest.raises(NftbenchError, match="needs more knowledge; add to its own: base"):
        plan(suite("pipeline[preparations=difference,tuners=full]"))


def test_the_default_attacks_exist_and_need_no_further_knowledge() -> None:
    attack: Any = pipeline()
    assert attack.uses() == ("heal", "redistill", "rebalance", "full", "lora")
    for spec in attack.uses():
        assert registry.create("attacks", spec).knowledge <= attack.knowledge
