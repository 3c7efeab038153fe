"""The interface between nftbench and its plugins: four protocols, and the types in their signatures.

A plugin is a `Defense`, an `Attack`, a `Task` or a `Yardstick`. The other types are the data that plugins take and
return, as frozen dataclasses, and the contexts that they are given, as protocols. This module does not import torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from nftbench.errors import NftbenchError
from nftbench.terms import Adaptation, Knowledge, Optimizer, SplitName, Stage, TrainedWeights

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from nftbench.suites import Budget, Pretraining, Suite


Mask = Mapping[str, "Tensor"]
"""One boolean tensor for each parameter name, of the parameter's shape. True marks weights that may change."""

EachStep = Callable[["nn.Module", int], "bool | None"]
"""A callback of training: `(network, step)` after each optimizer step, counted from 1. Returning True ends the run."""

Guess = Mapping[str, "Tensor"]
"""An attacker's guess at the secret mask: one real score for each weight, as tensors by parameter name.

Each tensor has its parameter's shape. A higher score means that the mask is more likely True there.
"""

Candidates = Iterable[tuple["nn.Module", float, int]]
"""Networks to choose among, as `(network, setting, steps)`: the number that produced the network, and its optimizer
steps. A generator makes each network only when it is evaluated."""

StepLoss = Callable[["nn.Module", int], "Tensor"]
"""The loss of an attacker's own training: `(network, step)` to a scalar tensor, with steps counted from 1."""

Adapter = Callable[["PreTrainedModel", int], "nn.Module"]
"""`(model, attack seed)` to the network that is trained. The model is a fresh copy, and may be changed in place."""


# ---------------------------------------------------------------------------------------------------------- numbers


@dataclass(frozen=True)
class Measurement:
    """One number with its error, in the metric's own unit."""

    metric: str
    """The metric's name."""
    value: float
    """The metric's value."""
    stderr: float
    """Its standard error over the documents."""
    count: int
    """The number of documents."""
    floor: float
    """The score of a model that knows nothing: chance for an accuracy, the unigram entropy for bits per token."""
    higher_is_better: bool = True
    """False where a lower value is better, as for bits per token."""
    loss: float | None = None
    """Mean negative log-likelihood of the right answers, in nats. Of two equal values, the one with the lower loss is
    better."""


@dataclass(frozen=True)
class Series:
    """A curve: `y[i]` was measured at `x[i]`."""

    name: str
    """The curve's name."""
    x: tuple[float, ...]
    """Positions on the horizontal axis."""
    y: tuple[float, ...]
    """The value at each position."""
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
    """Mean training loss over the steps since the previous point, in nats; None at step 0."""
    attack_seed: int = 0
    """0 in the sweep, also where its best run is the outcome; 1 and above in the restarts of the chosen recipe."""


@dataclass(frozen=True)
class Cost:
    """The total cost of an attack. A step is one optimizer step on one batch."""

    steps: int = 0
    """Optimizer steps of the sweep, its extensions and the restarts."""
    seconds: float = 0.0
    """Time of the sweep, its extensions and the restarts."""
    step_flops: float = 0.0
    """FLOPs of the forward and backward pass of one step, by `torch.utils.flop_counter` under math attention."""
    step_seconds: float = 0.0
    """Mean time of one step."""
    saved_bytes: int = 0
    """Bytes that one step saves for the backward pass. Each storage counts once, and parameters do not count."""
    peak_memory_bytes: int = 0
    """Peak memory of sweeps and preparation. On the CPU it is the sum of parameters, gradients, optimizer state and
    `saved_bytes`; on CUDA it is the allocator's peak."""
    preparation_steps: int = 0
    """Optimizer steps in preparation, outside the sweeps; `steps` does not include them. Older records lack it."""
    preparation_flops: float = 0.0
    """FLOPs in preparation, outside the sweeps."""
    preparation_seconds: float = 0.0
    """Time in preparation, outside the sweeps; `seconds` does not include it."""


@dataclass(frozen=True)
class Claim:
    """A defense's claim: which attackers it withstands."""

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
    """Text as token ids. `train` and `heldout` are integer tensors [blocks, tokens], and no document is in both.

    Owners and attackers are given another `heldout` than tasks, which score releases on theirs.
    """

    tokenizer: PreTrainedTokenizerBase
    train: Tensor
    heldout: Tensor
    heldout_bytes: int
    """Length of the held-out blocks' text in UTF-8, in bytes."""

    @property
    def unigram_bits(self) -> float:
        """Entropy of the held-out tokens' own frequencies, in bits: bits per token of a model that knows only these."""
        counts = self.heldout.flatten().bincount().double()
        shares = counts[counts > 0] / counts.sum()
        return float(-(shares * shares.log2()).sum())


@dataclass(frozen=True)
class Secret:
    """What the owner keeps secret. `mask` is True for the weights that authorised fine-tuning may change."""

    mask: Mask


@dataclass(frozen=True)
class Update:
    """What an owner's fine-tuning added to the base model: release = base + update.

    Without `config`, `weights` holds the differences by parameter name, each of its parameter's shape. With `config`, a
    PEFT LoRA configuration, it holds the low-rank factors under PEFT's names.
    """

    weights: Mapping[str, Tensor]
    config: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Protected:
    """What a defense returns: `release` is published, `secret` stays with the owner, `series` goes into the record.

    Defenses that protect an update also return it as `update`. It is published in the release's folder `adapter/`.
    """

    release: Model
    secret: Secret | None = None
    series: tuple[Series, ...] = ()
    update: Update | None = None


@dataclass(frozen=True)
class Release:
    """What an attacker downloads: the model as loaded from the published folder, and the update if there is one."""

    model: Model
    update: Update | None = None


@dataclass(frozen=True)
class Prepared:
    """A release after an attack's preparation, used for all tasks. The referee scores `guess` by the secret mask."""

    model: Model
    guess: Guess | None = None
    update: Update | None = None
    """The release's update, if it has one."""
    parts: tuple[Prepared, ...] = ()
    """For an attack that is built on several attacks: what each of them prepared."""


@dataclass(frozen=True)
class Outcome:
    """The result of an attack on one task: the attacked network, and the sweep that chose it."""

    network: nn.Module
    """The network after training with the chosen recipe."""
    validation: Measurement | None
    """The network's score on the validation split; None for a utility task, which has no such split."""
    picked: Point
    """The chosen point."""
    curve: tuple[Point, ...] = ()
    """Every point of the sweep and of the grid's extensions."""
    restarts: tuple[Point, ...] = ()
    """Points of the chosen recipe, run again with new attack seeds."""
    cost: Cost = Cost()
    at_edge: bool = False
    """True where the best learning rate lies at an edge of the grid and strictly beats its neighbour, after all
    extensions."""
    stuck: bool = False
    """True where no trained point beats not training at all, after all extensions and retries."""
    retried: str | None = None
    """The change that kept training finite: float32, float64, clipped or head; None where none was needed."""
    trained: str | None = None
    """How a GPU trained the sweep's runs: `at once`, or `one by one` and why. None on the CPU and without a sweep."""


@dataclass(frozen=True)
class Spent:
    """What pre-training takes."""

    steps: int = 0
    """Optimizer steps, those of a trained start included."""
    tokens: int = 0
    """Tokens of text that training read, those of a trained start included; 0 for models that read no text."""
    parameters: int = 0
    """Parameters of the released network."""
    seconds: float = 0.0
    """Processor time of the defense's process, without that of a trained start; 0 where it is not known."""


@dataclass(frozen=True)
class Passes:
    """How much a defense trains, counted in training passes of one sequence each, and the memory that this takes.

    A training pass goes forwards and backwards in float32 and gives the gradients of all weights. Other passes count by
    their FLOPs: one that only goes forwards is a third. `nftbench.methods.passes` has the shares.
    """

    blocks: float = 0.0
    """Passes of one block of text, which has `corpus.block` tokens."""
    documents: float = 0.0
    """Passes of one document of a task."""
    blocks_at_once: float = 0.0
    """Passes of blocks whose activations are in memory at the same time, as for a step on a batch of them."""
    documents_at_once: float = 0.0
    """Passes of documents whose activations are in memory at the same time as those of `blocks_at_once`."""
    copies: float = 0.0
    """Float32 numbers in memory for each weight of the model: the weight, its gradient and two moments of AdamW are 4.
    Several models or gradients at one time are more."""


@dataclass(frozen=True)
class OwnerLedger:
    """What a defense spent, and what the suite's recipe allows."""

    spent: Spent
    """What the defense spent."""
    allowed: Spent
    """The most of each that a ranked defense may spend; 0 for no limit."""

    @property
    def over(self) -> tuple[str, ...]:
        """The names of what was spent beyond the limit."""
        limits = dataclasses.asdict(self.allowed)
        return tuple(name for name, spent in dataclasses.asdict(self.spent).items() if 0 < limits[name] < spent)


@dataclass(frozen=True)
class Protection:
    """Facts about a release, measured by the referee, who holds its secret. Records of attack `none` contain them."""

    parameters: int
    """The number of parameters of the release."""
    seconds: float
    """Time that the defense took."""
    gradient_error: float | None = None
    """Largest relative difference between autograd and central differences over random directions, in float64. If the
    gradients in float32 and float64 differ by more than 0.1, that difference counts too."""
    config_changed: Mapping[str, Any] = field(default_factory=dict)
    """The configuration fields that differ from the base model's, with the release's values."""
    tokenizer_changed: bool = False
    """True where the tokenizer differs from the corpus's in vocabulary or rules, or encodes some text differently."""
    density: Mapping[str, float] = field(default_factory=dict)
    """The share of each tensor's weights that the secret mask leaves trainable; empty without a mask."""
    series: tuple[Series, ...] = ()
    """Curves that the defense reports."""
    own_code: bool = False
    """True where attackers have to run the owner's own code, because no architecture of transformers or nftbench reads
    the weights equally well. Older records lack it."""
    unchecked: str | None = None
    """Why the gradients could not be checked; None where they were. Older records lack it."""
    rewrite: str | None = None
    """Why attackers cannot give the weights their ordinary sizes: no rewrite of this architecture is known. None where
    they can. Older records lack it."""
    plain_text: Mapping[str, float] = field(default_factory=dict)
    """How the release reads text without the token that begins a document, in bits. `text`: bits per token of held-out
    blocks. `passages`: of pieces without special tokens. `prompts of TASK`: of the task's training prompts. `beginning
    of TASK`: how far predictions on these prompts move if the token is put in front. Older records lack it."""
    reference_plain_text: Mapping[str, float] = field(default_factory=dict)
    """The same for the row's reference. Older records lack it."""
    ledger: OwnerLedger | None = None
    """What the defense spent, and what the recipe allows. Older records lack it."""


@dataclass(frozen=True)
class Reading:
    """What a yardstick, which is a paper's own metric, measured on a release."""

    values: Mapping[str, float]
    """Finite numbers by name; the yardstick's docstring (`nftbench info NAME`) gives their units."""
    series: tuple[Series, ...] = ()
    """Curves."""


# ---------------------------------------------------------------------------------------------------------- plugins


class OwnerContext(Protocol):
    """What a defense is given besides the model."""

    @property
    def seed(self) -> int:
        """The seed for everything random in the defense itself."""
        ...

    @property
    def corpus(self) -> Corpus:
        """The pre-training text of this base seed."""
        ...

    @property
    def pretraining(self) -> Pretraining:
        """The suite's pre-training recipe."""
        ...

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
        """Pre-train `model` in place with the suite's recipe, and return it. Only weights that `mask` marks change.

        `each_step(network, step)` runs after each optimizer step, counted from 1, while the masked and clipped
        gradients of the step are still there. Returning True ends the run. `changes` replace fields of the suite's
        `pretraining` section, as in `steps=…` or `weight_decay=…`.
        """
        ...

    def task(self, spec: str) -> Task:
        """A task that the defense lists in `told`, loaded for the suite's model. Only its training split can be read.

        Raises:
            NftbenchError: the defense does not list this task.
        """
        ...

    def checkpoint(self, fraction: float) -> Model:
        """The undefended model after this fraction of its pre-training steps.

        Fractions in the suite's `pretraining.checkpoints` cost no further training.
        """
        ...


class AttackerContext(Protocol):
    """What an attack is given besides the release: its seed, the suite's budget, and what its `knowledge` names.

    Using anything that needs other knowledge raises `NftbenchError`.
    """

    @property
    def seed(self) -> int:
        """The seed for everything random in the attack itself."""
        ...

    @property
    def budget(self) -> Budget:
        """What the suite lets every attacker spend."""
        ...

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
        """The attacked defense as `Attack.applies` gets it, with its hyper-parameters; needs knowledge `method`.

        It cannot protect; `shadow` does.
        """
        ...

    @property
    def pretraining(self) -> Pretraining:
        """The owner's pre-training recipe; needs knowledge `method`."""
        ...

    @property
    def sibling(self) -> Model:
        """An earlier checkpoint of the pre-training run that made the release; needs knowledge `sibling`."""
        ...

    def initial(self, guess: int) -> PreTrainedModel:
        """The untrained network of a base seed: what the owner started from, if `guess` is the owner's seed.

        Needs knowledge `sibling`, because this network is the checkpoint of the owner's run at step 0.
        """
        ...

    def shadow(self, index: int) -> Protected:
        """A release that the attacker makes with the attacked defense, on public text and with other seeds.

        The attacker knows the secret of this release, and can learn from it how to find another. Each `index` gives
        another seed. Needs knowledge `method` and `data`, and a defense of the stage `pretrain`. Its cost is counted.
        """
        ...

    def text(self, model: Model, batch: int) -> Iterator[Tensor]:
        """Endless batches [batch, block] of public text, as the model's own token ids; needs knowledge `data`."""
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
        """Train `network` in place before the sweep, for example to distil a model. The cost is counted.

        The learning rate rises linearly over a tenth of the steps and then falls linearly towards zero. Gradients
        are clipped as in the budget. Only weights that `mask` marks change. Attacks take `budget.preparation_steps`
        steps, unless the number of steps is what the attack is about. Weights that do not stay finite are put back, and
        training begins again at three tenths of the learning rate, at most eight times.

        Raises:
            NftbenchError: `steps` is below 1, or nothing can be trained.
        """
        ...

    def gradients(self, network: PreTrainedModel, batches: Iterable[Tensor]) -> Iterator[Mapping[str, Tensor]]:
        """The gradient of the mean next-token loss on each batch [count, block], by parameter name; counted as cost."""
        ...

    def attack(self, spec: str) -> Attack:
        """Another attack, which this one must list in `uses`. It may run a sweep of its own.

        Raises:
            NftbenchError: the attack does not list it.
        """
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
        """Fine-tune copies of `model` on `task` at every learning rate and duration of the budget.

        The best point on validation is run again with new attack seeds. The outcome is the best of all these runs.
        `adapter` makes the trained network from a copy of the model. `gradient_mask` marks the weights that may change.
        `lr_scale` multiplies every learning rate. `changes` replace fields of the budget, as in `durations=…`, for
        attacks that are about such a field.

        A sweep spends the budget of a cell, so an attack runs one for each task. One that is built on others runs one
        for each attack that `attack` gave it, and the cost of all of them is counted.

        Raises:
            NftbenchError: the budget of the cell is spent, or it has no learning rates for the optimizer.
        """
        ...

    def select(self, task: Task, candidates: Candidates) -> Outcome:
        """Evaluate each candidate network on validation, and return the best, instead of a sweep of learning rates.

        Each candidate is a point of the curve: `learning_rate` holds its setting, `step` its optimizer steps.
        """
        ...

    @property
    def base(self) -> Model:
        """The undefended base model; needs knowledge `base`."""
        ...

    @property
    def others(self) -> Mapping[str, Task]:
        """The suite's other ranked tasks by spec, without their test splits. Empty in `prepare`, which sees no task."""
        ...

    def untrained(self, model: Model, seed: int) -> PreTrainedModel:
        """A network of the same architecture with random weights."""
        ...

    def unchanged(self, model: Model, task: Task) -> Outcome:
        """The outcome of not training at all: the model as it is."""
        ...


class Defense(Protocol):
    """Turns the base model into the released one. A plugin is a frozen dataclass of its hyper-parameters."""

    stage: ClassVar[Stage]
    """`pretrain`: `protect` is given an untrained model; `posttrain`: it is given the pre-trained base model."""
    claims: ClassVar[Claim | None] = None
    """The attackers that the defense claims to withstand; None claims nothing."""
    trivial: ClassVar[bool] = False
    """True for a control, which every claim must beat."""
    keeps_secret: ClassVar[bool] = False
    """True where `protect` returns a secret mask."""
    task_aware: ClassVar[bool] = False
    """True where the defense uses the tasks that attackers train on. Listing tasks in `told` means the same."""
    releases_update: ClassVar[bool] = False
    """True where the defense protects an update instead of a model. The owner's task is the first in `told`, and
    attacks on the update run on that task alone."""
    deterministic: ClassVar[bool] = False
    """True where `protect` draws nothing and reads no text: then all seeds of a given base have one release."""
    ratio: float | None = None
    """The share of the weights that the secret mask marks; None where the defense has no such setting."""
    scope: Literal["global", "per_tensor"] = "global"
    """Whether `ratio` is the share of all weights together or of each tensor."""
    label: ClassVar[str | None] = None
    """A short name in tables and pictures instead of the plugin's; None for the plugin's. Reports do not use one that
    another row has, or that looks like another row's. A suite's `labels` come first."""

    def reference_row(self) -> str:
        """Spec of the defense's reference: the row without the defense, with which the score compares it."""
        return "none"

    def control_row(self) -> str | None:
        """Spec of the matched control: the same procedure without the protecting part. None where there is none."""
        return None

    def told(self) -> tuple[str, ...]:
        """Specs of the tasks that `protect` may load with `context.task`. They are part of the release's key."""
        return ()

    def fingerprint(self) -> str:
        """A hash of all files outside nftbench that the defense reads. It is part of the release's key.

        It is asked when a run is planned, and again before and after `protect`: edited files are refused.
        """
        return ""

    def given_parameters(self) -> int | None:
        """The number of parameters of a release that is given and not made here; None for the suite's own model."""
        return None

    def check(self, suite: Suite) -> None:
        """Called before anything runs.

        Raises:
            NftbenchError: the suite cannot run this defense.
        """
        return

    def training_passes(self, suite: Suite) -> Passes:
        """The training that `protect` does on this suite, beside the recipe's own run of a `pretrain` defense.

        It serves only to say how long a run will take and how much memory, and so it is no part of any key. For a loop
        that may stop early it is the longest case. `suite.budget.max_train_documents` is always a number here.
        """
        return Passes()

    def protect(self, model: Model, context: OwnerContext) -> Protected:
        """Make the release. `model` may be changed in place."""
        ...


class Attack(Protocol):
    """Unauthorised fine-tuning of a release. A plugin is a frozen dataclass of its hyper-parameters."""

    adaptation: ClassVar[Adaptation] = "finetuning"
    """How the attack adapts the release."""
    against: ClassVar[frozenset[str]] = frozenset()
    """Names of the defenses that the attack was designed against."""
    uses_release: ClassVar[bool] = True
    """False for attacks that ignore the release's weights. These run once for each reference row."""
    trains: ClassVar[bool] = True
    """False for attacks that only measure. These run on utility tasks too."""
    optimizer: Optimizer | None = None
    """The optimizer of the sweeps, if the attack has such a setting. The budget must have learning rates for it."""
    trained_weights: ClassVar[TrainedWeights] = "other"
    """Which of the release's weights the attack trains, if it starts from the release as it is."""

    @property
    def knowledge(self) -> frozenset[Knowledge]:
        """What the attacker has besides the release and the task. A class attribute may take this property's place."""
        return frozenset()

    def uses(self) -> tuple[str, ...]:
        """Specs of the attacks that this one is built on. They are part of its cells' keys."""
        return ()

    def train_documents(self, budget: Budget) -> int | None:
        """The number of a task's training documents that the attack takes; None for all of them."""
        return budget.max_train_documents

    def applies(self, defense: Defense) -> str | None:
        """The reason why this attack does not run against the defense; None if it runs.

        `defense` has the attributes and parameters of the defense, and what it answers to `told`, `reference_row` and
        `control_row`. It cannot protect.
        """
        return None

    def prepare(self, release: Release, context: AttackerContext) -> Prepared:
        """The expensive work that does not depend on the task. It runs once for each release and seed."""
        return Prepared(release.model, update=release.update)

    def adapt(self, prepared: Prepared, task: Task, context: AttackerContext) -> Outcome:
        """Attack one task, and return the attacked network. `task` has no test split: the referee scores that."""
        ...


class Split(Protocol):
    """The documents of one split, encoded for one model."""

    def __len__(self) -> int: ...
    def batch(self, indices: Sequence[int]) -> Any:
        """These documents as the batch that `Task.loss`, `Task.features` and `Task.targets` take."""
        ...


@runtime_checkable
class PartedBatch(Protocol):
    """A batch that can be trained on in parts, to save memory."""

    def parts(self, tokens: int) -> Iterable[tuple[float, Any]]:
        """Batches of at most so many tokens, or of one document, each with its share of the whole batch's loss.

        The sum over parts of the share times `Task.loss` is `Task.loss` of the whole batch.
        """
        ...


@runtime_checkable
class EvenSplit(Split, Protocol):
    """A split that can give several batches in one shape, so that networks can be trained on them at once."""

    def even_batches(self, several: Sequence[Sequence[int]], *, packed: bool) -> Sequence[Any]:
        """Equally many documents each as batches whose tensors agree in shape, with the losses that `batch` gives.

        With `packed` a row may hold several documents, which takes less padding, and which not every network can read.
        """
        ...


OfEach = Callable[["Callable[[nn.Module], tuple[Tensor, ...]]", int], "tuple[Tensor, ...]"]
"""Computes a function of a network for several networks: `(function, networks at once)` to the function's tensors, each
with a first dimension for the networks. The function changes nothing, and reads no number of a tensor."""


@runtime_checkable
class EachSplit(Split, Protocol):
    """A split on which several networks of one architecture can be scored at once."""

    def evaluate_each(self, of_each: OfEach) -> Sequence[Measurement]:
        """For each network what `Task.evaluate` gives for it on this split, up to rounding."""
        ...


class TaskContext(Protocol):
    """What `Task.load` is given: the model to encode documents for, and where and how many documents to read."""

    @property
    def model(self) -> Model:
        """The model whose tokenizer encodes the documents."""
        ...

    @property
    def seed(self) -> int:
        """The base seed."""
        ...

    @property
    def corpus(self) -> Corpus:
        """The text of the base seed. Its `heldout` is the scored text, which no owner and no attacker is given."""
        ...

    @property
    def suite(self) -> Suite:
        """The suite that runs."""
        ...

    @property
    def data(self) -> Path | None:
        """The folder of local data (`--data`); None means that data comes from the Hugging Face hub."""
        ...

    @property
    def limit(self) -> int | None:
        """The largest number of documents in a split (`--limit`); None for no limit."""
        ...


class Task(Protocol):
    """Data to learn and a metric. A text task is an lm-eval YAML file; other tasks are frozen dataclasses."""

    @property
    def trainable(self) -> bool:
        """False for tasks with a test split only, which can only be utility tasks."""
        return True

    @property
    def choosing(self) -> SplitName:
        """The split by which the referee chooses among attacks. A task with enough documents has one for this alone."""
        return "validation"

    def fingerprint(self, data: Path | None) -> str:
        """A hash of the local files that the task reads. It is part of a cell's key. Text tasks need none."""
        return ""

    def load(self, context: TaskContext) -> Task:
        """The task with its splits loaded and encoded for `context.model`. The methods below need this object."""
        ...

    def split(self, name: SplitName) -> Split:
        """The documents of one split."""
        ...

    def loss(self, network: nn.Module, batch: Any) -> Tensor:
        """The loss of fine-tuning, a scalar: mean negative log-likelihood of the right answers, in nats."""
        ...

    def evaluate(self, network: nn.Module, split: Split) -> Measurement:
        """The network's score on a split, with its standard error."""
        ...

    def features(self, network: nn.Module, batch: Any) -> Tensor:
        """The inputs of a linear probe on this task: the inputs [rows, width] of the network's output head.

        Raises:
            NftbenchError: the task has no linear probe.
        """
        raise NftbenchError(f"{type(self).__name__} has no features that a linear probe could read")

    def targets(self, network: nn.Module, batch: Any) -> Tensor:
        """The targets [rows, outputs of the head] that a linear probe fits by least squares.

        Raises:
            NftbenchError: the task has no linear probe.
        """
        raise NftbenchError(f"{type(self).__name__} has no targets for a linear probe")

    def documents(self) -> Mapping[str, Any]:
        """What identifies the documents that the loaded task scores, as JSON for the record. It may be empty."""
        return {}


@dataclass(frozen=True)
class WrappedTask(Task):
    """A task that behaves as another one. Attacks derive from it to change one method, such as the loss."""

    task: Task

    @property
    def trainable(self) -> bool:
        return self.task.trainable

    @property
    def choosing(self) -> SplitName:
        return self.task.choosing

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
    """What a yardstick is given: everything that the referee has about one release."""

    @property
    def release(self) -> Model:
        """The released model."""
        ...

    @property
    def base(self) -> Model:
        """The undefended model of the same base seed."""
        ...

    @property
    def initial(self) -> Model:
        """The same network before pre-training."""
        ...

    @property
    def update(self) -> Update | None:
        """The released update; None if the defense protects a model."""
        ...

    @property
    def secret(self) -> Secret | None:
        """The owner's secret; None if the defense keeps none."""
        ...

    @property
    def protection(self) -> Protection:
        """The facts that the referee measured about the release."""
        ...

    @property
    def corpus(self) -> Corpus:
        """The pre-training text of the base seed."""
        ...

    @property
    def budget(self) -> Budget:
        """What the suite lets every attacker spend."""
        ...

    @property
    def seed(self) -> int:
        """The seed for everything random in the yardstick itself."""
        ...

    @property
    def pretraining(self) -> Pretraining:
        """The suite's pre-training recipe."""
        ...

    @property
    def told(self) -> tuple[str, ...]:
        """Specs of the tasks that the defense lists in `Defense.told`, in the same order."""
        ...

    def task(self, spec: str) -> Task:
        """A task, loaded for the release, with all its splits."""
        ...


class Yardstick(Protocol):
    """A paper's own metric, which the referee measures on a release. A plugin is a frozen dataclass of its settings.

    Reports show its values beside the paper's claim. They are never part of a score.
    """

    def applies(self, defense: Defense) -> str | None:
        """The reason why the yardstick cannot measure releases of this defense; None if it can.

        `defense` is as in `Attack.applies`.
        """
        return None

    def uses(self) -> tuple[str, ...]:
        """Specs of the tasks that the yardstick reads, beyond those in `Inspection.told`. They are part of its key."""
        return ()

    def measure(self, inspection: Inspection) -> Reading:
        """Measure one release."""
        ...
