"""A job becomes records: make the release, let the attack spend its budget, measure, write down.

The harness is the referee. It alone holds release and secret; an attack is handed the model loaded again from the
published folder, and a context that holds what the attack's `knowledge` names and no more.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import itertools
import json
import math
import time
import traceback
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nftbench import (
    corpus as corpora,
    model as models,
    preparation,
    provenance,
    recovery,
    registry,
    requests,
    train,
    updates,
)
from nftbench.corpus import Corpus
from nftbench.evaluate import TextTask
from nftbench.plan import Job, Plan, base_key, canonical, corpus_key, task_spec
from nftbench.preparation import Ledger
from nftbench.probes import gradient_error
from nftbench.store import Store, digest
from nftbench.suite import Budget, Pretraining, Suite
from nftbench.sweep import NonFiniteError, select, sweep, unchanged
from nftbench.types import (
    Adapter,
    Attack,
    Candidates,
    Cell,
    Defense,
    EachStep,
    Mask,
    Measurement,
    Model,
    NftbenchError,
    Optimizer,
    Outcome,
    Prepared,
    Protected,
    Protection,
    Record,
    Release,
    Secret,
    Series,
    Spec,
    Split,
    SplitName,
    Status,
    StepLoss,
    Task,
    Update,
    WrappedTask,
    Yardstick,
)

ADAPTER = "adapter"
"""The folder of a release in which its update lies, if it has one."""
SIBLING = 0.9
"""The share of a defense's pre-training run at which its second checkpoint is kept."""


@dataclass(frozen=True)
class Workplace:
    """Where and for what plan jobs run."""

    plan: Plan
    store: Store
    command: str = ""

    @property
    def suite(self) -> Suite:
        return self.plan.suite

    @property
    def device(self) -> str:
        return self.plan.device


def derive(seed: int, *role: str) -> int:
    """A seed of its own for each role (init, pretrain, defense, attack, data), so that no two share a stream."""
    return int.from_bytes(hashlib.sha256("|".join([str(seed), *role]).encode()).digest()[:6], "big")


# --------------------------------------------------------------------------------------------- corpus, base, release


def make_corpus(place: Workplace, seed: int) -> Corpus:
    """The packed corpus of a base seed, from the cache.

    Raises:
        NftbenchError: the suite's models read no text.
    """
    if place.suite.corpus.source == "none":
        raise NftbenchError(f"{place.suite.name} has no corpus: its models read no text")
    key = corpus_key(place.suite, seed, place.plan.data)[:32]
    return _load_corpus(place.store, key, lambda: corpora.build(place.suite.corpus, seed, place.plan.data))


def make_base(place: Workplace, seed: int, fraction: float = 1.0) -> Model:
    """The undefended model of a base seed, at a fraction of its pre-training run."""
    recipe = place.suite.pretraining
    steps = _step_at(recipe, fraction)
    key = base_key(place.suite, seed, place.plan.data, place.device)[:32]
    # One run gives the base and every checkpoint that the suite names; another fraction takes a run of its own.
    wanted = sorted({steps, *(_step_at(recipe, kept) for kept in recipe.checkpoints), recipe.steps} - {0})
    folder = place.store.artifact("bases", f"{key}-{steps}")
    if folder is None:
        with place.store.lock("runs", key):
            missing = [step for step in wanted if place.store.artifact("bases", f"{key}-{step}") is None]
            if steps in missing:
                _pretrain_base(place, seed, key, missing)
        folder = place.store.artifact("bases", f"{key}-{steps}")
        assert folder is not None
    return models.load(folder, place.device)


def make_release(place: Workplace, spec: Spec, seed: int, key: str) -> Path:
    """The folder of a release, protected if it is not there yet. Its secret lies elsewhere, for the owner only.

    Raises:
        Exception: whatever the defense raises, or NftbenchError for a release that is not one.
    """
    store, keeps_secret = place.store, registry.create("defenses", str(spec)).keeps_secret
    kinds = ("protections", *(("secrets",) if keeps_secret else ()))
    if any(store.artifact(kind, key) is None for kind in kinds):
        store.discard("releases", key)  # what belongs to it is missing or damaged: only all of it can be made again
    return store.make("releases", key, lambda folder: _protect(place, spec, seed, key, folder))


def make_reference(place: Workplace, job: Job) -> Model:
    """The undefended model that a row is set against."""
    reference = canonical("defenses", registry.create("defenses", str(job.defense)).reference_row())
    key = place.plan.releases[str(reference), job.seed]
    return models.load(make_release(place, reference, job.seed, key), place.device, attacker=True)


def make_sibling(place: Workplace, job: Job) -> Model:
    """The second checkpoint of a release's run, kept when the release is made.

    Raises:
        NftbenchError: the defense trained no network of the release's shapes as far as that.
    """
    folder = place.store.artifact("siblings", job.release)
    if folder is None:  # a release in the cache from before siblings were kept
        place.store.discard("releases", job.release)
        make_release(place, job.defense, job.seed, job.release)
        folder = place.store.artifact("siblings", job.release)
    if folder is None:
        raise NftbenchError(f"{job.defense} leaves no second checkpoint of its run")
    return models.load(folder, place.device, attacker=True)


def load_secret(place: Workplace, key: str) -> Secret | None:
    """The owner's secret of a release."""
    folder = place.store.artifact("secrets", key)
    if folder is None:
        return None
    return Secret({name: tensor.bool() for name, tensor in load_file(folder / "mask.safetensors").items()})


def load_protection(place: Workplace, key: str) -> Protection | None:
    """What the referee found about a release."""
    folder = place.store.artifact("protections", key)
    if folder is None:
        return None
    content = json.loads((folder / "protection.json").read_text())
    curves = [Series(**{**curve, "x": tuple(curve["x"]), "y": tuple(curve["y"])}) for curve in content.pop("series")]
    return Protection(**content, series=tuple(curves))


def _load_corpus(store: Store, key: str, build: Callable[[], Corpus]) -> Corpus:
    if key not in _corpora:
        folder = store.artifact("corpora", key) or store.make(
            "corpora", key, lambda draft: corpora.save(build(), draft)
        )
        _corpora.clear()  # one seed's corpus at a time: jobs come in the order of seeds
        _corpora[key] = corpora.load(folder)
    return _corpora[key]


_corpora: dict[str, Corpus] = {}


def _step_at(recipe: Pretraining, fraction: float) -> int:
    return max(1, round(recipe.steps * fraction))


def _pretrain_base(place: Workplace, seed: int, key: str, steps: Sequence[int]) -> None:
    """Run the undefended pre-training as far as the last of `steps`, and keep a copy at each."""
    owner = _Owner(place, seed)
    model = owner.build()

    def keep(network: nn.Module, step: int) -> bool:
        if step in steps:
            place.store.make("bases", f"{key}-{step}", lambda folder: models.save(model, folder))
        return step == max(steps)

    owner.pretrain(model, each_step=keep)


def _protect(place: Workplace, spec: Spec, seed: int, key: str, folder: Path) -> None:
    """Let the defense protect; write secret and protection, then fill the release's folder."""
    defense: Defense = registry.create("defenses", str(spec))
    owner = _Owner(place, seed, defense.told())
    model = owner.build() if defense.stage == "pretrain" else make_base(place, seed)
    started = time.monotonic()
    protected = defense.protect(model, owner)
    seconds = time.monotonic() - started
    if not isinstance(protected, Protected):
        raise NftbenchError(f"protect returned {type(protected).__name__}, not Protected")
    mask = protected.secret.mask if protected.secret is not None else None
    _check_release(protected.release, mask)
    models.save(protected.release, folder)
    if protected.update is not None:
        updates.save(protected.update, folder / ADAPTER)
    published = models.load(folder, place.device)
    _check_published(folder, published)
    opened = models.load(folder, place.device, attacker=True)
    protection = _examine(place, seed, published, opened, mask, protected.series, seconds)
    # A killed attempt may have left its secret; only what belongs to these weights may stay.
    for kind in ("secrets", "siblings", "protections"):
        place.store.discard(kind, key)
    sibling = owner.sibling(protected.release)
    if sibling is not None:
        place.store.make("siblings", key, lambda draft: models.save(sibling, draft), mode=0o700)
    if mask is not None:
        held = {name: tensor.detach().to("cpu", torch.uint8).contiguous() for name, tensor in mask.items()}
        place.store.make("secrets", key, lambda draft: save_file(held, draft / "mask.safetensors"), mode=0o700)
    text = json.dumps(dataclasses.asdict(protection))
    place.store.make("protections", key, lambda draft: _write(draft / "protection.json", text))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _check_published(folder: Path, model: Model) -> None:
    """Refuse tensors that are no weights: a mask left on a module as a buffer would be published with it."""
    known = model.network.state_dict().keys()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                if name not in known:
                    raise NftbenchError(f"the release's files hold a tensor that its architecture lacks: {name}")


def _check_release(model: Model, mask: Mask | None) -> None:
    """Refuse what cannot be published: weights that are not finite, a mask that fits another network."""
    for name, weight in model.network.state_dict().items():
        if not bool(torch.isfinite(weight).all()):
            raise NftbenchError(f"the release's weights are not finite: {name}")
    if mask is None:
        return
    named = dict(model.network.named_parameters())
    for name, parameter in named.items():
        if name not in mask or mask[name].shape != parameter.shape:
            raise NftbenchError(f"the secret mask does not fit the release: {name}")


def _examine(
    place: Workplace,
    seed: int,
    model: Model,
    opened: Model,
    mask: Mask | None,
    series: Sequence[Series],
    seconds: float,
) -> Protection:
    """What the referee finds about a release and what an attacker makes of it (`opened`), beside what the defense says
    of itself (`series`)."""
    owner = _Owner(place, seed)
    loss, tokenizer_changed = _probe(place, owner, model)
    before, after = owner.build().network.config.to_dict(), model.network.config.to_dict()
    ignored = {"_name_or_path", "transformers_version", "architectures", "dtype"}
    return Protection(
        parameters=sum(parameter.numel() for parameter in model.network.parameters()),
        seconds=seconds,
        gradient_error=gradient_error(opened.network, loss, derive(seed, "probe")),
        config_changed={
            name: after.get(name) for name in sorted({*before, *after} - ignored) if before.get(name) != after.get(name)
        },
        tokenizer_changed=tokenizer_changed,
        density={name: float(tensor.float().mean()) for name, tensor in mask.items()} if mask is not None else {},
        series=tuple(series),
    )


def _probe(place: Workplace, owner: _Owner, model: Model) -> tuple[Callable[[nn.Module], torch.Tensor], bool]:
    """A loss to probe the release's gradients with, and whether its tokenizer is another than the corpus's.

    Raises:
        NftbenchError: the release's outputs do not have the shape that they should have.
    """
    told = place.suite.pretraining.task
    if told is not None:
        task = owner.task(told)
        batch = task.split("train").batch(range(min(64, len(task.split("train")))))
        return lambda network: task.loss(network, batch), False
    corpus = owner.corpus
    if model.tokenizer is None:
        raise NftbenchError("the release has no tokenizer")
    words = model.network.get_input_embeddings().num_embeddings
    if words < len(model.tokenizer):
        raise NftbenchError(f"the release embeds {words} words, its tokenizer has {len(model.tokenizer)}")
    tokens = corpus.heldout[:8].to(place.device) % len(model.tokenizer)  # a checkpoint brings a tokenizer of its own

    half = tokens.shape[1] // 2

    def loss(network: nn.Module) -> torch.Tensor:
        with models.seeded(0):  # the same dropout in every call
            logits = network(input_ids=tokens).logits[:, :-1]
            # As tasks are trained on, which ask for the last positions alone: a network may compute those another way.
            last = requests.logits_at_end(network, tokens[:, :-1], half)
        # Not the network's own loss: transformers computes it in float32, too coarse for differences.
        found, true = torch.cat([logits, last], 1), torch.cat([tokens[:, 1:], tokens[:, -half:]], 1)
        return nn.functional.cross_entropy(found.flatten(0, 1).double(), true.flatten())

    with torch.no_grad():
        logits = model.network(input_ids=tokens).logits
    if logits.shape[-1] < len(model.tokenizer) or logits.shape[:2] != tokens.shape:
        raise NftbenchError(f"the release gives logits of shape {tuple(logits.shape)} for {len(model.tokenizer)} words")
    return loss, _reads_otherwise(model.tokenizer, corpus)


def _reads_otherwise(tokenizer: PreTrainedTokenizerBase, corpus: Corpus) -> bool:
    """Whether a tokenizer has other words, other rules, or reads a word or the beginning of a text in another way."""
    usual = corpus.tokenizer
    if _rules(tokenizer) != _rules(usual):
        return True
    beginnings = [usual.decode(block[: 2 + index % len(block)]) for index, block in enumerate(corpus.heldout[:64])]
    texts = [*sorted(usual.get_vocab()), *beginnings]
    return bool(tokenizer(texts)["input_ids"] != usual(texts)["input_ids"])


# ---------------------------------------------------------------------------------------------------------- contexts


class _Pipeline(ABC):
    """How a suite's owners build and pre-train: what `OwnerContext` offers to every owner."""

    suite: Suite
    device: str
    base_seed: int
    kept: dict[str, torch.Tensor]
    """The weights at `SIBLING` of the last pre-training run."""
    ledger: Ledger | None = None
    """Where runs are counted, if they are."""

    @property
    @abstractmethod
    def corpus(self) -> Corpus: ...

    @abstractmethod
    def task(self, spec: str) -> Task: ...

    @property
    def seed(self) -> int:
        return derive(self.base_seed, "defense")

    @property
    def pretraining(self) -> Pretraining:
        return self.suite.pretraining

    def build(self, **changes: Any) -> Model:
        # a copy: what a plugin does to its tokenizer is not done to the corpus's, with which everything is read
        tokenizer = copy.deepcopy(self.corpus.tokenizer) if self.pretraining.task is None else None
        return models.build({**self.suite.model, **changes}, tokenizer, derive(self.base_seed, "init"), self.device)

    def pretrain(
        self,
        model: Model,
        *,
        mask: Mask | None = None,
        each_step: EachStep | None = None,
        **changes: Any,
    ) -> Model:
        recipe = Pretraining.model_validate({**self.pretraining.model_dump(), **changes})
        text = self.corpus.train if recipe.task is None else self.task(recipe.task)
        if recipe.only is not None:
            free = {name: recipe.only in name for name, _ in model.network.named_parameters()}
            mask = {
                name: torch.full_like(weight, free[name], dtype=torch.bool) & (True if mask is None else mask[name])
                for name, weight in model.network.named_parameters()
            }
        self.kept.clear()
        taken, begun = 0, time.monotonic()

        def watch(network: nn.Module, step: int) -> bool | None:
            nonlocal taken
            taken = step
            if self.ledger is not None:
                self.ledger.check(begun, self.suite.budget)
            if step == _step_at(recipe, SIBLING):
                self.kept.update({name: tensor.detach().clone() for name, tensor in network.state_dict().items()})
            return each_step(network, step) if each_step is not None else None

        seed = derive(self.base_seed, "pretrain")
        train.pretrain(model.network, text, recipe, seed, self.device, mask=mask, each_step=watch)
        if self.ledger is not None:
            self.ledger.steps += taken
            self.ledger.flops += taken * train.step_flops(model.network, text, recipe, self.device)
            self.ledger.seconds += time.monotonic() - begun
        return model

    def sibling(self, release: Model) -> Model | None:
        """The release's architecture with the weights kept of its run, if they fit."""
        shapes = {name: tensor.shape for name, tensor in release.network.state_dict().items()}
        if {name: tensor.shape for name, tensor in self.kept.items()} != shapes:
            return None
        network = copy.deepcopy(release.network)
        network.load_state_dict(self.kept)
        return Model(network, release.tokenizer)


@dataclass(frozen=True)
class _Owner(_Pipeline):
    """`OwnerContext` of one base seed."""

    _place: Workplace
    base_seed: int
    _told: tuple[str, ...] = ()
    kept: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def suite(self) -> Suite:  # type: ignore[override]
        return self._place.suite

    @property
    def device(self) -> str:  # type: ignore[override]
        return self._place.device

    @property
    def corpus(self) -> Corpus:
        return make_corpus(self._place, self.base_seed)

    def task(self, spec: str) -> Task:
        allowed = (*self._told, *filter(None, [self.pretraining.task]))
        if spec not in allowed:
            raise NftbenchError(f"the defense was not told of {spec!r}: what it asks for it must name in told()")
        loaded = _loaded(self._place, registry.parse(spec), self.base_seed, self.build())
        return _AttackersTask(
            loaded, ("validation", "test"), "the owner's defense learns from the training split alone"
        )

    def checkpoint(self, fraction: float) -> Model:
        return make_base(self._place, self.base_seed, fraction)


@dataclass(frozen=True)
class _Shadow(_Pipeline):
    """`OwnerContext` of an attacker who plays the owner on public text, with seeds of the attacker's own."""

    suite: Suite
    device: str
    base_seed: int
    text: Corpus
    ledger: Ledger | None = field(default_factory=Ledger)
    kept: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def corpus(self) -> Corpus:
        return self.text

    def task(self, spec: str) -> Task:
        raise NftbenchError("an attacker's shadow is told of no task")

    def checkpoint(self, fraction: float) -> Model:
        raise NftbenchError("an attacker's shadow has no undefended run beside it")


@dataclass(frozen=True)
class _Attacker:
    """`AttackerContext`: what is None here the attack's knowledge does not name."""

    seed: int
    budget: Budget
    device: str
    _corpus: Corpus | None = None
    _secret: Secret | None = None
    _base: Model | None = None
    _defense: Defense | None = None
    _sibling: Model | None = None
    _suite: Suite | None = None
    _uses: tuple[str, ...] = ()
    others: Mapping[str, Task] = field(default_factory=dict)
    ledger: Ledger = field(default_factory=Ledger)

    @property
    def corpus(self) -> Corpus:
        if self._corpus is None:
            raise NftbenchError("public text needs 'data' among the attack's knowledge")
        return self._corpus

    @property
    def secret(self) -> Secret:
        if self._secret is None:
            raise NftbenchError("the owner's secret needs 'secret' among the attack's knowledge")
        return self._secret

    @property
    def base(self) -> Model:
        if self._base is None:
            raise NftbenchError("the base model needs 'base' among the attack's knowledge")
        return _own(self._base)

    @property
    def defense(self) -> Defense:
        if self._defense is None:
            raise NftbenchError("which defense it is needs 'method' among the attack's knowledge")
        return self._defense

    @property
    def pretraining(self) -> Pretraining:
        if self._defense is None or self._suite is None:
            raise NftbenchError("the owner's recipe needs 'method' among the attack's knowledge")
        return self._suite.pretraining

    @property
    def sibling(self) -> Model:
        if self._sibling is None:
            raise NftbenchError("a second checkpoint needs 'sibling' among the attack's knowledge")
        return _own(self._sibling)

    def initial(self, guess: int) -> PreTrainedModel:
        if self._sibling is None or self._suite is None:
            raise NftbenchError("the start of the owner's run needs 'sibling' among the attack's knowledge")
        seed = derive(guess, "init")
        return models.build(self._suite.model, self._sibling.tokenizer, seed, self.device).network

    def shadow(self, index: int) -> Protected:
        if self._suite is None or self._defense is None or self._corpus is None:
            raise NftbenchError("running the defense needs 'method' and 'data' among the attack's knowledge")
        if self._defense.stage != "pretrain":
            raise NftbenchError("the defense starts from a trained base, which the attacker has not")
        own = _Shadow(self._suite, self.device, derive(self.seed, "shadow", str(index)), self._corpus, self.ledger)
        return self._defense.protect(own.build(), own)

    def text(self, model: Model, batch: int) -> Iterator[torch.Tensor]:
        blocks = corpora.encoded_for(self.corpus, model.tokenizer)
        return train.token_batches(blocks, batch, derive(self.seed, "text"), self.device)

    def train(
        self,
        network: nn.Module,
        loss: StepLoss,
        *,
        steps: int,
        learning_rate: float,
        optimizer: Optimizer = "adamw",
        weight_decay: float = 0.0,
        mask: Mask | None = None,
        each_step: EachStep | None = None,
    ) -> None:
        preparation.train(
            network,
            loss,
            self.budget,
            derive(self.seed, "train"),
            self.device,
            self.ledger,
            steps=steps,
            learning_rate=learning_rate,
            optimizer=optimizer,
            weight_decay=weight_decay,
            mask=mask,
            each_step=each_step,
        )

    def gradients(
        self, network: PreTrainedModel, batches: Iterable[torch.Tensor]
    ) -> Iterator[Mapping[str, torch.Tensor]]:
        return preparation.gradients(network, batches, self.ledger)

    def attack(self, spec: str) -> Attack:
        if str(canonical("attacks", spec)) not in {str(canonical("attacks", known)) for known in self._uses}:
            raise NftbenchError(f"the attack is not built on {spec!r}: what it takes up it must name in uses()")
        found: Attack = registry.create("attacks", spec)
        return found

    def sweep(
        self,
        model: Model,
        task: Task,
        *,
        adapter: Adapter | None = None,
        gradient_mask: Mask | None = None,
        optimizer: Optimizer = "adamw",
        lr_scale: float = 1.0,
        **changes: Any,
    ) -> Outcome:
        budget = Budget.model_validate({**self.budget.model_dump(), **changes})
        return sweep(
            model,
            task,
            budget,
            self.seed,
            self.device,
            adapter=adapter,
            gradient_mask=gradient_mask,
            optimizer=optimizer,
            lr_scale=lr_scale,
        )

    def select(self, task: Task, candidates: Candidates) -> Outcome:
        return select(task, candidates, self.device)

    def untrained(self, model: Model, seed: int) -> PreTrainedModel:
        return models.untrained(model.network, derive(self.seed, "untrained", str(seed)))

    def unchanged(self, model: Model, task: Task) -> Outcome:
        return unchanged(model, task, self.device)


@dataclass(frozen=True)
class _AttackersTask(WrappedTask):
    """A task as attackers, or the owner's defense, see it: without the splits that are not theirs."""

    _hidden: tuple[SplitName, ...] = ("test",)
    _reason: str = "the test split is scored once, by the referee"

    def split(self, name: SplitName) -> Split:
        if name in self._hidden:
            raise NftbenchError(self._reason)
        return self.task.split(name)


@dataclass(frozen=True)
class _TaskContext:
    """`TaskContext` of one model and base seed."""

    model: Model
    seed: int
    suite: Suite
    data: Path | None
    limit: int | None
    _corpus: Callable[[], Corpus]

    @property
    def corpus(self) -> Corpus:
        return self._corpus()


@dataclass(frozen=True)
class _Inspection:
    """`Inspection` of one release."""

    _place: Workplace
    _job: Job
    _release: Release

    @property
    def release(self) -> Model:
        return self._release.model

    @functools.cached_property
    def base(self) -> Model:
        return make_reference(self._place, self._job)

    @functools.cached_property
    def initial(self) -> Model:
        return _Owner(self._place, self._job.seed).build()

    @property
    def update(self) -> Update | None:
        return self._release.update

    @functools.cached_property
    def secret(self) -> Secret | None:
        return load_secret(self._place, self._job.release)

    @property
    def protection(self) -> Protection:
        found = load_protection(self._place, self._job.release)
        assert found is not None  # it is made with the release
        return found

    @property
    def corpus(self) -> Corpus:
        return make_corpus(self._place, self._job.seed)

    @property
    def budget(self) -> Budget:
        return self._place.suite.budget

    @property
    def pretraining(self) -> Pretraining:
        return self._place.suite.pretraining

    @property
    def seed(self) -> int:
        return derive(self._job.seed, "yardstick")

    @functools.cached_property
    def told(self) -> tuple[str, ...]:
        defense: Defense = registry.create("defenses", str(self._job.defense))
        return defense.told()

    def task(self, spec: str) -> Task:
        return _loaded(self._place, registry.parse(spec), self._job.seed, self.release)


# -------------------------------------------------------------------------------------------------------------- jobs


def execute(place: Workplace, job: Job) -> list[Record] | None:
    """Run a job's unsettled cells and write their records; None where another process holds the job.

    Whatever goes wrong in a defense, an attack or a task becomes a record's status and reason and loses nothing else.
    """
    _single_thread(place.device)
    with place.store.claim(job.key) as mine:
        if not mine:
            return None
        settled = place.store.settled_among(job.cells)
        cells = [cell for cell in job.cells if cell.key not in settled]
        return _Referee(place, job).run(cells) if cells else []


def protect(place: Workplace, job: Job) -> None:
    """Make the release that a job attacks, so that the jobs of one release need not wait for each other."""
    _single_thread(place.device)
    make_release(place, job.defense, job.seed, job.release)


@dataclass
class _Referee:
    """One job under way."""

    place: Workplace
    job: Job
    attack: Attack = field(init=False)

    def __post_init__(self) -> None:
        self.attack = registry.create("attacks", str(self.job.attack))

    def run(self, cells: Sequence[Cell]) -> list[Record]:
        try:
            folder = make_release(self.place, self.job.defense, self.job.seed, self.job.release)
            update = updates.load(folder / ADAPTER)
            release = Release(self.read(models.load(folder, self.place.device, attacker=True)), update)
            self.sha256 = models.sha256(folder)
            context = self.context()
            begun = time.monotonic()
            # A copy, for the release itself is what unattacked scores are measured on.
            prepared = self.attack.prepare(Release(_own(release.model), update), context)
            self.preparation = time.monotonic() - begun
            self.recovery = self.recovered(prepared)
        except (Exception, SystemExit) as error:  # a plugin may raise anything
            return [self.write(cell, *status_of(error)) for cell in cells]
        return [self.cell(cell, release, prepared, context) for cell in cells]

    def read(self, model: Model) -> Model:
        """The release as an attack reads text for it: by the corpus's tokenizer where its own has the same words but
        reads otherwise. What is only measured is read as published."""
        found = load_protection(self.place, self.job.release)
        if not (self.attack.trains and found is not None and found.tokenizer_changed and model.tokenizer):
            return model
        usual = make_corpus(self.place, self.job.seed).tokenizer
        same_words = model.tokenizer.get_vocab() == usual.get_vocab()
        return Model(model.network, copy.deepcopy(usual)) if same_words else model

    def recovered(self, prepared: Prepared) -> Mapping[str, float]:
        """How near the attack's guess comes to the owner's secret; that of an attack that was given it says nothing."""
        secret = load_secret(self.place, self.job.release)
        if prepared.guess is None or secret is None or "secret" in self.attack.knowledge:
            return {}
        return recovery.score(prepared.guess, secret.mask)

    def context(self) -> _Attacker:
        """What this attack may know."""
        knowledge = self.attack.knowledge
        defense: Defense = registry.create("defenses", str(self.job.defense))
        return _Attacker(
            seed=derive(self.job.seed, "attack"),
            budget=self.place.suite.budget,
            device=self.place.device,
            _corpus=copy.deepcopy(make_corpus(self.place, self.job.seed)) if "data" in knowledge else None,
            _secret=load_secret(self.place, self.job.release) if "secret" in knowledge else None,
            _base=make_reference(self.place, self.job) if "base" in knowledge else None,
            _defense=defense if "method" in knowledge else None,
            _suite=self.place.suite if knowledge & {"method", "sibling"} else None,
            _sibling=make_sibling(self.place, self.job) if "sibling" in knowledge else None,
            _uses=_built_on(self.attack),
        )

    def cell(self, cell: Cell, release: Release, prepared: Prepared, context: _Attacker) -> Record:
        """Attack one task and let the referee measure."""
        begun = time.monotonic()
        if self.place.plan.role(cell) == "yardstick":
            return self.reading(cell, release, begun)
        try:
            task = load_task(self.place, cell, release.model)
            # A copy of its own for each task: an attack that changes what it prepared must not reach the next one.
            own = _copied(prepared)
            beside = dataclasses.replace(self.beside(cell, release, context), ledger=Ledger())
            theirs = self.theirs(cell, release, task)
            outcome = self.attack.adapt(own, _AttackersTask(theirs), beside)
            plain = outcome.retried is None
            validation = self.measure(task, outcome.network, "validation", plain) if task.trainable else None
            attacked = self.measure(task, outcome.network, "test", plain)
            trained = self.attack.trains
            unattacked = self.measure(task, release.model.network, "test", True) if trained else attacked
        except (Exception, SystemExit) as error:  # a plugin may raise anything
            return self.write(cell, *status_of(error))
        finite = math.isfinite(attacked.value) and (attacked.loss is None or math.isfinite(attacked.loss))
        last = max(point.step for point in outcome.curve) if outcome.curve else 0
        cost = dataclasses.replace(
            outcome.cost,
            preparation_seconds=self.preparation + beside.ledger.seconds,
            preparation_steps=context.ledger.steps + beside.ledger.steps,
            preparation_flops=context.ledger.flops + beside.ledger.flops,
            peak_memory_bytes=max(
                outcome.cost.peak_memory_bytes, context.ledger.peak_memory_bytes, beside.ledger.peak_memory_bytes
            ),
        )
        return self.write(
            cell,
            "ok" if finite else "nonfinite",
            None if finite else "the attacked model's score or loss is not finite",
            unattacked=unattacked if finite else None,
            validation=validation if finite else None,
            attacked=attacked if finite else None,
            picked=outcome.picked,
            curve=outcome.curve,
            restarts=outcome.restarts,
            at_edge=outcome.at_edge,
            at_last_step=0 < outcome.picked.step == last,
            stuck=outcome.stuck,
            retried=outcome.retried,
            cost=cost if self.attack.trains else None,
            recovery=self.recovery,
            protection=load_protection(self.place, cell.release) if not self.attack.trains else None,
            seconds=time.monotonic() - begun,
            documents=getattr(theirs, "provenance", {}),
        )

    def theirs(self, cell: Cell, release: Release, task: Task) -> Task:
        """The task with as many training documents as the attack takes."""
        suite = self.place.suite
        taken = self.attack.train_documents(suite.budget)
        if taken == suite.budget.max_train_documents:
            return task
        budget = suite.budget.model_copy(update={"max_train_documents": taken})
        changed = suite.model_copy(update={"budget": budget})
        place = dataclasses.replace(self.place, plan=dataclasses.replace(self.place.plan, suite=changed))
        return load_task(place, cell, release.model)

    def beside(self, cell: Cell, release: Release, context: _Attacker) -> _Attacker:
        """The context with the suite's other tasks, for the attacks that are about several."""
        if self.attack.adaptation != "merging":
            return context
        ranked = [task_spec(text) for text in self.place.suite.tasks]
        found = {
            str(spec): _AttackersTask(_loaded(self.place, spec, cell.seed, release.model))
            for spec in ranked
            if spec != cell.task
        }
        return dataclasses.replace(context, others=found)

    def reading(self, cell: Cell, release: Release, begun: float) -> Record:
        """Read a yardstick off the release."""
        try:
            yardstick: Yardstick = registry.create("yardsticks", str(cell.task))
            found = yardstick.measure(_Inspection(self.place, self.job, release))
        except (Exception, SystemExit) as error:  # a plugin may raise anything
            return self.write(cell, *status_of(error))
        unfit = sorted(name for name, value in found.values.items() if not math.isfinite(value))
        reason = f"not finite: {', '.join(unfit)}" if unfit else None
        return self.write(
            cell,
            "nonfinite" if unfit else "ok",
            reason,
            reading=None if unfit else found,
            protection=load_protection(self.place, cell.release),
            seconds=time.monotonic() - begun,
        )

    def measure(self, task: Task, network: nn.Module, split: SplitName, plain: bool) -> Measurement:
        with train.autocast(self.place.device, plain):
            return task.evaluate(network, task.split(split))

    def provenance(self, seconds: float, documents: Mapping[str, Any]) -> dict[str, Any]:
        """Where the numbers come from; `documents` says which data a text task scored."""
        place = self.place
        found = provenance.collect(place.suite, place.device, place.command, seconds)
        return {**found, "corpus": corpus_key(place.suite, self.job.seed, place.plan.data), "documents": documents}

    def write(self, cell: Cell, status: Status, reason: str | None, **measured: Any) -> Record:
        place = self.place
        record = Record(
            key=cell.key,
            suite=place.suite.name,
            defense=str(cell.defense),
            attack=str(cell.attack),
            task=str(cell.task),
            seed=cell.seed,
            row=place.plan.row(cell.defense),
            role=place.plan.role(cell),
            knowledge=tuple(sorted(self.attack.knowledge)),
            adaptation=self.attack.adaptation,
            against=tuple(sorted(self.attack.against)),
            uses_release=self.attack.uses_release,
            trains=self.attack.trains,
            status=status,
            reason=reason,
            limited=place.plan.limit is not None,
            release=cell.release,
            release_sha256=getattr(self, "sha256", ""),
            provenance=self.provenance(measured.pop("seconds", 0.0), measured.pop("documents", {})),
            **measured,
        )
        place.store.write(record)
        return record


def _own(model: Model) -> Model:
    """A copy: what an attack does to it reaches neither the next task nor the referee."""
    return Model(copy.deepcopy(model.network), model.tokenizer)


def _copied(prepared: Prepared) -> Prepared:
    guess = {name: tensor.clone() for name, tensor in prepared.guess.items()} if prepared.guess is not None else None
    parts = tuple(_copied(part) for part in prepared.parts)
    return dataclasses.replace(prepared, model=_own(prepared.model), guess=guess, parts=parts)


def _built_on(attack: Attack) -> tuple[str, ...]:
    """Specs of the attacks that it is built on, and of those that these are built on."""
    below = (_built_on(registry.create("attacks", spec)) for spec in attack.uses())
    return (*attack.uses(), *itertools.chain.from_iterable(below))


def fail(place: Workplace, job: Job, status: Status, reason: str) -> list[Record]:
    """Write a failed record for each unsettled cell of a job that could not even start."""
    with place.store.claim(job.key) as mine:
        settled = place.store.settled_among(job.cells)
        referee = _Referee(place, job)
        return [referee.write(cell, status, reason) for cell in job.cells if mine and cell.key not in settled]


def load_task(place: Workplace, cell: Cell, model: Model) -> Task:
    """A cell's task, loaded and encoded for the model; kept for the process's next cells."""
    return _loaded(place, cell.task, cell.seed, model)


def _loaded(place: Workplace, spec: Spec, seed: int, model: Model) -> Task:
    vocabulary = _vocabulary(model.tokenizer) if model.tokenizer is not None else ""
    plan, length = place.plan, getattr(model.network.config, "max_position_embeddings", None)
    wanted = digest(str(spec), seed, vocabulary, length, place.device, plan.limit, plan.data, _data_settings(plan))
    if wanted not in _tasks:
        if len(_tasks) >= 8:
            _tasks.pop(next(iter(_tasks)))
        plugin = registry.find("tasks", spec.name)
        is_text = plugin.path is not None and plugin.path.suffix == ".yaml"
        task: Task = (
            TextTask(plugin.path, **dict(spec.parameters))
            if is_text and plugin.path
            else registry.create("tasks", str(spec))
        )
        slim = Model(model.network, model.tokenizer)
        context = _TaskContext(slim, seed, place.suite, plan.data, plan.limit, lambda: make_corpus(place, seed))
        _tasks[wanted] = task.load(context)
    return _tasks[wanted]


_tasks: dict[str, Task] = {}


def _rules(tokenizer: PreTrainedTokenizerBase) -> Any:
    """All that decides how a tokenizer reads text: its words, and the normalizer, splitting and model behind them.

    Truncation and padding are left out, which transformers sets anew at each call.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else {}
    passing = {"truncation": None, "padding": None}
    return [sorted(tokenizer.get_vocab().items()), {**rules, **passing}, sorted(tokenizer.special_tokens_map.items())]


def _vocabulary(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of a tokenizer's words and rules, once for each: a large vocabulary takes tens of milliseconds."""
    count, known = _vocabularies.get(tokenizer, (-1, ""))
    if count != len(tokenizer):  # words may have been added
        known = digest(_rules(tokenizer))
        _vocabularies[tokenizer] = len(tokenizer), known
    return known


_vocabularies: weakref.WeakKeyDictionary[PreTrainedTokenizerBase, tuple[int, str]] = weakref.WeakKeyDictionary()


def _data_settings(plan: Plan) -> list[Any]:
    """The parts of a suite that a loaded task depends on."""
    return [plan.suite.corpus.model_dump(), plan.suite.budget.model_dump()]


def status_of(error: BaseException) -> tuple[Status, str]:
    """A cell's status and its reason in one line, with the place where it was raised."""
    if isinstance(error, train.CellTimeoutError):
        return "timeout", str(error)
    if isinstance(error, NonFiniteError):
        return "nonfinite", str(error)
    message = " ".join(str(error).split())[:500]
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return "oom", message
    if isinstance(error, NftbenchError):
        return "failed", message
    frames = traceback.extract_tb(error.__traceback__)  # none where the error comes from a worker process
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return "failed", f"{type(error).__name__}: {message}{place}"


@functools.cache
def _single_thread(device: str) -> None:
    """One thread a cell on the CPU, whatever --jobs: the bits of a sum depend on the number of threads."""
    if not device.startswith("cuda"):
        torch.set_num_threads(1)
