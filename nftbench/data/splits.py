"""One split of a task, encoded for one model, and the metric over it: documents with answers, or blocks of text."""

from __future__ import annotations

import functools
import itertools
import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from nftbench.contract import Measurement
from nftbench.data import loglikelihood as requests
from nftbench.data.loglikelihood import Batch, Encoded, Encoder, Likelihoods, Pair, Plan, Planner, Rows
from nftbench.terms import SplitName

CHANCE = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info")
JACKKNIFE_GROUPS = 50
FEW = 32
"""Documents of which some should have choices that their tokens tell apart."""

Indices = np.ndarray[Any, np.dtype[np.int64]]
Values = np.ndarray[Any, np.dtype[np.floating[Any]]]


class Document(NamedTuple):
    """A document as lm-eval renders it. `gold` are the right ones among the first `choices` of `pairs`."""

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
    planner: Planner

    def __len__(self) -> int:
        return len(self.documents)

    def batch(self, indices: Sequence[int]) -> Batch:
        """The right answers to these documents."""
        return self._rows.batch(indices)

    def prepare(self) -> None:
        """Encode what this split is for; the rest waits until it is asked for."""
        _ = self._rows if self.name == "train" else self._plan

    def tells_apart(self) -> bool:
        """Whether any of the first documents has choices of different tokens; true where none has two choices."""
        several = [one.pairs[: one.choices] for one in self.documents[:FEW] if one.choices > 1]
        tokens = [[(one.context, one.continuation) for one in self.encoder.encode(pairs)] for pairs in several]
        return not tokens or any(one != choices[0] for choices in tokens for one in choices)

    def likelihoods(self, network: nn.Module) -> Likelihoods:
        """Every request of every document."""
        try:
            return requests.loglikelihoods(network, self._plan)
        except requests.CannotShareError:
            return requests.loglikelihoods(network, self._plain_plan)

    def responses(self, likelihoods: Likelihoods) -> list[tuple[tuple[float, bool], ...]]:
        """The likelihoods in lm-eval's form, one entry for each document."""
        pairs = zip(likelihoods.values.tolist(), likelihoods.greedy.tolist(), strict=True)
        return [tuple(itertools.islice(pairs, len(document.pairs))) for document in self.documents]

    @functools.cached_property
    def starts(self) -> Indices:
        """Each document's first request."""
        counts = np.array([len(document.pairs) for document in self.documents])
        starts: Indices = np.cumsum(counts) - counts
        return starts

    @functools.cached_property
    def gold(self) -> Indices:
        """Each document's right choice, the first where there are several."""
        return np.array([document.gold[0] for document in self.documents])

    @functools.cached_property
    def choices(self) -> Indices:
        """How many choices each document has."""
        return np.array([document.choices for document in self.documents])

    @functools.cached_property
    def tokens(self) -> Indices:
        """How many tokens each request scores."""
        return np.diff(self._plan.offsets, append=self._plan.size)

    @functools.cached_property
    def floor(self) -> float:
        """What a model that knows nothing scores."""
        return self.scorer.floor(self)

    @functools.cached_property
    def _rows(self) -> Rows:
        encoded = self.encoder.encode([document.pairs[document.gold[0]] for document in self.documents])
        return Rows(encoded, self.planner.max_length)

    @functools.cached_property
    def _encoded(self) -> list[Encoded]:
        return self.encoder.encode([pair for document in self.documents for pair in document.pairs])

    @functools.cached_property
    def _plan(self) -> Plan:
        return self.planner.plan(self._encoded, share=True)

    @functools.cached_property
    def _plain_plan(self) -> Plan:
        return self.planner.plan(self._encoded, share=False)


@dataclass(frozen=True)
class Scorer:
    """One metric of an lm-eval task."""

    task: Any
    metric: str
    aggregate: Callable[[Sequence[Any]], float]
    higher_is_better: bool
    is_mean: bool

    def measure(self, split: TextSplit, likelihoods: Likelihoods) -> Measurement:
        """The metric over a split, with its error."""
        if self._is_plain_accuracy:
            value = float((_picks(split, likelihoods.values) == split.gold).mean())
            stderr = math.sqrt(value * (1 - value) / max(len(split) - 1, 1))
        else:
            items = self._items(split, likelihoods)
            value, stderr = self._aggregated(items), self._stderr(items)
        loss = -float(likelihoods.values[split.starts + split.gold].mean())
        return Measurement(self.metric, value, stderr, len(split), split.floor, self.higher_is_better, loss)

    def floor(self, split: TextSplit) -> float:
        """What a model that knows nothing scores: one that picks at random, or finds all tokens equally likely."""
        if self.metric == "mcc":
            return 0.0
        if self.metric == "f1":
            # Picks at random have the precision of the class's share and a recall of one half.
            share = float((split.gold == 1).mean())
            return share / (share + 0.5)
        if self.metric in CHANCE and self.task.OUTPUT_TYPE == "multiple_choice":
            return float(np.mean([len(document.gold) / document.choices for document in split.documents]))
        values = -split.tokens * math.log(split.planner.vocabulary)
        values += np.random.default_rng(0).uniform(0, 1e-6, len(values))  # or every tie would go to the first choice
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
        """What lm-eval's `process_results` says about each document."""
        answered = zip(split.documents, split.responses(likelihoods), strict=True)
        results = [self.task.process_results(document.fields, list(found)) for document, found in answered]
        return [result[self.metric] for result in results if self.metric in result]

    def _aggregated(self, items: Sequence[Any]) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scikit-learn says at each call that a class was never picked
            return float(self.aggregate(items))

    def _stderr(self, items: Sequence[Any]) -> float:
        """The standard error: lm-eval's for means, and the jackknife where it would draw 100,000 bootstraps."""
        if len(items) < 2:
            return 0.0
        if self.is_mean:
            return float(np.std(items, ddof=1)) / math.sqrt(len(items))
        without, weights = self._left_out(items)
        center = float(np.average(without, weights=weights))
        count = float(weights.sum())
        return math.sqrt((count - 1) / count * float(weights @ (without - center) ** 2))

    def _left_out(self, items: Sequence[Any]) -> tuple[Values, Values]:
        """The metric with one left out, and how often that happens: one of each kind of item where kinds are few
        (pairs of label and pick), a fiftieth of the documents otherwise."""
        kinds = Counter(items) if all(isinstance(item, tuple | int | float) for item in items) else None
        if kinds is not None and len(kinds) <= JACKKNIFE_GROUPS:
            rests = [list((kinds - Counter([kind])).elements()) for kind in kinds]
            return np.array([self._aggregated(rest) for rest in rests]), np.array(list(kinds.values()), dtype=float)
        groups = min(JACKKNIFE_GROUPS, len(items))
        rests = [[item for i, item in enumerate(items) if i % groups != group] for group in range(groups)]
        return np.array([self._aggregated(rest) for rest in rests]), np.ones(groups)


@dataclass(frozen=True)
class BlockSplit:
    """Blocks of running text [blocks, length], of which everything but the first token of each is predicted."""

    blocks: Tensor
    floor: float
    tokens_per_unit: float = 1.0
    """What the metric counts bits by: tokens, or bytes."""

    def __len__(self) -> int:
        return len(self.blocks)

    def batch(self, indices: Sequence[int]) -> Tensor:
        """These blocks."""
        return self.blocks[torch.as_tensor(indices)]

    def measure(self, network: nn.Module, metric: str) -> Measurement:
        """Bits per unit; the error is taken over blocks, since tokens of one block are not independent."""
        losses = requests.block_losses(network, self.blocks)
        bits = losses / math.log(2) * self.tokens_per_unit
        stderr = float(bits.std()) / math.sqrt(len(bits)) if len(bits) > 1 else 0.0
        return Measurement(
            metric, float(bits.mean()), stderr, len(bits), self.floor, higher_is_better=False, loss=float(losses.mean())
        )


def _picks(split: TextSplit, values: Values) -> Indices:
    """The likeliest choice of each document, the first among equals."""
    columns = np.arange(split.choices.max())
    index = np.minimum(split.starts[:, None] + columns, len(values) - 1)
    picks: Indices = np.where(columns < split.choices[:, None], values[index], -np.inf).argmax(1)
    return picks
