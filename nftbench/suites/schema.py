"""A YAML file becomes a `Suite`: model, corpus, defenses, attacks, tasks, budget, seeds. Unknown keys are errors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_serializer, field_validator, model_validator

from nftbench.terms import Knowledge, Optimizer

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(gt=0, le=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CorpusSettings(_Section):
    """Pre-training text. `toy` is generated; `text` reads local files under --data; `hub` loads a hub data set; `none`:
    models without a tokenizer, pre-trained on the task that `pretraining.task` names."""

    source: Literal["toy", "text", "hub", "none"] = "toy"
    """`toy`: generated text; `text`: local files under `--data`; `hub`: a data set of the Hugging Face hub; `none`: no
    text and no tokenizer, for models that learn the task `pretraining.task`."""
    grammar: int = 0
    """toy: the first grammar seed; base seed *s* uses grammar `grammar` + *s*."""
    sentences: Count = 60_000
    """toy: the number of sentences generated for pre-training."""
    train: str | None = None
    """text: a path or pattern under `--data`, plain or packed by xz or gzip; hub: a split, as in `train[:1%]`."""
    heldout: str | None = None
    """text, hub: the same for the text on which bits per token or byte are measured."""
    path: str | None = None
    """hub: the data set's id."""
    name: str | None = None
    """hub: its configuration."""
    revision: str | None = None
    """hub: its commit."""
    column: str = "text"
    """hub: the column that holds the text."""
    vocabulary: Count | None = None
    """text, hub: size of the byte-level BPE vocabulary that is trained on the training text."""
    block: Count = 32
    """Tokens in one packed block."""
    heldout_blocks: Count = 512
    """The largest number of blocks that are held out."""

    @model_validator(mode="after")
    def _named(self) -> CorpusSettings:
        needed = {
            "toy": (),
            "none": (),
            "text": ("train", "heldout", "vocabulary"),
            "hub": ("path", "train", "heldout", "vocabulary"),
        }
        missing = [key for key in needed[self.source] if getattr(self, key) is None]
        if missing:
            raise ValueError(f"source {self.source} needs {', '.join(missing)}")
        for place in (self.train, self.heldout) if self.source == "text" else ():
            try:
                next(Path(os.devnull).glob(place or ""), None)  # pathlib says what is a pattern; there it finds nothing
            except (ValueError, NotImplementedError, IndexError):
                raise ValueError(f"{place!r} is no path or pattern under --data") from None
        return self


class Pretraining(_Section):
    """The one pre-training recipe: AdamW, linear warm-up, then `schedule` down to the share `final` of the rate."""

    steps: Count
    """Optimizer steps."""
    batch: Count = 32
    """Blocks in a batch."""
    learning_rate: Positive = 1e-3
    """The learning rate after the warm-up."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Weight decay of matrices; vectors do not decay."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's betas."""
    clip: Positive = 1.0
    """The norm to which gradients are clipped."""
    warmup: Annotated[int, Field(ge=0)] = 100
    """Steps of linear warm-up, at most `steps`; with `wsd` the warm-up and the final decay together must fit."""
    schedule: Literal["constant", "cosine", "linear", "wsd"] = "cosine"
    """`constant`, `linear`, `cosine`, or `wsd`: constant, then a final decay (Hu et al. 2024, MiniCPM, section 4)."""
    decay: Fraction = 0.3
    """wsd: the share of the steps over which the learning rate falls."""
    final: Annotated[float, Field(ge=0, le=1)] = 0.1
    """The share of the learning rate at which a run ends, a tenth as in Chinchilla's and Llama's runs; unused by
    `constant`."""
    task: str | None = None
    """With `corpus.source: none`: the task whose training split is learned instead of text."""
    only: str | None = None
    """Only parameters with this text in their name are trained; `head` keeps the feature extractor the identity."""
    checkpoints: tuple[Fraction, ...] = ()
    """Fractions of the undefended run at which a copy is kept, so that `early_stop` costs no training."""


class Budget(_Section):
    """What every attacker may spend on every release."""

    learning_rates: dict[Optimizer, tuple[Positive, ...]] = Field(min_length=1)
    """A rising grid of at least two rates for each optimizer: `adamw`, `sgd`, `muon`."""
    durations: tuple[Annotated[int, Field(ge=0)], ...]
    """Optimizer steps at which the trajectory of a learning rate is read; 0 is always one of them."""
    batch: Count = 32
    """Documents in a batch."""
    warmup: Annotated[int, Field(ge=0)] = 10
    """Steps of linear warm-up, at most the longest duration; the learning rate is constant after them."""
    clip: Positive | None = 1.0
    """The norm to which gradients are clipped; `null` for none."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Weight decay of matrices."""
    decay: bool = False
    """The learning rate falls linearly to 0 after the warm-up. Each duration is then a run of its own, and the warm-up
    takes at most half of it."""
    average: bool = False
    """What is read at a duration is the mean of the weights over the last quarter of the steps up to it."""
    extension: Annotated[int, Field(ge=0)] = 3
    """The largest number of rates that are added on a side of the grid whose edge is best."""
    restarts: Count = 3
    """Fresh attack seeds with which the chosen recipe is run again."""
    preparation_steps: Count = 200
    """Optimizer steps on public text that an attack may take before its sweep."""
    max_train_documents: Count | None = None
    """The largest number of documents to train on."""
    max_validation_documents: Count | None = None
    """The largest number of documents to choose by. Choosing among many points on few documents is luck."""
    max_test_documents: Count | None = None
    """The largest number of documents to report on."""
    max_utility_documents: Count | None = None
    """The largest number of documents of a utility task. It is measured once for each release, so more of them cost
    little."""
    timeout: Positive = 3600.0
    """Seconds for each sweep, and as many for all training in preparation, checked after each step. A cell may take
    several times as long. It changes no key."""

    @field_validator("learning_rates")
    @classmethod
    def _grids(cls, grids: dict[str, tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
        for optimizer, grid in grids.items():
            if len(grid) < 2 or list(grid) != sorted(set(grid)):
                raise ValueError(f"{optimizer} needs at least two learning rates, rising")
        return grids

    @field_validator("durations")
    @classmethod
    def _durations(cls, durations: tuple[int, ...]) -> tuple[int, ...]:
        if max(durations, default=0) == 0:
            raise ValueError("at least one duration must be above 0")
        return tuple(sorted({0, *durations}))


class Quantity(_Section):
    """A number for each base seed, read off the records of a row."""

    rows: tuple[str, ...] = Field(min_length=1)
    """Defenses of the suite; the mean over several."""
    read: str
    """`score`: points of the best attack; `gain`: the same less the unattacked score; `kept`: the attacked score's
    share of the way from the reference's score to the unattacked one; `utility`: percent of the reference's; or a
    yardstick's value, as in `rir.rir`."""
    attacks: tuple[str, ...] = ()
    """The best of these on validation; empty: of all in the main ranking that use the release."""
    tasks: tuple[str, ...] = ()
    """The mean over these; empty: over all ranked tasks, or for `utility` over all its metrics."""


class PaperClaim(_Section):
    """A sentence that a paper claims, and the measurement that would bear it out."""

    says: str
    """The claim, as a sentence."""
    paper: str = ""
    """The paper's own number, in words; [paper], [code] or [2nd] is where it was read."""
    read: Quantity
    """What is measured: a quantity."""
    minus: Quantity | None = None
    """A quantity that is subtracted, seed by seed; excludes `over`."""
    over: Quantity | None = None
    """A quantity to divide by, seed by seed; excludes `minus`."""
    above: float | None = None
    """The claim holds if the interval lies above this bound; without a bound the measurement is only shown."""
    below: float | None = None
    """The claim holds if the interval lies below this bound; excludes `above`."""

    @model_validator(mode="after")
    def _one_of_each(self) -> PaperClaim:
        if self.minus is not None and self.over is not None:
            raise ValueError("minus and over exclude one another")
        if self.above is not None and self.below is not None:
            raise ValueError("above and below exclude one another")
        return self


class Suite(_Section):
    """The named grid to run."""

    name: str = Field(pattern=r"^\w[\w. -]*$")
    """The name of the suite in its records, and of its folder of results."""
    about: str = ""
    """One line for `nftbench list`."""
    model: dict[str, Any]
    """The architecture."""
    corpus: CorpusSettings = CorpusSettings()
    """The pre-training text; empty is the toy language."""
    pretraining: Pretraining
    """The one pre-training recipe."""
    defenses: tuple[str, ...] = Field(min_length=1)
    """Specs such as `pmp[ratio=0.5]`. The row against which another is scored (`none`) is added if it is missing."""
    attacks: tuple[str, ...] = Field(min_length=1)
    """Specs such as `lora[rank=16]`; `none` is always planned."""
    tasks: tuple[str, ...] = Field(min_length=1)
    """What attackers fine-tune on: a task plugin, or any task of lm-eval that has documents to train on."""
    benign: tuple[str, ...] = ()
    """Tasks that must stay trainable. They are attacked too, and shown beside task-aware defenses, but are never part
    of a suppression."""
    utility: tuple[str, ...] = Field(min_length=1)
    """Tasks that are only measured, on the release as it is."""
    yardsticks: tuple[str, ...] = ()
    """Papers' own metrics, such as `rir`, read off each release to which they apply; never part of a score."""
    paper: str = ""
    """The paper whose claims the suite measures."""
    claims: tuple[PaperClaim, ...] = ()
    """Sentences, each with the measurement that would confirm it."""
    budget: Budget
    """What an attacker may spend."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)
    """Base seeds, the unit of all statistics: three make a rank preliminary, five a rank."""
    utility_bar: Fraction = 0.95
    """Share of base utility that the lower bound of a ranked row must keep."""
    ranking: frozenset[Knowledge] = frozenset({"method", "data"})
    """What the attackers of the main ranking know."""

    @field_serializer("ranking", when_used="json")
    def _in_order(self, ranking: frozenset[str]) -> list[str]:
        return sorted(ranking)

    @field_validator("model")
    @classmethod
    def _typed(cls, model: dict[str, Any]) -> dict[str, Any]:
        if "model_type" not in model:
            raise ValueError("needs model_type (gpt2, llama, qwen3, …)")
        return model

    @model_validator(mode="after")
    def _one_role(self) -> Suite:
        both = sorted({*self.tasks} & {*self.utility, *self.benign})  # a benign task may be measured as utility too
        if both:
            raise ValueError(f"{', '.join(both)} is among both tasks and utility or benign; a task has one role")
        return self

    @model_validator(mode="after")
    def _something_to_learn(self) -> Suite:
        if (self.corpus.source == "none") != (self.pretraining.task is not None):
            raise ValueError("pretraining.task names what is learned exactly where corpus.source is none")
        return self

    @model_validator(mode="after")
    def _warm_in_time(self) -> Suite:
        """Not in the sections, for attacks and defenses lay changes of their own over them."""
        recipe, budget = self.pretraining, self.budget
        if recipe.warmup > recipe.steps:
            raise ValueError(f"pretraining.warmup {recipe.warmup} is longer than the {recipe.steps} steps")
        if recipe.schedule == "wsd" and recipe.warmup + round(recipe.decay * recipe.steps) > recipe.steps:
            raise ValueError(
                f"pretraining.warmup {recipe.warmup} and the decay over the last {recipe.decay:g} of the steps are "
                f"longer than the {recipe.steps} steps"
            )
        longest = max(budget.durations)
        if budget.warmup > longest and not budget.decay:  # which halves a warm-up that is too long
            raise ValueError(f"budget.warmup {budget.warmup} is longer than the longest duration, {longest}")
        return self

    @field_validator("seeds", "defenses", "attacks", "tasks", "benign", "utility", "yardsticks")
    @classmethod
    def _distinct(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        twice = sorted({str(value) for value in values if values.count(value) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} stands there twice")
        return values
