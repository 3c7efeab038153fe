"""Pre-training text becomes packed blocks of tokens: the toy language, local files, or a hub data set."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from nftbench.contract import Corpus
from nftbench.data.grammar import Grammar
from nftbench.errors import NftbenchError
from nftbench.models.networks import forget_path
from nftbench.suites.schema import CorpusSettings

EOS = "<|endoftext|>"
"""Closes a document, in local text files too, where it stands on a line of its own."""


def build(settings: CorpusSettings, seed: int, data: Path | None) -> Corpus:
    """Read or generate the text, train the tokenizer where none is given, pack the blocks.

    `seed` is the base seed: it chooses the toy language's grammar. Real text does not depend on it.

    Raises:
        NftbenchError: no such file, or too little text for one block.
    """
    if settings.source == "toy":
        grammar = Grammar(settings.grammar + seed)
        tokenizer = word_tokenizer(grammar.words())
        train: Iterable[str] = grammar.corpus(settings.sentences, "train")
        heldout: Iterable[str] = grammar.corpus(max(settings.sentences // 10, 100), "heldout")
    else:
        train = _lines(settings, settings.train, data)
        heldout = _lines(settings, settings.heldout, data)
        assert settings.vocabulary is not None
        tokenizer = byte_pair_tokenizer(train, settings.vocabulary)
    separator = "" if settings.source == "toy" else "\n"
    train_blocks = _pack(_encode(tokenizer, train, separator), settings.block, "training")
    heldout_blocks = _pack(_encode(tokenizer, heldout, separator), settings.block, "held-out")
    heldout_blocks = heldout_blocks[: settings.heldout_blocks]
    text = tokenizer.batch_decode(heldout_blocks, clean_up_tokenization_spaces=False)
    return Corpus(tokenizer, train_blocks, heldout_blocks, sum(len(block.encode()) for block in text))


def encoded_for(corpus: Corpus, tokenizer: PreTrainedTokenizerBase | None) -> Tensor:
    """The training blocks [blocks, block] in the tokens of another tokenizer; as they are for one with the same words.

    Raises:
        NftbenchError: there is no tokenizer.
    """
    if tokenizer is None:
        raise NftbenchError("the model has no tokenizer to read text with")
    if tokenizer.get_vocab() == corpus.tokenizer.get_vocab():
        return corpus.train
    texts = corpus.tokenizer.batch_decode(corpus.train, clean_up_tokenization_spaces=False)
    ids = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    return _pack(ids, corpus.train.shape[1], "re-encoded")


def reading_rules(tokenizer: PreTrainedTokenizerBase) -> Any:
    """All that decides how a tokenizer reads: its code, its words, the normalizer, splitting and model behind them.

    Truncation and padding are left out, which transformers sets anew at each call.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else {}
    passing = {"truncation": None, "padding": None}
    code = f"{type(tokenizer).__module__}.{type(tokenizer).__qualname__}"
    words, special = sorted(tokenizer.get_vocab().items()), sorted(tokenizer.special_tokens_map.items())
    return [code, words, {**rules, **passing}, special]


def save(corpus: Corpus, folder: Path) -> None:
    """Write the tokenizer and the blocks."""
    corpus.tokenizer.save_pretrained(folder)
    save_file({"train": corpus.train, "heldout": corpus.heldout}, folder / "blocks.safetensors")
    (folder / "corpus.json").write_text(json.dumps({"heldout_bytes": corpus.heldout_bytes}))


def load(folder: Path) -> Corpus:
    """Read what `save` wrote."""
    blocks = load_file(folder / "blocks.safetensors")
    about = json.loads((folder / "corpus.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    forget_path(tokenizer)
    return Corpus(tokenizer, blocks["train"], blocks["heldout"], about["heldout_bytes"])


def word_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """A word-level tokenizer over a closed vocabulary; words are separated by spaces."""
    special = ["<pad>", "<unk>", EOS]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys([*special, *words]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token=EOS, eos_token=EOS
    )


def byte_pair_tokenizer(lines: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, as GPT-2's (Radford et al. 2019, section 2.2), trained on `lines`."""
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


def _lines(settings: CorpusSettings, place: str | None, data: Path | None) -> list[str]:
    """The lines of local text files or the documents of a hub data set."""
    import datasets

    datasets.disable_progress_bars()
    assert place is not None
    if settings.source == "hub":
        rows = datasets.load_dataset(settings.path, settings.name, split=place, revision=settings.revision)
        return [line for text in rows[settings.column] for line in (*text.splitlines(), EOS)]
    if data is None:
        raise NftbenchError("corpus.source text reads local files: give their folder with --data")
    files = sorted(data.glob(place))
    if not files:
        raise NftbenchError(f"corpus: no file matches {data / place}")
    try:
        rows = datasets.load_dataset("text", data_files=[str(path) for path in files], split="train")
    except Exception as error:  # lzma, unicode and datasets' own errors have no common class
        raise NftbenchError(f"corpus: {data / place} cannot be read: {error.__cause__ or error}") from error
    return list(rows["text"])


def _encode(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], separator: str) -> Iterator[list[int]]:
    """Token ids of each text. A toy sentence is a document; in files a line of `EOS` closes one."""
    closed = tokenizer.eos_token_id if not separator else None
    for batch in _batched(texts, 4096):
        lines = [text if text == EOS else text + separator for text in batch]
        for ids in tokenizer(lines, add_special_tokens=False, return_attention_mask=False)["input_ids"]:
            yield [*ids, closed] if closed is not None else ids


def _batched(texts: Iterable[str], size: int) -> Iterator[tuple[str, ...]]:
    iterator = iter(texts)
    while batch := tuple(itertools.islice(iterator, size)):
        yield batch


def _pack(documents: Iterable[list[int]], block: int, what: str) -> Tensor:
    ids = torch.tensor(list(itertools.chain.from_iterable(documents)), dtype=torch.long)
    count = len(ids) // block
    if count == 0:
        raise NftbenchError(f"corpus: the {what} text has {len(ids)} tokens, fewer than one block of {block}")
    return ids[: count * block].view(count, block)
