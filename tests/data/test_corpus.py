"""Corpora: their three parts share no document, lie in files of their own, and depend on the salt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nftbench.data import corpus
from nftbench.data.corpus import EOS
from nftbench.errors import NftbenchError
from nftbench.planning.keys import corpus_key
from nftbench.running.workspace import load_task, make_corpus
from nftbench.suites.schema import Suite
from nftbench.testing.tiny import tiny_suite

TEXT = {"source": "text", "train": "train.txt", "heldout": "held.txt", "vocabulary": 300, "block": 8, "sentences": 1}


def files(folder: Path, held: str) -> Suite:
    """A suite that reads local files: a training text, and this held-out text."""
    (folder / "train.txt").write_text("the quick brown fox\n" * 50)
    (folder / "held.txt").write_text(held)
    return tiny_suite(corpus=TEXT)


def documents(*names: str) -> str:
    return "".join(f"here begins {name}\nand here ends {name}\n{EOS}\n" for name in names)


def test_each_part_can_be_loaded_without_the_other(tmp_path: Path) -> None:
    texts = corpus.build(tiny_suite(), 0, None)
    corpus.save(texts, tmp_path)
    owners, referees = corpus.load(tmp_path), corpus.load(tmp_path, "scored")
    assert torch.equal(owners.train, texts.train)
    assert torch.equal(referees.train, texts.train)
    assert torch.equal(owners.heldout, texts.held["heldout"])
    assert torch.equal(referees.heldout, texts.held["scored"])
    assert not torch.equal(owners.heldout, referees.heldout)
    for found in (owners, referees):
        text = found.tokenizer.batch_decode(found.heldout, clean_up_tokenization_spaces=False)
        assert found.heldout_bytes == len("".join(text).encode())
    (tmp_path / "scored.safetensors").unlink()
    assert torch.equal(corpus.load(tmp_path).heldout, owners.heldout)
    with pytest.raises(FileNotFoundError):
        corpus.load(tmp_path, "scored")


def test_tasks_score_a_text_that_owners_are_not_given(workspace: Callable[..., Any], tmp_path: Path) -> None:
    here = workspace(utility=["bits_per_token"])
    given, scored = make_corpus(here, 0), make_corpus(here, 0, "scored")
    assert make_corpus(here, 0) is given, "both are kept"
    assert not {*map(tuple, given.heldout.tolist())} & {*map(tuple, scored.heldout.tolist())}
    from nftbench.records.spec import Spec
    from nftbench.running.owner import Owner

    owner = Owner(here, 0)
    assert torch.equal(owner.corpus.heldout, given.heldout)
    task = load_task(here, Spec.parse("bits_per_token"), 0, owner.build())
    assert torch.equal(task.split("test").blocks, scored.heldout)  # type: ignore[attr-defined]


def test_held_out_documents_are_dealt_to_both_parts(tmp_path: Path) -> None:
    texts = corpus.build(files(tmp_path, documents("one", "two", "one", "three", "four")), 0, tmp_path)
    decoded = {part: "".join(texts.tokenizer.batch_decode(blocks)) for part, blocks in texts.held.items()}
    assert ["begins one" in decoded[part] for part in ("heldout", "scored")] == [True, False]
    assert ["begins two" in decoded[part] for part in ("heldout", "scored")] == [False, True]
    assert ["begins three" in decoded[part] for part in ("heldout", "scored")] == [True, False]
    assert ["begins four" in decoded[part] for part in ("heldout", "scored")] == [False, True]


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ("one line\nand another\n" * 30, "needs two documents"),
        (documents("one") * 20, "needs two documents"),
        (documents("one") + f"x\n{EOS}\n", "scored half of the held-out text has"),
    ],
)
def test_a_held_out_text_that_cannot_be_cut_is_refused(held: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(NftbenchError, match=message):
        corpus.build(files(tmp_path, held), 0, tmp_path)


def test_text_and_key_depend_on_the_salt() -> None:
    suites = [tiny_suite(), tiny_suite(salt="another")]
    first, second = (corpus.build(suite, 0, None) for suite in suites)
    assert first.tokenizer.get_vocab() != second.tokenizer.get_vocab()
    assert corpus_key(suites[0], 0, None) != corpus_key(suites[1], 0, None)
    with pytest.raises(NftbenchError, match="salt"):
        corpus.build(suites[0].model_copy(update={"salt": None}), 0, None)
