"""The one exception for bad input, and the suggestion of a near name that its messages end with."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


class NftbenchError(ValueError):
    """Bad input: one line for the user that names the file and key, and the nearest valid name where there is one."""


def suggest(name: str, known: Sequence[str]) -> str:
    """`; did you mean …?` with the nearest known name, or the known names where none is near."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(sorted(known))}" if known else ""
