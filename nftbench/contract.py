"""The nouns of nftbench, and the three protocols that plugins follow.

Everything here is a frozen dataclass or a protocol; nothing here imports torch. A measurement is one number with its
error, a record is that number with its origin, a score is one row of a leaderboard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from nftbench.errors import NftbenchError
from nftbench.terms import Adaptation, Knowledge, Optimizer, SplitName, Stage, TrainedWeights

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from nftbench.suites import Budget, Pretraining, Suite


Mask = Mapping[str, "Tensor"]
"""One boolean tensor for each parameter name, of the parameter's shape; True marks what may change."""

EachStep = Callable[["nn.Module", int], "bool | None"]
"""Watches pre-training: called after each step, counted from 1; True ends the run."""

Guess = Mapping[str, "Tensor"]
"""One real score for each parameter; a higher one means likelier marked by the secret mask."""

Candidates = Iterable[tuple["nn.Module", float, int]]
"""Networks to choose among, each with the setting that made it and the steps it took; made when they are asked for."""

StepLoss = Callable[["nn.Module", int], "Tensor"]
"""The scalar that an attacker's own training descends at a step, counted from 1."""

Adapter = Callable[["PreTrainedModel", int], "nn.Module"]
"""Makes the network that a trajectory trains from a fresh copy of the model and the attack seed."""


# ---------------------------------------------------------------------------------------------------------- numbers


@dataclass(frozen=True)
class Measurement:
    """One number with its error, in the metric's own unit."""

    metric: str
    """The metric's name."""
    value: float
    """The number."""
    stderr: float
    """Its standard error over the documents."""
    count: int
    """The number of documents."""
    floor: float
    """The score of a model that knows nothing: chance for an accuracy, the unigram entropy for bits per token."""
    higher_is_better: bool = True
    """False for bits."""
    loss: float | None = None
    """Mean negative log-likelihood of the right answers, in nats. It decides between equal values."""


@dataclass(frozen=True)
class Series:
    """A curve: `y[i]` was measured at `x[i]`."""

    name: str
    """The curve's name."""
    x: tuple[float, ...]
    """Where it was measured."""
    y: tuple[float, ...]
    """What was measured there."""
    x_label: str = "step"
    """Name of the horizontal axis."""
    y_label: str = ""
    """Name of the vertical axis."""


@dataclass(frozen=True)
class Point:
    """The scores of an attack at one learning rate, seed and step: one point of its curve."""

    learning_rate: float
    """The learning rate of its trajectory; 0 at step 0."""
    step: int
    """Optimizer steps so far."""
    score: float | None
    """Score on the validation split; None where it is not finite."""
    loss: float | None
    """Loss on the validation split, in nats; None where it is not finite."""
    train_loss: float | None = None
    """Mean training loss over the steps since the point before, in nats; None at step 0."""
    attack_seed: int = 0
    """0 in the sweep, 1 and up in the restarts."""


@dataclass(frozen=True)
class Cost:
    """What an attack spent in all. A step is one optimizer step on one batch."""

    steps: int = 0
    """Optimizer steps of the sweep, its extensions and the restarts."""
    seconds: float = 0.0
    """Time of the sweep, its extensions and the restarts."""
    step_flops: float = 0.0
    """FLOPs of the forward and backward pass of one step, by `torch.utils.flop_counter` under math attention."""
    step_seconds: float = 0.0
    """Mean time of one step."""
    saved_bytes: int = 0
    """Bytes that one step saves for the backward pass, each storage once, without the parameters."""
    peak_memory_bytes: int = 0
    """Peak memory of sweeps and preparation. On the CPU it is the sum of parameters, gradients, optimizer state and
    `saved_bytes`; on CUDA it is the allocator's peak."""
    preparation_steps: int = 0
    """Optimizer steps in preparation, outside the sweeps; `steps` leaves them out. Older records lack it."""
    preparation_flops: float = 0.0
    """FLOPs in preparation, outside the sweeps."""
    preparation_seconds: float = 0.0
    """Time in preparation, outside the sweeps; `seconds` leaves it out."""


@dataclass(frozen=True)
class Claim:
    """The attackers whom a defense claims to withstand."""

    knowledge: frozenset[Knowledge] = frozenset()
    """What these attackers know beyond the release and the task."""
    adaptation: Adaptation = "finetuning"
    """How they adapt the release."""


# ----------------------------------------------------------------------------------------------------------- models


@dataclass(frozen=True)
class Model:
    """A network and its tokenizer, if it has one."""

    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None = None


@dataclass(frozen=True)
class Corpus:
    """Text as tokens. `train` and `heldout` are [blocks, block] and share no document."""

    tokenizer: PreTrainedTokenizerBase
    train: Tensor
    heldout: Tensor
    heldout_bytes: int
    """Bytes of UTF-8 text that the held-out blocks stand for."""

    @property
    def unigram_bits(self) -> float:
        """Entropy of the held-out tokens under their own frequencies: the floor of bits per token."""
        counts = self.heldout.flatten().bincount().double()
        shares = counts[counts > 0] / counts.sum()
        return float(-(shares * shares.log2()).sum())


@dataclass(frozen=True)
class Secret:
    """What the owner keeps. `mask` marks the parameters that authorised fine-tuning may change."""

    mask: Mask


@dataclass(frozen=True)
class Update:
    """What an owner's fine-tuning added to the base: release = base + update.

    `weights` are the differences by parameter name, each of its parameter's shape; or, with `config` (a PEFT LoRA
    configuration), the low-rank factors by PEFT's names.
    """

    weights: Mapping[str, Tensor]
    config: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Protected:
    """What a defense returns: `release` is published, `secret` stays with the owner, `series` goes into the record.

    `update`, of defenses that protect one, is published in the release's folder `adapter/`.
    """

    release: Model
    secret: Secret | None = None
    series: tuple[Series, ...] = ()
    update: Update | None = None


@dataclass(frozen=True)
class Release:
    """What an attacker downloads: the model, loaded again from the published folder, and the update beside it."""

    model: Model
    update: Update | None = None


@dataclass(frozen=True)
class Prepared:
    """A release after an attack's preparation, shared by all tasks; the referee scores its guess of the secret."""

    model: Model
    guess: Guess | None = None
    update: Update | None = None
    """The release's own, where it has one."""
    parts: tuple[Prepared, ...] = ()
    """Of an attack that is built on several."""


@dataclass(frozen=True)
class Outcome:
    """What a sweep found: `network` stands at the picked recipe, `validation` is its score there, if it has one."""

    network: nn.Module
    validation: Measurement | None
    picked: Point
    curve: tuple[Point, ...] = ()
    restarts: tuple[Point, ...] = ()
    cost: Cost = Cost()
    at_edge: bool = False
    """The best learning rate lies at an edge of the grid and strictly beats its neighbour, after all extensions."""
    stuck: bool = False
    """No trained point beats not training at all, after all extensions and retries."""
    retried: str | None = None
    """What it took to stay finite: float32, float64, clipped or head; None where the plain sweep did."""


@dataclass(frozen=True)
class Protection:
    """What the referee, who holds release and secret, found about a release. Only cells of attack `none` store it."""

    parameters: int
    """The number of parameters of the release."""
    seconds: float
    """Time that the defense took."""
    gradient_error: float | None = None
    """Largest relative difference between autograd and central differences over random directions, in float64. A
    difference above 0.1 between gradients in float32 and in float64 counts as well."""
    config_changed: Mapping[str, Any] = field(default_factory=dict)
    """The fields of the configuration that differ from the base's, with the release's values."""
    tokenizer_changed: bool = False
    """True where the tokenizer differs from the corpus's in vocabulary or rules, or encodes some text differently."""
    density: Mapping[str, float] = field(default_factory=dict)
    """Share of each tensor that the secret mask leaves trainable; empty without a mask."""
    series: tuple[Series, ...] = ()
    """Curves that the defense reports."""
    own_code: bool = False
    """True where attackers have to run the owner's own code, because no architecture of transformers or nftbench reads
    the weights equally well. Older records lack it."""


@dataclass(frozen=True)
class Reading:
    """What a yardstick, a paper's own metric, read off a release."""

    values: Mapping[str, float]
    """Finite numbers by name; the yardstick's docstring (`nftbench info NAME`) gives their units."""
    series: tuple[Series, ...] = ()
    """Curves."""


# ---------------------------------------------------------------------------------------------------------- plugins


class OwnerContext(Protocol):
    """What a defense is given beside the model."""

    @property
    def seed(self) -> int: ...
    @property
    def corpus(self) -> Corpus: ...
    @property
    def pretraining(self) -> Pretraining: ...
    def build(self, **changes: Any) -> Model:
        """An untrained model of the suite's architecture; `changes` are fields of its configuration."""
        ...

    def pretrain(
        self,
        model: Model,
        *,
        mask: Mask | None = None,
        each_step: EachStep | None = None,
        **changes: Any,
    ) -> Model:
        """Pre-train `model` in place by the suite's recipe; only what `mask` marks changes.

        `each_step(network, step)` runs after each optimizer step, counted from 1, and sees its gradients (masked and
        clipped); True ends the run. `changes` are fields of the suite's
        `pretraining` section (`steps=…`, `weight_decay=…`).
        """
        ...

    def task(self, spec: str) -> Task:
        """A task that the defense names in `told`, loaded for the suite's model; its training split only."""
        ...

    def checkpoint(self, fraction: float) -> Model:
        """The undefended model at this fraction of its own pre-training run, as the suite's `checkpoints` kept it."""
        ...


class AttackerContext(Protocol):
    """What an attack is given beside the release: its budget, its seed, and what its `knowledge` names, no more."""

    @property
    def seed(self) -> int: ...
    @property
    def budget(self) -> Budget: ...
    @property
    def corpus(self) -> Corpus:
        """Public text like the pre-training text; needs knowledge `data`."""
        ...

    @property
    def secret(self) -> Secret:
        """The owner's secret; needs knowledge `secret`."""
        ...

    @property
    def defense(self) -> Defense:
        """The attacked defense with its hyper-parameters; needs knowledge `method`."""
        ...

    @property
    def pretraining(self) -> Pretraining:
        """The owner's recipe; needs knowledge `method`."""
        ...

    @property
    def sibling(self) -> Model:
        """A second checkpoint of the run that made the release, from before its end; needs knowledge `sibling`."""
        ...

    def initial(self, guess: int) -> PreTrainedModel:
        """The untrained network that the suite's pipeline starts from at a guessed base seed.

        Needs knowledge `sibling`: whoever knows the owner's seed holds the run's checkpoint at step 0.
        """
        ...

    def shadow(self, index: int) -> Protected:
        """The attacked defense, run again by the attacker on public text with seeds of the attacker's own.

        Release and secret are the attacker's, to learn from. Needs knowledge `method` and `data`, and a defense of the
        stage `pretrain`.
        """
        ...

    def text(self, model: Model, batch: int) -> Iterator[Tensor]:
        """Batches [batch, block] of public text without end, in the model's own tokens; needs knowledge `data`."""
        ...

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
        """Train `network` in place before the sweep (healing, distilling, probing); what it spends is counted.

        The rate warms up over a tenth of the steps and then falls linearly to nothing; the budget's clipping applies.
        An attack that is not about its own length takes `budget.preparation_steps`.
        """
        ...

    def gradients(self, network: PreTrainedModel, batches: Iterable[Tensor]) -> Iterator[Mapping[str, Tensor]]:
        """The gradient of the mean next-token loss on each batch [count, block] by parameter; counted."""
        ...

    def attack(self, spec: str) -> Attack:
        """Another attack, one of those that this one names in `uses`."""
        ...

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
        """Spend the suite's budget: every learning rate and duration, the best on validation, three fresh restarts.

        `changes` are fields of the budget (`warmup=…`, `durations=…`), for attacks that are about them.
        """
        ...

    def select(self, task: Task, candidates: Candidates) -> Outcome:
        """Try networks instead of learning rates: the best on validation, and each one a point of the curve.

        A point's `learning_rate` is the candidate's setting, its `step` the steps that it took.
        """
        ...

    @property
    def base(self) -> Model:
        """The undefended base model; needs knowledge `base`."""
        ...

    @property
    def others(self) -> Mapping[str, Task]:
        """The suite's other ranked tasks by spec, without their test splits; empty while preparing."""
        ...

    def untrained(self, model: Model, seed: int) -> PreTrainedModel:
        """A network of the same architecture with random weights."""
        ...

    def unchanged(self, model: Model, task: Task) -> Outcome:
        """The outcome of not training at all."""
        ...


class Defense(Protocol):
    """Turns the base model into the released one. A plugin is a frozen dataclass of its hyper-parameters."""

    stage: ClassVar[Stage]
    """`pretrain` is given an untrained model, `posttrain` the trained base."""
    claims: ClassVar[Claim | None] = None
    trivial: ClassVar[bool] = False
    """A control that a claim must beat."""
    keeps_secret: ClassVar[bool] = False
    task_aware: ClassVar[bool] = False
    releases_update: ClassVar[bool] = False
    """It protects an update for a task of the owner's own, the first that it was told; merging attacks are planned on
    that task alone."""
    ratio: float | None = None
    """Share of the weights that its secret mask marks; None where that is no setting of the defense."""
    scope: Literal["global", "per_tensor"] = "global"
    """Whether `ratio` is the share of all weights together or of each tensor."""

    def reference_row(self) -> str:
        """Spec of the row without this defense, against which it is scored."""
        return "none"

    def control_row(self) -> str | None:
        """Spec of the matched control where `none` is not it."""
        return None

    def told(self) -> tuple[str, ...]:
        """Specs of the tasks that it asks its context for; part of the release's key with their data."""
        return ()

    def fingerprint(self) -> str:
        """Hash of the files outside the benchmark that it reads; part of the release's key."""
        return ""

    def check(self, suite: Suite) -> None:
        """Raise `NftbenchError` if the suite cannot run this defense; called before anything runs."""
        return

    def protect(self, model: Model, context: OwnerContext) -> Protected: ...


class Attack(Protocol):
    """Fine-tunes a release without leave. A plugin is a frozen dataclass of its hyper-parameters."""

    adaptation: ClassVar[Adaptation] = "finetuning"
    against: ClassVar[frozenset[str]] = frozenset()
    """Names of the defenses that it was written against."""
    uses_release: ClassVar[bool] = True
    """False for attacks that ignore the weights: planned once for each reference row."""
    trains: ClassVar[bool] = True
    """False for attacks that only measure: these also run on utility tasks."""
    optimizer: Optimizer | None = None
    """The optimizer of its sweeps, if that is a setting of the attack; the budget must have learning rates for it."""
    trained_weights: ClassVar[TrainedWeights] = "other"
    """Which of the release's own weights it trains, started from the release as it is."""

    @property
    def knowledge(self) -> frozenset[Knowledge]:
        """What the attacker has beside the release and the task; a class attribute where all settings need the same."""
        return frozenset()

    def uses(self) -> tuple[str, ...]:
        """Specs of the attacks that it is built on; part of its cells' keys."""
        return ()

    def train_documents(self, budget: Budget) -> int | None:
        """How many of a task's training documents it takes; None for all of them."""
        return budget.max_train_documents

    def applies(self, defense: Defense) -> str | None:
        """Why this attack is not planned for the defense, or None where it is."""
        return None

    def prepare(self, release: Release, context: AttackerContext) -> Prepared:
        """What costs much and does not depend on the task; once for each release and seed."""
        return Prepared(release.model, update=release.update)

    def adapt(self, prepared: Prepared, task: Task, context: AttackerContext) -> Outcome: ...


class Split(Protocol):
    """The documents of one split, encoded for one model."""

    def __len__(self) -> int: ...
    def batch(self, indices: Sequence[int]) -> Any:
        """What `Task.loss` takes for these documents."""
        ...


class TaskContext(Protocol):
    """What a task is given to load itself: for whom it encodes, where data lies, how much of it."""

    @property
    def model(self) -> Model: ...
    @property
    def seed(self) -> int: ...
    @property
    def corpus(self) -> Corpus: ...
    @property
    def suite(self) -> Suite: ...
    @property
    def data(self) -> Path | None:
        """The folder of local data (`--data`); None means the hub."""
        ...

    @property
    def limit(self) -> int | None:
        """At most so many documents a split (`--limit`); None for all."""
        ...


class Task(Protocol):
    """Data to learn and a metric. A text task is an lm-eval YAML file; other tasks are frozen dataclasses."""

    @property
    def trainable(self) -> bool:
        """False for utility tasks, which have a test split only."""
        return True

    def fingerprint(self, data: Path | None) -> str:
        """Hash of the local files that it reads; part of a cell's key. Text tasks need not say."""
        return ""

    def load(self, context: TaskContext) -> Task:
        """The task with its splits loaded and encoded for `context.model`; the object that the methods below need."""
        ...

    def split(self, name: SplitName) -> Split: ...
    def loss(self, network: nn.Module, batch: Any) -> Tensor:
        """The scalar that fine-tuning descends: mean negative log-likelihood of the right answer, in nats."""
        ...

    def evaluate(self, network: nn.Module, split: Split) -> Measurement: ...
    def features(self, network: nn.Module, batch: Any) -> Tensor:
        """What a linear probe of this task reads: the inputs [rows, D] of the output head."""
        raise NftbenchError(f"{type(self).__name__} has no features that a linear probe could read")

    def targets(self, network: nn.Module, batch: Any) -> Tensor:
        """What a linear probe fits by least squares [rows, outputs of the head]."""
        raise NftbenchError(f"{type(self).__name__} has no targets for a linear probe")

    def documents(self) -> Mapping[str, Any]:
        """Which documents the loaded task scores, as JSON for the record; empty where the task does not say."""
        return {}


@dataclass(frozen=True)
class WrappedTask(Task):
    """Another task, as it is; an attack that trains on more than the task's own loss derives from it."""

    task: Task

    @property
    def trainable(self) -> bool:
        return self.task.trainable

    def load(self, context: TaskContext) -> Task:
        raise NftbenchError("the task is loaded already")

    def split(self, name: SplitName) -> Split:
        return self.task.split(name)

    def loss(self, network: nn.Module, batch: Any) -> Tensor:
        return self.task.loss(network, batch)

    def evaluate(self, network: nn.Module, split: Split) -> Measurement:
        return self.task.evaluate(network, split)

    def features(self, network: nn.Module, batch: Any) -> Tensor:
        return self.task.features(network, batch)

    def targets(self, network: nn.Module, batch: Any) -> Tensor:
        return self.task.targets(network, batch)

    def documents(self) -> Mapping[str, Any]:
        return self.task.documents()


class Inspection(Protocol):
    """What the referee holds about one release, for yardsticks."""

    @property
    def release(self) -> Model: ...
    @property
    def base(self) -> Model:
        """The undefended model of the same seed."""
        ...

    @property
    def initial(self) -> Model:
        """The same network before pre-training."""
        ...

    @property
    def update(self) -> Update | None: ...
    @property
    def secret(self) -> Secret | None: ...
    @property
    def protection(self) -> Protection: ...
    @property
    def corpus(self) -> Corpus: ...
    @property
    def budget(self) -> Budget: ...
    @property
    def seed(self) -> int: ...
    @property
    def pretraining(self) -> Pretraining: ...
    @property
    def told(self) -> tuple[str, ...]:
        """Specs of the tasks that the defense was told, in its order."""
        ...

    def task(self, spec: str) -> Task:
        """Any task, loaded for the release, with all its splits."""
        ...


class Yardstick(Protocol):
    """A paper's own metric, read by the referee off a release. A plugin is a frozen dataclass of its settings.

    What it reads is shown beside the paper's claim and is never part of a score.
    """

    def applies(self, defense: Defense) -> str | None:
        """Why there is nothing to measure on this defense's releases, or None where there is."""
        return None

    def uses(self) -> tuple[str, ...]:
        """Specs of the tasks that it reads beside those that the defense was told; part of its cells' keys."""
        return ()

    def measure(self, inspection: Inspection) -> Reading: ...
