"""Text tasks without lm-eval: the settings in their YAML files, their Python functions, and their data under --data."""

from __future__ import annotations

import functools
import glob
import importlib.util
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from nftbench.errors import NftbenchError, yaml_problem
from nftbench.suites.keys_once import KeysOnce

SUFFIXES = (
    *(suffix + packed for suffix in (".jsonl", ".json", ".csv", ".txt") for packed in ("", ".xz", ".gz")),
    ".parquet",
)
"""Endings of the files that hold a split, as in `train.jsonl.xz`."""
READERS = ("json", "csv", "parquet", "text", "arrow")
"""Values of `dataset_path` that `datasets` reads as file formats. Tasks that use them name their files themselves."""


class _WithoutFunctions(KeysOnce):
    """Reads a task's YAML file without importing the functions that its `!function` tags name."""


class _OfLmEval(yaml.SafeLoader):
    """The same for files that come with lm-eval. A dozen of them have a key twice, and lm-eval takes the last one."""


for _loader in (_WithoutFunctions, _OfLmEval):
    _loader.add_constructor("!function", lambda loader, node: str(node.value))


def settings(path: Path) -> dict[str, Any]:
    """The keys of a task file and of the files that it includes, whose keys it overrides. Functions are their names.

    Raises:
        NftbenchError: one of the files holds no mapping, or includes itself.
    """
    merged: dict[str, Any] = {}
    for file in files(path):
        merged |= {key: value for key, value in _read(file)[0].items() if key != "include"}
    return merged


def functions(path: Path) -> set[tuple[Path, str]]:
    """The modules of the functions that a task file and the files that it includes name.

    Each comes with the folder of the file that names it: as in lm-eval, a module lies in that folder or can be
    imported.
    """
    return {(file.parent, module) for file in files(path) for module in _read(file)[1]}


def files(path: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """A task file after the files that it includes, directly or through others."""
    if path in above:
        raise NftbenchError(f"{path}: includes itself")
    included = _read(path)[0].get("include") or []
    for other in [included] if isinstance(included, str) else included:
        yield from files((path.parent / other).resolve(), (*above, path))
    yield path


def _read(path: Path) -> tuple[Mapping[str, Any], frozenset[str]]:
    """A file's own keys, and the modules of its functions. An unchanged file is parsed only once."""
    status = path.stat()
    return _parsed(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=256)
def _parsed(path: Path, changed: int, size: int) -> tuple[Mapping[str, Any], frozenset[str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise NftbenchError(f"{path}: this is not text in UTF-8: {error}") from None
    modules = re.findall(r"""!function\s+["']?([\w.]+)\.\w+""", text)
    try:
        content = yaml.load(text, _OfLmEval if _is_of_lm_eval(path) else _WithoutFunctions)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2024-13-45
        raise NftbenchError(f"{path}: not YAML: {yaml_problem(error)}") from None
    if content is None:
        raise NftbenchError(f"{path}: is empty")
    if not isinstance(content, dict):
        raise NftbenchError(f"{path}: a task file must be keys with values")
    for key in content:
        if not isinstance(key, str):  # YAML reads `on` and `no` as truth values
            raise NftbenchError(f"{path}: the key {key!r} is no text; quote it")
    try:
        content = json.loads(json.dumps(content, default=str))  # keys of other types, deeper down, become texts
    except TypeError as error:
        raise NftbenchError(f"{path}: {error}") from None
    return content, frozenset(modules)


@functools.cache
def lm_eval_folder() -> Path | None:
    """The folder of the tasks that come with lm-eval, which is not imported; None where it is not installed."""
    package = importlib.util.find_spec("lm_eval")
    places = package.submodule_search_locations if package is not None else None
    return Path(places[0], "tasks") if places else None


def _is_of_lm_eval(path: Path) -> bool:
    folder = lm_eval_folder()
    return folder is not None and (path.is_relative_to(folder) or path.is_relative_to(folder.resolve()))


def find(data: Path | None, config: Mapping[str, Any]) -> Path | None:
    """The folder with a task's data under --data: `<data>/<dataset_path>/<dataset_name>`.

    If `dataset_path` has an owner, as in `nyu-mll/glue`, the folder may be named without it. If the task sets
    `metadata.folder`, that is used instead of `dataset_path`.

    It is None where `datasets` or a function of the task finds the data: without --data, for file formats
    (`READERS`), for absolute paths, and for a folder of the working directory that --data does not have.

    Raises:
        NftbenchError: there is such a folder neither under --data nor in the working directory.
    """
    own = _data_set(config)
    path = _metadata(config).get("folder") or (None if own in READERS else own)
    if data is None or path is None or Path(path).is_absolute():
        return None
    name = config.get("dataset_name") or ""
    folders: list[Path] = [data / folder / name for folder in (path, path.rsplit("/", 1)[-1])]
    for folder in folders:
        if folder.is_dir():
            return folder
    if own is not None and Path(own).exists():
        return None
    raise NftbenchError(f"{folders[-1]}: no such folder; the data of task {config.get('task')} should be in it")


def split_file(folder: Path, split: str) -> Path | None:
    """The file in a task's folder that holds a split; None if there is none."""
    return next((path for suffix in SUFFIXES if (path := folder / f"{split}{suffix}").is_file()), None)


def data_files(data: Path | None, config: Mapping[str, Any]) -> list[Path]:
    """The local files that a task's data are read from, in the order of their paths. On the hub there are none.

    Raises:
        NftbenchError: the folder under --data or a file in `data_files` is missing.
    """
    folder = find(data, config)
    if folder is not None:
        return sorted(file for file in folder.iterdir() if file.is_file())
    path = _data_set(config)
    if path is None:
        return []
    options = config.get("dataset_kwargs") or {}
    files = [] if path in READERS else _files_at(Path(path))
    base = Path() if path in READERS else Path(path)
    for name in [*_flat(options.get("data_files")), *_flat(options.get("data_dir"))]:
        if "://" in name or not base.exists():  # a web address, or a file of a data set on the hub
            continue
        matches = glob.glob(str(base / name), recursive=True)  # noqa: PTH207 (Path.glob takes no absolute pattern)
        found = [file for match in matches for file in _files_at(Path(match))]
        if not found:
            raise NftbenchError(f"task {config.get('task')}: no file matches {str(base / name)!r}")
        files += found
    return sorted(set(files))


def _data_set(config: Mapping[str, Any]) -> str | None:
    """The task's `dataset_path`, which does not count where a function of the task makes its documents."""
    return None if config.get("custom_dataset") else config.get("dataset_path")


def _metadata(config: Mapping[str, Any]) -> Mapping[str, Any]:
    found = config.get("metadata")
    return found if isinstance(found, dict) else {}  # a list in some older task files


def _flat(names: Any) -> list[str]:
    """The names in `data_files`: one, a list, or a mapping of splits to one or a list."""
    if isinstance(names, dict):
        return [one for value in names.values() for one in _flat(value)]
    return [] if names is None else [str(names)] if not isinstance(names, list | tuple) else [str(one) for one in names]


def _files_at(path: Path) -> list[Path]:
    """The path itself if it is a file, or every file below it."""
    return [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
