"""The contract as a library, for plugin authors in other repositories: `check_defense`, `check_attack`, `check_task`,
`check_yardstick`.

Each runs a plugin on tiny models of three architectures and raises `BrokenPromiseError` where the plugin does not do
what the protocols in `types.py` promise. A test of a plugin is one line:

    def test_mine() -> None:
        check_defense("mine[strength=2]")     # known by an entry point or `registry.add_file`; an instance will do too
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import safe_open
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from nftbench import suites
from nftbench.contract import (
    Attack,
    Claim,
    Defense,
    Measurement,
    Model,
    Outcome,
    OwnerContext,
    Prepared,
    Protected,
    Reading,
    Release,
    Secret,
    Split,
    Task,
    TaskContext,
    Update,
    Yardstick,
)
from nftbench.data.lm_eval_tasks import TextTask
from nftbench.errors import NftbenchError
from nftbench.models import networks as models, updates
from nftbench.planning import registry
from nftbench.planning.plan import plan
from nftbench.records.spec import Spec
from nftbench.records.store import Store
from nftbench.running.attacker import Attacker
from nftbench.running.owner import Owner, make_base
from nftbench.running.releases import ADAPTER, ReleaseInspection, make_release
from nftbench.running.workspace import AttackersTask, TaskSetting, Workplace, derive, make_corpus
from nftbench.suites.schema import Suite
from nftbench.terms import KNOWLEDGE, OF_UPDATES, Adaptation, SplitName, Stage
from nftbench.training.preparation import Ledger

_LLAMA = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}
ARCHITECTURES: Mapping[str, Mapping[str, Any]] = {
    "gpt2": {
        "n_layer": 1,
        "n_embd": 16,
        "n_head": 2,
        "n_positions": 64,
        "resid_pdrop": 0,
        "embd_pdrop": 0,
        "attn_pdrop": 0,
    },
    "llama": _LLAMA,
    "qwen3": {**_LLAMA, "head_dim": 8},
}
"""Tied embeddings with fused attention; grouped queries; those with norms on queries and keys."""


class BrokenPromiseError(AssertionError):
    """A plugin does not do what its protocol promises."""


def tiny_suite(architecture: str = "gpt2", **changes: Any) -> Suite:
    """A suite that runs in a second: one layer of width 16, 300 sentences of the toy language, 20 steps.

    `changes` are fields of the suite; a mapping is laid over the section that it names.
    """
    content: dict[str, Any] = {
        "name": "tiny",
        "model": {"model_type": architecture, **ARCHITECTURES[architecture]},
        "corpus": {"sentences": 300, "heldout_blocks": 16},
        "pretraining": {"steps": 20, "batch": 8, "warmup": 4, "learning_rate": 3e-3, "checkpoints": [0.5]},
        "defenses": ["none"],
        "attacks": ["none"],
        "tasks": ["toy_topic"],
        "utility": ["toy_minimal_pairs"],
        "budget": {
            "learning_rates": {kind: [1e-3, 1e-2] for kind in ("adamw", "sgd", "muon")},
            "durations": [2, 4],
            "batch": 8,
            "warmup": 2,
            "extension": 1,
            "preparation_steps": 5,
            "max_train_documents": 32,
            "max_validation_documents": 40,
            "max_test_documents": 40,
            "max_utility_documents": 40,
        },
        "seeds": [0],
    }
    for key, value in changes.items():
        content[key] = {**content[key], **value} if isinstance(value, Mapping) else value
    return suites.parse(content, "tiny")


def check_defense(defense: Defense | str, *, architectures: Sequence[str] = tuple(ARCHITECTURES)) -> None:
    """Protect a tiny model of each architecture twice and hold the defense to its protocol.

    Raises:
        BrokenPromiseError: it names the promise.
    """
    plugin: Defense = _plugin("defenses", defense)
    _promise(plugin.stage in get_args(Stage), f"stage is one of {', '.join(get_args(Stage))}, not {plugin.stage!r}")
    _promise(plugin.claims is None or isinstance(plugin.claims, Claim), "claims is a Claim or None")
    for text in filter(None, (plugin.reference_row(), plugin.control_row())):
        Spec.parse(text)
    _promise(isinstance(plugin.fingerprint(), str), "fingerprint() returns a string")
    for architecture in architectures:
        with _workplace(tiny_suite(architecture)) as place:
            plugin.check(place.suite)
            first, second = (_protect(place, plugin) for _ in range(2))
            _check_protected(plugin, first)
            if first.update is not None:
                _check_update(first.release, first.update, make_base(place, 0))
            _check_publishable(first.release)
            _promise(
                _same(first.release.network.state_dict(), second.release.network.state_dict()),
                f"the same seed gives the same release ({architecture})",
            )
            if first.secret is not None and second.secret is not None:
                _promise(_same(first.secret.mask, second.secret.mask), "the same seed gives the same secret mask")


def check_attack(
    attack: Attack | str, *, architectures: Sequence[str] = tuple(ARCHITECTURES), allowance: float = 1.0
) -> None:
    """Attack an undefended tiny model of each architecture twice and hold the attack to its protocol.

    Args:
        allowance: how many times the suite's steps the attack openly takes (10 for one that trains ten times as long).

    Raises:
        BrokenPromiseError: it names the promise.
    """
    plugin: Attack = _plugin("attacks", attack)
    unknown = set(plugin.knowledge) - set(KNOWLEDGE)
    _promise(not unknown, f"knowledge is among {', '.join(KNOWLEDGE)}; not: {', '.join(sorted(unknown))}")
    _promise(plugin.adaptation in get_args(Adaptation), f"adaptation is among {', '.join(get_args(Adaptation))}")
    for architecture in architectures:
        with _workplace(tiny_suite(architecture)) as place:
            release, context = _release(place, plugin)
            task = _FirstWord().load(_task_context(place, release.model))
            reached = [_adapt(plugin, release, task, context) for _ in range(2)]
            (outcome, trained, beside), (again, *_) = reached
            _check_outcome(plugin, outcome, release, task, context, trained, beside, allowance)
            same = outcome.curve == again.curve and _same(outcome.network.state_dict(), again.network.state_dict())
            _promise(same, f"the same seed gives the same outcome ({architecture})")


def check_task(
    task: Task | str | Path,
    *,
    architectures: Sequence[str] = tuple(ARCHITECTURES),
    data: Path | None = None,
    **changes: Any,
) -> None:
    """Load the task for a tiny untrained model of each architecture and hold it to its protocol.

    Args:
        task: an instance, a spec, the name of a text task, or the path of its YAML file.
        data: the folder of local data (`--data`).
        changes: fields of the tiny suite that the task is loaded for.

    Raises:
        BrokenPromiseError: it names the promise.
    """
    plugin = _task(task)
    _promise(isinstance(plugin.fingerprint(data), str), "fingerprint(data) returns a string")
    for architecture in architectures:
        with _workplace(tiny_suite(architecture, **changes), data) as place:
            model = Owner(place, 0).build()
            loaded, again = (plugin.load(_task_context(place, model)) for _ in range(2))
            names: tuple[SplitName, ...] = ("train", "validation", "test") if plugin.trainable else ("test",)
            for name in names:
                _promise(len(loaded.split(name)) > 0, f"the {name} split has documents")
            if plugin.trainable:
                _check_loss(loaded, model.network)
            else:
                _promise(_refuses(partial(loaded.split, "train")), "a task that is not trainable has no train split")
            for name in names[1:] or names:
                _check_measurement(loaded, again, model.network, name)


def check_yardstick(
    yardstick: Yardstick | str, defense: str = "none", *, architectures: Sequence[str] = tuple(ARCHITECTURES)
) -> None:
    """Read the yardstick off a tiny release of each architecture and hold it to its protocol.

    Args:
        defense: spec of a defense to which it applies.

    Raises:
        BrokenPromiseError: it names the promise.
    """
    plugin: Yardstick = _plugin("yardsticks", yardstick)
    reason = plugin.applies(registry.create("defenses", defense))
    _promise(reason is None, f"it applies to {defense}: {reason}")
    for architecture in architectures:
        with _workplace(tiny_suite(architecture, defenses=[defense])) as place:
            job = next(job for job in place.plan.jobs() if str(job.defense) == defense)
            folder = make_release(place, job.defense, job.seed, job.release)
            model = models.load(folder, attacker=True)
            before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
            inspection = ReleaseInspection(place, job, Release(model, updates.load(folder / ADAPTER)))
            with _random_state_kept("measure"):
                reading = plugin.measure(inspection)
            _promise(isinstance(reading, Reading), f"measure returns Reading, not {type(reading).__name__}")
            _promise(_same(before, model.network.state_dict()), "measure leaves the release as it is")
            for name, value in reading.values.items():
                _promise(math.isfinite(value), f"the value {name} is finite")
            for series in reading.series:
                _promise(len(series.x) == len(series.y), f"the series {series.name} has a y for each x")


# ------------------------------------------------------------------------------------------------------------ defenses


def _protect(place: Workplace, plugin: Defense) -> Protected:
    owner = Owner(place, 0, plugin.told())
    model = owner.build() if plugin.stage == "pretrain" else make_base(place, 0)
    with _random_state_kept("protect"):
        protected = plugin.protect(model, owner)
    _promise(isinstance(protected, Protected), f"protect returns Protected, not {type(protected).__name__}")
    return protected


def _check_protected(plugin: Defense, protected: Protected) -> None:
    weights = dict(protected.release.network.named_parameters())
    for name, weight in weights.items():
        _promise(bool(torch.isfinite(weight).all()), f"the release's weights are finite: {name}")
    _promise(protected.release.tokenizer is not None, "the release keeps its tokenizer")
    _promise(
        (protected.secret is not None) == plugin.keeps_secret,
        f"keeps_secret is {plugin.keeps_secret}, and protect returned {'a' if protected.secret else 'no'} secret",
    )
    _promise(
        (protected.update is not None) == plugin.releases_update,
        f"releases_update is {plugin.releases_update}, and protect gave {'an' if protected.update else 'no'} update",
    )
    if protected.secret is None:
        return
    mask = protected.secret.mask
    _promise(set(mask) == set(weights), "the secret mask has one entry for each parameter")
    for name, kept in mask.items():
        _promise(kept.dtype == torch.bool, f"the secret mask is boolean: {name}")
        _promise(kept.shape == weights[name].shape, f"the secret mask has the parameter's shape: {name}")


def _check_update(release: Model, update: Update, base: Model) -> None:
    found = updates.added(base.network, updates.dense(update)).state_dict()
    for name, weight in release.network.state_dict().items():
        _promise(torch.allclose(found[name], weight, atol=1e-5), f"the release is the base plus the update: {name}")


def _check_publishable(model: Model) -> None:
    """What is saved is what is loaded, and nothing else is saved."""
    with tempfile.TemporaryDirectory() as folder:
        models.save(model, Path(folder))
        published = models.load(folder).network.state_dict()
        saved = set()
        for path in Path(folder).glob("*.safetensors"):
            with safe_open(path, "pt") as file:
                saved |= set(file.keys())
    surplus = sorted(saved - set(published))
    _promise(not surplus, f"the release's folder holds the model's tensors and no others: {', '.join(surplus)}")
    own = {name: tensor.float() for name, tensor in model.network.state_dict().items()}
    _promise(_same(own, published), "the release is bit for bit the same after saving and loading")


# ------------------------------------------------------------------------------------------------------------- attacks


def _release(place: Workplace, plugin: Attack) -> tuple[Release, Attacker]:
    """A pre-trained model as an attacker downloads it, and a context that holds what the attack may know."""
    owner, knowledge, masked = Owner(place, 0), plugin.knowledge, _Masked()
    secretive = bool(knowledge & {"secret", "sibling"}) or plugin.applies(_Undefended()) is not None
    protected = masked.protect(owner.build(), owner) if secretive else Protected(owner.pretrain(owner.build()))
    model, sibling = protected.release, owner.sibling(protected.release)
    folder = place.store.make("releases", "tiny", lambda draft: models.save(model, draft))

    context = Attacker(
        seed=derive(0, "attack"),
        budget=place.suite.budget,
        device=place.device,
        _corpus=owner.corpus if "data" in knowledge else None,
        _secret=protected.secret if "secret" in knowledge else None,
        _defense=(masked if secretive else _Undefended()) if "method" in knowledge else None,
        _suite=place.suite if knowledge & {"method", "sibling"} else None,
        _sibling=sibling if "sibling" in knowledge else None,
        _uses=plugin.uses(),
    )
    release = Release(models.load(folder, attacker=True))
    if "base" in plugin.knowledge:
        base = owner.build()
        update = updates.difference(release.model.network, base.network)
        others = {"other": AttackersTask(_FirstWord().load(_task_context(place, base)))}
        return replace(release, update=update), replace(context, _base=base, others=others)
    return release, context


def _adapt(plugin: Attack, release: Release, task: Task, context: Attacker) -> tuple[Outcome, int, Ledger]:
    """One attack on a copy of the release, the optimizer steps of `adapt`, and what it spent beside the sweep."""
    own = replace(release, model=Model(copy.deepcopy(release.model.network), release.model.tokenizer))
    steps: Counter[type] = Counter()
    beside = replace(context, ledger=Ledger())  # as the referee gives `adapt` one of its own
    with _random_state_kept("prepare"):
        prepared = plugin.prepare(own, context)
    _promise(isinstance(prepared, Prepared), f"prepare returns Prepared, not {type(prepared).__name__}")
    before = {name: tensor.clone() for name, tensor in prepared.model.network.state_dict().items()}
    handle = register_optimizer_step_post_hook(lambda optimizer, *_: steps.update([type(optimizer)]))
    try:
        with _random_state_kept("adapt"):
            outcome = plugin.adapt(prepared, AttackersTask(task), beside)
    except NftbenchError as error:
        raise BrokenPromiseError(f"adapt runs on an undefended model: {error}") from error
    finally:
        handle.remove()
    _promise(isinstance(outcome, Outcome), f"adapt returns Outcome, not {type(outcome).__name__}")
    _promise(
        _same(before, prepared.model.network.state_dict()),
        "adapt leaves the prepared model as it is, for the next task",
    )
    # Muon goes together with an AdamW for the rest, so that one step of the engine counts once for each.
    return outcome, max(steps.values(), default=0), beside.ledger


def _check_outcome(
    plugin: Attack,
    outcome: Outcome,
    release: Release,
    task: Task,
    context: Attacker,
    steps: int,
    beside: Ledger,
    allowance: float,
) -> None:
    for name, weight in outcome.network.named_parameters():
        _promise(bool(torch.isfinite(weight).all()), f"the attacked weights are finite: {name}")
    attacked = task.evaluate(outcome.network, task.split("test"))
    _promise(math.isfinite(attacked.value), "the attacked model's score is finite")
    _promise(outcome.validation is not None, "the outcome has a validation measurement")
    validation = task.evaluate(outcome.network, task.split("validation"))
    _promise(validation == outcome.validation, "the outcome's network is the one that its validation measured")
    if plugin.adaptation in OF_UPDATES:  # what it tries are coefficients, and what it trains are other updates
        return
    # What is solved without an optimizer (least squares) has its steps in the curve alone.
    taken = steps or max((point.step for point in outcome.curve), default=0)
    _promise(plugin.trains == (taken > 0), f"trains is {plugin.trains}, and adapt took {taken} steps")
    if not plugin.trains:
        return
    # FLOPs and memory are counted on one step more, of each sweep and of each training beside it.
    more = 1 + len(plugin.uses()) + beside.runs
    counted = outcome.cost.steps + beside.steps
    _promise(steps <= counted + more, f"the cost counts every step: {counted} of {steps}")
    budget = context.budget
    widest = max(len(grid) for grid in budget.learning_rates.values()) + 2 * budget.extension
    most = allowance * max(budget.durations) * (widest + budget.restarts)
    _promise(steps <= most + more, f"adapt keeps to the budget: {steps} steps of at most {most:g}")
    start = [point.loss for point in outcome.curve if point.step == 0]
    moved = [point.loss for point in outcome.curve if point.step and point.loss is not None]
    _promise(bool(start), "the curve has step 0")
    _promise(any(loss not in start for loss in moved), "training changes the undefended model")


# --------------------------------------------------------------------------------------------------------------- tasks


def _check_loss(task: Task, network: nn.Module) -> None:
    network = copy.deepcopy(network).train()
    split = task.split("train")
    with _random_state_kept("loss"):
        loss = task.loss(network, split.batch(range(min(4, len(split)))))
    _promise(loss.ndim == 0 and bool(torch.isfinite(loss)), "loss is one finite number")
    _promise(loss.requires_grad, "loss can be differentiated")
    gradients = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
    found = [gradient for gradient in gradients if gradient is not None]
    _promise(all(bool(torch.isfinite(gradient).all()) for gradient in found), "the loss's gradients are finite")
    _promise(any(bool(gradient.any()) for gradient in found), "the loss has a gradient")


def _check_measurement(task: Task, again: Task, network: nn.Module, name: SplitName) -> None:
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    with _random_state_kept("evaluate"):
        first = task.evaluate(network, task.split(name))
    _promise(_same(before, network.state_dict()), "evaluate leaves the network as it is")
    _promise(first == task.evaluate(network, task.split(name)), f"evaluating {name} twice gives the same")
    _promise(first == again.evaluate(network, again.split(name)), f"loading twice gives the same {name} split")
    _promise(math.isfinite(first.value) and first.stderr >= 0, f"the {name} score and its error are finite")
    _promise(first.count > 0, f"the {name} score counts its documents")
    _promise(math.isfinite(first.floor), "the floor is a number")
    if first.higher_is_better:
        _promise(first.floor < 1, f"a score above the floor is possible: {first.floor:g}")
    # Classes need not be equally frequent, hence some slack.
    ahead = (first.value - first.floor) * (1 if first.higher_is_better else -1)
    slack = max(5 * first.stderr, 0.2 * abs(first.floor))
    _promise(ahead <= slack, f"an untrained model does not beat the floor: {first.value:g} against {first.floor:g}")


@dataclass(frozen=True)
class _Undefended(Defense):
    """The base as it is."""

    stage: ClassVar[Stage] = "posttrain"

    def protect(self, model: Model, context: OwnerContext) -> Protected:
        return Protected(model)


@dataclass(frozen=True)
class _Masked(Defense):
    """Pre-training of a random part of the weights, for attacks on what an owner keeps secret."""

    stage: ClassVar[Stage] = "pretrain"
    keeps_secret: ClassVar[bool] = True

    ratio: float = 0.7

    def protect(self, model: Model, context: OwnerContext) -> Protected:
        generator = torch.Generator().manual_seed(context.seed)
        weights = model.network.named_parameters()
        mask = {name: torch.rand(weight.shape, generator=generator) < self.ratio for name, weight in weights}
        return Protected(context.pretrain(model, mask=mask), Secret(mask))


@dataclass(frozen=True)
class _Questions:
    """A split of the built-in task: ids [count, 4] and the id of each answer."""

    ids: Tensor
    answers: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        return self.ids[list(indices)], self.answers[list(indices)]


@dataclass(frozen=True)
class _FirstWord(Task):
    """Which of two halves of the vocabulary is the first of four words from? The answers are the last two words."""

    splits: Any = dataclasses.field(default=None, init=False, compare=False)
    """Not a parameter: filled by `load`."""

    def load(self, context: TaskContext) -> Task:
        words = context.model.network.get_input_embeddings().weight.shape[0] - 2
        generator = torch.Generator().manual_seed(0)
        splits: dict[SplitName, _Questions] = {}
        for name in ("train", "validation", "test"):
            ids = torch.randint(words, (64, 4), generator=generator)
            splits[name] = _Questions(ids, words + (ids[:, 0] >= words // 2).long())
        loaded = type(self)()
        object.__setattr__(loaded, "splits", splits)
        return loaded

    def split(self, name: SplitName) -> Split:
        found: Split = self.splits[name]
        return found

    def features(self, network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        features: Tensor = network(input_ids=batch[0], output_hidden_states=True).hidden_states[-1][:, -1]
        return features

    def targets(self, network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        weight = network.get_output_embeddings().weight  # type: ignore[operator]
        return nn.functional.one_hot(batch[1], weight.shape[0]).to(weight)

    def loss(self, network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        ids, answers = batch
        return nn.functional.cross_entropy(network(input_ids=ids).logits[:, -1], answers)

    @torch.no_grad()
    def evaluate(self, network: nn.Module, split: Split) -> Measurement:
        assert isinstance(split, _Questions)
        network.eval()
        logits = network(input_ids=split.ids).logits[:, -1].double()
        right = (logits[:, -2:].argmax(-1) == split.answers - (logits.shape[-1] - 2)).double()
        loss = float(nn.functional.cross_entropy(logits, split.answers))
        return Measurement(
            "acc", float(right.mean()), float(right.std()) / math.sqrt(len(right)), len(right), 0.5, loss=loss
        )


# -------------------------------------------------------------------------------------------------------------- common


def _plugin(kind: registry.Kind, plugin: Any) -> Any:
    """The plugin, once its form is right: a frozen dataclass of plain values that its spec creates again."""
    if isinstance(plugin, str):
        name = Spec.parse(plugin).name
        plugin = registry.create(kind, plugin)
        _promise(registry.create(kind, str(registry.spec_of(name, plugin))) == plugin, "its spec creates it again")
    cls = type(plugin)
    protocol: type[Any] = registry.PROTOCOLS[kind]
    _promise(protocol in cls.__mro__, f"{cls.__name__} derives from nftbench.{protocol.__name__}")
    frozen = dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    _promise(frozen, f"{cls.__name__} is a frozen dataclass")
    for name, value in registry.parameters(plugin).items():
        _promise(_is_plain(value), f"the parameter {name!r} is a string, number, truth value, None or tuple of such")
    with _broken_by(ValidationError, "its class accepts its own parameters"):
        _promise(
            TypeAdapter(cls).validate_python(registry.parameters(plugin)) == plugin, "its parameters create it again"
        )
    return plugin


def _task(task: Task | str | Path) -> Task:
    if isinstance(task, Path):
        return TextTask(task)
    if isinstance(task, str):
        found = registry.find("tasks", Spec.parse(task).name)
        if found.path is not None and found.path.suffix == ".yaml":
            return TextTask(found.path)
    plugin: Task = _plugin("tasks", task)
    return plugin


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, str | int | float)


@contextlib.contextmanager
def _workplace(suite: Suite, data: Path | None = None) -> Iterator[Workplace]:
    """Where a tiny suite runs; gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="nftbench-") as folder:
        store = Store(Path(folder) / "results", Path(folder) / "cache")
        yield Workplace(plan(suite, data=data), store)


def _task_context(place: Workplace, model: Model) -> TaskContext:
    return TaskSetting(model, 0, place.suite, place.plan.data, None, lambda: make_corpus(place, 0))


@contextlib.contextmanager
def _random_state_kept(method: str) -> Iterator[None]:
    """Global random numbers must not depend on which plugins ran."""
    before = _random_state()
    yield
    for source, state in _random_state().items():
        _promise(state == before[source], f"{method} leaves the global random numbers of {source} alone")


def _random_state() -> dict[str, Any]:
    _, keys, position, *_ = np.random.get_state()
    return {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "random": random.getstate(),
        "numpy": (np.asarray(keys).tobytes(), position),
    }


@contextlib.contextmanager
def _broken_by(error: type[Exception], promise: str) -> Iterator[None]:
    try:
        yield
    except error as problem:
        raise BrokenPromiseError(f"{promise}: {problem}") from problem


def _refuses(call: Callable[[], object]) -> bool:
    try:
        call()
    except NftbenchError:
        return True
    return False


def _same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Bit for bit: NaN equals NaN."""
    return first.keys() == second.keys() and all(
        tensor.dtype == second[name].dtype
        and tensor.shape == second[name].shape
        and torch.equal(_bytes(tensor), _bytes(second[name]))
        for name, tensor in first.items()
    )


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8)


def _promise(kept: bool, promise: str) -> None:
    if not kept:
        raise BrokenPromiseError(promise)


__all__ = [
    "ARCHITECTURES",
    "BrokenPromiseError",
    "check_attack",
    "check_defense",
    "check_task",
    "check_yardstick",
    "tiny_suite",
]
