"""Text tasks without lm-eval: the settings in their YAML files, their Python functions, and their data under --data."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from nftbench.errors import NftbenchError


class _WithoutFunctions(yaml.SafeLoader):
    """Reads a task's YAML file without importing the functions that its `!function` tags name."""


_WithoutFunctions.add_constructor("!function", lambda loader, node: str(node.value))


def settings(path: Path) -> dict[str, Any]:
    """The keys of a task file and of the files that it includes, whose keys it overrides. Functions are their names."""
    content, _ = _read(path)
    merged: dict[str, Any] = {}
    for other in _included(path):
        merged |= settings(other)
    return merged | {key: value for key, value in content.items() if key != "include"}


def functions(path: Path) -> set[Path]:
    """The Python files that define the functions of a task file and of the files that it includes."""
    _, modules = _read(path)
    own = {path.parent / f"{module.replace('.', '/')}.py" for module in modules}
    return own.union(*map(functions, _included(path)))


def _included(path: Path) -> list[Path]:
    included = _read(path)[0].get("include") or []
    return [path.parent / other for other in ([included] if isinstance(included, str) else included)]


def _read(path: Path) -> tuple[Mapping[str, Any], frozenset[str]]:
    """A file's own keys, and the modules of its functions. An unchanged file is parsed only once."""
    status = path.stat()
    return _parsed(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=256)
def _parsed(path: Path, changed: int, size: int) -> tuple[Mapping[str, Any], frozenset[str]]:
    text = path.read_text(encoding="utf-8")
    modules = re.findall(r"!function\s+([\w.]+)\.\w+", text)
    return yaml.load(text, _WithoutFunctions) or {}, frozenset(modules)


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
