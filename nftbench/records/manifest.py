"""The manifest of a results folder: what the run planned. With the records, it is all that a report needs.

On disk it is `manifest.json`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from nftbench.errors import NftbenchError, wrong
from nftbench.records.record import CellId
from nftbench.suites.schema import Family, PaperClaim, Suite

FORMAT = 2
"""Raised when a field's meaning changes. A manifest without the field `format` has format 1, that of nftbench 0.1."""


class PlannedCell(NamedTuple):
    """A cell in the manifest: a list of five values, with specs as text."""

    defense: str
    attack: str
    task: str
    seed: int
    key: str

    @property
    def id(self) -> CellId:
        return CellId(*self[:4])


class Version(NamedTuple):
    """A defense with its settings and its code, as some run in the folder had it."""

    defense: str
    code: str
    """The digest of its source, as in a record's provenance."""


class Skip(NamedTuple):
    """An attack that is not run against a defense, and the reason."""

    defense: str
    attack: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A run's whole plan. The fields are in the order of the file."""

    suite: Suite
    """The suite with all its defaults, and with the changes of `--set`, but without its salt."""
    salt: str | None = None
    """The salt of the toy language's grammars, where it is known: a public one at once, a drawn one after packing."""
    public_salt: bool = False
    """Some of the cells were run when the salt was known, so that their defenses could be tuned for its grammars."""
    device: str = "cpu"
    limit: int | None = None
    """The largest number of documents in a split; None for no limit."""
    cells: tuple[PlannedCell, ...]
    """All planned cells except those of yardsticks."""
    readings: tuple[PlannedCell, ...] = ()
    """The planned cells of yardsticks."""
    claims: tuple[PaperClaim, ...] = ()
    """The suite's claims, with specs written as in `cells`."""
    ladder: Mapping[str, Family] = field(default_factory=dict)
    """The suite's ladder, with specs written as in `cells`."""
    initialisations: tuple[str, ...] = ()
    """The rows that are further initialisations of the undefended model."""
    skips: tuple[Skip, ...] = ()
    added: tuple[str, ...] = ()
    """The names of attacks that the suite's own file does not list, and that do not come with nftbench."""
    added_defenses: tuple[str, ...] = ()
    """The names of defenses that do not come with nftbench."""
    versions: tuple[Version, ...] = ()
    """The versions of defenses that had results in this folder when its last run began. Later runs only add to them."""
    left_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By name of a defense: attacks of nftbench that were written against it, none of which the plan has against it."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """What defenses call themselves in tables and pictures, by row. The suite's own labels come first."""
    command: str = ""
    """The command line of the last run."""
    format: int = FORMAT

    @property
    def keys(self) -> frozenset[str]:
        """The keys of all planned cells and readings."""
        return frozenset(cell.key for cell in (*self.cells, *self.readings))


def dump(manifest: Manifest) -> str:
    """The content of manifest.json."""
    return json.dumps(plain(manifest), indent=1) + "\n"


def plain(manifest: Manifest) -> dict[str, Any]:
    """The manifest as JSON values."""
    found: dict[str, Any] = _adapter().dump_python(manifest, mode="json")
    return found


def read(path: Path) -> Manifest:
    """The manifest in a file.

    Raises:
        NftbenchError: the file is missing or damaged, or is not a manifest of this format.
    """
    try:
        content: Any = json.loads(path.read_bytes())
    except FileNotFoundError:
        missing = (
            f"no results here ({path.name} is missing); give a folder that run wrote, as runs/small"
            if path.parent.is_dir()
            else "no such folder"
        )
        raise NftbenchError(f"{path.parent}: {missing}") from None
    except ValueError as error:
        raise NftbenchError(
            f"{path}: damaged ({error}); restore it from a copy, or delete it and run the suite again"
        ) from None
    return parsed(content, str(path))


def parsed(content: Any, name: str) -> Manifest:
    """The manifest in JSON values.

    Raises:
        NftbenchError: it is no manifest of this format. The message begins with `name`.
    """
    version = content.get("format", 1) if isinstance(content, dict) and "cells" in content else FORMAT
    if version != FORMAT:
        writer = "nftbench 0.1" if version == 1 else "another version of nftbench"
        raise NftbenchError(
            f"{name}: made by {writer} (format {version}, not {FORMAT}); its numbers do not compare: start a new folder"
        )
    try:
        return _adapter().validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole file"
        raise NftbenchError(f"{name}: not a manifest of nftbench: {where}: {wrong(first)}") from None


@functools.cache
def _adapter() -> TypeAdapter[Manifest]:
    return TypeAdapter(Manifest)
