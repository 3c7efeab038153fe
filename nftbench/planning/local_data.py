"""Where a text task's local files lie under --data; light enough for planning, which hashes them."""

from __future__ import annotations

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
    content: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), _WithoutFunctions) or {}
    included = content.pop("include", None) or []
    merged: dict[str, Any] = {}
    for other in [included] if isinstance(included, str) else included:
        merged |= settings(path.parent / other)
    return merged | content


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
