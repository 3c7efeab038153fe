"""The name and parameters of a plugin, written `lora[rank=16]`."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import yaml

from nftbench.errors import NftbenchError


@dataclass(frozen=True)
class Spec:
    """A plugin's name and parameters, printed `lora[rank=16]` everywhere: command line, suite, record, leaderboard."""

    name: str
    parameters: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        if not self.parameters:
            return self.name
        return f"{self.name}[{','.join(f'{key}={_plain(value)}' for key, value in self.parameters)}]"

    def without(self, key: str) -> Spec:
        """The spec with one parameter at its default."""
        return Spec(self.name, tuple(item for item in self.parameters if item[0] != key))

    @classmethod
    @functools.lru_cache(maxsize=4096)  # scoring asks for the same few specs for each of thousands of records
    def parse(cls, text: str) -> Spec:
        """`lora[rank=16,targets=attention]` as a `Spec`. Values are YAML scalars.

        Raises:
            NftbenchError: a bracket that is not closed, or what stands inside is not `key=value`.
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
                raise NftbenchError(f"{text!r}: {key.strip()!r} stands there twice")
            try:
                parameters.append((key.strip(), yaml.safe_load(value)))
            except yaml.YAMLError:
                raise NftbenchError(f"{text!r}: {value!r} is no value; quote it as in YAML") from None
        return cls(name, tuple(parameters))


def split(text: str, mark: str = ",") -> list[str]:
    """The parts between marks, stripped, without empty ones; marks inside brackets, however deep, do not count."""
    parts, depth = [""], 0
    for character in text:
        depth += (character == "[") - (character == "]")
        if character == mark and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def _plain(value: object) -> str:
    """A parameter's value as it stands in a spec: shortest form that reads back to the same value."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return "+".join(_plain(item) for item in value)
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return str(value)
