"""A YAML file becomes a `Suite`; an unknown key is an error that names the nearest known one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from nftbench.errors import NftbenchError, suggest
from nftbench.suites.schema import Suite


def names() -> list[str]:
    """The suites that nftbench ships, sorted."""
    return sorted(item.name.removesuffix(".yaml") for item in _shipped().iterdir() if item.name.endswith(".yaml"))


def read(name_or_path: str, changes: Sequence[str] = ()) -> Suite:
    """Read a suite by its name or its file's path, with `key.subkey=value` changes on top.

    Raises:
        NftbenchError: no such suite, not YAML, an unknown key or an impossible value; one line for each.
    """
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if not path.is_file():
            raise NftbenchError(f"{path}: no such suite file")
        text, source = path.read_text(encoding="utf-8", errors="replace"), str(path)
    elif name_or_path in names():
        text, source = (_shipped() / f"{name_or_path}.yaml").read_text(encoding="utf-8"), f"{name_or_path}.yaml"
    else:
        raise NftbenchError(f"no suite named {name_or_path!r}{suggest(name_or_path, names())}")
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise NftbenchError(f"{source}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise NftbenchError(f"{source}: a suite is a mapping of keys, this is {type(content).__name__}")
    for change in changes:
        _apply(content, change)
    return parse(content, source)


def parse(content: Mapping[str, Any], source: str = "suite") -> Suite:
    """Check a mapping and make it a `Suite`; errors name `source` and the key."""
    try:
        return Suite.model_validate(content)
    except ValidationError as error:
        raise NftbenchError("; ".join(_explain(source, problem) for problem in error.errors())) from None


def _shipped() -> Any:
    return resources.files("nftbench.suites")


def _apply(content: dict[str, Any], change: str) -> None:
    key, separator, value = change.partition("=")
    if not separator:
        raise NftbenchError(f"--set {change!r}: write key=value")
    *sections, last = key.split(".")
    for section in sections:
        content = content.setdefault(section, {})
        if not isinstance(content, dict):
            raise NftbenchError(f"--set {change!r}: {section!r} is not a section")
    try:
        content[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise NftbenchError(f"--set {change!r}: the value is not YAML") from None


def _explain(source: str, problem: Mapping[str, Any]) -> str:
    """One line for one pydantic problem, with the nearest key where a key is unknown."""
    place = [str(part) for part in problem["loc"] if part != "[key]"]
    where = ".".join(place) or "suite"
    if problem["type"] == "extra_forbidden":
        section: Any = Suite
        for part in problem["loc"][:-1]:
            if isinstance(part, str):  # a number is a place in a list of sections
                annotation = section.model_fields[part].annotation
                section = next((one for one in get_args(annotation) if hasattr(one, "model_fields")), annotation)
        return f"{source}: unknown key {where!r}{suggest(place[-1], list(section.model_fields))}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{source}: {where}: {message[:1].lower()}{message[1:]}"
