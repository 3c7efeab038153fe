"""Many records in one compressed file, `records.jsonl.xz`, in which a value that repeats stands once.

The text is one JSON value a line:

    {"format": 1, "shared": 2}                       how many lines of shared values follow
    {"shared": 0, "value": {...}}                    a value that stands in several records
    {"shared": 1, "value": {...}}
    {"key": "a3…", "row": {"shared": 0}, ...}        a record; `{"shared": 0}` is a reference
    {"count": 1, "sha256": "9c…"}                    how many records there are, and the hash of all lines above

An object of a record that only looks like a reference is a shared value itself, whatever its size. Shared values hold
no references.
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
"""Values with a shorter text are not shared: a reference saves little there and costs each reader a look-up."""
PRESET = 6 | lzma.PRESET_EXTREME
"""Smaller by 6 % than the plain preset; its dictionary of 8 MiB spans the text of 2,000 records."""

JsonObject = dict[str, Any]


def encode(records: Sequence[JsonObject]) -> bytes:
    """The file's content; reading it back has been tried. Equal records in equal order give equal text."""
    seen = Counter(text for record in records for text in _texts(record))
    shared: dict[str, int] = {}
    lines = [_text(_condensed(record, seen, shared)) for record in records]
    header = _text({"format": FORMAT, "shared": len(shared)})
    values = [f'{{"shared":{number},"value":{text}}}' for text, number in shared.items()]
    body = "".join(f"{line}\n" for line in (header, *values, *lines)).encode()
    footer = _text({"count": len(records), "sha256": hashlib.sha256(body).hexdigest()})
    content = lzma.compress(body + footer.encode() + b"\n", preset=PRESET)
    if decode(content, "the new pack") != [_text(record).encode() for record in records]:
        raise RuntimeError("the new pack does not hold the records that it was made of")
    return content


def decode(content: bytes, name: str) -> list[bytes]:
    """The JSON of the records in a file's content, in their order. Whoever needs values parses it.

    Raises:
        NftbenchError: the content is damaged, cut short or of another format; the message begins with `name`.
    """
    try:
        return _records(_decompressed(content), name)
    except NftbenchError:
        raise
    except (ValueError, LookupError, TypeError, lzma.LZMAError) as error:
        advice = "take it from a copy, or delete it to compute its cells again"
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
        raise NftbenchError(f"{name}: written by another nftbench (format {header['format']}, not {FORMAT})")
    body = text[: -len(last) - len(rest) - 1]
    first = 1 + header["shared"]
    if rest or footer["sha256"] != hashlib.sha256(body).hexdigest() or footer["count"] != len(lines) - first:
        raise ValueError("its last line does not fit the lines above")
    values = [line.partition(b'"value":')[2][:-1] for line in lines[1:first]]
    return [_REFERENCE.sub(lambda match: values[int(match[1])], line) for line in lines[first:]]


_REFERENCE = re.compile(rb'\{"shared":([0-9]+)\}')
"""Inside a JSON string the quotes would be escaped, so that nothing else looks like this."""


def _text(value: Any) -> str:
    """A value's JSON; keys keep their order, so that a record is read back as it was written."""
    return json.dumps(value, separators=(",", ":"))


def _texts(value: Any) -> Iterator[str]:
    """Texts of the objects and lists in a value that are long enough to be shared, itself among them."""
    if isinstance(value, dict | list):
        text = _text(value)
        if len(text) >= SHORTEST:
            yield text
            for part in value.values() if isinstance(value, dict) else value:
                yield from _texts(part)


def _condensed(value: Any, seen: Counter[str], shared: dict[str, int]) -> Any:
    """The value with references in place of the largest parts that repeat; `shared` grows by their texts."""
    if not isinstance(value, dict | list):
        return value
    text = _text(value)
    looks_like_reference = isinstance(value, dict) and value.keys() == {"shared"}
    if seen[text] > 1 or looks_like_reference:
        return {"shared": shared.setdefault(text, len(shared))}
    if isinstance(value, list):
        return [_condensed(part, seen, shared) for part in value]
    return {key: _condensed(part, seen, shared) for key, part in value.items()}
