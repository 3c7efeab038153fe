"""The exception for bad input, and what its messages are made of: similar names, and texts of plugins in one line."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


class NftbenchError(ValueError):
    """Bad input. The message is one line that names the file or key, and a similar valid name if there is one."""


LONGEST = 500
"""The most characters of a text that a plugin says about itself."""


def one_line(text: str) -> str:
    """A text without line breaks and control characters, cut to `LONGEST` characters."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())[:LONGEST]


def suggest(name: str, known: Sequence[str]) -> str:
    """The end of a message about an unknown name: `; did you mean …?` with the most similar known name.

    If no known name is similar, all of them are listed.
    """
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(sorted(known))}" if known else ""
