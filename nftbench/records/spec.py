"""The name and parameters of a plugin, written `lora[rank=16]`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Spec:
    """A plugin's name and parameters, printed `lora[rank=16]` everywhere: command line, suite, record, leaderboard."""

    name: str
    parameters: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        if not self.parameters:
            return self.name
        return f"{self.name}[{','.join(f'{key}={_plain(value)}' for key, value in self.parameters)}]"


def _plain(value: object) -> str:
    """A parameter's value as it stands in a spec: shortest form that reads back to the same value."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return "+".join(_plain(item) for item in value)
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return str(value)
