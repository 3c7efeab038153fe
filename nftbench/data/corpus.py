"""The pre-training corpus: text from the toy language, local files or a hub data set, as packed blocks of tokens.

It has three parts with no document in common. Owners and attackers are given the training text and the held-out text.
The scored text is the referee's alone: on it utility is measured, and a model that was trained on it would score well.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from nftbench.contract import Corpus
from nftbench.data.grammar import grammar_of
from nftbench.errors import NftbenchError
from nftbench.models.networks import forget_path
from nftbench.suites.schema import CorpusSettings, Suite

EOS = "<|endoftext|>"
"""The token that ends a document. In local text files it stands on a line of its own."""

Held = Literal["heldout", "scored"]
"""The two parts of the text that pre-training does not see."""


@dataclass(frozen=True)
class Texts:
    """All parts of a corpus: the training text and both held parts, as integer tensors [blocks, tokens]."""

    tokenizer: PreTrainedTokenizerBase
    train: Tensor
    held: Mapping[Held, Tensor]
    is_foreign: bool = False
    """Whether the tokenizer is that of a model which was trained on other text."""


@dataclass(frozen=True)
class ForeignCorpus(Corpus):
    """A corpus in the tokens of a model that was trained on other text.

    Each block begins with the token that begins a document, if the tokenizer has one: some models read text without it
    far worse. It stands for no text, so it is left out of the unigram entropy. `heldout_bytes` grants it the bytes of
    an average token, so that tokens / `heldout_bytes` is the number of text tokens for each byte.
    """

    @property
    def unigram_bits(self) -> float:
        """Cross-entropy of the held-out tokens under the training text's frequencies, in bits, add-one smoothed.

        The held-out tokens' own entropy would be too low: in a large vocabulary most words occur there once or never.
        """
        begins = beginning(self.tokenizer) is not None
        train, heldout = (
            blocks[:, 1:].flatten() if begins else blocks.flatten() for blocks in (self.train, self.heldout)
        )
        counts = train.bincount(minlength=len(self.tokenizer)).double() + 1
        return float(-(counts / counts.sum())[heldout].log2().mean())


def beginning(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that begins a document; None for a tokenizer without one."""
    found: int | None = tokenizer.bos_token_id
    return found


def build(suite: Suite, seed: int, data: Path | None, words: PreTrainedTokenizerBase | None = None) -> Texts:
    """Read or generate the text, make its tokenizer, and pack the tokens into blocks.

    Args:
        seed: the base seed. It selects the toy language's grammar; real text does not depend on it.
        data: the folder of local files (`--data`).
        words: the tokenizer of a given base. Without one, the corpus makes its own.

    Raises:
        NftbenchError: a file is missing or unreadable, the text is too short for one block of each part, or the toy
            language has no salt.
    """
    settings = suite.corpus
    held: Mapping[Held, Iterable[str]]
    if settings.source == "toy":
        grammar = grammar_of(suite, seed)
        tokenizer = words or word_tokenizer(grammar.words())
        train: Iterable[str] = grammar.corpus(settings.sentences, "train")
        count = max(settings.sentences // 10, 100)
        held = {
            "heldout": grammar.corpus(count, "heldout"),
            "scored": grammar.corpus(count, "scored"),
        }
    else:
        train = _lines(settings, settings.train, data)
        held = _halves(_lines(settings, settings.heldout, data))
        tokenizer = words or byte_pair_tokenizer(train, settings.vocabulary or 0)
    separator = "" if settings.source == "toy" else "\n"
    names: Mapping[Held, str] = {"heldout": "held-out", "scored": "scored half of the held-out"}
    if words is not None:
        return Texts(
            words,
            _pack_begun(words, _documents(train), settings.block, "training"),
            {
                part: _pack_begun(words, _documents(text), settings.block, names[part])[: settings.heldout_blocks]
                for part, text in held.items()
            },
            is_foreign=True,
        )
    return Texts(
        tokenizer,
        pack(tokenizer, train, settings.block, "training", separator),
        {
            part: pack(tokenizer, text, settings.block, names[part], separator)[: settings.heldout_blocks]
            for part, text in held.items()
        },
    )


def pack(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], block: int, name: str, separator: str = ""
) -> Tensor:
    """Blocks [count, block] of consecutive tokens. Tokens that do not fill the last block are dropped.

    Args:
        name: what the text is, for the message of an error.
        separator: empty if each text is a document, which an end token then follows; a newline if the texts are lines.

    Raises:
        NftbenchError: the text has fewer tokens than one block.
    """
    return _pack(_encode(tokenizer, texts, separator), block, name)


def encoded_for(corpus: Corpus, tokenizer: PreTrainedTokenizerBase | None) -> Tensor:
    """The training blocks [count, block] encoded by another tokenizer; unchanged if both have the same vocabulary.

    Raises:
        NftbenchError: `tokenizer` is None.
    """
    if tokenizer is None:
        raise NftbenchError("the model has no tokenizer to read text with")
    if tokenizer.get_vocab() == corpus.tokenizer.get_vocab():
        return corpus.train
    texts = corpus.tokenizer.batch_decode(corpus.train, clean_up_tokenization_spaces=False)
    ids = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    return _pack(ids, corpus.train.shape[1], "re-encoded")


def in_words_of(corpus: Corpus, tokenizer: PreTrainedTokenizerBase) -> Corpus:
    """The corpus in the tokens of another tokenizer; unchanged if both have the same vocabulary."""
    if tokenizer.get_vocab() == corpus.tokenizer.get_vocab():
        return corpus
    block = corpus.train.shape[1]
    decode = functools.partial(corpus.tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    train, heldout = (
        _pack_begun(tokenizer, [str(decode(blocks.flatten()))], block, name)
        for blocks, name in ((corpus.train[:COUNTED], "training"), (corpus.heldout, "held-out"))
    )
    return ForeignCorpus(tokenizer, train, heldout, _bytes(tokenizer, heldout, is_foreign=True))


COUNTED = 4096
"""The largest number of training blocks that are encoded anew, for the frequencies of tokens."""


def tokenization_rules(tokenizer: PreTrainedTokenizerBase) -> Any:
    """Everything that determines how a tokenizer encodes text, as a JSON value.

    It holds the tokenizer's class, vocabulary, special tokens, normalizer, pre-tokenizer and model. Truncation and
    padding are left out, because transformers sets them at each call.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else {}
    set_at_each_call = {"truncation": None, "padding": None}
    code = f"{type(tokenizer).__module__}.{type(tokenizer).__qualname__}"
    words, special = sorted(tokenizer.get_vocab().items()), sorted(tokenizer.special_tokens_map.items())
    return [code, words, {**rules, **set_at_each_call}, special]


def save(texts: Texts, folder: Path) -> None:
    """Write the tokenizer and the parts to a folder: train, heldout and scored, each in a file of its own."""
    texts.tokenizer.save_pretrained(folder)
    foreign = {"foreign": "true"} if texts.is_foreign else {}
    save_file({"blocks": texts.train}, folder / "train.safetensors")
    for part, blocks in texts.held.items():
        size = _bytes(texts.tokenizer, blocks, texts.is_foreign)
        save_file({"blocks": blocks}, folder / f"{part}.safetensors", metadata={"bytes": str(size), **foreign})


def _bytes(tokenizer: PreTrainedTokenizerBase, blocks: Tensor, is_foreign: bool) -> int:
    """Length of the blocks' text in UTF-8; in a `ForeignCorpus` as if the first token had that of an average one."""
    begun = is_foreign and beginning(tokenizer) is not None
    text = tokenizer.batch_decode(blocks[:, 1:] if begun else blocks, clean_up_tokenization_spaces=False)
    size = sum(len(block.encode()) for block in text)
    return round(size * blocks.shape[1] / (blocks.shape[1] - 1)) if begun else size


def load(folder: Path, held: Held = "heldout") -> Corpus:
    """Read a corpus that `save` wrote. Its `heldout` is the part `held`; the file of the other part may be missing."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    forget_path(tokenizer)
    with (
        safe_open(folder / "train.safetensors", "pt") as train,
        safe_open(folder / f"{held}.safetensors", "pt") as text,
    ):
        facts = text.metadata()
        kind = ForeignCorpus if "foreign" in facts else Corpus
        return kind(tokenizer, train.get_tensor("blocks"), text.get_tensor("blocks"), int(facts["bytes"]))


def word_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """A word-level tokenizer with a closed vocabulary, for text whose words are separated by spaces."""
    special = ["<pad>", "<unk>", EOS]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys([*special, *words]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token=EOS, eos_token=EOS
    )


def byte_pair_tokenizer(lines: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer like GPT-2's (Radford et al. 2019, section 2.2), trained on `lines`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=EOS, eos_token=EOS, pad_token=EOS)


def _lines(settings: CorpusSettings, selection: str | None, data: Path | None) -> list[str]:
    """The lines of the text.

    Args:
        selection: a split of the hub data set, or a glob pattern of local files in `data`.
    """
    import datasets

    datasets.disable_progress_bars()
    assert selection is not None
    if settings.source == "hub":
        rows = datasets.load_dataset(settings.path, settings.name, split=selection, revision=settings.revision)
        return [line for text in rows[settings.column] for line in (*text.splitlines(), EOS)]
    if data is None:
        raise NftbenchError("corpus.source text reads local files: give their folder with --data")
    files = sorted(data.glob(selection))
    if not files:
        raise NftbenchError(f"corpus: no file matches {data / selection}")
    try:
        rows = datasets.load_dataset("text", data_files=[str(path) for path in files], split="train")
    except Exception as error:  # the errors of lzma, unicode and datasets share no base class
        raise NftbenchError(f"corpus: {data / selection} cannot be read: {error.__cause__ or error}") from error
    return list(rows["text"])


def _halves(lines: Iterable[str]) -> Mapping[Held, list[str]]:
    """The lines of a held-out text in two parts: its documents in turn. Documents that occur again are dropped.

    Raises:
        NftbenchError: the text is one document.
    """
    documents: dict[tuple[str, ...], None] = {}  # an ordered set
    for end, group in itertools.groupby(lines, key=lambda line: line == EOS):
        if not end and any(document := tuple(group)):
            documents[document] = None
    if len(documents) < 2:
        raise NftbenchError(
            f"corpus: the held-out text needs two documents, one to be held out and one to be scored; a line {EOS} "
            f"ends a document"
        )
    ended = [[*document, EOS] for document in documents]
    return {"heldout": list(itertools.chain(*ended[::2])), "scored": list(itertools.chain(*ended[1::2]))}


def _documents(lines: Iterable[str]) -> Iterator[str]:
    """The documents of a text: its lines up to one of `EOS`. In the toy language, which has none, it is all of it."""
    for end, group in itertools.groupby(lines, key=lambda line: line == EOS):
        if not end:
            yield "\n".join(group) + "\n"


def _pack_begun(tokenizer: PreTrainedTokenizerBase, documents: Iterable[str], block: int, name: str) -> Tensor:
    """Blocks [count, block] of consecutive text tokens, each after the token that begins a document if there is one."""
    first = beginning(tokenizer)
    if first is None:
        return _pack(_encode(tokenizer, documents, "\n"), block, name)
    text = _pack(_encode(tokenizer, documents, "\n"), block - 1, name)
    return torch.cat([torch.full((len(text), 1), first), text], 1)


def _encode(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], separator: str) -> Iterator[list[int]]:
    """Token ids of each text.

    Without a separator (toy language) every text is a document and gets an end token. With one, the texts are lines of
    files, in which a line of `EOS` ends a document.
    """
    end = tokenizer.eos_token_id if not separator else None
    for batch in _batched(texts, 4096):
        lines = [text if text == EOS else text + separator for text in batch]
        for ids in tokenizer(lines, add_special_tokens=False, return_attention_mask=False)["input_ids"]:
            yield [*ids, end] if end is not None else ids


def _batched(texts: Iterable[str], size: int) -> Iterator[tuple[str, ...]]:
    iterator = iter(texts)
    while batch := tuple(itertools.islice(iterator, size)):
        yield batch


def _pack(documents: Iterable[list[int]], block: int, name: str) -> Tensor:
    """Blocks [count, block] of consecutive tokens. Tokens that do not fill the last block are dropped."""
    ids = torch.tensor(list(itertools.chain.from_iterable(documents)), dtype=torch.long)
    count = len(ids) // block
    if count == 0:
        raise NftbenchError(f"corpus: the {name} text has {len(ids)} tokens, fewer than one block of {block}")
    return ids[: count * block].view(count, block)
