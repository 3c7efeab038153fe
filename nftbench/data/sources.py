"""The sources of a text task's documents: a function of the task, local files under --data, a local folder, or the hub.

Local files are named `DIR/<dataset_path>/<dataset_name>/<split>.*` and may be compressed by xz or gzip.
"""

from __future__ import annotations

import gzip
import json
import lzma
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import datasets
import numpy as np
import pandas as pd

from nftbench.errors import NftbenchError
from nftbench.planning import task_files


@dataclass(frozen=True)
class Documents:
    """The splits that a task uses, and a description of their source."""

    splits: datasets.DatasetDict
    source: str
    held_out: float | None = None
    """The share of the training split that replaces a missing test split; None if the test split exists."""


def load(config: Mapping[str, Any], splits: Sequence[str], scored: str, data: Path | None) -> Documents:
    """Read some splits of a task's data set.

    Args:
        config: the task's settings, as lm-eval reads them from its YAML file.
        splits: the names of the splits to read.
        scored: the name of the split that is used as the test split.
        data: the folder of local files (`--data`), if any.

    Raises:
        NftbenchError: the data set or a split is missing, or a file is damaged.
    """
    task, path = config.get("task"), config.get("dataset_path")
    if callable(function := config.get("custom_dataset")):
        found = _checked(
            task, lambda: function(**(config.get("metadata") or {}), **(config.get("dataset_kwargs") or {}))
        )
        # lm-eval names a function's module by its full path. Published records must not contain paths of this machine.
        module = Path(getattr(function, "__module__", "")).name
        source = f"{module}.{getattr(function, '__qualname__', 'function')}"
        return Documents(_only(task, found, splits), source)
    if path is None:
        raise NftbenchError(f"task {task}: has neither dataset_path nor custom_dataset")
    folder = task_files.find(data, config)
    if data is not None and folder is not None:
        # Relative to --data, because published records must not contain paths of this machine.
        return replace(_local(folder, config, splits, scored), source=f"--data/{folder.relative_to(data)}")
    options = {key: value for key, value in (config.get("dataset_kwargs") or {}).items() if key != "trust_remote_code"}
    found = _checked(task, lambda: datasets.load_dataset(path, config.get("dataset_name"), **options))
    return Documents(_only(task, found, splits), str(path))


def read(folder: Path, split: str) -> datasets.Dataset:
    """Read the documents of one split from its file.

    Raises:
        NftbenchError: the file is missing, truncated, or not in the format that its suffix says.
    """
    path = task_files.split_file(folder, split)
    if path is None:
        endings = ", ".join(task_files.SUFFIXES)
        raise NftbenchError(f"{folder / split}.*: no file for split {split!r}; looked for {endings}")
    try:
        if path.suffix == ".parquet":
            return datasets.Dataset.from_pandas(pd.read_parquet(path), preserve_index=False)
        if ".csv" in path.suffixes:
            return datasets.Dataset.from_pandas(_read_csv(path), preserve_index=False)
        with _open(path) as lines:
            return _dataset(list(_lines(path, lines)))
    except Exception as error:  # the errors of arrow, lzma, zlib and json share no base class
        raise NftbenchError(f"{path}: split {split!r} cannot be read: {_first_line(error)}") from error


def _local(folder: Path, config: Mapping[str, Any], splits: Sequence[str], scored: str) -> Documents:
    """Documents from local files. Without a test file, `metadata.held_out` of the training file is held out instead."""
    share = (config.get("metadata") or {}).get("held_out")
    if share is None or task_files.split_file(folder, scored) is not None:
        return Documents(datasets.DatasetDict({split: read(folder, split) for split in splits}), str(folder))
    train = config["training_split"]
    # A constant seed: the test split belongs to the task and is the same for every base seed.
    order = np.random.default_rng(0).permutation(len(whole := read(folder, train)))
    count = round(share * len(whole))
    found = {split: read(folder, split) for split in splits if split not in (train, scored)}
    found |= {scored: whole.select(np.sort(order[:count])), train: whole.select(np.sort(order[count:]))}
    return Documents(datasets.DatasetDict(found), str(folder), share)


def _open(path: Path) -> IO[str]:
    openers: dict[str, Callable[..., Any]] = {".xz": lzma.open, ".gz": gzip.open}
    lines: IO[str] = openers.get(path.suffix, open)(path, "rt", encoding="utf-8-sig")
    return lines


def _lines(path: Path, lines: IO[str]) -> Iterator[Mapping[str, Any]]:
    if ".txt" in path.suffixes:
        yield from ({"text": line.rstrip("\n")} for line in lines)
        return
    if ".json" in path.suffixes and (text := lines.read()).lstrip().startswith("["):
        yield from json.loads(text)
        return
    # Not splitlines, which also splits at characters that JSON allows in a text, such as U+2028.
    for number, line in enumerate(text.split("\n") if ".json" in path.suffixes else lines, start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None


def _read_csv(path: Path) -> pd.DataFrame:
    """A CSV file with its texts as written: `None`, `NA` and `null` are texts, and an empty cell is an empty text.

    In a column of numbers, an empty cell is None.
    """
    # low_memory=False: otherwise the type of a column is guessed for each part of the file
    table = pd.read_csv(path, keep_default_na=False, na_values=[""], dtype_backend="numpy_nullable", low_memory=False)
    for name in table.columns:
        if table[name].dtype == "string":
            table[name] = table[name].fillna("")
    return table


def _dataset(rows: Sequence[Any]) -> datasets.Dataset:
    """The rows with every field that any of them has, which is None where a row lacks it.

    `datasets` itself takes the fields of the first row alone.
    """
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ValueError(f"document {number} is no object with named fields: {json.dumps(row)[:40]}")
    columns = {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}
    for name, values in columns.items():
        try:
            datasets.Dataset.from_dict({name: values})
        except Exception as error:  # arrow's error does not say in which field
            raise ValueError(f"field {name!r}: {_first_line(error)}") from error
    return datasets.Dataset.from_dict(columns)


def _checked(task: object, read: Callable[[], datasets.DatasetDict]) -> datasets.DatasetDict:
    """The result of `read`; any error it raises becomes an NftbenchError that names the task."""
    try:
        return read()
    except NftbenchError:
        raise
    except Exception as error:  # those of the hub, of dataset builders and of a task's function share no base class
        raise NftbenchError(f"task {task}: its data cannot be loaded: {_first_line(error)}") from error


def _only(task: object, found: datasets.DatasetDict, splits: Sequence[str]) -> datasets.DatasetDict:
    for split in splits:
        if split not in found:
            raise NftbenchError(
                f"task {task}: its data set has no split {split!r}; it has {', '.join(map(str, found))}"
            )
    return datasets.DatasetDict({split: found[split] for split in splits})


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".split("\n", 1)[0]
