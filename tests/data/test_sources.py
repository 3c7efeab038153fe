"""Documents of text tasks from local files: texts as they are written, every field, and --data before other folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from nftbench.data import sources
from nftbench.device import CPU
from nftbench.errors import NftbenchError
from nftbench.planning import facts, registry, task_files
from nftbench.planning.keys import Keys
from nftbench.records.spec import Spec
from nftbench.testing import tiny_suite

ROWS = [{"text": f"text {i}", "label": i % 2} for i in range(4)]


def write(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows or ROWS), encoding="utf-8")
    return path


# ------------------------------------------------------------------------------------------------------------- reading


def test_texts_of_a_csv_file_are_as_written(tmp_path: Path) -> None:
    words = ["None", "NA", "null", "nan", "N/A", "", "007 ", "fine"]
    (tmp_path / "test.csv").write_text("text,label\n" + "".join(f"{word},{i}\n" for i, word in enumerate(words)))
    found = sources.read(tmp_path, "test")
    assert found["text"][:] == words
    assert found["label"][:] == list(range(len(words)))


def test_an_empty_number_of_a_csv_file_is_none(tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text("text,label,share\na,1,0.5\nb,,\n")
    found = sources.read(tmp_path, "test")
    assert found["label"][:] == [1, None]
    assert found["share"][:] == [0.5, None]


def test_a_csv_column_has_one_type_however_long_the_file(tmp_path: Path) -> None:
    """Pandas may guess a type for each part of a file: in one column, 07 would be a number here and a text there."""
    names = [f"column{i}" for i in range(512)]  # pandas reads the fewer rows at once the more columns there are
    cells = ["07"] * 3000 + ["seven"]
    lines = [",".join(names), *(cell + "," * (len(names) - 1) for cell in cells)]
    (tmp_path / "test.csv").write_text("\n".join(lines) + "\n")
    assert set(sources.read(tmp_path, "test")["column0"][:]) == {"07", "seven"}


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_a_field_that_the_first_row_lacks_is_read(suffix: str, tmp_path: Path) -> None:
    write(tmp_path / f"test{suffix}", {"a": 1}, {"a": 2, "note": "x"}, {"note": "y", "of": {"b": 1}}, {"of": {"c": 2}})
    found = sources.read(tmp_path, "test")
    assert found["a"][:] == [1, 2, None, None]
    assert found["note"][:] == [None, "x", "y", None]
    assert found["of"][:] == [None, None, {"b": 1, "c": None}, {"b": None, "c": 2}]


def test_whole_and_broken_numbers_are_mixed(tmp_path: Path) -> None:
    write(tmp_path / "test.jsonl", {"a": 1}, {"a": 2.5})
    assert sources.read(tmp_path, "test")["a"][:] == [1.0, 2.5]


@pytest.mark.parametrize(
    ("rows", "said"),
    [([{"a": 1, "b": 1}, {"a": 1, "b": "x"}], "field 'b': "), ([{"a": 1}, [1, 2]], "document 2 is no object")],
)
def test_what_cannot_be_a_table_is_named(rows: list[Any], said: str, tmp_path: Path) -> None:
    write(tmp_path / "test.jsonl", *rows)
    with pytest.raises(NftbenchError, match=said) as caught:
        sources.read(tmp_path, "test")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0c", "\x1c"])
def test_a_text_may_hold_any_character(mark: str, suffix: str, tmp_path: Path) -> None:
    text = f"one{mark}two"
    line = json.dumps({"text": text}, ensure_ascii=ord(mark) < 32)
    (tmp_path / f"test{suffix}").write_text(f"{line}\n{line}\n", encoding="utf-8")
    assert sources.read(tmp_path, "test")["text"][:] == [text, text]


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    path = write(tmp_path / "test.jsonl")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert sources.read(tmp_path, "test")["text"][0] == "text 0"


# --------------------------------------------------------------------------------------------------------------- where


Task = Callable[..., Path]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, in which a task's data may lie."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config(**changes: Any) -> dict[str, Any]:
    return {"task": "mine", "training_split": "train", "test_split": "test", "output_type": "multiple_choice"} | {
        "doc_to_text": "{{text}}",
        "doc_to_choice": ["a", "b"],
        "doc_to_target": "label",
        **changes,
    }


def key(path: Path, data: Path | None) -> str:
    """The key of a cell of the task in this file."""
    with registry.added(path):
        keys = Keys(tiny_suite(), CPU, data, None, {}, {Spec("full"): facts.attack("full")})
        return keys.cell("release", Spec("full"), Spec(path.stem), 0)


def task(folder: Path, **changes: Any) -> Path:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(config(**changes)))
    return path


def test_data_win_over_a_folder_of_the_working_directory(here: Path) -> None:
    for split in ("train", "test"):
        write(here / "reviews" / f"{split}.jsonl", {"text": "from the working directory", "label": 0})
        write(here / "data" / "reviews" / f"{split}.jsonl", {"text": "from --data", "label": 0})
    asked = config(dataset_path="reviews")
    found = sources.load(asked, ["train", "test"], "test", here / "data")
    assert found.splits["test"]["text"][:] == ["from --data"]
    assert found.source == "--data/reviews"


def test_a_folder_of_the_working_directory_is_read_and_is_in_the_key(here: Path) -> None:
    (here / "data").mkdir()
    for split in ("train", "test"):
        write(here / "reviews" / f"{split}.jsonl")
    path, asked = task(here, dataset_path="reviews"), config(dataset_path="reviews")
    for data in (None, here / "data"):
        options = {"dataset_kwargs": {"cache_dir": str(here / "hf")}}
        assert len(sources.load(asked | options, ["train", "test"], "test", data).splits["test"]) == 4
    before = key(path, None)
    assert key(path, here / "data") == before
    write(here / "reviews" / "test.jsonl", {"text": "other", "label": 0})
    assert key(path, None) != before


@pytest.mark.parametrize("named", [{"test": "files/test.jsonl", "train": ["files/train.jsonl"]}, "files/*.jsonl"])
def test_a_task_may_name_its_files_beside_data(named: Any, here: Path) -> None:
    (here / "data").mkdir()
    for split in ("train", "test"):
        write(here / "files" / f"{split}.jsonl")
    options = {"dataset_path": "json", "dataset_kwargs": {"data_files": named, "cache_dir": str(here / "hf")}}
    splits = ["train", "test"] if isinstance(named, dict) else ["train"]
    assert len(sources.load(config(**options), splits, splits[-1], here / "data").splits["train"]) >= 4
    path = task(here, **options)
    before = key(path, here / "data")
    write(here / "files" / "test.jsonl", {"text": "other", "label": 0})
    assert key(path, here / "data") != before


def test_a_named_file_that_is_missing_is_refused_before_any_work(here: Path) -> None:
    path = task(here, dataset_path="json", dataset_kwargs={"data_files": "gone.jsonl"})
    with pytest.raises(NftbenchError, match="no file matches 'gone"):
        key(path, None)


def test_files_of_the_hub_and_of_the_web_are_not_looked_for(here: Path) -> None:
    web = config(dataset_path="json", dataset_kwargs={"data_files": "https://example.org/a.jsonl"})
    hub = config(dataset_path="owner/set", dataset_kwargs={"data_files": "a.jsonl"})
    assert task_files.data_files(None, web) == task_files.data_files(None, hub) == []


def test_data_of_a_function_need_no_folder(here: Path) -> None:
    made = config(dataset_path="reviews", custom_dataset="mine.documents")
    assert task_files.data_files(here, made) == []


# ---------------------------------------------------------------------------------------------------------------- keys


def test_an_included_file_is_in_the_key(here: Path) -> None:
    base = here / "base.yaml"
    base.write_text(yaml.safe_dump(config(dataset_path="owner/set")))
    between, path = here / "between.yaml", here / "mine.yaml"
    between.write_text("include: base.yaml\n")
    path.write_text("include: [between.yaml]\ndoc_to_target: label\n")
    before = key(path, None)
    base.write_text(yaml.safe_dump(config(dataset_path="owner/set", doc_to_text="Review: {{text}}")))
    assert key(path, None) != before


def test_keys_of_several_types_are_read_below_the_top_and_refused_there(here: Path) -> None:
    first = key(task(here, dataset_path="owner/set", metadata={"version": 1, 2: "two"}), None)
    assert key(task(here, dataset_path="owner/set", metadata={"version": 1, 2: "three"}), None) != first
    path = task(here, dataset_path="owner/set")
    path.write_text(path.read_text() + "on: 1\n")
    with pytest.raises(NftbenchError, match="the key True is no text"):
        key(path, None)
