"""The source files of a plugin, and their digest. If it changes, the plugin's cells run again.

A plugin's own files are its file or folder, and the modules that these import, directly or through others: modules in
the same folder, in the plugin's own installed package, or in nftbench's other plugins. What is installed in an
environment in that folder is not among them. To find them, nothing is imported.
"""

from __future__ import annotations

import functools
import importlib.util
import site
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nftbench.errors import NftbenchError
from nftbench.planning import registry, task_files
from nftbench.planning.registry import Plugin
from nftbench.records import identity
from nftbench.records.identity import Import, digest

METHODS = "nftbench.methods"
SHIPPED = tuple(f"nftbench.{kind}." for kind in registry.KINDS)


@dataclass(frozen=True)
class Source:
    """A plugin, and the digest of its source at some time."""

    plugin: Plugin
    digest: str
    methods: tuple[str, ...]
    """The modules of nftbench.methods that the plugin imports, directly or through others."""
    stamps: tuple[tuple[Path, int, int], ...]
    """Its files with the time of their last change, in ns, and their size."""

    @classmethod
    def of(cls, plugin: Plugin) -> Source:
        """The plugin with its source as it is now."""
        settings = task_files.files(plugin.text_file) if plugin.text_file is not None else ()
        files = sorted({*own_files(plugin), *settings})
        return cls(plugin, source_digest(plugin), methods(plugin), tuple(map(_stamp, files)))

    def changed(self) -> bool:
        """Whether the source is another one by now; read again only where a file was written since."""
        try:
            written = any(_stamp(path) != (path, *stamp) for path, *stamp in self.stamps)
        except FileNotFoundError:
            written = True
        return written and source_digest(self.plugin) != self.digest


def _stamp(path: Path) -> tuple[Path, int, int]:
    status = path.stat()
    return path, status.st_mtime_ns, status.st_size


def source_digest(plugin: Plugin) -> str:
    """A hash of a plugin's own files: of the syntax of Python files, and of the bytes of other files in its folder.

    The paths of the files do not change it. The digest of a text task is of its settings and its functions' files.
    """
    digests = sorted(file_digest(path) for path in own_files(plugin))
    settings = [task_files.settings(plugin.text_file)] if plugin.text_file is not None else []
    return digest(*settings, [one for one in digests if one != identity.NO_CODE])


def own_files(plugin: Plugin) -> frozenset[Path]:
    """A plugin's own files; for a text task, only its Python files.

    Raises:
        NftbenchError: the file of an entry point does not exist.
    """
    known = dict(_first_files(plugin))
    waiting = list(known.items())
    while waiting:
        for name, path in _imported(*waiting.pop(), functools.partial(_own_module, plugin)):
            if path not in known:
                known[path] = name
                waiting.append((path, name))
    return frozenset(known)


def methods(plugin: Plugin) -> tuple[str, ...]:
    """The modules of nftbench.methods that a plugin's own files import, and those that these import in turn."""
    names: set[str] = set()
    waiting = [(path, "") for path in own_files(plugin)]
    while waiting:
        for name, path in _imported(*waiting.pop(), _method):
            if name not in names:
                names.add(name)
                waiting.append((path, name))
    return tuple(sorted(names))


def file_digest(path: Path) -> str:
    """The digest of a Python file's syntax, or of another file's bytes."""
    return identity.code(path).digest if path.suffix == ".py" else identity.file_hash(path)


# --------------------------------------------------------------------------------------------------------- files


def _first_files(plugin: Plugin) -> Iterator[tuple[Path, str]]:
    """The plugin's file, or all files of its folder, with the names of their modules."""
    if plugin.text_file is not None:
        for folder, module in task_files.functions(plugin.text_file):
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
    """All files of a package except caches, tests and hidden files, with the names of their modules."""
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
    """The modules that a file imports, by full name, with their files. `find` gives the file of a module or None."""
    if path.suffix != ".py":
        return
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for one in identity.code(path).imports:
        base = _absolute(one, package)
        # In `from a import b`, b is the module a.b, or else something that the module a defines.
        for candidates in [[f"{base}.{name}", base] for name in one.names] or [[base]]:
            for name in candidates:
                file = find(name)
                if file is not None:
                    yield name, file
                    break


def _absolute(one: Import, package: str) -> str:
    """The full name of an imported module. In relative imports, each dot after the first goes up one package."""
    if not one.level:
        return one.module
    parts = package.split(".")
    return ".".join([*parts[: len(parts) + 1 - one.level], *filter(None, [one.module])])


def _own_module(plugin: Plugin, name: str) -> Path | None:
    """The file of a module if it belongs to the plugin or is one of nftbench's plugins; else None."""
    if name.startswith(SHIPPED):
        return located(name)
    top = name.partition(".")[0]
    if plugin.origin in ("nftbench", "lm-eval") or top == "nftbench":  # also in a checkout, where it lies beside
        return None
    if plugin.entry_point is not None:
        return located(name) if top == plugin.entry_point.module.partition(".")[0] else None
    assert plugin.path is not None
    folder = plugin.path.parent
    beside = _below((folder,), name.split("."))
    if beside is not None:
        return beside
    file = located(name)  # the folder may be part of a package that can be imported
    return file if file is not None and file.is_relative_to(folder) and not _installed(file, folder) else None


def _installed(file: Path, folder: Path) -> bool:
    """Whether a file is a library's, in an environment that lies in the folder, as `.venv` does in a clone.

    The environment may be the folder itself. So its folders for libraries count, and not all of it.
    """
    user = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    packages = site.getsitepackages([sys.prefix, sys.base_prefix])
    libraries = map(Path, [*packages, *user, sysconfig.get_path("stdlib")])
    return any(file.is_relative_to(one) and one.is_relative_to(folder) for one in libraries)


def _method(name: str) -> Path | None:
    return located(name) if name.startswith(f"{METHODS}.") else None


def located(name: str) -> Path | None:
    """The file of the module with this name; None if there is none. Only nftbench itself may be imported for this."""
    parts = name.split(".")
    known = 2 if parts[0] == "nftbench" else 1  # plugin folders are beside nftbench in a checkout, inside if installed
    file, folders = _package(".".join(parts[:known]), tuple(sys.path))
    return _below(folders, parts[known:]) if parts[known:] else file


@functools.cache
def _package(name: str, search_path: tuple[str, ...]) -> tuple[Path | None, tuple[Path, ...]]:
    """A module's file and, if it is a package, the folders of its modules. Cached for each `sys.path`."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        return None, ()
    file = Path(spec.origin) if spec.origin is not None and spec.origin.endswith(".py") else None
    return file, tuple(map(Path, spec.submodule_search_locations or ()))


def _below(folders: Sequence[Path], parts: Sequence[str]) -> Path | None:
    """The file of the module with these name parts in one of the folders."""
    for folder in folders:
        package = folder.joinpath(*parts)
        for path in (package.with_name(f"{package.name}.py"), package / "__init__.py"):
            if path.is_file():
                return path
    return None
