"""Splits of a task encoded for one model, and metrics over them: documents with answers, or blocks of text."""

from __future__ import annotations

import functools
import itertools
import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from nftbench.contract import Measurement, OfEach, Split, Task, TaskContext
from nftbench.data import loglikelihood
from nftbench.data.loglikelihood import Batch, Encoded, Encoder, Likelihoods, Pair, Passes, PassPlanner, Rows
from nftbench.errors import NftbenchError
from nftbench.terms import SplitName

ACCURACIES = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info")
"""lm-eval's metrics whose chance level is that of picking a choice at random."""
JACKKNIFE_GROUPS = 50
EXAMINED = 32
"""How many documents `choices_differ` looks at."""

Indices = np.ndarray[Any, np.dtype[np.int64]]
Values = np.ndarray[Any, np.dtype[np.floating[Any]]]


class Document(NamedTuple):
    """A document as lm-eval renders it.

    `fields` is its row of the data set. The first `choices` of `pairs` are the answers to choose from, and `gold` holds
    the indices of the right ones.
    """

    fields: Mapping[str, Any]
    pairs: tuple[Pair, ...]
    choices: int
    gold: tuple[int, ...]


@dataclass(frozen=True)
class TextSplit:
    """The documents of one split, encoded for one model."""

    name: SplitName
    documents: Sequence[Document]
    scorer: Scorer
    encoder: Encoder
    planner: PassPlanner

    def __len__(self) -> int:
        return len(self.documents)

    def batch(self, indices: Sequence[int]) -> Batch:
        """The chosen documents with their right answers, for training."""
        return self._rows.batch(indices)

    def even_batches(self, several: Sequence[Sequence[int]], *, packed: bool) -> Sequence[Batch]:
        """Batches of these documents, each with equally many, in one shape."""
        return self._rows.even_batches(several, packed=packed)

    def prepare(self) -> None:
        """Encode training rows for the training split and requests for the others. The rest is encoded when needed."""
        _ = self._rows if self.name == "train" else self._passes

    def choices_differ(self) -> bool:
        """Whether any of the first documents has choices that differ in tokens; True if none has several choices.

        A tokenizer that does not know the choices may map all of them to the same token.
        """
        several = [one.pairs[: one.choices] for one in self.documents[:EXAMINED] if one.choices > 1]
        tokens = [[(one.context, one.continuation) for one in self.encoder.encode(pairs)] for pairs in several]
        return not tokens or any(one != choices[0] for choices in tokens for one in choices)

    def likelihoods(self, network: nn.Module) -> Likelihoods:
        """The log-likelihoods of all requests of all documents."""
        try:
            return loglikelihood.loglikelihoods(network, self._passes)
        except loglikelihood.CannotShareError:
            return loglikelihood.loglikelihoods(network, self._unshared_passes)

    def evaluate_each(self, of_each: OfEach) -> Sequence[Measurement]:
        """What `LoadedTextTask.evaluate` gives for each of several networks, up to rounding."""
        try:
            found = loglikelihood.likelihoods_of_each(of_each, self._passes)
        except loglikelihood.CannotShareError:
            found = loglikelihood.likelihoods_of_each(of_each, self._unshared_passes)
        return [self.scorer.measure(self, one) for one in found]

    def responses(self, likelihoods: Likelihoods) -> list[tuple[tuple[float, bool], ...]]:
        """The likelihoods in lm-eval's format: for each document a (log-likelihood, greedy) pair for each request."""
        pairs = zip(likelihoods.values.tolist(), likelihoods.greedy.tolist(), strict=True)
        return [tuple(itertools.islice(pairs, len(document.pairs))) for document in self.documents]

    @functools.cached_property
    def starts(self) -> Indices:
        """The index of each document's first request [documents]."""
        counts = np.array([len(document.pairs) for document in self.documents])
        starts: Indices = np.cumsum(counts) - counts
        return starts

    @functools.cached_property
    def gold(self) -> Indices:
        """Each document's right choice [documents], the first if there are several."""
        return np.array([document.gold[0] for document in self.documents])

    @functools.cached_property
    def choices(self) -> Indices:
        """The number of choices of each document [documents]."""
        return np.array([document.choices for document in self.documents])

    @functools.cached_property
    def tokens(self) -> Indices:
        """The number of scored tokens of each request [requests]."""
        return np.diff(self._passes.offsets, append=self._passes.size)

    @functools.cached_property
    def floor(self) -> float:
        """The score of a model that knows nothing."""
        return self.scorer.floor(self)

    @functools.cached_property
    def _rows(self) -> Rows:
        encoded = self.encoder.encode([document.pairs[document.gold[0]] for document in self.documents])
        return Rows(encoded, self.planner.max_length)

    @functools.cached_property
    def _encoded(self) -> list[Encoded]:
        return self.encoder.encode([pair for document in self.documents for pair in document.pairs])

    @functools.cached_property
    def _passes(self) -> Passes:
        return self.planner.plan(self._encoded, share=True)

    @functools.cached_property
    def _unshared_passes(self) -> Passes:
        return self.planner.plan(self._encoded, share=False)


@dataclass(frozen=True)
class Scorer:
    """One metric of an lm-eval task.

    Args:
        path: the task's YAML file.
        task: lm-eval's task object.
        aggregate: turns the documents' results into the score.
        is_mean: whether `aggregate` is the mean.
    """

    path: Path
    task: Any
    metric: str
    aggregate: Callable[[Sequence[Any]], float]
    higher_is_better: bool
    is_mean: bool

    def measure(self, split: TextSplit, likelihoods: Likelihoods) -> Measurement:
        """The metric over a split, its standard error, and the mean loss of the right answers in nats per document."""
        if self._is_plain_accuracy:
            value = float((_picks(split, likelihoods.values) == split.gold).mean())
            stderr = math.sqrt(value * (1 - value) / max(len(split) - 1, 1))
        else:
            items = self._items(split, likelihoods)
            value, stderr = self._aggregated(items), self._stderr(items)
        loss = -float(likelihoods.values[split.starts + split.gold].mean())
        return Measurement(self.metric, value, stderr, len(split), split.floor, self.higher_is_better, loss)

    def floor(self, split: TextSplit) -> float:
        """The score of a model that picks a choice at random, or to which all tokens are equally likely."""
        if self.metric == "mcc":
            return 0.0
        if self.metric == "f1":
            # The precision of random picks is the share of the positive class, and their recall is one half.
            share = float((split.gold == 1).mean())
            return share / (share + 0.5)
        if self.metric in ACCURACIES and self.task.OUTPUT_TYPE == "multiple_choice":
            return float(np.mean([len(document.gold) / document.choices for document in split.documents]))
        values = -split.tokens * math.log(split.planner.vocabulary)
        values += np.random.default_rng(0).uniform(0, 1e-6, len(values))  # breaks ties, which favour the first choice
        return self._aggregated(self._items(split, Likelihoods(values, np.zeros(len(values), dtype=bool))))

    @property
    def _is_plain_accuracy(self) -> bool:
        return (
            self.metric == "acc"
            and self.task.OUTPUT_TYPE == "multiple_choice"
            and self.is_mean
            and not self.task.multiple_target
            and not callable(self.task.config.process_results)
        )

    def _items(self, split: TextSplit, likelihoods: Likelihoods) -> list[Any]:
        """The result of lm-eval's `process_results` for each document."""
        answered = zip(split.documents, split.responses(likelihoods), strict=True)
        results = [self.task.process_results(document.fields, list(responses)) for document, responses in answered]
        return [result[self.metric] for result in results if self.metric in result]

    def _aggregated(self, items: Sequence[Any]) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scikit-learn warns at each call if a class was never picked
            return float(self.aggregate(items))

    def _stderr(self, items: Sequence[Any]) -> float:
        """The standard error: lm-eval's for means, else the jackknife, where lm-eval would draw 100,000 bootstraps."""
        if len(items) < 2:
            return 0.0
        if self.is_mean:
            return float(np.std(items, ddof=1)) / math.sqrt(len(items))
        without, weights = self._leave_out(items)
        center = float(np.average(without, weights=weights))
        count = float(weights.sum())
        return math.sqrt((count - 1) / count * float(weights @ (without - center) ** 2))

    def _leave_out(self, items: Sequence[Any]) -> tuple[Values, Values]:
        """The metric with one group of items left out, for each group, and the weight of each group.

        If there are few distinct items (pairs of label and pick), one item of each kind is left out in turn, weighted
        by how often the kind occurs. Otherwise one of `JACKKNIFE_GROUPS` groups of documents is left out in turn.
        """
        try:
            kinds = Counter(items)
        except TypeError:  # items with arrays or lists, as those of brier_score, cannot be counted
            kinds = None
        if kinds is not None and len(kinds) <= JACKKNIFE_GROUPS:
            rests = [list((kinds - Counter([kind])).elements()) for kind in kinds]
            return np.array([self._aggregated(rest) for rest in rests]), np.array(list(kinds.values()), dtype=float)
        groups = min(JACKKNIFE_GROUPS, len(items))
        rests = [[item for i, item in enumerate(items) if i % groups != group] for group in range(groups)]
        return np.array([self._aggregated(rest) for rest in rests]), np.ones(groups)


@dataclass(frozen=True)
class BlockSplit:
    """Blocks of text [blocks, length]. All tokens of a block but the first are predicted."""

    blocks: Tensor
    floor: float
    tokens_per_unit: float = 1.0
    """Tokens for each unit that the metric counts bits by: 1 for bits per token, less for bits per byte."""

    def __len__(self) -> int:
        return len(self.blocks)

    def batch(self, indices: Sequence[int]) -> Tensor:
        """The chosen blocks [batch, length]."""
        return self.blocks[torch.as_tensor(indices)]

    def measure(self, network: nn.Module, metric: str) -> Measurement:
        """Bits per unit. The standard error is over blocks, because the tokens of one block are not independent."""
        losses = loglikelihood.block_losses(network, self.blocks)
        bits = losses / math.log(2) * self.tokens_per_unit
        stderr = float(bits.std()) / math.sqrt(len(bits)) if len(bits) > 1 else 0.0
        return Measurement(
            metric, float(bits.mean()), stderr, len(bits), self.floor, higher_is_better=False, loss=float(losses.mean())
        )


class BlockTask(Task):
    """A utility task on running text. A plugin adds `load`, which returns `LoadedBlocks`, and `evaluate`."""

    @property
    def trainable(self) -> bool:
        return False

    def split(self, name: SplitName) -> Split:
        raise NftbenchError(f"{type(self).__name__}: load the task before its {name} split is asked for")

    def loss(self, network: nn.Module, batch: Any) -> Tensor:
        raise NftbenchError(f"{type(self).__name__} is a utility task: it is never trained on")


@dataclass(frozen=True)
class LoadedBlocks(BlockTask):
    """A task on running text, with its text."""

    task: BlockTask
    test: BlockSplit

    def load(self, context: TaskContext) -> Task:
        return self

    def split(self, name: SplitName) -> Split:
        if name != "test":
            raise NftbenchError(f"{type(self.task).__name__} has no {name} split: it is a utility task")
        return self.test

    def evaluate(self, network: nn.Module, split: Split) -> Measurement:
        return self.task.evaluate(network, split)


def _picks(split: TextSplit, values: Values) -> Indices:
    """The most likely choice of each document [documents], the first of several equal ones."""
    columns = np.arange(split.choices.max())
    index = np.minimum(split.starts[:, None] + columns, len(values) - 1)
    picks: Indices = np.where(columns < split.choices[:, None], values[index], -np.inf).argmax(1)
    return picks
