"""When, where and with what the records of a leaderboard were made."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from nftbench.records.origin import origin
from nftbench.records.record import Record

NOT_RECORDED = "unknown"
"""In the place of what a record does not say."""


@dataclass(frozen=True)
class Provenance:
    """What the records say of their making; every value that occurs, where they differ."""

    first: str | None = None
    """When the first record was written, in UTC."""
    last: str | None = None
    commits: Mapping[str, int] = field(default_factory=dict)
    """Of nftbench's source, with how many records each made."""
    hardware: tuple[Mapping[str, str | int], ...] = ()
    """Devices, with processor and threads."""
    isolation: tuple[str, ...] = ()
    """How plugins were kept from secrets: `landlock` or `process`."""
    versions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By library."""
    salt: Literal["drawn", "public"] | None = None
    """Of the grammars: drawn for this run, or known before it. None where the suite has no grammars."""


def provenance(records: Sequence[Record]) -> Provenance:
    """All that records say of their making, which is everything but the salt."""
    found = [record.provenance for record in records]
    times = sorted(str(one["written"]) for one in found if one.get("written"))
    hardware = {json.dumps(_known(one.get("hardware") or {}), sort_keys=True) for one in found}
    return Provenance(
        first=times[0] if times else None,
        last=times[-1] if times else None,
        commits=dict(sorted(Counter(str(one.get("commit") or NOT_RECORDED) for one in found).items())),
        hardware=tuple(json.loads(text) for text in sorted(hardware)),
        isolation=tuple(sorted({str(one.get("isolation") or NOT_RECORDED) for one in found})),
        versions=origin(records).versions,
    )


def short(commit: str) -> str:
    """`7f9ee86ab0c1`, `7f9ee86ab0c1-dirty`."""
    name, dirty, _ = commit.partition("-dirty")
    return name[:12] + dirty


def _known(hardware: Mapping[str, str | int | None]) -> dict[str, str | int]:
    return {name: value for name, value in hardware.items() if value is not None}
