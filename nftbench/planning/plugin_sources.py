"""Which files are a plugin's own, and digests of them: editing one of them runs the plugin's cells again.

Own files are the plugin's folder, if it is one, or else its file; and what these import, directly or through others,
from beside the plugin, from its own installed package, or from nftbench's other plugins. Nothing is imported to find
this out.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nftbench.errors import NftbenchError
from nftbench.planning import local_data, registry
from nftbench.planning.registry import Plugin
from nftbench.records import identity
from nftbench.records.identity import Import, digest

METHODS = "nftbench.methods"
SHIPPED = tuple(f"nftbench.{kind}." for kind in registry.KINDS)


@dataclass(frozen=True)
class Source:
    """A plugin and what its source was at some time."""

    plugin: Plugin
    digest: str
    methods: tuple[str, ...]
    """The modules of nftbench.methods that it imports, directly or through others."""

    @classmethod
    def of(cls, plugin: Plugin) -> Source:
        """The plugin with its source as it is now."""
        return cls(plugin, source_digest(plugin), methods(plugin))


def source_digest(plugin: Plugin) -> str:
    """Hash of a plugin's own code: of the syntax of its Python files and the bytes of its folder's other files.

    Where the files lie does not count. A text task counts by its settings and the functions that it names.
    """
    digests = sorted(file_digest(path) for path in own_files(plugin))
    settings = [local_data.settings(plugin.path)] if plugin.is_text and plugin.path is not None else []
    return digest(*settings, [one for one in digests if one != identity.NO_CODE])


def own_files(plugin: Plugin) -> frozenset[Path]:
    """A plugin's own files; of a text task the Python files alone.

    Raises:
        NftbenchError: an entry point whose file is not found.
    """
    known = dict(_beginnings(plugin))
    waiting = list(known.items())
    while waiting:
        for name, path in _imported(*waiting.pop(), functools.partial(_own_module, plugin)):
            if path not in known:
                known[path] = name
                waiting.append((path, name))
    return frozenset(known)


def methods(plugin: Plugin) -> tuple[str, ...]:
    """The modules of nftbench.methods that a plugin's own files import, and those that these import in turn."""
    found: set[str] = set()
    waiting = [(path, "") for path in own_files(plugin)]
    while waiting:
        for name, path in _imported(*waiting.pop(), _method):
            if name not in found:
                found.add(name)
                waiting.append((path, name))
    return tuple(sorted(found))


def file_digest(path: Path) -> str:
    """Of a Python file the digest of its syntax, of another that of its bytes."""
    return identity.code(path).digest if path.suffix == ".py" else identity.file_hash(path)


# --------------------------------------------------------------------------------------------------------- files


def _beginnings(plugin: Plugin) -> Iterator[tuple[Path, str]]:
    """The files that are the plugin's own whatever it imports, with the names of their modules."""
    if plugin.is_text:
        assert plugin.path is not None
        for folder, module in local_data.functions(plugin.path):
            path = _below((folder,), module.split(".")) or located(module)
            if path is not None:
                yield path, path.stem
        return
    if plugin.entry_point is not None:
        name, path = plugin.entry_point.module, located(plugin.entry_point.module)
        if path is None:
            raise NftbenchError(f"{plugin.kind} {plugin.name!r} ({plugin.origin}): there is no file of {name}")
    else:
        assert plugin.path is not None
        name = f"nftbench.{plugin.kind}.{plugin.name}" if plugin.origin == "nftbench" else plugin.name
        path = plugin.path
    if path.name == "__init__.py":
        yield from _files_in(path.parent, name)
    else:
        yield path, name


def _files_in(folder: Path, package: str) -> Iterator[tuple[Path, str]]:
    """Every file of a package, but for caches, tests and hidden ones, with the name of its module."""
    for file in sorted(folder.rglob("*")):
        parts = file.relative_to(folder).parts
        if file.is_file() and not any(map(_left_out, parts)):
            yield file, ".".join([package, *parts[:-1], *([] if file.stem == "__init__" else [file.stem])])


def _left_out(name: str) -> bool:
    if name.startswith(".") or name.endswith((".pyc", "~")):
        return True
    is_test = name.startswith("test_") and name.endswith(".py")  # test_split.csv is data
    return is_test or name in ("__pycache__", "tests", "conftest.py")


# ------------------------------------------------------------------------------------------------------- modules


def _imported(path: Path, module: str, find: Callable[[str], Path | None]) -> Iterator[tuple[str, Path]]:
    """Those of the modules that a file imports which `find` knows, by their full names."""
    if path.suffix != ".py":
        return
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for one in identity.code(path).imports:
        base = _absolute(one, package)
        # `from a import b` takes the module a.b, or something that the module a defines.
        for candidates in [[f"{base}.{name}", base] for name in one.names] or [[base]]:
            for name in candidates:
                found = find(name)
                if found is not None:
                    yield name, found
                    break


def _absolute(one: Import, package: str) -> str:
    """`one`'s module by its full name; each leading dot after the first goes one package up."""
    if not one.level:
        return one.module
    parts = package.split(".")
    return ".".join([*parts[: len(parts) + 1 - one.level], *filter(None, [one.module])])


def _own_module(plugin: Plugin, name: str) -> Path | None:
    """The file of a module, if the module is the plugin's own or one of nftbench's plugins."""
    if name.startswith(SHIPPED):
        return located(name)
    if plugin.origin in ("nftbench", "lm-eval"):
        return None
    if plugin.entry_point is not None:
        top = plugin.entry_point.module.partition(".")[0]
        return located(name) if name.partition(".")[0] == top != "nftbench" else None
    assert plugin.path is not None
    folder = plugin.path.parent
    beside = _below((folder,), name.split("."))
    if beside is not None:
        return beside
    found = located(name)  # the folder may lie inside a package that can be imported
    return found if found is not None and found.is_relative_to(folder) else None


def _method(name: str) -> Path | None:
    return located(name) if name.startswith(f"{METHODS}.") else None


def located(name: str) -> Path | None:
    """The file of a module that could be imported by this name; nothing but nftbench itself is imported for it."""
    parts = name.split(".")
    known = 2 if parts[0] == "nftbench" else 1  # plugins lie beside nftbench in a checkout, and inside when installed
    file, folders = _package(".".join(parts[:known]), tuple(sys.path))
    return _below(folders, parts[known:]) if parts[known:] else file


@functools.cache
def _package(name: str, search_path: tuple[str, ...]) -> tuple[Path | None, tuple[Path, ...]]:
    """A module's file and, of a package, the folders in which its modules lie; looked for once for each `sys.path`."""
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        found = None
    if found is None:
        return None, ()
    file = Path(found.origin) if found.origin is not None and found.origin.endswith(".py") else None
    return file, tuple(map(Path, found.submodule_search_locations or ()))


def _below(folders: Sequence[Path], parts: Sequence[str]) -> Path | None:
    for folder in folders:
        place = folder.joinpath(*parts)
        for path in (place.with_name(f"{place.name}.py"), place / "__init__.py"):
            if path.is_file():
                return path
    return None
