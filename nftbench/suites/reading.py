"""Reads YAML files as `Suite`s. The message about an unknown key names the most similar known key."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from nftbench.errors import NftbenchError, suggest, wrong, yaml_problem
from nftbench.suites.keys_once import KeysOnce
from nftbench.suites.schema import Suite

Problem = Mapping[str, Any]
"""One of pydantic's errors."""


def names() -> list[str]:
    """The names of the suites that come with nftbench, sorted."""
    return sorted(item.name.removesuffix(".yaml") for item in _shipped().iterdir() if item.name.endswith(".yaml"))


def papers() -> list[str]:
    """The names of the papers that have a suite, which is named `paper-` and the paper's name."""
    return [name.removeprefix("paper-") for name in names() if name.startswith("paper-")]


def read(name_or_path: str, changes: Sequence[str] = (), options: Mapping[str, str] = MappingProxyType({})) -> Suite:
    """Read a suite, given by its name or by its file's path.

    Args:
        changes: texts `key.subkey=value`, as `--set` takes them.
        options: such a text by each other option that changes the suite. They come before `changes`.

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
        content = yaml.load(text, KeysOnce)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2024-13-45
        raise NftbenchError(f"{source}: not YAML{_unquoted(text, error)}: {yaml_problem(error)}") from None
    if content is None:
        raise NftbenchError(f"{source}: is empty; docs/suites.md lists the keys of a suite")
    if not isinstance(content, dict):
        raise NftbenchError(f"{source}: a suite must be keys with values, this is a {type(content).__name__}")
    steps = [(source, content)]
    for option, texts in (*((option, [text]) for option, text in options.items()), ("--set", changes)):
        content = copy.deepcopy(content)
        for text in texts:
            _apply(content, text)
        steps.append((option, content))
    problems = _problems(content)
    if problems:
        known = [(name, [(one["loc"], one["type"]) for one in _problems(step)]) for name, step in steps]
        blamed = [next(name for name, all_ in known if (one["loc"], one["type"]) in all_) for one in problems]
        raise NftbenchError(_explained(zip(blamed, problems, strict=True)))
    return Suite.model_validate(content)


def parse(content: Mapping[str, Any], source: str = "suite") -> Suite:
    """The suite in a mapping, as read from YAML.

    Raises:
        NftbenchError: a key is unknown or its value is wrong. The message names `source` and every such key, unknown
            ones first.
    """
    try:
        return Suite.model_validate(content)
    except ValidationError as error:
        raise NftbenchError(_explained((source, problem) for problem in error.errors())) from None


def _problems(content: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with a suite."""
    try:
        Suite.model_validate(content)
    except ValidationError as error:
        return list(error.errors())
    return []


def _shipped() -> Any:
    return resources.files("nftbench.suites")


def _hint(name: str) -> str:
    """What was probably meant by the name of no suite: a checkpoint's name has a slash, or is a folder."""
    if "/" not in name.strip("/") and not Path(name).is_dir():
        return suggest(name, names())
    return (
        f"; to defend and attack a checkpoint, make it the base of a suite: nftbench run smollm2-quick --model {name}; "
        f"to judge one that is protected, name its twin: nftbench audit {name} --reference TWIN"
    )


def _unquoted(text: str, error: Exception) -> str:
    """A hint at a specification without quotes in the line of the error: its bracket would begin a list."""
    mark = getattr(error, "problem_mark", None)
    lines = text.splitlines()
    found = _SPEC.search(lines[mark.line]) if mark is not None and mark.line < len(lines) else None
    return f'; in a list in brackets quote a specification, as in "{found[0]}"' if found else ""


_SPEC = re.compile(r"""(?<!["'\w])\w+\[[^\[\]]*=[^\[\]]*\]""")


def _apply(content: dict[str, Any], change: str) -> None:
    key, separator, value = change.partition("=")
    *sections, last = key.split(".")
    if not separator or not all((*sections, last)):
        raise NftbenchError(f"--set {change!r}: write key=value, as in budget.restarts=5")
    for section in sections:
        content = content.setdefault(section, {})
        if not isinstance(content, dict):
            raise NftbenchError(f"--set {change!r}: {section!r} is not a section")
    try:
        content[last] = yaml.load(value, KeysOnce)
    except (yaml.YAMLError, ValueError) as error:
        twice = f": {error.problem}" if isinstance(error, yaml.constructor.ConstructorError) else ""
        raise NftbenchError(f"--set {change!r}: the value is not YAML{_unquoted(value, error)}{twice}") from None


UNKNOWN = "extra_forbidden"
"""Pydantic's type of the error about an unknown key."""
_FORMS = {
    "name": "letters, digits, blanks and - . _, the first a letter or a digit",
    "salt": "one word, without blanks",
}
"""In words, the patterns that texts must match."""
_SEVERAL = {"seeds": ", or seeds=[0, 1, 2, 3, 4] for five base seeds"}


def _explained(problems: Iterable[tuple[str, Problem]]) -> str:
    """The message for errors of pydantic, each with its source. Unknown keys come first: others may follow from them.

    A list with a wrong item counts as too short for pydantic, which says nothing beside the item itself.
    """
    first = sorted(problems, key=lambda one: one[1]["type"] != UNKNOWN)
    above = {one["loc"][:length] for _, one in first for length in range(len(one["loc"]))}
    told = [one for one in first if one[1]["type"] != "too_short" or one[1]["loc"] not in above]
    by_source = itertools.groupby(told, key=lambda one: one[0])
    return "; ".join(f"{source}: {'; '.join(_explain(one) for _, one in group)}" for source, group in by_source)


def _explain(problem: Problem) -> str:
    """The message for one error of pydantic, with a similar key if a key is unknown."""
    keys = [str(part) for part in problem["loc"] if part != "[key]"]
    where = ".".join(keys) or "suite"
    if problem["type"] == UNKNOWN:
        section: Any = Suite
        for part in problem["loc"][:-1]:
            field = section.model_fields.get(part)
            if field is not None:  # otherwise an index into a list of sections, or a name in a mapping of sections
                annotation = field.annotation
                section = next((one for one in get_args(annotation) if hasattr(one, "model_fields")), annotation)
        return f"unknown key {where!r}{suggest(keys[-1], list(section.model_fields))}"
    if problem["type"] == "tuple_type":
        example = f", as in {where}=[{problem['input']}]" if problem["input"] is not None else ""
        return f"{where}: write a list{example}{_SEVERAL.get(where, '')}"
    if problem["type"] == "string_pattern_mismatch" and where in _FORMS:
        return f"{where}: must be {_FORMS[where]}, and is {problem['input']!r}"
    return f"{where}: {wrong(problem)}"
