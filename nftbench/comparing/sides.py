"""One side of a comparison: a run's records with its plan, or a leaderboard.json, which has only what was printed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from nftbench.comparing import baseline
from nftbench.errors import NftbenchError, wrong
from nftbench.records.manifest import Manifest
from nftbench.records.origin import Origin, origin
from nftbench.records.record import Record
from nftbench.records.store import PACK, Store, default_cache
from nftbench.scoring.intervals import Interval
from nftbench.scoring.scores import Kind


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


def _ends(value: Any) -> Any:
    """An interval in JSON without its nulls, which stand for ends that there are none of."""
    return {key: one for key, one in value.items() if one is not None} if isinstance(value, dict) else value


PrintedInterval = Annotated[Interval | None, BeforeValidator(_ends)]


class PrintedRow(BaseModel):
    """What is compared of a row in a leaderboard.json. Boards of nftbench 0.1 have no excess."""

    model_config = ConfigDict(allow_inf_nan=False)

    defense: str
    kind: Kind
    suppression_by_seed: dict[int, float]
    excess: PrintedInterval
    excess_by_seed: dict[int, float]
    excess_reason: str | None
    attacked: PrintedInterval
    utility_percent: PrintedInterval
    utility_percent_by_metric: dict[str, PrintedInterval]


class Board(BaseModel):
    """A leaderboard.json: means and intervals, without settings, base weights and cells."""

    path: str
    suite: str
    rows: list[PrintedRow] = Field(alias="scores", min_length=1)
    ranking: str
    ladder: dict[str, tuple[str, ...]]
    origin: Origin = Origin()


Side = Recorded | Board


def read(path: Path) -> Side:
    """The side in a run folder, a published folder, its pack, a baseline file or a leaderboard.json.

    Raises:
        NftbenchError: there is nothing of the kind, it is damaged, or another version of nftbench wrote it.
    """
    if path.is_dir():
        return _folder(path)
    if not path.exists():
        raise NftbenchError(
            f"{path}: no such file or folder; `nftbench baseline FOLDER` makes a baseline file of a run"
        )
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
    try:
        return Board.model_validate({**found, "path": str(path)} if isinstance(found, dict) else found)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole file"
        raise NftbenchError(
            f"{path}: not a leaderboard.json of this version of nftbench: {where}: {wrong(first)}"
        ) from None
