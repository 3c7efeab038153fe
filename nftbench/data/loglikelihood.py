"""Requests: pairs of context and continuation become tokens, tensors and log-likelihoods, as lm-eval's `HFLM` does it.

Padding is on the right and there is no attention mask: under causal attention no real position sees what is padded
behind it, and without a mask the fused attention kernels are used.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from nftbench.errors import NftbenchError

SHARING_PAYS = 1.1
PASS_COSTS = 256
"""Prefixes are shared where that saves this factor of tokens. It takes two passes for each length of prefix, which
together cost as much as `PASS_COSTS` tokens."""


class CannotShareError(Exception):
    """The network keeps no plain cache of keys and values."""


class Pair(NamedTuple):
    """A request as lm-eval renders it."""

    context: str
    continuation: str


class Encoded(NamedTuple):
    """A request in tokens."""

    context: list[int]
    continuation: list[int]


# ---------------------------------------------------------------------------------------------------------- encoding


@dataclass(frozen=True)
class Encoder:
    """Encodes pairs as lm-eval's `HFLM` does, many at a time."""

    tokenizer: PreTrainedTokenizerBase
    max_length: int

    @property
    def prefix(self) -> int:
        """The token that stands in for an empty context."""
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        raise NftbenchError("the tokenizer has neither a bos nor an eos token, and an empty context needs one")

    def encode(self, pairs: Sequence[Pair]) -> list[Encoded]:
        """The tokens of each pair.

        Raises:
            NftbenchError: a context or continuation has no token, or a continuation is longer than the model's window.
        """
        moved = [_move_spaces(pair) for pair in pairs]
        contexts = self.tokens({pair.context for pair in moved if pair.context})
        wholes = self.tokens({pair.context + pair.continuation for pair in moved if pair.context})
        alone = self.tokens({pair.continuation for pair in pairs if not pair.context}, special=False)
        encoded = []
        for original, pair in zip(pairs, moved, strict=True):
            if pair.context:
                context = contexts[pair.context]
                one = Encoded(context, wholes[pair.context + pair.continuation][len(context) :])
            else:
                one = self._after_prefix(alone.get(original.continuation, []))
            if not one.context or not one.continuation or len(one.continuation) > self.max_length:
                raise NftbenchError(self._complaint(original, one))
            encoded.append(one)
        return encoded

    def _after_prefix(self, continuation: list[int]) -> Encoded:
        if continuation and continuation[0] == self.prefix:
            return Encoded(continuation[:1], continuation[1:])
        return Encoded([self.prefix], continuation)

    def tokens(self, texts: Iterable[str], special: bool | None = None) -> dict[str, list[int]]:
        """Each text's tokens, with special ones unless it starts with the prefix token's own text, or as told."""
        ordered = sorted(texts)
        if special is None:
            start = self.tokenizer.decode(self.prefix)
            started = [text for text in ordered if text.startswith(start)]
            rest = [text for text in ordered if not text.startswith(start)]
            return self.tokens(started, special=False) | self.tokens(rest, special=True)
        if not ordered:
            return {}
        ids = self.tokenizer(
            ordered,
            add_special_tokens=special,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # lengths are handled here, as lm-eval does
        )["input_ids"]
        return dict(zip(ordered, ids, strict=True))

    def _complaint(self, pair: Pair, encoded: Encoded) -> str:
        if len(encoded.continuation) > self.max_length:
            return (
                f"continuation {pair.continuation[:40]!r} has more tokens than the model's window of {self.max_length}"
            )
        empty = "context" if not encoded.context else "continuation"
        return f"{empty} {getattr(pair, empty)[:40]!r} has no token of its own after {pair.context[-40:]!r}"


def _move_spaces(pair: Pair) -> Pair:
    """Spaces that end a context belong to the continuation's first token."""
    context = pair.context.rstrip()
    return Pair(context, pair.context[len(context) :] + pair.continuation)


# ----------------------------------------------------------------------------------------------------------- training


class Batch(NamedTuple):
    """Padded rows of tokens; at (`rows`, `columns`) of their last `kept` positions the answers' tokens come next."""

    ids: Tensor
    kept: int
    rows: Tensor
    columns: Tensor
    targets: Tensor


class Rows:
    """Sequences to learn, kept end to end: padding all to the longest would let one outlier fill the memory."""

    def __init__(self, encoded: Sequence[Encoded], max_length: int) -> None:
        sequences = [(one.context + one.continuation)[-(max_length + 1) :] for one in encoded]
        self.tokens = np.array([token for sequence in sequences for token in sequence])
        self.lengths = np.array([len(sequence) - 1 for sequence in sequences])
        self.answers = np.array([len(one.continuation) for one in encoded])
        self.offsets = np.cumsum(self.lengths + 1) - self.lengths - 1

    def batch(self, indices: Sequence[int]) -> Batch:
        """These sequences, padded to the longest of them."""
        chosen = np.asarray(indices)
        lengths, answers, offsets = self.lengths[chosen], self.answers[chosen], self.offsets[chosen]
        positions = np.arange(lengths.max())
        inside = positions < lengths[:, None]
        ids = np.where(inside, self.tokens[np.where(inside, offsets[:, None] + positions, 0)], 0)
        rows = np.repeat(np.arange(len(chosen)), answers)
        columns = (lengths - np.cumsum(answers))[rows] + np.arange(len(rows))
        targets = self.tokens[offsets[rows] + columns + 1]
        first = int((lengths - answers).min())
        parts = (torch.from_numpy(part) for part in (rows, columns - first, targets))
        return Batch(torch.from_numpy(ids), len(positions) - first, *parts)


def loss(network: nn.Module, batch: Batch) -> Tensor:
    """Mean negative log-likelihood of the answers' tokens, in nats."""
    device = _device(network)
    ids, rows, columns, targets = (part.to(device) for part in (batch.ids, batch.rows, batch.columns, batch.targets))
    return nn.functional.cross_entropy(_wide(_logits_at(network, ids, batch.kept, rows, columns)), targets)


def features(network: nn.Module, batch: Batch) -> Tensor:
    """The output head's inputs [tokens, width] where the answers' tokens come next: what a linear probe reads."""
    head = getattr(_inner(network), "get_output_embeddings", lambda: None)()
    if head is None:
        raise NftbenchError("the network has no output head, whose inputs a linear probe could read")
    seen: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        loss(network, batch)
    finally:
        handle.remove()
    return seen[0][:, -batch.kept :][batch.rows, batch.columns]


# ------------------------------------------------------------------------------------------------------------ scoring


@dataclass(frozen=True)
class Forward:
    """One pass over padded rows: at (`rows`, `columns`) of its last `kept` logits stands the token `targets`, whose
    log-probability goes to `slots`. A `tail` goes on from this pass's cache, its rows from `parents`."""

    ids: Tensor
    kept: int
    rows: Tensor
    columns: Tensor
    targets: Tensor
    slots: Tensor
    tail: Forward | None = None
    parents: Tensor | None = None


@dataclass(frozen=True)
class Plan:
    """The passes that score all requests of a split; `offsets` are the requests' first slots, `size` all slots."""

    forwards: tuple[Forward, ...]
    offsets: np.ndarray[Any, np.dtype[np.int64]]
    size: int


class Likelihoods(NamedTuple):
    """One entry for each request; `greedy` is true where each token is the likeliest."""

    values: np.ndarray[Any, np.dtype[np.floating[Any]]]
    greedy: np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class _Row:
    """Input tokens, and which of the next tokens are scored: (position, target, slot)."""

    tokens: tuple[int, ...]
    marks: list[tuple[int, int, int]]
    tails: dict[tuple[int, ...], _Row]

    @functools.cached_property
    def start(self) -> int:
        return min(position for position, _, _ in self.marks)

    @property
    def size(self) -> int:
        """Tokens in memory: each tail holds a copy of the prefix's cache."""
        return len(self.tokens) + sum(len(self.tokens) + len(tail) for tail in self.tails)


@dataclass(frozen=True)
class Planner:
    """Turns encoded requests into passes.

    Args:
        vocabulary: logits at one position.
    """

    max_length: int
    vocabulary: int
    device: torch.device

    def plan(self, encoded: Sequence[Encoded], *, share: bool) -> Plan:
        """Passes over unique inputs; with `share`, long prefixes are computed once and their continuations go on."""
        counts = np.array([len(one.continuation) for one in encoded])
        offsets = np.cumsum(counts) - counts
        requests = list(zip(encoded, offsets.tolist(), strict=True))
        whole = self._whole(requests)
        rows = whole
        if share:
            fits = [len(one.context) + len(one.continuation) <= self.max_length + 1 for one in encoded]
            prefixes = self._prefixes([request for request, fit in zip(requests, fits, strict=True) if fit])
            split = prefixes + self._whole([request for request, fit in zip(requests, fits, strict=True) if not fit])
            passes = len({len(row.tokens) for row in split if row.tails})
            shared = sum(_computed(row) for row in split) + PASS_COSTS * passes
            if sum(len(row.tokens) for row in whole) > SHARING_PAYS * shared:
                rows = split
        return Plan(tuple(self._forwards(rows)), offsets, int(counts.sum()))

    def _whole(self, requests: Sequence[tuple[Encoded, int]]) -> list[_Row]:
        """One row for each distinct input; choices that differ in the last token only have one input."""
        rows: dict[tuple[int, ...], _Row] = {}
        for (context, continuation), slot in requests:
            tokens = tuple((context + continuation)[-(self.max_length + 1) : -1])
            row = rows.setdefault(tokens, _Row(tokens, [], {}))
            start = len(tokens) - len(continuation)
            row.marks.extend((start + i, token, slot + i) for i, token in enumerate(continuation))
        return list(rows.values())

    def _prefixes(self, requests: Sequence[tuple[Encoded, int]]) -> list[_Row]:
        """One row for each distinct context, with the continuations as its tails."""
        most = _token_budget(self.device)
        rows: dict[tuple[int, ...], _Row] = {}
        full: list[_Row] = []
        for (context, continuation), slot in requests:
            tokens, rest = tuple(context), tuple(continuation[:-1])
            row = rows.setdefault(tokens, _Row(tokens, [], {}))
            if len(row.tails) * (len(tokens) + len(rest)) > most:
                full.append(row)
                row = rows[tokens] = _Row(tokens, [], {})
            row.marks.append((len(tokens) - 1, continuation[0], slot))
            if rest:
                tail = row.tails.setdefault(rest, _Row(rest, [], {}))
                tail.marks.extend((i, token, slot + 1 + i) for i, token in enumerate(continuation[1:]))
        return full + list(rows.values())

    def _forwards(self, rows: Sequence[_Row]) -> Iterator[Forward]:
        # A cache must not hold padding, so prefixes with tails are batched by equal length; the others by like length.
        groups: dict[int, list[_Row]] = defaultdict(list)
        for row in rows:
            groups[len(row.tokens) if row.tails else 0].append(row)
        for group in groups.values():
            for chunk in self._chunks(sorted(group, key=lambda row: (len(row.tokens), row.start))):
                yield self._forward(chunk)

    def _chunks(self, rows: Sequence[_Row]) -> Iterator[list[_Row]]:
        most_tokens = _token_budget(self.device)
        most_logits = 2**25 if self.device.type == "cpu" else 2**28
        chunk: list[_Row] = []
        size, first = 0, self.max_length
        for row in rows:  # they grow longer
            size, first = max(size + row.size, len(row.tokens) * (len(chunk) + 1)), min(first, row.start)
            logits = (len(row.tokens) - first) * (len(chunk) + 1) * self.vocabulary
            if chunk and (size > most_tokens or logits > most_logits):
                yield chunk
                chunk, size, first = [], row.size, row.start
            chunk.append(row)
        if chunk:
            yield chunk

    def _forward(self, rows: Sequence[_Row]) -> Forward:
        length = max(len(row.tokens) for row in rows)
        first = min(row.start for row in rows)
        marks = [
            (i, position - first, target, slot) for i, row in enumerate(rows) for position, target, slot in row.marks
        ]
        tails = [(parent, tail) for parent, row in enumerate(rows) for tail in row.tails.values()]
        indices, columns, targets, slots = torch.tensor(marks, device=self.device).T.contiguous()
        return Forward(
            ids=torch.tensor([[*row.tokens, *[0] * (length - len(row.tokens))] for row in rows], device=self.device),
            kept=length - first,
            rows=indices,
            columns=columns,
            targets=targets,
            slots=slots,
            tail=self._forward([tail for _, tail in tails]) if tails else None,
            parents=torch.tensor([parent for parent, _ in tails], device=self.device) if tails else None,
        )


def _computed(row: _Row) -> int:
    return len(row.tokens) + sum(len(tail) for tail in row.tails)


def loglikelihoods(network: nn.Module, plan: Plan) -> Likelihoods:
    """Score every request of a plan.

    Raises:
        CannotShareError: the plan shares prefixes and the network's cache cannot be shared.
    """
    with _evaluating(network):
        parts = [part for forward in plan.forwards for part in _score(network, forward)]
    slots = torch.cat([slots for slots, _, _ in parts]).cpu().numpy()
    tokens = torch.cat([values for _, values, _ in parts]).cpu().numpy()[np.argsort(slots)]
    greedy = torch.cat([greedy for _, _, greedy in parts]).cpu().numpy()[np.argsort(slots)]
    return Likelihoods(np.add.reduceat(tokens, plan.offsets), np.logical_and.reduceat(greedy, plan.offsets))


def block_losses(network: nn.Module, blocks: Tensor) -> Tensor:
    """Mean negative log-likelihood of each block's tokens after its first, in nats, in float64."""
    device = _device(network)
    size = max(1, _token_budget(device) // blocks.shape[1])
    with _evaluating(network):
        parts = [_block_losses(network, part.to(device)) for part in torch.split(blocks, size)]
    return torch.cat(parts)


def _block_losses(network: nn.Module, ids: Tensor) -> Tensor:
    logits = _wide(logits_at_end(network, ids, ids.shape[1])[:, :-1])
    losses = nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return losses.double().mean(1).cpu()


def _score(network: nn.Module, forward: Forward) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    device = _device(network)
    ids = forward.ids.to(device)
    if forward.tail is None or forward.parents is None:
        yield _pick(logits_at_end(network, ids, forward.kept), forward)
        return
    output = _call(network, ids, forward.kept, use_cache=True)
    cache: Any = getattr(output, "past_key_values", None)
    if not _is_shareable(cache):
        raise CannotShareError
    cache.reorder_cache(forward.parents.to(device))
    tail = forward.tail
    after = _call(network, tail.ids.to(device), tail.kept, use_cache=True, past_key_values=cache)
    yield _pick(output.logits[:, -forward.kept :], forward)
    yield _pick(after.logits[:, -tail.kept :], tail)


def _pick(logits: Tensor, forward: Forward) -> tuple[Tensor, Tensor, Tensor]:
    """Slots, log-probabilities and greediness of a pass's targets."""
    logits = _wide(logits)
    rows, columns, targets, slots = (
        part.to(logits.device) for part in (forward.rows, forward.columns, forward.targets, forward.slots)
    )
    values = logits[rows, columns, targets] - logits.logsumexp(-1)[rows, columns]
    return slots, values, logits.argmax(-1)[rows, columns] == targets


def _is_shareable(cache: Any) -> bool:
    """Plain keys and values; recurrent and quantized states cannot be copied from row to row in the same way."""
    return isinstance(cache, DynamicCache) and all(
        type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers
    )


# ------------------------------------------------------------------------------------------------------------ networks


def logits_at_end(network: nn.Module, ids: Tensor, kept: int) -> Tensor:
    """Logits at the last `kept` positions; a network that prepends virtual tokens has more positions than `ids`."""
    logits: Tensor = _call(network, ids, kept, use_cache=False).logits
    return logits[:, -kept:]


def _logits_at(network: nn.Module, ids: Tensor, kept: int, rows: Tensor, columns: Tensor) -> Tensor:
    """Logits [positions, vocabulary] at some of the last `kept` positions.

    Answers that end rows of different lengths stand far apart, and the head would spend more on what lies between them
    than the layers do: so it is given the hidden states of these positions only.
    """
    if len(rows) == ids.shape[0] * kept:
        return logits_at_end(network, ids, kept).flatten(0, 1)

    def gather(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, *rest = inputs
        return hidden[:, -kept:][rows, columns].unsqueeze(0), *rest

    head = getattr(_inner(network), "get_output_embeddings", lambda: None)()
    handle = head.register_forward_pre_hook(gather) if head is not None else None
    try:
        logits: Tensor = _call(network, ids, kept, use_cache=False).logits
    finally:
        if handle is not None:
            handle.remove()
    # A network may use its head's weights without calling it.
    return logits[0] if logits.shape[:2] == (1, len(rows)) else logits[:, -kept:][rows, columns]


def _call(network: nn.Module, ids: Tensor, kept: int, **options: Any) -> Any:
    options["logits_to_keep"] = kept
    accepted = _parameters(type(_inner(network)).forward)  # PEFT passes keywords on
    return network(input_ids=ids, **{name: value for name, value in options.items() if name in accepted})


def _inner(network: nn.Module) -> Any:
    """The Hugging Face network inside a PEFT wrapper."""
    inner = getattr(network, "get_base_model", None)
    return inner() if callable(inner) else network


@functools.cache
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


def _token_budget(device: torch.device) -> int:
    """Tokens in one pass: a CPU wants the activations in its cache, a GPU wants full kernels."""
    return 2048 if device.type == "cpu" else 32768


def _wide(logits: Tensor) -> Tensor:
    """Half precision is too coarse for a softmax over a vocabulary."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device


@contextlib.contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        network.train(training)
