"""Reads YAML files as `Suite`s. The message about an unknown key names the most similar known key."""

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
    """The names of the suites that come with nftbench, sorted."""
    return sorted(item.name.removesuffix(".yaml") for item in _shipped().iterdir() if item.name.endswith(".yaml"))


def read(name_or_path: str, changes: Sequence[str] = ()) -> Suite:
    """Read a suite, given by its name or by its file's path. Each change is a text `key.subkey=value`.

    Raises:
        NftbenchError: the suite does not exist, is not YAML, or has an unknown key or a wrong value. The message names
            every such key.
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
    return parse(content, source, [change.partition("=")[0] for change in changes])


def parse(content: Mapping[str, Any], source: str = "suite", changed: Sequence[str] = ()) -> Suite:
    """The suite in a mapping, as read from YAML. `changed` are the keys that `--set` gave.

    Raises:
        NftbenchError: a key is unknown or its value is wrong. The message names every such key, and `source` or --set.
    """
    try:
        return Suite.model_validate(content)
    except ValidationError as error:
        raise NftbenchError("; ".join(_explain(source, problem, changed) for problem in error.errors())) from None


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


def _explain(source: str, problem: Mapping[str, Any], changed: Sequence[str]) -> str:
    """The message for one error of pydantic, with a similar key if a key is unknown."""
    keys = [str(part) for part in problem["loc"] if part != "[key]"]
    where = ".".join(keys) or "suite"
    source = "--set" if any(f"{where}.".startswith(f"{key}.") for key in changed) else source
    if problem["type"] == "extra_forbidden":
        section: Any = Suite
        for part in problem["loc"][:-1]:
            field = section.model_fields.get(part)
            if field is not None:  # otherwise an index into a list of sections, or a name in a mapping of sections
                annotation = field.annotation
                section = next((one for one in get_args(annotation) if hasattr(one, "model_fields")), annotation)
        return f"{source}: unknown key {where!r}{suggest(keys[-1], list(section.model_fields))}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{source}: {where}: {message[:1].lower()}{message[1:]}"
