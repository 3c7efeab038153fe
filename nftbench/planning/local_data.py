"""Text tasks as planning sees them: their settings, the code that they name, their files under --data."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from nftbench.errors import NftbenchError


class _WithoutFunctions(yaml.SafeLoader):
    """Reads a task's YAML without importing what its `!function` tags name."""


_WithoutFunctions.add_constructor("!function", lambda loader, node: str(node.value))


def settings(path: Path) -> dict[str, Any]:
    """A task file's keys, those of the files that it includes beneath them; functions stay names."""
    content, _ = _read(path)
    merged: dict[str, Any] = {}
    for other in _included(path):
        merged |= settings(other)
    return merged | {key: value for key, value in content.items() if key != "include"}


def functions(path: Path) -> set[Path]:
    """The Python files in which the functions of a task file, and of those that it includes, are defined."""
    _, modules = _read(path)
    found = {path.parent / f"{module.replace('.', '/')}.py" for module in modules}
    return found.union(*map(functions, _included(path)))


def _included(path: Path) -> list[Path]:
    included = _read(path)[0].get("include") or []
    return [path.parent / other for other in ([included] if isinstance(included, str) else included)]


def _read(path: Path) -> tuple[Mapping[str, Any], frozenset[str]]:
    """A file's own keys, and the modules of the functions that it names; parsed once for each version of the file."""
    status = path.stat()
    return _parsed(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=256)
def _parsed(path: Path, changed: int, size: int) -> tuple[Mapping[str, Any], frozenset[str]]:
    text = path.read_text(encoding="utf-8")
    modules = re.findall(r"!function\s+([\w.]+)\.\w+", text)
    return yaml.load(text, _WithoutFunctions) or {}, frozenset(modules)


def find(data: Path, config: Mapping[str, Any]) -> Path:
    """`DIR/<path>/<name>`; the owner on the hub, as in `nyu-mll/glue`, may be left out of the folder's name.

    `metadata.folder` of the task stands before `dataset_path`.

    Raises:
        NftbenchError: there is no such folder.
    """
    path = (config.get("metadata") or {}).get("folder") or config["dataset_path"]
    name = config.get("dataset_name") or ""
    places: list[Path] = [data / place / name for place in (path, path.rsplit("/", 1)[-1])]
    for place in places:
        if place.is_dir():
            return place
    raise NftbenchError(f"{places[-1]}: no such folder, where the data of task {config.get('task')} should be")
