"""A baseline: a run's plan and slim records in one small file that a team commits and compares with.

It is a pack (`nftbench.records.pack`) whose first object is the header and whose other objects are records, without
provenance, restarts and the referee's facts about releases. Records and not scores are kept: both sides of a comparison
are then scored by the same code, and over the cells that both have.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from nftbench.errors import NftbenchError
from nftbench.records import manifest as manifests, pack
from nftbench.records.manifest import Manifest
from nftbench.records.origin import Origin
from nftbench.records.record import Record

FORMAT = 1
"""Raised when the content of a baseline changes its meaning."""
MAGIC = b"\xfd7zXZ\x00"
"""The first bytes of every xz file."""


def frozen(manifest: Manifest, records: Sequence[Record], origin: Origin) -> bytes:
    """The content of a baseline file. Of salts it names a public one alone, by which seeds of two runs are paired."""
    salt = manifest.salt if manifest.public_salt else None
    header = {
        "baseline": FORMAT,
        "suite": manifest.suite.name,
        **TypeAdapter(dict[str, Any]).dump_python(asdict(origin), mode="json"),
        "manifest": manifests.plain(replace(manifest, salt=salt, command="")),
    }
    kept = [_slim(record) for record in records if record.role != "yardstick"]
    return pack.encode([header, *_records().dump_python(kept, mode="json", exclude_defaults=True)])


def thawed(content: bytes, name: str) -> tuple[Manifest, list[Record], Origin]:
    """The plan, records and origin in a baseline file.

    Raises:
        NftbenchError: the content is damaged, or no baseline of this version. The message begins with `name`.
    """
    advice = "make it anew with nftbench baseline FOLDER"
    header, *lines = [json.loads(line) for line in pack.decode(content, name, advice)] or [None]
    if not isinstance(header, dict) or "baseline" not in header:
        raise NftbenchError(f"{name}: not a baseline; make one with nftbench baseline FOLDER")
    if header["baseline"] != FORMAT:
        raise NftbenchError(f"{name}: a baseline of format {header['baseline']}, not {FORMAT}; {advice}")
    manifest = manifests.parsed(header.get("manifest"), name)
    try:
        fields = {key: header[key] for key in Origin.__dataclass_fields__ if key in header}
        return manifest, _records().validate_python(lines), TypeAdapter(Origin).validate_python(fields)
    except ValidationError as error:
        raise NftbenchError(f"{name}: not a baseline of nftbench: {error.errors()[0]['msg']}") from None


def _slim(record: Record) -> Record:
    return replace(record, provenance={}, restarts=(), recovery={}, reading=None, protection=None, release="")


def _records() -> TypeAdapter[list[Record]]:
    return TypeAdapter(list[Record])
