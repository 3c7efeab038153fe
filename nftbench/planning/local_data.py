"""Text tasks as planning sees them: their settings, the code that they name, their files under --data."""

from __future__ import annotations

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
    content = _content(path)
    merged: dict[str, Any] = {}
    for other in _included(path, content):
        merged |= settings(other)
    return merged | {key: value for key, value in content.items() if key != "include"}


def functions(path: Path) -> set[Path]:
    """The Python files in which the functions of a task file, and of those that it includes, are defined."""
    modules = re.findall(r"!function\s+([\w.]+)\.\w+", path.read_text(encoding="utf-8"))
    found = {path.parent / f"{module.replace('.', '/')}.py" for module in modules}
    return found.union(*map(functions, _included(path, _content(path))))


def _content(path: Path) -> dict[str, Any]:
    return yaml.load(path.read_text(encoding="utf-8"), _WithoutFunctions) or {}


def _included(path: Path, content: Mapping[str, Any]) -> list[Path]:
    included = content.get("include") or []
    return [path.parent / other for other in ([included] if isinstance(included, str) else included)]


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
