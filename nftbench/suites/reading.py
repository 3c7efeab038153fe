"""Reads YAML files as `Suite`s. The message about an unknown key names the most similar known key."""

from __future__ import annotations

import re
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
        raise NftbenchError(f"no suite named {name_or_path!r}{_hint(name_or_path)}")
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise NftbenchError(f"{source}: not YAML{_unquoted(text, error)}: {' '.join(str(error).split())}") from None
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


def _hint(name: str) -> str:
    """What was probably meant by the name of no suite: a checkpoint's name has a slash, or is a folder."""
    if "/" not in name.strip("/") and not Path(name).is_dir():
        return suggest(name, names())
    spec = f"checkpoint[path={name}]"
    return f"; for a checkpoint, run a suite on it: nftbench run small --defenses '{spec}'"


def _unquoted(text: str, error: yaml.YAMLError) -> str:
    """A hint at a specification without quotes in the line of the error: its bracket would begin a list."""
    mark = getattr(error, "problem_mark", None)
    lines = text.splitlines()
    found = _SPEC.search(lines[mark.line]) if mark is not None and mark.line < len(lines) else None
    return f'; in a list in brackets quote a specification, as in "{found[0]}"' if found else ""


_SPEC = re.compile(r"""(?<!["'\w])\w+\[[^\[\]]*=[^\[\]]*\]""")


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
    except yaml.YAMLError as error:
        raise NftbenchError(f"--set {change!r}: the value is not YAML{_unquoted(value, error)}") from None


_SEVERAL = {"seeds": ", or seeds=[0, 1, 2, 3, 4] for five base seeds"}


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
    if problem["type"] == "tuple_type":
        return f"{source}: {where}: write a list, as in {where}=[{problem['input']}]{_SEVERAL.get(where, '')}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{source}: {where}: {message[:1].lower()}{message[1:]}"
