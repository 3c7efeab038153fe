"""One side of a comparison: a run's records with its plan, or a leaderboard.json, which has only what was printed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nftbench.comparing import baseline
from nftbench.errors import NftbenchError
from nftbench.records.manifest import Manifest
from nftbench.records.origin import Origin, origin
from nftbench.records.record import Record
from nftbench.records.store import PACK, Store, default_cache


@dataclass(frozen=True)
class Recorded:
    """A run: its plan and the records that the plan names."""

    path: str
    manifest: Manifest
    records: tuple[Record, ...]
    origin: Origin

    @property
    def suite(self) -> str:
        return self.manifest.suite.name


@dataclass(frozen=True)
class Board:
    """A leaderboard.json: means and intervals, without settings, base weights and cells."""

    path: str
    suite: str
    scores: Mapping[str, Mapping[str, Any]]
    """By defense, as in the file."""
    content: Mapping[str, Any]
    origin: Origin = field(default_factory=Origin)


Side = Recorded | Board


def read(path: Path) -> Side:
    """The side in a run folder, a published folder, its pack, a baseline file or a leaderboard.json.

    Raises:
        NftbenchError: there is nothing of the kind, it is damaged, or another version of nftbench wrote it.
    """
    if path.is_dir():
        return _folder(path)
    if not path.exists():
        raise NftbenchError(f"{path}: no such file or folder")
    if path.name == PACK:
        return _folder(path.parent)
    content = path.read_bytes()
    if content.startswith(baseline.MAGIC):
        return _checked(str(path), *baseline.thawed(content, str(path)))
    return _board(content, path)


def _folder(path: Path) -> Recorded:
    store = Store(path, default_cache())
    manifest = store.manifest()
    records = list(store.planned(manifest).values())
    return _checked(str(path), manifest, records, origin(records))


def _checked(path: str, manifest: Manifest, records: Sequence[Record], found: Origin) -> Recorded:
    if not records:
        raise NftbenchError(f"{path}: holds no record of any planned cell")
    return Recorded(path, manifest, tuple(records), found)


def _board(content: bytes, path: Path) -> Board:
    try:
        found = json.loads(content)
    except ValueError:
        raise NftbenchError(f"{path}: neither a folder, a baseline nor a leaderboard.json") from None
    scores = found.get("scores") if isinstance(found, dict) else None
    rows = {one["defense"]: one for one in scores if _is_score(one)} if isinstance(scores, list) else {}
    if not rows or not isinstance(scores, list) or len(rows) != len(scores) or not isinstance(found.get("suite"), str):
        raise NftbenchError(f"{path}: not a leaderboard.json of this version of nftbench")
    return Board(str(path), found["suite"], rows, found)


def _is_score(one: Any) -> bool:
    """Whether an entry has what the protocol of today prints; boards of 0.1 have no excess."""
    return (
        isinstance(one, dict) and {"defense", "kind", "suppression", "excess_by_seed", "utility_percent"} <= one.keys()
    )
