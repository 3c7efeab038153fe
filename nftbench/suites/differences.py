"""At which keys two suites differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

FREE = frozenset({"timeout", "allowance", "checkpoints", "tokens_at_once"})
"""Keys that change no number of a row."""


def differing(one: Any, other: Any, where: str = "") -> Iterator[str]:
    """The keys at which two settings in JSON values differ, as in `budget.durations`.

    Those of `FREE` do not count, and neither does the path of a checkpoint whose hash both sides have.
    """
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        hashed = one.get("sha256") and other.get("sha256")
        for key in sorted({*one, *other} - FREE - ({"path"} if hashed else set())):
            yield from differing(one.get(key), other.get(key), f"{where}.{key}" if where else key)
    elif one != other:
        yield where
