"""The pack: many records in one compressed file, `records.jsonl.xz`, which stores repeated values once.

Each line of the text is one JSON value:

    {"format": 1, "shared": 2}                       the number of lines with shared values that follow
    {"shared": 0, "value": {...}}                    a shared value: it occurs in several records
    {"shared": 1, "value": {...}}
    {"key": "a3…", "row": {"shared": 0}, ...}        a record; `{"shared": 0}` is a reference to a shared value
    {"count": 1, "sha256": "9c…"}                    the number of records, and the hash of all lines above

If an object in a record has the form of a reference, it is stored as a shared value, whatever its size. Shared values
contain no references.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from nftbench.errors import NftbenchError

FORMAT = 1
SHORTEST = 100
"""Length in characters below which a value is not shared: a reference would save little space."""
PRESET = 6 | lzma.PRESET_EXTREME
"""Files are 6 % smaller than with the plain preset. Its dictionary of 8 MiB holds the text of 2,000 records."""

ADVICE = "restore it from a copy, or delete it to compute its cells again"
"""What to do about a damaged pack."""

JsonObject = dict[str, Any]


def encode(records: Sequence[JsonObject]) -> bytes:
    """The content of a pack with these records, checked by decoding it. Equal input gives equal text."""
    seen = Counter(text for record in records for text in _texts(record))
    shared: dict[str, int] = {}
    lines = [_text(_condensed(record, seen, shared)) for record in records]
    header = _text({"format": FORMAT, "shared": len(shared)})
    values = [f'{{"shared":{number},"value":{text}}}' for text, number in shared.items()]
    body = "".join(f"{line}\n" for line in (header, *values, *lines)).encode()
    footer = _text({"count": len(records), "sha256": hashlib.sha256(body).hexdigest()})
    content = lzma.compress(body + footer.encode() + b"\n", preset=PRESET)
    if decode(content, "the new pack") != [_text(record).encode() for record in records]:
        raise RuntimeError("the new pack does not hold the records that it was made from")
    return content


def decode(content: bytes, name: str, advice: str = ADVICE) -> list[bytes]:
    """The records in a pack's content, each as JSON text, in the order of the file.

    Raises:
        NftbenchError: the content is damaged, cut short or of another format. The message begins with `name`.
    """
    try:
        return _records(_decompressed(content), name)
    except NftbenchError:
        raise
    except (ValueError, LookupError, TypeError, lzma.LZMAError) as error:
        raise NftbenchError(f"{name}: damaged ({type(error).__name__}: {error}); {advice}") from None


def _decompressed(content: bytes) -> bytes:
    decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ)
    text = decompressor.decompress(content)
    if not decompressor.eof:
        raise ValueError("it is cut short")
    if decompressor.unused_data:
        raise ValueError("something follows its end")
    return text


def _records(text: bytes, name: str) -> list[bytes]:
    *lines, last, rest = text.split(b"\n")
    header, footer = json.loads(lines[0]), json.loads(last)
    if header["format"] != FORMAT:
        raise NftbenchError(f"{name}: written by another version of nftbench (format {header['format']}, not {FORMAT})")
    body = text[: -len(last) - len(rest) - 1]
    first = 1 + header["shared"]
    if rest or footer["sha256"] != hashlib.sha256(body).hexdigest() or footer["count"] != len(lines) - first:
        raise ValueError("its last line does not match the lines above")
    values = [line.partition(b'"value":')[2][:-1] for line in lines[1:first]]
    return [_REFERENCE.sub(lambda match: values[int(match[1])], line) for line in lines[first:]]


_REFERENCE = re.compile(rb'\{"shared":([0-9]+)\}')
"""Matches only references, because quotes inside a JSON string are escaped."""


def _text(value: Any) -> str:
    """A value as JSON text, with keys in their own order, so that records stay as they were written."""
    return json.dumps(value, separators=(",", ":"))


def _texts(value: Any) -> Iterator[str]:
    """The JSON texts of all objects and lists in a value, and of the value itself, that are long enough to share."""
    if isinstance(value, dict | list):
        text = _text(value)
        if len(text) >= SHORTEST:
            yield text
            for part in value.values() if isinstance(value, dict) else value:
                yield from _texts(part)


def _condensed(value: Any, seen: Counter[str], shared: dict[str, int]) -> Any:
    """The value with references in place of its largest repeated parts, whose texts are added to `shared`."""
    if not isinstance(value, dict | list):
        return value
    text = _text(value)
    looks_like_reference = isinstance(value, dict) and value.keys() == {"shared"}
    if seen[text] > 1 or looks_like_reference:
        return {"shared": shared.setdefault(text, len(shared))}
    if isinstance(value, list):
        return [_condensed(part, seen, shared) for part in value]
    return {key: _condensed(part, seen, shared) for key, part in value.items()}
