"""What a suite reads under --data is looked for before anything is planned, and what is wrong is said in one line."""

from __future__ import annotations

import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest

from nftbench import suites
from nftbench.cli import local_data
from nftbench.errors import NftbenchError
from nftbench.testing import tiny_suite

DOCUMENTS = "one two three\nfour\n<|endoftext|>\nfive six seven eight\n<|endoftext|>\n"


def rows(count: int = 2) -> str:
    return "".join(
        json.dumps({"sentence": f"word {index}", "text": "x", "label": index}) + "\n" for index in range(count)
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """All that the suite below reads."""
    files = {
        "text/train.txt": DOCUMENTS,
        "text/heldout.txt": DOCUMENTS,
        "glue/sst2/train.jsonl": rows(),
        "glue/sst2/validation.jsonl": rows(),
        "agnews/train.jsonl": rows(),
        "blimp/BLiMP.zip": "not looked into",
    }
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return tmp_path


@pytest.fixture(scope="module")
def suite() -> suites.Suite:
    text = {"source": "text", "train": "text/train.txt", "heldout": "text/heldout*", "vocabulary": 300}
    return tiny_suite(corpus=text, salt=None, tasks=["sst2", "ag_news"], utility=["bits_per_byte", "blimp"])


def said(suite: suites.Suite, data: Path | None) -> str:
    with pytest.raises(NftbenchError) as caught:
        local_data.check(suite, data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_whole_folder_passes(suite: suites.Suite, data: Path) -> None:
    local_data.check(suite, data)
    (data / "text/heldout.txt").unlink()
    (data / "text/heldout.txt.xz").write_bytes(lzma.compress(DOCUMENTS.encode()))
    local_data.check(suite, data)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda data: (data / "text/heldout.txt").write_text("one\ntwo\n"), "text/heldout*: the held-out text needs"),
        (lambda data: (data / "text/heldout.txt").write_text(DOCUMENTS.split("five")[0]), "a line <|endoftext|> ends"),
        (lambda data: (data / "text/heldout.txt").write_text(""), "text/heldout.txt is empty"),
        (lambda data: (data / "text/train.txt").write_text(""), "text/train.txt is empty"),
        (lambda data: (data / "text/train.txt").unlink(), "no file matches "),
        (lambda data: (data / "text/heldout.txt").rename(data / "text/heldout.txt.xz"), "cannot be read"),
        (lambda data: (data / "blimp/BLiMP.zip").unlink(), "blimp: is empty; the data of task blimp should be in it"),
        (lambda data: (data / "agnews/train.jsonl").rename(data / "agnews/tarin.jsonl"), "task ag_news reads its "),
        (lambda data: (data / "glue/sst2/validation.jsonl").unlink(), "task sst2 reads its split 'validation' there"),
        (lambda data: (data / "glue/sst2").rename(data / "sst2"), "glue/sst2: no such folder; the data of task "),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_file(
    spoil: Callable[[Path], object], expected: str, suite: suites.Suite, data: Path
) -> None:
    spoil(data)
    message = said(suite, data)
    assert str(data) in message
    assert expected in message


def test_everything_that_lacks_is_named_at_once(suite: suites.Suite, data: Path) -> None:
    (data / "text/train.txt").unlink()
    (data / "blimp/BLiMP.zip").unlink()
    (data / "glue/sst2").rename(data / "sst2")
    message = said(suite, data)
    assert all(each in message for each in ("no file matches ", "blimp: is empty", "glue/sst2: no such folder"))
    assert message.count("; ") >= 2


def test_local_text_needs_the_folder(suite: suites.Suite) -> None:
    assert said(suite, None).endswith("its pre-training text is local: give the folder with --data")


def test_a_plan_ends_where_the_run_would(
    suite: suites.Suite, data: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    (data / "text/heldout.txt").write_text("one\ntwo\n")
    changes = [f"corpus={suite.corpus.model_dump_json()}", "corpus.block=32"]
    words = [word for change in changes for word in ("--set", change)]
    code, _, complaint = call("plan", "wiki-small", "--data", data, *words)
    assert code == 2
    assert complaint.startswith(f"nftbench: wiki-small: corpus: {data}/text/heldout*: the held-out text needs two")
    assert complaint.count("\n") == 1
