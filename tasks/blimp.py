"""The documents of task `blimp`: BLiMP's minimal pairs, from the published archive or from the hub."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from nftbench import NftbenchError

HUB = "nyu-mll/blimp"


def pairs(data: str | None = None, folder: str = "blimp", **_: Any) -> datasets.DatasetDict:
    """All minimal pairs, with the paradigms alternating, so that the first documents (`--limit`) represent all of them.

    Args:
        data: the folder of local data (`--data`), or None for the hub.
        folder: the folder in `data` that holds BLiMP.zip.
    """
    paradigms = _hub() if data is None else _archive(Path(data) / folder / "BLiMP.zip")
    rows = [pair for turn in zip(*paradigms, strict=True) for pair in turn]
    return datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)})


def _archive(path: Path) -> list[Sequence[Mapping[str, Any]]]:
    if not path.is_file():
        raise NftbenchError(f"{path}: no such file, and task blimp reads its split 'train' there")
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(name for name in archive.namelist() if name.endswith(".jsonl") and name.startswith("data/"))
            return [[_pair(line) for line in archive.read(name).splitlines()] for name in names]
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError) as error:
        raise NftbenchError(f"{path}: split 'train' cannot be read: {error}") from error


def _hub() -> list[Sequence[Mapping[str, Any]]]:
    names = sorted(datasets.get_dataset_config_names(HUB))
    return [datasets.load_dataset(HUB, name, split="train").to_list() for name in names]


def _pair(line: bytes) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads(line)
    return {key: found[key] for key in ("sentence_good", "sentence_bad", "UID")}
