"""What a run planned: all that a report needs beside the records. On disk it is `manifest.json`."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from nftbench.errors import NftbenchError
from nftbench.records.record import CellId
from nftbench.suites.schema import PaperClaim, Suite

FORMAT = 1
"""Raised when a field's meaning changes. A manifest without the field `format` is of the first format."""


class PlannedCell(NamedTuple):
    """A cell as the manifest lists it: five values, the specs as text."""

    defense: str
    attack: str
    task: str
    seed: int
    key: str

    @property
    def id(self) -> CellId:
        return CellId(*self[:4])


class Skip(NamedTuple):
    """An attack that is not planned against a defense, and why."""

    defense: str
    attack: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A run's whole plan. The fields are in the order of the file."""

    suite: Suite
    """As resolved: with all changes and defaults."""
    device: str = "cpu"
    limit: int | None = None
    """Documents a split at most; None for all."""
    cells: tuple[PlannedCell, ...]
    """Every planned cell that has a score."""
    readings: tuple[PlannedCell, ...] = ()
    """The cells of yardsticks."""
    claims: tuple[PaperClaim, ...] = ()
    """The suite's claims, with specs as in `cells`."""
    skips: tuple[Skip, ...] = ()
    command: str = ""
    """The command line of the last run."""
    format: int = FORMAT

    @property
    def keys(self) -> frozenset[str]:
        """The keys of all planned cells and readings."""
        return frozenset(cell.key for cell in (*self.cells, *self.readings))


def dump(manifest: Manifest) -> str:
    """The text of manifest.json."""
    return json.dumps(_adapter().dump_python(manifest, mode="json"), indent=1) + "\n"


def read(path: Path) -> Manifest:
    """The manifest in a file.

    Raises:
        NftbenchError: there is no such file, it is damaged, or something else wrote it.
    """
    try:
        content: Any = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise NftbenchError(f"{path.parent}: no results here ({path.name} is missing)") from None
    except ValueError as error:
        raise NftbenchError(f"{path}: not JSON: {error}") from None
    newest = content.get("format", FORMAT) if isinstance(content, dict) else FORMAT
    if newest != FORMAT:
        raise NftbenchError(f"{path}: written by another nftbench (format {newest}, not {FORMAT})")
    try:
        return _adapter().validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "all of it"
        raise NftbenchError(f"{path}: not a manifest that nftbench run writes: {where}: {first['msg']}") from None


@functools.cache
def _adapter() -> TypeAdapter[Manifest]:
    return TypeAdapter(Manifest)
