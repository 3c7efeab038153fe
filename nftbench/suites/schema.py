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
    grammar: int = 0
    """toy: the first grammar seed; base seed s speaks grammar `grammar + s`."""
    sentences: Count = 60_000
    """toy: sentences generated for pre-training."""
    train: str | None = None
    """text: files under --data, a glob; hub: split expression."""
    heldout: str | None = None
    """text, hub: the held-out text on which bits per token are measured."""
    path: str | None = None
    """hub: the data set's id."""
    name: str | None = None
    revision: str | None = None
    column: str = "text"
    vocabulary: Count | None = None
    """text, hub: size of the BPE vocabulary trained on the training text."""
    block: Count = 32
    """Tokens in one packed block."""
    heldout_blocks: Count = 512

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
    batch: Count = 32
    learning_rate: Positive = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip: Positive = 1.0
    warmup: Annotated[int, Field(ge=0)] = 100
    schedule: Literal["constant", "cosine", "linear", "wsd"] = "cosine"
    """`wsd` (warm-up, stable, decay; Hu et al. 2024, MiniCPM, section 4) stays constant but for its last `decay`."""
    decay: Fraction = 0.3
    final: Annotated[float, Field(ge=0, le=1)] = 0.1
    """The share of the learning rate at which a run ends: a tenth in Chinchilla's and Llama's runs."""
    task: str | None = None
    """What is learned where there is no corpus: the training split of this task."""
    only: str | None = None
    """Only parameters with this in their name are trained (`head`: the extractor stays the identity)."""
    checkpoints: tuple[Fraction, ...] = ()
    """Fractions of the undefended run at which a copy is kept (`early_stop` reads them)."""


class Budget(_Section):
    """What every attacker may spend on every release."""

    learning_rates: dict[Optimizer, tuple[Positive, ...]] = Field(min_length=1)
    durations: tuple[Annotated[int, Field(ge=0)], ...]
    """Optimizer steps at which the one trajectory of a learning rate is read; 0 is always among them."""
    batch: Count = 32
    warmup: Annotated[int, Field(ge=0)] = 10
    clip: Positive | None = 1.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    decay: bool = False
    """The learning rate falls linearly to nothing after the warm-up: each duration is then a run of its own, and the
    warm-up takes at most half of it."""
    average: bool = False
    """What is read at a duration is the mean of the weights over the last quarter of the steps up to it."""
    extension: Annotated[int, Field(ge=0)] = 3
    """At most so many learning rates are added on a side whose edge is best."""
    restarts: Count = 3
    preparation_steps: Count = 200
    """Optimizer steps on public text that an attack may take before its sweep."""
    max_train_documents: Count | None = None
    max_validation_documents: Count | None = None
    max_test_documents: Count | None = None
    max_utility_documents: Count | None = None
    """Of tasks that are only measured: once a release, so that more of them cost little."""
    timeout: Positive = 3600.0
    """Seconds for each sweep, and as many for what an attack trains in preparation."""

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
    """Defenses; the mean over several."""
    read: str
    """`score`, `gain` or `kept` of attacked tasks; `utility`; or `yardstick.value`."""
    attacks: tuple[str, ...] = ()
    """The best of these on validation, or of all that train on the release."""
    tasks: tuple[str, ...] = ()
    """The mean over these, or over all ranked ones; of `utility` the metrics."""


class PaperClaim(_Section):
    """A sentence that a paper claims, and the measurement that would bear it out."""

    says: str
    paper: str = ""
    """The paper's own number, in its words."""
    read: Quantity
    minus: Quantity | None = None
    over: Quantity | None = None
    above: float | None = None
    below: float | None = None

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
    """Of the folder of results too, so that it is no path."""
    about: str = ""
    model: dict[str, Any]
    """`model_type` and other fields of a Hugging Face configuration; the vocabulary comes from the tokenizer."""
    corpus: CorpusSettings = CorpusSettings()
    pretraining: Pretraining
    defenses: tuple[str, ...] = Field(min_length=1)
    attacks: tuple[str, ...] = Field(min_length=1)
    tasks: tuple[str, ...] = Field(min_length=1)
    benign: tuple[str, ...] = ()
    """Tasks that must stay trainable: attacked as the others are, and shown beside task-aware defenses."""
    utility: tuple[str, ...] = Field(min_length=1)
    yardsticks: tuple[str, ...] = ()
    """Papers' own metrics, read off each release to which they apply."""
    paper: str = ""
    """Whose claims the suite is about."""
    claims: tuple[PaperClaim, ...] = ()
    budget: Budget
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)
    utility_bar: Fraction = 0.95
    """A ranked row's retention must clear this with its lower bound."""
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
