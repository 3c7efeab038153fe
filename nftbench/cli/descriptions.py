"""The text of `nftbench info`: a plugin's paper, parameters, claims, knowledge and file, or a suite's settings."""

from __future__ import annotations

import inspect
import math
import sys
import textwrap
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

import yaml

from nftbench import suites
from nftbench.errors import NftbenchError, suggest
from nftbench.planning import registry
from nftbench.planning.registry import KINDS, Kind, Plugin
from nftbench.scoring.side_tables.paper_claims import bound
from nftbench.suites.schema import PaperClaim
from nftbench.terms import KNOWLEDGE


def describe(name: str) -> str:
    """The text about everything of this name; `none`, for example, is a defense and an attack.

    Raises:
        NftbenchError: nothing has this name; the message suggests the nearest one.
    """
    if "[" in name:
        raise NftbenchError(f"info {name!r}: give the name alone, without parameters: {name.partition('[')[0]}")
    texts = [_plugin(plugins[name]) for kind in KINDS if name in (plugins := registry.available(kind))]
    if name in suites.names() or name.endswith((".yaml", ".yml")):
        texts.append(_suite(name))
    if not texts:
        texts.append(_stock_task(name))
    return "\n\n".join(texts)


def _stock_task(name: str) -> str:
    """The text about one of lm-eval's own tasks."""
    try:
        return _plugin(registry.find("tasks", name))
    except NftbenchError:
        known = {*suites.names(), *(plugin for kind in KINDS for plugin in registry.available(kind))}
        own = Path(f"{name}.py")
        hint = f"; for the file {own}, add --plugin {own}" if own.is_file() else suggest(name, sorted(known))
        raise NftbenchError(f"nothing is named {name!r}{hint}") from None


def _plugin(plugin: Plugin) -> str:
    if plugin.text_file is not None:
        text = plugin.text_file.read_text(encoding="utf-8")
        return _section(f"task {plugin.name}", [text, f"file: {plugin.text_file}"])
    cls = registry.load(plugin)
    module = sys.modules[cls.__module__]
    parts = [
        module.__doc__ or "",
        _own_doc(cls),
        _parameters(cls),
        _FACTS[plugin.kind](cls),
        f"file: {module.__file__}",
    ]
    origin = "" if plugin.origin == "nftbench" else f" (from {plugin.origin})"
    return _section(f"{plugin.kind.removesuffix('s')} {plugin.name}{origin}", parts)


def _suite(name: str) -> str:
    suite = suites.read(name)
    content = suite.model_dump(mode="json", exclude_none=True)
    content["claims"] = [_one_line(one) for one in suite.claims]
    return _section(f"suite {suite.name}", [yaml.safe_dump(content, sort_keys=False, width=math.inf)])


def _one_line(claim: PaperClaim) -> str:
    bounded = claim.above is not None or claim.below is not None
    return f"{claim.says} ({bound(claim)})" if bounded else claim.says


def _section(title: str, parts: list[str]) -> str:
    return "\n\n".join([title, *(textwrap.indent(part.strip(), "  ") for part in parts if part.strip())])


def _own_doc(cls: type[Any]) -> str:
    """The class's docstring; empty if it has none, in which case `dataclass` has set it to the signature."""
    text = cls.__doc__ or ""
    return "" if text.startswith(f"{cls.__name__}(") else inspect.cleandoc(text)


def _parameters(cls: type[Any]) -> str:
    lines = [f"  {field.name}: {_type(field)}{_default(field)}" for field in fields(cls) if field.init]
    return "\n".join(["parameters:", *lines]) if lines else "parameters: none"


def _type(field: Field[Any]) -> str:
    return field.type if isinstance(field.type, str) else getattr(field.type, "__name__", str(field.type))


def _default(field: Field[Any]) -> str:
    if field.default_factory is not MISSING:
        return f" = {field.default_factory()!r}"
    return f" = {field.default!r}" if field.default is not MISSING else " (required)"


def _defense(cls: type[Any]) -> str:
    claim = cls.claims
    lines = [
        f"stage: {cls.stage}",
        f"claims: {f'to withstand {claim.adaptation} by {_attackers(claim.knowledge)}' if claim else 'nothing'}",
        "trivial: a control that a claim must beat" if cls.trivial else "",
        "keeps a secret: yes" if cls.keeps_secret else "",
        "task-aware: has a table of its own" if cls.task_aware else "",
    ]
    return "\n".join(filter(None, lines))


def _attack(cls: type[Any]) -> str:
    lines = [
        f"knowledge: {_attackers(_by_default(cls).knowledge)}{_varies(cls)}",
        f"adaptation: {cls.adaptation}",
        f"against: {', '.join(sorted(cls.against)) or 'no defense in particular'}",
        "" if cls.uses_release else "ignores the release: planned once, under the reference row",
        "" if cls.trains else "only measures",
    ]
    return "\n".join(filter(None, lines))


def _by_default(cls: type[Any]) -> Any:
    """The attack with its default parameters, or the class itself where a parameter has no default.

    An attack's knowledge may depend on its parameters.
    """
    required = any(one.init and one.default is MISSING and one.default_factory is MISSING for one in fields(cls))
    return cls if required else cls()


def _varies(cls: type[Any]) -> str:
    return ", by default; it depends on the parameters" if isinstance(vars(cls).get("knowledge"), property) else ""


def _task(cls: type[Any]) -> str:
    return "" if cls.trainable is True else "utility task: only measured"


def _attackers(knowledge: frozenset[str]) -> str:
    known = "+".join(sorted(knowledge, key=KNOWLEDGE.index))
    return f"attackers who know {known}" if known else "attackers who have the release and the task alone"


_FACTS: dict[Kind, Any] = {
    "defenses": _defense,
    "attacks": _attack,
    "tasks": _task,
    "yardsticks": lambda _: "only read: no part of a score",
}
