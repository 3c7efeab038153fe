"""Where a run's records come from: commits, processors, versions of libraries and of the core's areas."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from nftbench.records.record import Record

Values = tuple[str, ...]
"""Every value that occurs, sorted; more than one where the records differ."""


@dataclass(frozen=True)
class Origin:
    """What a run's provenance says, over all its records. Empty where nothing is known."""

    commits: Values = ()
    processors: Values = ()
    """With the card, where there is one."""
    versions: Mapping[str, Values] = field(default_factory=dict)
    """By library."""
    areas: Mapping[str, Values] = field(default_factory=dict)
    """By area of the core: the versions in `nftbench.records.identity`. Older records lack them."""


def origin(records: Iterable[Record]) -> Origin:
    """The origin of these records."""
    found = [record.provenance for record in records]
    return Origin(
        commits=_values(one.get("commit") for one in found),
        processors=_values(_processor(one.get("hardware") or {}) for one in found),
        versions=_by_name(one.get("versions") or {} for one in found),
        areas=_by_name(one.get("areas") or {} for one in found),
    )


def _processor(hardware: Mapping[str, object]) -> str:
    named = (hardware.get(name) for name in ("processor", "vendor", "family", "model", "stepping", "gpu"))
    return " ".join(str(value) for value in named if value)


def _by_name(several: Iterable[Mapping[str, object]]) -> dict[str, Values]:
    found: dict[str, set[str]] = {}
    for one in several:
        for name, value in one.items():
            found.setdefault(name, set()).add(str(value))
    return {name: tuple(sorted(values)) for name, values in sorted(found.items())}


def _values(several: Iterable[object]) -> Values:
    return tuple(sorted({str(value) for value in several if value}))
