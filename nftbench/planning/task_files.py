"""Text tasks without lm-eval: the settings in their YAML files, their Python functions, and their data under --data."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from nftbench.errors import NftbenchError


class _WithoutFunctions(yaml.SafeLoader):
    """Reads a task's YAML file without importing the functions that its `!function` tags name."""


_WithoutFunctions.add_constructor("!function", lambda loader, node: str(node.value))


def settings(path: Path) -> dict[str, Any]:
    """The keys of a task file and of the files that it includes, whose keys it overrides. Functions are their names.

    Raises:
        NftbenchError: one of the files holds no mapping, or includes itself.
    """
    merged: dict[str, Any] = {}
    for file in _files(path):
        merged |= {key: value for key, value in _read(file)[0].items() if key != "include"}
    return merged


def functions(path: Path) -> set[tuple[Path, str]]:
    """The modules of the functions that a task file and the files that it includes name.

    Each comes with the folder of the file that names it: as in lm-eval, a module lies in that folder or can be
    imported.
    """
    return {(file.parent, module) for file in _files(path) for module in _read(file)[1]}


def _files(path: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """A task file after the files that it includes, directly or through others."""
    if path in above:
        raise NftbenchError(f"{path}: includes itself")
    included = _read(path)[0].get("include") or []
    for other in [included] if isinstance(included, str) else included:
        yield from _files((path.parent / other).resolve(), (*above, path))
    yield path


def _read(path: Path) -> tuple[Mapping[str, Any], frozenset[str]]:
    """A file's own keys, and the modules of its functions. An unchanged file is parsed only once."""
    status = path.stat()
    return _parsed(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=256)
def _parsed(path: Path, changed: int, size: int) -> tuple[Mapping[str, Any], frozenset[str]]:
    text = path.read_text(encoding="utf-8")
    modules = re.findall(r"""!function\s+["']?([\w.]+)\.\w+""", text)
    try:
        content = yaml.load(text, _WithoutFunctions) or {}
    except yaml.YAMLError as error:
        raise NftbenchError(f"{path}: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise NftbenchError(f"{path}: no mapping of keys to values")
    return content, frozenset(modules)


def find(data: Path, config: Mapping[str, Any]) -> Path:
    """The folder with a task's data: `<data>/<dataset_path>/<dataset_name>`.

    If `dataset_path` has an owner, as in `nyu-mll/glue`, the folder may be named without it. If the task sets
    `metadata.folder`, that is used instead of `dataset_path`.

    Raises:
        NftbenchError: the folder does not exist.
    """
    path = (config.get("metadata") or {}).get("folder") or config["dataset_path"]
    name = config.get("dataset_name") or ""
    folders: list[Path] = [data / folder / name for folder in (path, path.rsplit("/", 1)[-1])]
    for folder in folders:
        if folder.is_dir():
            return folder
    raise NftbenchError(f"{folders[-1]}: no such folder; the data of task {config.get('task')} should be in it")
