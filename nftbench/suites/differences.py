"""At which keys two suites differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

FREE = frozenset({"timeout", "allowance", "checkpoints"})
"""Keys that change no number of a row."""


def differing(one: Any, other: Any, where: str = "") -> Iterator[str]:
    """The keys at which two settings in JSON values differ, as in `budget.durations`; those of `FREE` do not count."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in sorted({*one, *other} - FREE):
            yield from differing(one.get(key), other.get(key), f"{where}.{key}" if where else key)
    elif one != other:
        yield where
