"""The form of a plugin: a frozen dataclass of plain values, which can be created again from its spec."""

from __future__ import annotations

import dataclasses
from typing import Any

from pydantic import TypeAdapter, ValidationError

from nftbench.planning import registry
from nftbench.records.spec import Spec
from nftbench.testing.promises import broken_by, promise


def well_formed(kind: registry.Kind, plugin: Any) -> Any:
    """The plugin itself or the one of this spec, if its form is right.

    Raises:
        BrokenPromiseError: it names the promise.
    """
    if isinstance(plugin, str):
        name = Spec.parse(plugin).name
        plugin = registry.create(kind, plugin)
        promise(registry.create(kind, str(registry.spec_of(name, plugin))) == plugin, "its spec creates it again")
    cls = type(plugin)
    protocol: type[Any] = registry.PROTOCOLS[kind]
    promise(protocol in cls.__mro__, f"{cls.__name__} derives from nftbench.{protocol.__name__}")
    frozen = dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    promise(frozen, f"{cls.__name__} is a frozen dataclass")
    for name, value in registry.parameters(plugin).items():
        promise(_is_plain(value), f"the parameter {name!r} is a string, number, truth value, None or tuple of such")
    with broken_by(ValidationError, "its class accepts its own parameters"):
        promise(
            TypeAdapter(cls).validate_python(registry.parameters(plugin)) == plugin, "its parameters create it again"
        )
    return plugin


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, str | int | float)
