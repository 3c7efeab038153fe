"""How a release reads text without the token that begins a document, and text that is cut off.

Packed held-out text and whole sentences contain that token, and the prompts of most tasks do not. A release could look
for it, and compute nothing useful where it is missing: utility would be kept, and no attack could learn a task. The
referee therefore reads passages without special tokens, and the ranked tasks' prompts without their answers.

Running text is scored at each word with all later words in the input, and a prompt has none after its last word. A
release that looks at later words, or at how many there are, would predict text from itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nftbench.contract import Corpus, Model
from nftbench.data.corpus import in_words_of
from nftbench.data.lm_eval_tasks import LoadedTextTask
from nftbench.data.window import window
from nftbench.errors import NftbenchError
from nftbench.models import networks
from nftbench.planning.specs import task_spec
from nftbench.running.workspace import Workspace, load_task, make_corpus

BLOCKS, PASSAGES, PROMPTS = 64, 256, 64
"""How many held-out blocks, passages and prompts of a task are read. Two halves of 256 passages of the toy language
differ by less than 0.1 bits per token."""
FEWER = 16
"""A large network reads one in so many of these."""
SHORTEST = 4
"""Tokens of the shortest passage."""
CUTS = 8
"""At how many places held-out blocks are cut off, each block at one of them."""
ROWS = 32
"""Texts in one forward pass; large networks, whose vocabularies are large too, read one in `FEWER`."""

Texts = Sequence[Sequence[int]]
"""Token ids of several texts."""


@dataclass(frozen=True)
class PlainTexts:
    """What is read: packed `blocks`, `passages` cut from them, and `prompts` by task, as one tokenizer's ids.

    `beginning` is the token that begins a document; None for a tokenizer without one.
    """

    blocks: Texts
    passages: Texts
    prompts: Mapping[str, Texts]
    beginning: int | None


def collect(workspace: Workspace, seed: int, model: Model) -> PlainTexts:
    """The texts of a base seed, with prompts from the training splits of the suite's ranked text tasks.

    A task that cannot be loaded for the model is left out: its own cells say why.
    """
    assert model.tokenizer is not None
    text, prompts = in_words_of(make_corpus(workspace, seed), model.tokenizer), {}
    share = FEWER if networks.is_large(model.network) else 1
    for name in workspace.suite.tasks:
        try:
            task = load_task(workspace, task_spec(name), seed, model)
        except NftbenchError:
            continue
        if isinstance(task, LoadedTextTask) and task.trainable:
            split = task.split("train")
            contexts = dict.fromkeys(document.pairs[document.gold[0]].context for document in split.documents)
            chosen = [context for context in itertools.islice(contexts, PROMPTS // share) if context]
            encoded = split.encoder.tokens(chosen)
            prompts[name] = [encoded[context][1 - window(model) :] for context in chosen]
    first, last = model.tokenizer.bos_token_id, model.tokenizer.eos_token_id
    return PlainTexts(
        text.heldout[: BLOCKS // share].tolist(),
        _passages(text)[: PASSAGES // share],
        prompts,
        last if first is None else first,
    )


def read(network: nn.Module, texts: PlainTexts) -> dict[str, float]:
    """Bits per token on `text`, on `passages` and on `prompts of TASK`.

    `beginning of TASK` is the mean divergence in bits between the predictions on the task's prompts with and without
    the token that begins a document: the Kullback-Leibler divergence at each position of a prompt.
    """
    found = {"text": _bits(network, texts.blocks)}
    if texts.passages:
        found["passages"] = _bits(network, texts.passages)
    for task, prompts in texts.prompts.items():
        several = [prompt for prompt in prompts if len(prompt) > 1]
        if several:
            found[f"prompts of {task}"] = _bits(network, several)
        if prompts and texts.beginning is not None:
            found[f"beginning of {task}"] = _divergence(network, prompts, texts.beginning)
    return found


@torch.no_grad()
def read_ahead(network: nn.Module, texts: PlainTexts) -> float:
    """How far later words move the predictions on text, in bits: 0 for a network that reads in one direction.

    It is the mean Kullback-Leibler divergence between the prediction at a place of a block and that at the same place
    of the block cut off there.
    """
    total, count = 0.0, 0
    for number in range(CUTS):
        for batch in _batches(network, texts.blocks[number::CUTS]):
            ids, _ = padded(batch)
            cut = max(1, ids.shape[1] * (number + 1) // (CUTS + 1))
            whole, alone = (_log2(network, some, slice(cut - 1, cut)) for some in (ids, ids[:, :cut]))
            total, count = total + float(_apart(whole, alone).sum()), count + len(ids)
    return total / count


def padded(texts: Texts) -> tuple[Tensor, Tensor]:
    """Token ids [texts, longest], padded on the right with zeros, and where they are not padding."""
    longest = max(map(len, texts))
    ids = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts])
    return ids, torch.arange(longest) < torch.tensor([len(text) for text in texts])[:, None]


def _passages(corpus: Corpus) -> list[list[int]]:
    """The pieces of the held-out blocks between special tokens."""
    special = set(corpus.tokenizer.all_special_ids)
    found = []
    for block in corpus.heldout.tolist():
        for is_special, piece in itertools.groupby(block, lambda token: token in special):
            tokens = list(piece)
            if not is_special and len(tokens) >= SHORTEST:
                found.append(tokens)
    return found


def _batches(network: nn.Module, texts: Texts) -> Iterator[Texts]:
    ordered, rows = sorted(texts, key=len), ROWS // FEWER if networks.is_large(network) else ROWS
    return (ordered[start : start + rows] for start in range(0, len(ordered), rows))


@torch.no_grad()
def _bits(network: nn.Module, texts: Texts) -> float:
    """Cross-entropy in bits for each token but the first of each text."""
    total, count = 0.0, 0
    for batch in _batches(network, texts):
        ids, real = padded(batch)
        predicted, scored = _log2(network, ids)[:, :-1], real[:, 1:]
        values = predicted.gather(-1, ids[:, 1:, None].to(predicted.device))[..., 0].cpu()
        total, count = total - float(values[scored].sum()), count + int(scored.sum())
    return total / count


@torch.no_grad()
def _divergence(network: nn.Module, texts: Texts, beginning: int) -> float:
    total, count = 0.0, 0
    for batch in _batches(network, texts):
        (ids, real), (begun, _) = padded(batch), padded([[beginning, *text] for text in batch])
        divergence = _apart(_log2(network, begun)[:, 1:], _log2(network, ids)).cpu()
        total, count = total + float(divergence[real].sum()), count + int(real.sum())
    return total / count


def _apart(first: Tensor, second: Tensor) -> Tensor:
    """The divergence of the second from the first of two log-probabilities [..., vocabulary], in bits."""
    return torch.where(first.exp2() > 0, first.exp2() * (first - second), 0.0).sum(-1)


def _log2(network: nn.Module, ids: Tensor, at: slice = slice(None)) -> Tensor:
    """Log-probabilities [rows, positions, vocabulary] to base 2 at these positions, in float64."""
    device = next(network.parameters()).device
    logits: Tensor = network.eval()(input_ids=ids.to(device)).logits[:, at]
    return logits.double().log_softmax(-1) / torch.log(torch.tensor(2.0, dtype=torch.float64, device=device))
