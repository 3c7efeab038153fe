"""Log-likelihoods of continuations given contexts, computed as lm-eval's `HFLM` computes them, and the training loss.

Rows are padded on the right and no attention mask is passed. Under causal attention no real position attends to the
padding after it, and without a mask PyTorch can use fused attention kernels.
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

from nftbench.contract import OfEach
from nftbench.errors import NftbenchError

MIN_SHARING_GAIN = 1.1
"""Prefixes are shared if computing all rows whole takes at least this many times as many tokens."""
PASS_OVERHEAD = 256
"""The cost, in tokens, of the two forward passes that each prefix length needs if prefixes are shared."""

EVEN_LENGTH = 16
"""Rows of batches in one shape are padded to a multiple of this many tokens."""
MOST_PADDING = 0.15
"""Documents are packed if more than this share of the tokens would be padding in rows as long as the longest one."""
PACKED_LENGTH = 128
"""Rows that hold several documents are a multiple of this many tokens long. Longer rows waste more of the attention."""
IGNORED = -100
"""The target that PyTorch's cross-entropy leaves out by default."""


class CannotShareError(Exception):
    """The network's cache is not a plain cache of keys and values, so that prefixes cannot be shared."""


class Pair(NamedTuple):
    """A context and its continuation, as lm-eval renders them."""

    context: str
    continuation: str


class Encoded(NamedTuple):
    """A context and its continuation in tokens."""

    context: list[int]
    continuation: list[int]


# ---------------------------------------------------------------------------------------------------------- encoding


@dataclass(frozen=True)
class Encoder:
    """Encodes pairs as lm-eval's `HFLM` does, many at a time.

    Args:
        max_length: the model's window, in tokens.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int

    @property
    def prefix(self) -> int:
        """The token that replaces an empty context.

        Raises:
            NftbenchError: the tokenizer has neither a bos nor an eos token.
        """
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        raise NftbenchError("the tokenizer has neither a bos nor an eos token, and an empty context needs one")

    def encode(self, pairs: Sequence[Pair]) -> list[Encoded]:
        """Encode each pair.

        Raises:
            NftbenchError: a context or continuation has no token, or a continuation is longer than the model's window.
        """
        moved = [_move_trailing_spaces(pair) for pair in pairs]
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
                raise NftbenchError(self._error_message(original, one))
            encoded.append(one)
        return encoded

    def _after_prefix(self, continuation: list[int]) -> Encoded:
        if continuation and continuation[0] == self.prefix:
            return Encoded(continuation[:1], continuation[1:])
        return Encoded([self.prefix], continuation)

    def tokens(self, texts: Iterable[str], special: bool | None = None) -> dict[str, list[int]]:
        """The tokens of each text.

        Args:
            special: whether to add special tokens; None to add them unless a text starts with the prefix token's text.
        """
        ordered = sorted(texts)
        if special is None:
            start = self.tokenizer.decode(self.prefix)
            prefixed = [text for text in ordered if text.startswith(start)]
            rest = [text for text in ordered if not text.startswith(start)]
            return self.tokens(prefixed, special=False) | self.tokens(rest, special=True)
        if not ordered:
            return {}
        ids = self.tokenizer(
            ordered,
            add_special_tokens=special,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # no warning about long texts, which are truncated later as lm-eval does
        )["input_ids"]
        return dict(zip(ordered, ids, strict=True))

    def _error_message(self, pair: Pair, encoded: Encoded) -> str:
        if len(encoded.continuation) > self.max_length:
            return (
                f"continuation {pair.continuation[:40]!r} has more tokens than the model's window of {self.max_length}"
            )
        empty = "context" if not encoded.context else "continuation"
        return f"{empty} {getattr(pair, empty)[:40]!r} has no token of its own after {pair.context[-40:]!r}"


def _move_trailing_spaces(pair: Pair) -> Pair:
    """Move spaces from the end of the context to the continuation, whose first token they belong to."""
    context = pair.context.rstrip()
    return Pair(context, pair.context[len(context) :] + pair.continuation)


# ----------------------------------------------------------------------------------------------------------- training


class Batch(NamedTuple):
    """Padded rows of tokens `ids` [batch, length], and the positions at which an answer's token is predicted.

    `kept` is how many of the last positions need logits. Among these positions, (`rows`, `columns`) [tokens] predict
    the tokens `targets` [tokens].

    If a row holds several documents, `positions` [batch, length] counts each token's place in its document from 0.
    Tokens attend to their own document alone.
    """

    ids: Tensor
    kept: int
    rows: Tensor
    columns: Tensor
    targets: Tensor
    positions: Tensor | None = None

    def parts(self, tokens: int) -> Iterator[tuple[float, Batch]]:
        """Batches of at most so many tokens, or of one row, each with its share of all targets."""
        count = max(1, tokens // max(1, self.ids.shape[1]))
        for first in range(0, len(self.ids), count):
            inside = (self.rows >= first) & (self.rows < first + count)
            targets = self.targets[inside]
            part = Batch(
                self.ids[first : first + count], self.kept, self.rows[inside] - first, self.columns[inside], targets
            )
            yield len(targets) / len(self.targets), part


class Rows:
    """Training sequences of context and answer.

    They are stored end to end in one array. Padding them all to the longest could fill the memory because of one
    outlier.
    """

    def __init__(self, encoded: Sequence[Encoded], max_length: int) -> None:
        sequences = [(one.context + one.continuation)[-(max_length + 1) :] for one in encoded]
        self.max_length = max_length
        self.tokens = np.array([token for sequence in sequences for token in sequence])
        self.lengths = np.array([len(sequence) - 1 for sequence in sequences])
        self.answers = np.array([len(one.continuation) for one in encoded])
        self.offsets = np.cumsum(self.lengths + 1) - self.lengths - 1

    def batch(self, indices: Sequence[int]) -> Batch:
        """The chosen sequences, padded to the longest of them."""
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

    def even_batches(self, several: Sequence[Sequence[int]], *, packed: bool) -> list[Batch]:
        """Batches of these sequences, each with equally many, in one shape that few others are trained in.

        Rows are padded to a multiple of `EVEN_LENGTH` tokens, or to the longest sequence of all. With `packed`, and if
        lengths vary, they hold several sequences and are a multiple of `PACKED_LENGTH` long. All positions are kept.
        Missing answers' tokens are `IGNORED`, as cross-entropy ignores them.
        """
        if packed and self.lengths.mean() < (1 - MOST_PADDING) * self.lengths.max():
            return self._packed_batches(several)
        batches = [self.batch(indices) for indices in several]
        longest = max(batch.ids.shape[1] for batch in batches)
        length = min(-(-longest // EVEN_LENGTH) * EVEN_LENGTH, int(self.lengths.max()))
        count = len(several[0])
        answers = _even_count(max(len(batch.rows) for batch in batches), count, count * length)
        return [_padded(batch, length, answers) for batch in batches]

    def _packed_batches(self, several: Sequence[Sequence[int]]) -> list[Batch]:
        longest = max(int(self.lengths[list(indices)].max()) for indices in several)
        length = -(-longest // PACKED_LENGTH) * PACKED_LENGTH
        filled = [self._filled_rows(indices, length) for indices in several]
        count = max(map(len, filled))
        most = max(int(self.answers[list(indices)].sum()) for indices in several)
        answers = _even_count(most, len(several[0]), count * length)
        return [self._packed(rows, count, length, answers) for rows in filled]

    def _filled_rows(self, indices: Sequence[int], length: int) -> list[list[int]]:
        """Rows of sequences with at most `length` tokens in sum: the longest first, each into the first with room."""
        rows: list[list[int]] = []
        left: list[int] = []
        for index in sorted(indices, key=lambda index: -int(self.lengths[index])):
            size = int(self.lengths[index])
            place = next((place for place, room in enumerate(left) if room >= size), len(rows))
            if place == len(rows):
                rows.append([])
                left.append(length)
            rows[place].append(index)
            left[place] -= size
        return rows

    def _packed(self, filled: Sequence[Sequence[int]], count: int, length: int, answers: int) -> Batch:
        """A batch of `count` rows with these sequences. A token of padding is a document of its own."""
        ids, positions = np.zeros((2, count, length), dtype=np.int64)
        rows, columns, targets = np.zeros((3, answers), dtype=np.int64)
        targets[:] = IGNORED
        done = 0
        for row, indices in enumerate(filled):
            start = 0
            for index in indices:
                size, own = int(self.lengths[index]), int(self.answers[index])
                tokens = self.tokens[self.offsets[index] :][: size + 1]
                ids[row, start : start + size] = tokens[:-1]
                positions[row, start : start + size] = np.arange(size)
                start, end = start + size, done + own
                rows[done:end], columns[done:end], targets[done:end] = row, np.arange(start - own, start), tokens[-own:]
                done = end
        parts = (torch.from_numpy(part) for part in (rows, columns, targets, positions))
        return Batch(torch.from_numpy(ids), length, *parts)


def _even_count(most: int, multiple: int, positions: int) -> int:
    """How many answers' tokens batches are given that have at most so many: few different numbers.

    As many answers as positions would be taken for an answer at every position.
    """
    count = -(-most // multiple) * multiple
    return count + (count == positions)


def _padded(batch: Batch, length: int, answers: int) -> Batch:
    """A batch of rows of this length, all of whose positions are kept, with so many answers' tokens."""
    width = batch.ids.shape[1]
    more = (0, answers - len(batch.rows))
    return Batch(
        nn.functional.pad(batch.ids, (0, length - width)),
        length,
        nn.functional.pad(batch.rows, more),
        nn.functional.pad(batch.columns + width - batch.kept, more),
        nn.functional.pad(batch.targets, more, value=IGNORED),
    )


def loss(network: nn.Module, batch: Batch) -> Tensor:
    """Mean negative log-likelihood of the answers' tokens, in nats per token."""
    device = _device(network)
    ids, rows, columns, targets = (part.to(device) for part in (batch.ids, batch.rows, batch.columns, batch.targets))
    apart = {} if batch.positions is None else _apart(batch.positions.to(device))
    logits = _logits_at(network, ids, batch.kept, rows, columns, **apart)
    return nn.functional.cross_entropy(_at_least_float32(logits), targets)


def _apart(positions: Tensor) -> dict[str, Tensor]:
    """What keeps the documents of a row apart: their tokens' positions, and a mask of the tokens that each sees.

    The mask [batch, 1, length, length] is causal and block-diagonal. transformers finds packed documents by positions
    alone, too, but reads numbers to do so, which a stack and a CUDA graph cannot.
    """
    documents = (positions == 0).cumsum(1)
    mask = (documents[:, :, None] == documents[:, None, :]).tril()
    return {"position_ids": positions, "attention_mask": mask[:, None]}


def features(network: nn.Module, batch: Batch) -> Tensor:
    """The output head's inputs [tokens, width] at the positions that predict the answers' tokens, for a linear probe.

    Raises:
        NftbenchError: the network has no output head.
    """
    head = getattr(_inner(network), "get_output_embeddings", lambda: None)()
    if head is None:
        raise NftbenchError("the network has no output head, so a linear probe has no features to read")
    captured: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, inputs: captured.append(inputs[0]))
    try:
        loss(network, batch)
    finally:
        handle.remove()
    return captured[0][:, -batch.kept :][batch.rows, batch.columns]


# ------------------------------------------------------------------------------------------------------------ scoring


@dataclass(frozen=True)
class ForwardPass:
    """One forward pass over padded rows `ids` [rows, length], and the log-probabilities to take from it.

    Logits are needed at the last `kept` positions. Among these, the log-probability of `targets` at (`rows`, `columns`)
    is stored in `slots`. A slot is one scored token of one request.

    If `tail` is set, its rows are continuations that reuse this pass's cache of keys and values. `parents` holds for
    each row of the tail the row of this pass that is its prefix.
    """

    ids: Tensor
    kept: int
    rows: Tensor
    columns: Tensor
    targets: Tensor
    slots: Tensor
    tail: ForwardPass | None = None
    parents: Tensor | None = None

    @property
    def with_tail(self) -> tuple[ForwardPass, ...]:
        return (self,) if self.tail is None else (self, self.tail)


@dataclass(frozen=True)
class Passes:
    """The forward passes that score all requests of a split.

    `offsets` [requests] is the first slot of each request, and `size` the number of slots. `vocabulary` is the number
    of logits at one position.
    """

    forwards: tuple[ForwardPass, ...]
    offsets: np.ndarray[Any, np.dtype[np.int64]]
    size: int
    vocabulary: int


class Likelihoods(NamedTuple):
    """For each request its log-likelihood in nats, and whether each of its tokens is the most likely one (`greedy`)."""

    values: np.ndarray[Any, np.dtype[np.floating[Any]]]
    greedy: np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class _Row:
    """Input tokens, the `marks` (position, target, slot) of the next tokens to score, and continuations as `tails`."""

    tokens: tuple[int, ...]
    marks: list[tuple[int, int, int]]
    tails: dict[tuple[int, ...], _Row]

    @functools.cached_property
    def start(self) -> int:
        """The first position whose logits are needed."""
        return min(position for position, _, _ in self.marks)

    @property
    def size(self) -> int:
        """Tokens held in memory, since each tail copies the cache of its prefix."""
        return len(self.tokens) + sum(len(self.tokens) + len(tail) for tail in self.tails)


@dataclass(frozen=True)
class PassPlanner:
    """Groups encoded requests into forward passes.

    Args:
        max_length: the model's window, in tokens.
        vocabulary: the number of logits at one position.
    """

    max_length: int
    vocabulary: int
    device: torch.device

    def plan(self, encoded: Sequence[Encoded], *, share: bool) -> Passes:
        """Passes over the distinct inputs.

        With `share` a context that several continuations have in common is computed once, if that saves enough.
        """
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
            shared = sum(_computed(row) for row in split) + PASS_OVERHEAD * passes
            if sum(len(row.tokens) for row in whole) > MIN_SHARING_GAIN * shared:
                rows = split
        return Passes(tuple(self._forwards(rows)), offsets, int(counts.sum()), self.vocabulary)

    def _whole(self, requests: Sequence[tuple[Encoded, int]]) -> list[_Row]:
        """One row for each distinct input. Choices that differ in their last token only share one input."""
        rows: dict[tuple[int, ...], _Row] = {}
        for (context, continuation), slot in requests:
            tokens = tuple((context + continuation)[-(self.max_length + 1) : -1])
            row = rows.setdefault(tokens, _Row(tokens, [], {}))
            start = len(tokens) - len(continuation)
            row.marks.extend((start + i, token, slot + i) for i, token in enumerate(continuation))
        return list(rows.values())

    def _prefixes(self, requests: Sequence[tuple[Encoded, int]]) -> list[_Row]:
        """One row for each distinct context, with its continuations as tails."""
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

    def _forwards(self, rows: Sequence[_Row]) -> Iterator[ForwardPass]:
        # A cache must not contain padding, so rows with tails are grouped by equal length. Other rows are only sorted.
        groups: dict[int, list[_Row]] = defaultdict(list)
        for row in rows:
            groups[len(row.tokens) if row.tails else 0].append(row)
        for group in groups.values():
            for chunk in self._chunks(sorted(group, key=lambda row: (len(row.tokens), row.start))):
                yield self._forward(chunk)

    def _chunks(self, rows: Sequence[_Row]) -> Iterator[list[_Row]]:
        most_tokens = _token_budget(self.device)
        most_logits = _logit_budget(self.device)
        chunk: list[_Row] = []
        size, first = 0, self.max_length
        for row in rows:  # sorted by length
            size, first = max(size + row.size, len(row.tokens) * (len(chunk) + 1)), min(first, row.start)
            logits = (len(row.tokens) - first) * (len(chunk) + 1) * self.vocabulary
            if chunk and (size > most_tokens or logits > most_logits):
                yield chunk
                chunk, size, first = [], row.size, row.start
            chunk.append(row)
        if chunk:
            yield chunk

    def _forward(self, rows: Sequence[_Row]) -> ForwardPass:
        length = max(len(row.tokens) for row in rows)
        first = min(row.start for row in rows)
        marks = [
            (i, position - first, target, slot) for i, row in enumerate(rows) for position, target, slot in row.marks
        ]
        tails = [(parent, tail) for parent, row in enumerate(rows) for tail in row.tails.values()]
        indices, columns, targets, slots = torch.tensor(marks, device=self.device).T.contiguous()
        return ForwardPass(
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
    """Tokens that a forward pass processes for a row and its tails."""
    return len(row.tokens) + sum(len(tail) for tail in row.tails)


def loglikelihoods(network: nn.Module, passes: Passes) -> Likelihoods:
    """Score every request.

    Raises:
        CannotShareError: the passes share prefixes, and the network's cache does not allow that.
    """
    with _evaluating(network):
        parts = [part for forward in passes.forwards for part in _score(network, forward)]
    slots, values, greedy = (torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True))
    return _by_request(slots, values, greedy, passes)


def likelihoods_of_each(of_each: OfEach, passes: Passes) -> list[Likelihoods]:
    """What `loglikelihoods` gives for each of several networks, which are computed at once.

    A pass over several networks holds no more tokens and logits than one over a single network may. Logits are computed
    at the scored positions alone, except where prefixes are shared.

    Raises:
        CannotShareError: the passes share prefixes, and the networks' cache does not allow that.
    """

    def scored(forward: ForwardPass, network: nn.Module) -> tuple[Tensor, Tensor]:
        with _evaluating(network):
            parts = _score(network, forward) if forward.tail else [_marked(network, forward)]
            _, values, greedy = zip(*parts, strict=True)
        return torch.cat(values), torch.cat(greedy)

    parts = [
        of_each(functools.partial(scored, forward), _networks_at_once(forward, passes.vocabulary))
        for forward in passes.forwards
    ]
    slots = torch.cat([part.slots for forward in passes.forwards for part in forward.with_tail]).cpu().numpy()
    values, greedy = (torch.cat(column, dim=1).cpu().numpy() for column in zip(*parts, strict=True))
    return [_by_request(slots, *own, passes) for own in zip(values, greedy, strict=True)]


def _networks_at_once(forward: ForwardPass, vocabulary: int) -> int:
    """How many networks may compute a pass at once."""
    device, parts = forward.ids.device, forward.with_tail
    prefixes = 0 if forward.parents is None else len(forward.parents) * forward.ids.shape[1]  # one copy for each tail
    tokens = prefixes + sum(part.ids.numel() for part in parts)
    positions = sum(len(part.ids) * part.kept for part in parts) if forward.tail else len(forward.targets)
    return max(1, min(_token_budget(device) // tokens, _logit_budget(device) // (positions * vocabulary)))


def _by_request(slots: Any, values: Any, greedy: Any, passes: Passes) -> Likelihoods:
    """The likelihoods of requests from those of their tokens, which are stored in `slots` [tokens]."""
    order = np.argsort(slots)
    tokens, greedy = values[order], greedy[order]
    return Likelihoods(np.add.reduceat(tokens, passes.offsets), np.logical_and.reduceat(greedy, passes.offsets))


def block_losses(network: nn.Module, blocks: Tensor) -> Tensor:
    """Mean negative log-likelihood [blocks] of each block's tokens but the first, in nats per token, in float64."""
    device = _device(network)
    size = max(1, _token_budget(device) // blocks.shape[1])
    with _evaluating(network):
        parts = [_block_losses(network, part.to(device)) for part in torch.split(blocks, size)]
    return torch.cat(parts)


def _block_losses(network: nn.Module, ids: Tensor) -> Tensor:
    logits = _at_least_float32(logits_at_end(network, ids, ids.shape[1])[:, :-1])
    losses = nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return losses.double().mean(1).cpu()


def _score(network: nn.Module, forward: ForwardPass) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Slots, log-probabilities and greediness of a pass's targets, and then of its tail's."""
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


def _pick(logits: Tensor, forward: ForwardPass) -> tuple[Tensor, Tensor, Tensor]:
    """Slots, log-probabilities and greediness of one pass's targets."""
    logits = _at_least_float32(logits)
    rows, columns, targets, slots = (
        part.to(logits.device) for part in (forward.rows, forward.columns, forward.targets, forward.slots)
    )
    values = logits[rows, columns, targets] - logits.logsumexp(-1)[rows, columns]
    return slots, values, logits.argmax(-1)[rows, columns] == targets


def _marked(network: nn.Module, forward: ForwardPass) -> tuple[Tensor, Tensor, Tensor]:
    """What `_score` gives for a pass without a tail, from logits at the scored positions alone."""
    device = _device(network)
    ids, rows, columns, targets = (
        part.to(device) for part in (forward.ids, forward.rows, forward.columns, forward.targets)
    )
    logits = _at_least_float32(_gathered(network, ids, forward.kept, rows, columns))
    values = logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(-1)
    return forward.slots, values, logits.argmax(-1) == targets


def _is_shareable(cache: Any) -> bool:
    """Whether a cache holds plain keys and values. Recurrent and quantized states cannot be copied from row to row."""
    return isinstance(cache, DynamicCache) and all(
        type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers
    )


# ------------------------------------------------------------------------------------------------------------ networks


def logits_at_end(network: nn.Module, ids: Tensor, kept: int) -> Tensor:
    """Logits [rows, kept, vocabulary] at the last `kept` positions.

    A network that prepends virtual tokens (prompt tuning) has more positions than `ids` [rows, length].
    """
    logits: Tensor = _call(network, ids, kept, use_cache=False).logits
    return logits[:, -kept:]


def _logits_at(network: nn.Module, ids: Tensor, kept: int, rows: Tensor, columns: Tensor, **options: Tensor) -> Tensor:
    """Logits [tokens, vocabulary] at (`rows`, `columns`) of the last `kept` positions.

    The head is given the hidden states of these positions only. In rows of different lengths the answers lie far apart,
    and the head would spend more time on the positions between them than the layers do on all of them.
    """
    if len(rows) == ids.shape[0] * kept:
        return logits_at_end(network, ids, kept).flatten(0, 1)
    return _gathered(network, ids, kept, rows, columns, **options)


def _gathered(network: nn.Module, ids: Tensor, kept: int, rows: Tensor, columns: Tensor, **options: Tensor) -> Tensor:
    """What `_logits_at` gives, for positions in any order, of which some may be equal."""

    def gather(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, *rest = inputs
        return hidden[:, -kept:][rows, columns].unsqueeze(0), *rest

    head = getattr(_inner(network), "get_output_embeddings", lambda: None)()
    handle = head.register_forward_pre_hook(gather) if head is not None else None
    try:
        logits: Tensor = _call(network, ids, kept, use_cache=False, **options).logits
    finally:
        if handle is not None:
            handle.remove()
    # A network that uses its head's weights without calling the head skips `gather` and returns all positions.
    return logits[0] if logits.shape[:2] == (1, len(rows)) else logits[:, -kept:][rows, columns]


def _call(network: nn.Module, ids: Tensor, kept: int, **options: Any) -> Any:
    options["logits_to_keep"] = kept
    accepted = _parameters(type(_inner(network)).forward)  # PEFT's wrapper takes any keyword and passes it on
    return network(input_ids=ids, **{name: value for name, value in options.items() if name in accepted})


def _inner(network: nn.Module) -> Any:
    """The Hugging Face network inside a PEFT wrapper, or the network itself."""
    inner = getattr(network, "get_base_model", None)
    return inner() if callable(inner) else network


@functools.cache
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


def _token_budget(device: torch.device) -> int:
    """Most tokens in one pass: few on a CPU, so that activations fit its cache; many on a GPU, to fill its kernels."""
    return 2048 if device.type == "cpu" else 32768


def _logit_budget(device: torch.device) -> int:
    """Most logits of one pass, which take 128 MB on a CPU and 1 GB on a GPU."""
    return 2**25 if device.type == "cpu" else 2**28


def _at_least_float32(logits: Tensor) -> Tensor:
    """Logits in float32 or float64, because half precision is too coarse for a softmax over a vocabulary."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device


@contextlib.contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients inside the block; the previous mode after it."""
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        network.train(training)
