"""Numbers that the core computes, by the area whose version must be raised when they move.

    make golden     # computes them again and stores them; refuses where one moved and its area's version did not

Everything is in float64, where processors differ by far less than the tolerance. Muon is left out: its matrices are
orthogonalised in bfloat16, which differs between processors by more.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from nftbench.contract import Model, Outcome
from nftbench.defenses import repnoise
from nftbench.methods import (
    adapters,
    benign_text,
    conditioning,
    control,
    cosine,
    curves,
    distillation,
    dlr,
    estimators,
    given_files,
    gradient_vectors,
    harmful_pairs,
    layerwise,
    masks,
    matrices,
    mmd,
    overhead,
    symmetries,
    tabular,
    tuning,
    with_text,
)
from nftbench.methods.conditioning import Features
from nftbench.models import networks
from nftbench.models.architectures.linear import LinearConfig, LinearModel
from nftbench.planning import registry
from nftbench.planning.plan import plan
from nftbench.records import identity
from nftbench.records.spec import Spec
from nftbench.records.store import Store
from nftbench.running.attacker import Attacker, own_copy
from nftbench.running.owner import Owner
from nftbench.running.workspace import TaskSetting, Workspace, load_task, make_corpus
from nftbench.testing import tiny_suite

STORED = Path(__file__).with_name("golden.json")
TOLERANCE = 1e-6
"""Relative; far above what processors differ by in float64, far below what a change of code does."""
VERSIONS = {"training": identity.TRAINING, "attack": identity.ATTACK, "evaluation": identity.EVALUATION}

Numbers = dict[str, float]


def compute(folder: Path) -> dict[str, Numbers]:
    """Every number by its area and name; `folder` is for the caches of a run.

    A module of nftbench.methods counts as training where a defense uses it, for a release's key holds no other area.
    """
    with _float64(), _cache(folder):
        workspace = Workspace(plan(tiny_suite()), Store(folder / "results", folder))
        base = _base(workspace)
        found = {
            "training": {**_training(workspace, base), **_shared_by_defenses(workspace, base)},
            "attack": {**_attack(workspace, base), **_shared_by_attacks(workspace, base)},
            "evaluation": {**_evaluation(workspace, base), **_tables(workspace)},
        }
    return {area: {name: _float(value) for name, value in numbers.items()} for area, numbers in found.items()}


def moved(stored: Mapping[str, Any], found: Mapping[str, Numbers], versions: Mapping[str, int]) -> list[str]:
    """What must not be: numbers that are not the stored ones, in an area whose version is the stored one."""
    problems = []
    for area, numbers in found.items():
        before = stored[area]
        if before["version"] != versions[area]:
            continue
        for name, value in before["numbers"].items():
            if name not in numbers or not math.isclose(value, numbers[name], rel_tol=TOLERANCE):
                problems.append(f"{area}: {name} was {value!r} and is {numbers.get(name)!r}")
    return problems


def store(path: Path, found: Mapping[str, Numbers], versions: Mapping[str, int]) -> list[str]:
    """Write the numbers to `path`, unless one moved that must not; what moved."""
    problems = moved(json.loads(path.read_text()), found, versions) if path.exists() else []
    if not problems:
        content = {area: {"version": versions[area], "numbers": numbers} for area, numbers in found.items()}
        path.write_text(json.dumps(content, indent=1) + "\n")
    return problems


def main() -> int:
    """Store the numbers of today, where that may be; the exit code."""
    with tempfile.TemporaryDirectory() as folder:
        problems = store(STORED, compute(Path(folder)), VERSIONS)
    if problems:
        areas = ", ".join(sorted({problem.partition(":")[0].upper() for problem in problems}))
        refusal = f"not stored: raise {areas} in nftbench/records/identity.py first"
        print("\n".join([*problems, refusal]), file=sys.stderr)
    return 1 if problems else 0


# ------------------------------------------------------------------------------------------------------------ numbers


def _training(workspace: Workspace, base: Model) -> Mapping[str, Any]:
    corpus, drawn = make_corpus(workspace, 0), Owner(workspace, 0).build()
    blocks = torch.cat([corpus.train, corpus.heldout]).flatten()
    return {
        "initial weights": _mean({name: weight.square() for name, weight in drawn.network.named_parameters()}),
        "corpus": (blocks * torch.arange(1, len(blocks) + 1)).sum(),
        "pre-training loss": _loss(base.network, corpus.heldout),
        "pre-training under a mask": _loss(_masked(workspace).network, corpus.heldout),
    }


def _attack(workspace: Workspace, base: Model) -> Mapping[str, Any]:
    task, context = load_task(workspace, Spec.parse("toy_topic"), 0, base), _context(workspace)
    found: dict[str, Any] = {}
    for optimizer in ("adamw", "sgd"):
        outcome = _context(workspace).sweep(_copied(base), task, optimizer=optimizer)
        found |= _curve(f"sweep with {optimizer}", outcome)
    outcome = _context(workspace).sweep(_copied(base), task, decay=True, average=True)
    found |= _curve("sweep that decays", outcome)
    prepared = _copied(base)
    batches = context.text(prepared, 4)
    context.train(prepared.network, lambda network, _: _loss(network, next(batches)), steps=5, learning_rate=1e-3)
    found["preparation"] = _loss(prepared.network, make_corpus(workspace, 0).heldout)
    return found


def _evaluation(workspace: Workspace, base: Model) -> Mapping[str, Any]:
    found: dict[str, Any] = {}
    for name in ("toy_topic", "toy_topic_object", "toy_agreement_pronoun", "bits_per_token", "toy_other_text"):
        task = load_task(workspace, Spec.parse(name), 0, base)
        measured = task.evaluate(base.network, task.split("test"))
        found |= {f"{name} score": measured.value, f"{name} floor": measured.floor}
        if measured.loss is not None:
            found[f"{name} loss"] = measured.loss
    return found


def _shared_by_defenses(workspace: Workspace, base: Model) -> Mapping[str, Any]:
    tokens = make_corpus(workspace, 0).heldout[:4]
    weights = {name: weight.detach() for name, weight in base.network.named_parameters()}
    marked = masks.top({name: weight.abs() for name, weight in weights.items()}, 0.3)
    with networks.seeded(0):
        locked = dlr.lock(base.network, 2)
    features = torch.linspace(-1, 1, 48).view(12, 4).sin()
    other = (7 * features).cos()
    return {
        "methods.masks": sum(weights[name][mask].square().sum() for name, mask in marked.items()),
        "methods.masks in each": masks.overlap(marked, masks.top(weights, 0.3, "per_tensor")),
        "methods.distillation": distillation.joint_loss(locked, base.network, tokens),
        "methods.overhead": overhead.divergence(locked, base.network, tokens),
        "methods.overhead FLOPs": overhead.footprint(base.network, tokens).step_flops_per_token,
        "methods.conditioning well": conditioning.probe_r_well(features),
        "methods.conditioning ill": conditioning.probe_r_ill(features),
        "methods.conditioning ratio": conditioning.immunity(
            Features(features, other), Features(other, features), conditioning.ridge_condition_number
        ).ratio,
        "methods.conditioning number": conditioning.condition_number(features),
        "methods.conditioning steps": conditioning.norm_ratio(features, other[:, :1], 3)[-1],
        "methods.adapters": len(adapters.linear_layers(base.network)),
        **_shared_by_task_aware(workspace, base, tokens),
    }


def _shared_by_task_aware(workspace: Workspace, base: Model, tokens: torch.Tensor) -> Mapping[str, Any]:
    task = load_task(workspace, Spec.parse("toy_topic"), 0, base)
    pairs = harmful_pairs.HarmfulPairs.of(task).batch([0, 1, 2], "cpu")
    network = copy.deepcopy(base.network)
    seen = layerwise.traced(network, pairs.harmful.inputs)
    weights = gradient_vectors.weights_of(network)
    direction = gradient_vectors.gradient(benign_text.text_loss(network, tokens), weights)
    begun = tuning.begin(network, "lora", 0, rank=2, alpha=4.0, targets="all", dropout=0.0)
    defense = repnoise.RepNoise(harmful="toy_topic")
    return {
        "methods.benign_text": benign_text.text_loss(network, tokens),
        "methods.control": len(control.changed("repnoise", defense, alpha=0.0)),
        "methods.cosine": cosine.cosine(10, 0.2)(7),
        "methods.curves": sum(curves.curves(["a", "b"], [(1.5, 2.0), (3.0, 4.0)])[1].y),
        "methods.gradient_vectors": gradient_vectors.norm(direction),
        "methods.harmful_pairs": harmful_pairs.cross_entropy(seen.logits, pairs.harmful),
        "methods.layerwise": layerwise.raised_loss(network, seen, pairs.harmful),
        "methods.mmd": mmd.mmd(seen.hidden[0].flatten(1), seen.hidden[1].flatten(1)),
        "methods.task_aware": len(defense.row(alpha=0.0)),
        "methods.tuning": sum(weight.numel() for weight in begun.network.parameters() if weight.requires_grad),
    }


def _shared_by_attacks(workspace: Workspace, base: Model) -> Mapping[str, Any]:
    task, context = load_task(workspace, Spec.parse("toy_topic"), 0, base), _context(workspace)
    fresh = context.untrained(base, 0)
    outcome = context.sweep(_copied(base), task, adapter=lambda network, _: adapters.lora(network, 2, 4.0))
    mixed, given = with_text.WithText(task, make_corpus(workspace, 0).heldout[:4], 0.5), workspace.store.cache / "given"
    networks.save(base, given)
    return {
        **_curve("methods.adapters", outcome),
        "methods.symmetries": _mean(_rewritten(base)),
        "methods.given_files": given_files.parameters(str(given)),
        "methods.matrices": len(matrices.of(base.network)),
        "methods.with_text": mixed.loss(base.network, mixed.split("train").batch([0, 1])),
        "methods.estimators likelihood": _mean(estimators.likelihood(base.network, fresh)),
        "methods.estimators magnitude": _mean(estimators.magnitude(base.network)),
        "methods.estimators departure": _mean(estimators.departure(base.network, fresh)),
    }


def _tables(workspace: Workspace) -> Mapping[str, Any]:
    with networks.seeded(0):
        network = LinearModel(LinearConfig(input_dim=64, output_dim=1))
    context = TaskSetting(Model(network), 0, workspace.suite, None, None, lambda: make_corpus(workspace, 0))
    task = registry.create("tasks", "digits_pair").load(context)
    assert isinstance(task, tabular.Loaded)
    measured = task.evaluate(network, task.split("test"))
    return {"methods.tabular score": measured.value, "methods.tabular loss": measured.loss}


# --------------------------------------------------------------------------------------------------------------- parts


@contextlib.contextmanager
def _float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def _cache(folder: Path) -> Iterator[None]:
    """Let the generated documents of the toy tasks lie there too."""
    with mock.patch.dict(os.environ, NFTBENCH_CACHE=str(folder)):
        yield


def _float(value: Any) -> float:
    return float(value.detach() if isinstance(value, Tensor) else value)


def _loss(network: nn.Module, tokens: Tensor) -> Tensor:
    """Mean next-token loss in nats on blocks [count, block]; transformers computes its own in float32."""
    logits = network(input_ids=tokens).logits
    return _cross_entropy(logits, tokens)


def _cross_entropy(logits: Tensor, labels: Tensor, *_: Any, **options: Any) -> Tensor:
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def _built(owner: Owner) -> Model:
    """The untrained model in float64: its loss, and matrices drawn anew, for a draw in float32 differs too much."""
    model = owner.build()
    model.network.double().loss_function = _cross_entropy
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.network.parameters():
            if weight.ndim > 1:
                weight.copy_(0.02 * torch.randn(weight.shape, generator=generator))
    return model


def _base(workspace: Workspace) -> Model:
    owner = Owner(workspace, 0)
    return owner.pretrain(_built(owner))


def _masked(workspace: Workspace) -> Model:
    owner = Owner(workspace, 0)
    model = _built(owner)
    mask = {name: weight > 0 for name, weight in model.network.named_parameters()}
    return owner.pretrain(model, mask=mask, weight_decay=0.1)


def _context(workspace: Workspace) -> Attacker:
    seed = networks.derive(0, "attack")
    return Attacker(seed=seed, budget=workspace.suite.budget, _corpus=make_corpus(workspace, 0))


def _copied(model: Model) -> Model:
    return own_copy(model)


def _curve(name: str, outcome: Outcome) -> dict[str, float | None]:
    points = [*outcome.curve, *outcome.restarts]
    return {f"{name}, point {number}": point.loss for number, point in enumerate(points)}


def _rewritten(base: Model) -> Mapping[str, Tensor]:
    """The squares of the weights in their ordinary sizes."""
    network = _copied(base).network
    symmetries.canonical(network)
    return {name: weight.detach().square() for name, weight in network.named_parameters()}


def _mean(scores: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([score.double().flatten() for score in scores.values()]).clamp(-30, 30).mean()


if __name__ == "__main__":
    sys.exit(main())
