"""The form of a plugin: a frozen dataclass of plain values, which can be created again from its spec."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import TypeAdapter

from nftbench.planning import class_problems, facts, registry
from nftbench.planning.plugin_paths import split_path
from nftbench.planning.registry import Kind, Plugin
from nftbench.records.spec import Spec
from nftbench.testing.promises import promise, source_of, works

FIXES = {
    "stage": 'write `stage: ClassVar[Stage] = "posttrain"` into the class, or "pretrain" if protect trains the model',
    "claims": 'write for example `claims: ClassVar[Claim | None] = Claim(frozenset({"method", "data"}))`',
    "knowledge": 'write for example `knowledge: ClassVar[frozenset[Knowledge]] = frozenset({"data"})`',
}
"""What to write where an attribute has the wrong type, by its name."""


@contextlib.contextmanager
def well_formed(kind: Kind, given: object) -> Iterator[Any]:
    """A plugin, if its form is right; within the block others can create it by its name.

    Args:
        given: an object, a class or a module; a spec, such as `mine[strength=2]`; or a file or folder as `--plugin`
            takes it, as a path or as text. Parameters in brackets may follow text of either kind.

    Raises:
        BrokenPromiseError: it names the promise.
        NftbenchError: no plugin has the name in the spec.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(registry.importing_added())
        if isinstance(given, str | Path):
            plugin = _created(kind, stack.enter_context(named(kind, given)))
        else:
            if isinstance(given, ModuleType):
                with works("the module has one class with the method of the protocol"):
                    given = registry.class_in(given, kind)
            _check_class(kind, given if isinstance(given, type) else type(given))
            with works("it can be created without parameters", source_of(given)):
                plugin = given() if isinstance(given, type) else given
        _check_values(kind, plugin)
        yield plugin


@contextlib.contextmanager
def named(kind: Kind, given: str | Path) -> Iterator[Spec]:
    """The spec of a plugin of this kind, which is found by name within the block.

    Raises:
        BrokenPromiseError: it is a file or folder that `--plugin` does not take, or has no plugin of this kind.
    """
    path, text = split_path(given)
    if path is None:
        yield Spec.parse(text)
        return
    with contextlib.ExitStack() as stack:
        with works("`--plugin` takes the file"):
            plugins = stack.enter_context(registry.added(path))
        names = {plugin.kind: plugin.name for plugin in plugins}
        one = kind.removesuffix("s")
        promise(kind in names, f"the file holds a {one} plugin", f"it holds {' and '.join(names)}", essential=True)
        yield Spec.parse(names[kind] + text)


def _created(kind: Kind, spec: Spec) -> Any:
    found = registry.find(kind, spec.name)
    source = _source(found)
    with works("it can be imported", source):
        cls = registry.imported(found)
    _check_class(kind, cls)
    with works(f"it can be created as {spec}", source):
        plugin = registry.create(kind, str(spec))
        again = registry.create(kind, str(registry.spec_of(spec.name, plugin)))
    promise(again == plugin, "its spec creates it again", "two objects with the same parameters are not equal")
    return plugin


def _source(plugin: Plugin) -> Path | None:
    if plugin.path is None:
        return None
    return plugin.path.parent if plugin.path.name == "__init__.py" else plugin.path


def _check_class(kind: Kind, cls: type[Any]) -> None:
    protocol = registry.PROTOCOLS[kind]
    promise(
        protocol in cls.__mro__,
        f"{cls.__name__} derives from nftbench.{protocol.__name__}",
        f"write `class {cls.__name__}({protocol.__name__}):`",
        essential=True,
    )
    promise(
        registry.is_frozen_dataclass(cls),
        f"{cls.__name__} is a frozen dataclass",
        "write `@dataclass(frozen=True)` above it",
        essential=True,
    )
    problems = list(class_problems.attribute_problems(protocol, cls))
    fixes = dict.fromkeys(FIXES.get(problem.split(":")[0].split(".")[0]) for problem in problems)
    promise(
        not problems,
        f"its class attributes have the types that nftbench.{protocol.__name__} gives them",
        "; ".join(filter(None, [*problems, *fixes])),
        essential=True,
    )
    problems = list(class_problems.parameter_problems(cls))
    promise(
        not problems,
        "its parameters have types, and defaults of these types",
        "; ".join(problems),
        essential=True,
    )


def _check_values(kind: Kind, plugin: Any) -> None:
    problems = [f"{name!r} is {value!r}" for name, value in registry.parameters(plugin).items() if not _is_plain(value)]
    promise(
        not problems,
        "each parameter is a string, number, truth value, None or tuple of such",
        f"{', '.join(problems)}: give it such a type",
        essential=True,
    )
    with works("its class accepts its own parameters", source_of(plugin)):
        again = TypeAdapter(type(plugin)).validate_python(registry.parameters(plugin))
    promise(again == plugin, "its parameters create it again", "two objects with the same parameters are not equal")
    with works("it answers what a plan asks it", source_of(plugin)):
        for problem in class_problems.property_problems(registry.PROTOCOLS[kind], plugin):
            promise(False, "it answers what a plan asks it", problem, essential=True)
        facts.ask_here(kind, plugin)


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, str | int | float)
