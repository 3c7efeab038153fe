"""Specs: a plugin's name with its parameters, written as in `lora[rank=16]`."""

from __future__ import annotations

import functools
import unicodedata
from dataclasses import dataclass
from typing import Any

import yaml

from nftbench.errors import NftbenchError

RESEMBLING = str.maketrans("015i", "olsl")
RESERVED = ("undefended", "reference")
"""What no plugin may call itself, so that no defense passes for the undefended model."""


@dataclass(frozen=True)
class Spec:
    """A plugin's name and parameters. As text it is `lora[rank=16]`, in commands, suites, records and tables alike."""

    name: str
    parameters: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        return self._text

    @functools.cached_property  # asked for many times for each of thousands of cells, and a text in it takes YAML
    def _text(self) -> str:
        if not self.parameters:
            return self.name
        return f"{self.name}[{','.join(f'{key}={_value_text(value)}' for key, value in self.parameters)}]"

    def without(self, key: str) -> Spec:
        """The spec without one parameter, which then has its default."""
        return Spec(self.name, tuple(item for item in self.parameters if item[0] != key))

    @classmethod
    @functools.lru_cache(maxsize=4096)  # scoring asks for the same few specs for each of thousands of records
    def parse(cls, text: str) -> Spec:
        """The spec in a text such as `lora[rank=16,targets=attention]`. Values are YAML scalars.

        Raises:
            NftbenchError: the bracket is not closed, or its content is not a list of distinct `key=value`.
        """
        name, bracket, rest = text.strip().partition("[")
        if not bracket:
            return cls(name)
        if not rest.endswith("]"):
            raise NftbenchError(f"{text!r}: the bracket is not closed; write name[key=value,key=value]")
        parameters: list[tuple[str, Any]] = []
        for item in split(rest[:-1]):
            key, separator, value = item.partition("=")
            if not separator:
                raise NftbenchError(f"{text!r}: {item!r} is not key=value")
            if key.strip() in dict(parameters):
                raise NftbenchError(f"{text!r}: {key.strip()!r} is given twice")
            try:
                parameters.append((key.strip(), yaml.safe_load(value)))
            except (yaml.YAMLError, ValueError):  # ValueError: a date such as 2024-13-45
                raise NftbenchError(f"{text!r}: {value!r} is not a YAML value; quote it") from None
        return cls(name, tuple(parameters))


def look(text: str) -> list[str]:
    """The words of a text as a reader sees them at a glance: no case, and signs like the letters that they resemble."""
    plain = unicodedata.normalize("NFKC", text).casefold().translate(RESEMBLING).replace("rn", "m")
    return "".join(letter if letter.isalnum() else " " for letter in plain).split()


def split(text: str, separator: str = ",") -> list[str]:
    """The parts of a text between separators, stripped, without empty parts.

    Separators in brackets or quotes do not count. A quote opens at the beginning of a value only, so that an apostrophe
    within a name is a letter.
    """
    parts, depth, quote, before = [""], 0, "", ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"" and before in _BEFORE_QUOTE:
            quote = character
        else:
            depth += (character == "[") - (character == "]")
            if character == separator and depth == 0:
                parts.append("")
                before = character
                continue
        parts[-1] += character
        before = before if character.isspace() else character
    return [part.strip() for part in parts if part.strip()]


_BEFORE_QUOTE = ("", *"=,+['\"")
"""What stands before an opening quote: nothing, a separator, or a quote, which is written twice within quotes."""


def _value_text(value: object) -> str:
    """A parameter's value as text in a spec: the shortest text that is parsed as the same value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return "+".join(item if isinstance(item, str) else _value_text(item) for item in value)
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    text = str(value)
    if isinstance(value, str) and not _is_plain(text):
        text = text.replace("'", "''")  # as YAML writes a quote within quotes
        return f"'{text}'"
    return text


def _is_plain(text: str) -> bool:
    """Whether a text means itself as a value: not another type, such as the number 2024, and no part of the syntax.

    It must end where the next separator stands, among parameters and in a spec among specs.
    """
    places = (f"={text}", f"[={text}]")
    try:
        return bool(yaml.safe_load(text) == text and all(split(f"{place},x") == [place, "x"] for place in places))
    except (yaml.YAMLError, ValueError):
        return False
