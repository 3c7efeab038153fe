"""Finds plugins by name, and creates them from specs.

A plugin is a file or folder in defenses/, attacks/, tasks/ or yardsticks/, an entry point of an installed package, or a
path given with --plugin. Its name is that of the file, folder or entry point. Its class is the one with the method of
its protocol, such as `protect`, in the file or in the folder's `__init__.py`. A YAML file is a text task.

Listing plugins imports none of them.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import importlib.util
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from importlib.machinery import (
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    ModuleSpec,
    SourceFileLoader,
)
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Literal, get_args

import yaml

from nftbench.contract import Attack, Defense, Task, Yardstick
from nftbench.errors import NftbenchError, one_line, suggest, wrong
from nftbench.planning import task_files
from nftbench.planning.class_problems import (
    attribute_problems,
    checker,
    of_dataclass,
    parameter_problems,
    property_problems,
)
from nftbench.records.spec import RESERVED, Spec, look, split

Kind = Literal["defenses", "attacks", "tasks", "yardsticks"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_METHOD: dict[Kind, str] = {"defenses": "protect", "attacks": "adapt", "tasks": "evaluate", "yardsticks": "measure"}
JUDGES: tuple[Kind, ...] = ("tasks", "yardsticks")
"""The kinds of plugins that measure others, in the referee's own process."""
PROTOCOLS: dict[Kind, type[Any]] = {"defenses": Defense, "attacks": Attack, "tasks": Task, "yardsticks": Yardstick}


@dataclass(frozen=True)
class Plugin:
    """A plugin that is available but not imported: its kind, its name and its location."""

    kind: Kind
    name: str
    origin: str
    """`nftbench`, the distribution behind an entry point, the path given with --plugin, or `lm-eval`."""
    path: Path | None = None
    """Its file, which for a folder is `__init__.py`; None for an entry point."""
    entry_point: EntryPoint | None = None

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r} ({self.origin})"

    @property
    def is_trusted(self) -> bool:
        """Whether every process may import it: what comes with nftbench, and all tasks and yardsticks."""
        return self.kind in JUDGES or (self.origin == "nftbench" and self.entry_point is None)

    @property
    def text_file(self) -> Path | None:
        """The YAML file of a text task; None for every other plugin."""
        return self.path if self.path is not None and self.path.suffix == ".yaml" else None

    @property
    def about(self) -> str:
        """A description in one line: the first line of the module's docstring, or a YAML file's first comment."""
        if self.path is None:
            return f"(from {self.origin})"
        text = self.path.read_text(encoding="utf-8")
        if self.text_file is not None:
            first = text.split("\n", 1)[0]
            return one_line(first.removeprefix("#")) if first.startswith("#") else ""
        return one_line((ast.get_docstring(ast.parse(text)) or "").split("\n", 1)[0])


NAME = re.compile(r"[A-Za-z0-9_.-]+")
"""What an added plugin may be named: other alphabets have letters that look like these, and blanks may not be seen."""
FROM_FILE = "nftbench_plugin_"
"""What the names of modules of --plugin files begin with."""
_added: dict[tuple[Kind, str], Plugin] = {}


def add_file(path: str | Path) -> list[Plugin]:
    """Make the plugins in a file or folder available, as `--plugin` does. It may contain plugins of several kinds.

    Raises:
        NftbenchError: the file does not exist, cannot be parsed, contains no plugin, or contains a plugin that judges
            beside one that is judged, or the name is already used, or looks like one that is.
    """
    path = Path(path).resolve()
    path = path.parent if path.name == "__init__.py" else path
    source = path / "__init__.py" if path.is_dir() else path
    if not source.is_file():
        advice = "; write parameters into --defenses or --attacks" if source.name.endswith("]") else ""
        raise NftbenchError(f"--plugin {source}: no such file{advice}")
    kinds = kinds_in(source)
    if not kinds:
        methods = ", ".join(_METHOD.values())
        raise NftbenchError(
            f"--plugin {path}: has no class with one of the methods {methods}; `nftbench new` writes a file with one"
        )
    if re.search(r"[\[\],]", _name(source)):
        raise NftbenchError(
            f"--plugin {path}: the plugin is named after its file, and a name holds no brackets and commas; rename it"
        )
    added = [Plugin(kind, _name(source), str(path), source) for kind in kinds]
    if len({plugin.is_trusted for plugin in added}) > 1:
        raise NftbenchError(
            f"--plugin {path}: holds {' and '.join(kinds)}; the referee imports tasks and yardsticks, and no added "
            "defenses and attacks: write these in another file"
        )
    for plugin in added:
        known = available(plugin.kind).get(plugin.name)
        if known is not None and known != plugin:
            raise NftbenchError(
                f"two {plugin.kind} are named {plugin.name!r}: from {known.origin} and from {path}; rename the file, "
                "after which the plugin is named"
            )
        if problem := _poor_name(plugin, available(plugin.kind).values()):
            raise NftbenchError(f"--plugin {path}: {problem}; rename the file, after which the plugin is named")
        _added[plugin.kind, plugin.name] = plugin
    return added


def _poor_name(plugin: Plugin, others: Iterable[Plugin]) -> str | None:
    """Why an added plugin must not be named so: in tables a reader would take its rows for another's."""
    if not NAME.fullmatch(plugin.name):
        return f"the name {plugin.name!a} has other signs than the letters A to Z, digits, _ - and ."
    alike = {"".join(look(name)): name for name in (*RESERVED, *(one.name for one in others if one != plugin))}
    other = alike.get("".join(look(plugin.name)))
    return f"the name {plugin.name!r} looks like {other!r}" if other is not None else None


def kinds_in(path: Path) -> list[Kind]:
    """The kinds of plugins in a file, which is parsed but not imported.

    Raises:
        NftbenchError: it cannot be parsed. The message begins with file and line.
    """
    try:
        return _kinds(path)
    except SyntaxError as error:
        raise NftbenchError(f"{path}:{error.lineno or 1}: this is not Python: {error.msg}") from None
    except ValueError as error:  # other bytes than UTF-8, or a zero byte
        raise NftbenchError(f"{path}: this is not text in UTF-8: {error}") from None


def check_readable(plugins: Iterable[Plugin], data: Path | None) -> None:
    """Refuse added defenses and attacks that lie under --data, which their own processes cannot read.

    Raises:
        NftbenchError: names the first of them.
    """
    for plugin in plugins:
        if data is not None and not plugin.is_trusted and Path(plugin.origin).is_relative_to(data.resolve()):
            raise NftbenchError(f"{plugin}: it lies under --data {data}, where no defense or attack can read; move it")


@contextlib.contextmanager
def added(*paths: str | Path) -> Iterator[list[Plugin]]:
    """Make the plugins in these files and folders available within a `with` block, after which all added ones go."""
    before = dict(_added)
    try:
        yield [plugin for path in paths for plugin in add_file(path)]
    finally:
        _added.clear()
        _added.update(before)


@contextlib.contextmanager
def importing_added() -> Iterator[None]:
    """Let this process import added defenses and attacks within a `with` block.

    For processes of a plugin's own, and for its author's tools. The referee never does this: what it imports could
    change how it measures.
    """
    global _imports_added
    before, _imports_added = _imports_added, True
    try:
        yield
    finally:
        _imports_added = before


_imports_added = False


def may_import(plugin: Plugin) -> bool:
    """Whether this process may import a plugin."""
    return plugin.is_trusted or _imports_added


def available(kind: Kind) -> dict[str, Plugin]:
    """All plugins of a kind by name, sorted.

    Raises:
        NftbenchError: two different plugins have the same name.
    """
    plugins: dict[str, Plugin] = {}
    for plugin in _candidates(kind):
        other = plugins.setdefault(plugin.name, plugin)
        if other != plugin:
            raise NftbenchError(f"two {kind} are named {plugin.name!r}: from {other.origin} and from {plugin.origin}")
    for plugin in plugins.values():
        if plugin.entry_point is not None and (problem := _poor_name(plugin, plugins.values())):
            raise NftbenchError(f"{kind} from {plugin.origin}: {problem}")
    return dict(sorted(plugins.items()))


def added_files() -> tuple[str, ...]:
    """The paths of the plugins that `add_file` has made available, to do the same in another process."""
    return tuple(dict.fromkeys(plugin.origin for plugin in _added.values()))


def import_module(name: str) -> None:
    """Import the plugin of `add_file` whose module has this name, if there is one, so that its classes are there."""
    for (_, known), plugin in _added.items():
        if name.partition(".")[0] == f"{FROM_FILE}{known}" and plugin.text_file is None and may_import(plugin):
            _import(plugin)


def find(kind: Kind, name: str) -> Plugin:
    """The plugin with this name. A task may also be one that comes with lm-eval.

    Raises:
        NftbenchError: there is none. The message names a similar one.
    """
    known = available(kind)
    if name in known:
        return known[name]
    path = _stock_task(name) if kind == "tasks" else None
    if path is None:
        raise NftbenchError(f"no {kind.removesuffix('s')} is named {name!r}{suggest(name, list(known))}")
    return Plugin("tasks", name, "lm-eval", path)


def written_against(defense: str) -> tuple[str, ...]:
    """The names of nftbench's own attacks whose files say in `against` that they were written against this defense."""
    written = {name: _written(plugin) for name, plugin in available("attacks").items() if plugin.is_trusted}
    values = {name: parts["against"][1] for name, parts in written.items() if "against" in parts}
    return tuple(
        name
        for name, value in values.items()
        if any(isinstance(node, ast.Constant) and node.value == defense for node in ast.walk(value))
    )


def defaults(kind: Kind, name: str) -> Mapping[str, Any]:
    """The defaults of a plugin's parameters that its file writes as plain values, by parameter.

    Of an unknown plugin, and one without a file, nothing is known.
    """
    plugin, found = available(kind).get(name), {}
    for key, (annotation, value) in (_written(plugin) if plugin is not None else {}).items():
        if "ClassVar" not in annotation:
            with contextlib.suppress(ValueError):  # another expression than a plain value
                found[key] = ast.literal_eval(value)
    return found


@functools.cache
def _written(plugin: Plugin) -> Mapping[str, tuple[str, ast.expr]]:
    """By attribute that the plugin's class gives a value: its annotation, and the value, as the file writes them.

    The file is not imported, so that a report can ask; and for all attacks, that would take seconds.
    """
    if plugin.path is None or plugin.text_file is not None:
        return {}
    return {
        ast.unparse(item.target): (ast.unparse(item.annotation), item.value)
        for cls in ast.parse(plugin.path.read_text(encoding="utf-8")).body
        if isinstance(cls, ast.ClassDef) and _METHOD[plugin.kind] in [getattr(item, "name", "") for item in cls.body]
        for item in cls.body
        if isinstance(item, ast.AnnAssign) and item.value is not None
    }


def create(kind: Kind, text: str) -> Any:
    """A plugin object from a spec. Its parameters are checked by the types of its dataclass fields.

    Raises:
        NftbenchError: the name or a parameter is unknown, a value has the wrong type, or the plugin rejects it.
    """
    from pydantic import ValidationError

    spec = Spec.parse(text)
    found = find(kind, spec.name)
    cls = load(found)
    known = [field.name for field in fields(cls) if field.init]
    for key, _ in spec.parameters:
        if key not in known:
            raise NftbenchError(f"{text!r}: {spec.name} has no parameter {key!r}{suggest(key, known)}")
    parameters = {key: _as_list(cls, key, value) for key, value in spec.parameters}
    try:
        plugin = checker(cls).validate_python(parameters)  # type: ignore[arg-type]  # mypy: classes are no Hashable
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "missing":
            raise NftbenchError(
                f"{found}: {key}: has no default; name it, as in {spec.name}[{key}=…], or give it one in the class"
            ) from None
        message = wrong(problem)
        if problem["type"] == "string_type" and len(problem["loc"]) == 1:
            message = f"{problem['input']!r} is no text; write {key}='{problem['input']}'"
        raise NftbenchError(f"{text!r}: {key + ': ' if key else ''}{message}") from None
    for said in property_problems(PROTOCOLS[kind], plugin):
        raise NftbenchError(f"{found}: {said}")
    return plugin


def spec_of(name: str, plugin: Any) -> Spec:
    """The shortest spec that creates an equal plugin. Fields at their defaults are left out."""
    values = parameters(plugin)
    return Spec(name, tuple((key, values[key]) for key in changed(plugin)))


def changed(plugin: Any) -> tuple[str, ...]:
    """The names of a plugin's hyper-parameters that are not at their defaults."""
    return tuple(field.name for field, value in _values(plugin) if value != _default(field))


def parameters(plugin: Any) -> dict[str, Any]:
    """All hyper-parameters of a plugin by name, including those at their defaults."""
    return {field.name: value for field, value in _values(plugin)}


def load(plugin: Plugin) -> type[Any]:
    """Import a plugin and return its class.

    Raises:
        NftbenchError: this process may not import it, importing it fails, its class is not a frozen dataclass that
            derives from its protocol, or an attribute or a parameter of it is wrong.
    """
    if not may_import(plugin):
        raise NftbenchError(f"{plugin}: it is not one of nftbench's own, so only a confined process may import it")
    try:
        cls = imported(plugin)
    except (Exception, SystemExit) as error:  # after SystemExit nothing would be said
        raise NftbenchError(f"{plugin}: {of_dataclass(error) or f'{type(error).__name__}: {error}'}") from error
    protocol = PROTOCOLS[plugin.kind]
    if protocol not in cls.__mro__:
        raise NftbenchError(f"{plugin}: {cls.__name__} must derive from nftbench.{protocol.__name__}")
    if not is_frozen_dataclass(cls):
        raise NftbenchError(
            f"{plugin}: {cls.__name__} is not a frozen dataclass; write `@dataclass(frozen=True)` above it"
        )
    for problem in (*attribute_problems(protocol, cls), *parameter_problems(cls)):
        raise NftbenchError(f"{plugin}: {problem}")
    return cls


def imported(plugin: Plugin) -> type[Any]:
    """The class of a plugin, as its file defines it. What the plugin's code raises is passed on.

    Raises:
        NftbenchError: its file or module does not have one class with the method of its protocol.
    """
    if plugin.entry_point is None:
        return class_in(_import(plugin), plugin.kind)
    loaded = plugin.entry_point.load()
    cls: type[Any] = class_in(loaded, plugin.kind) if isinstance(loaded, ModuleType) else loaded
    return cls


def is_frozen_dataclass(cls: type[Any]) -> bool:
    """Whether a class is a dataclass whose objects cannot be changed."""
    return is_dataclass(cls) and bool(cls.__dataclass_params__.frozen)  # type: ignore[attr-defined]


def _candidates(kind: Kind) -> Iterator[Plugin]:
    package = importlib.util.find_spec(f"nftbench.{kind}")
    folders = package.submodule_search_locations if package is not None else None
    for folder in folders or ():
        yield from _in_folder(kind, Path(folder), Path(folder).stat().st_mtime_ns)
    for entry_point in _entry_points(kind, tuple(sys.path)):
        distribution = entry_point.dist.name if entry_point.dist is not None else entry_point.value
        yield Plugin(kind, entry_point.name, distribution, entry_point=entry_point)
    yield from (plugin for (its_kind, _), plugin in _added.items() if its_kind == kind)


@functools.cache
def _in_folder(kind: Kind, folder: Path, changed: int) -> tuple[Plugin, ...]:
    """nftbench's own plugins of a kind. Cached while no file comes or goes: a plan looks for thousands of names."""
    found = []
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith(("_", ".")):
            continue
        path = entry if entry.suffix in (".py", ".yaml") else entry / "__init__.py"
        try:
            if path.is_file() and kind in _kinds(path):
                found.append(Plugin(kind, _name(path), "nftbench", path))
        except (SyntaxError, UnicodeDecodeError) as error:
            warnings.warn(f"{path}: left out: {error}", stacklevel=2)
    return tuple(found)


def _name(source: Path) -> str:
    return source.parent.name if source.name == "__init__.py" else source.stem


@functools.cache
def _entry_points(kind: Kind, search_path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """The plugins of installed packages. Cached for each `sys.path`."""
    return tuple(entry_points(group=f"nftbench.{kind}"))


def _kinds(path: Path) -> list[Kind]:
    return _kinds_of(path, path.stat().st_mtime_ns)


@functools.cache
def _kinds_of(path: Path, changed: int) -> list[Kind]:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".yaml":
        return ["tasks"]
    classes = [node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)]
    public = [cls for cls in classes if not cls.name.startswith("_")]
    methods = {item.name for cls in public for item in cls.body if isinstance(item, ast.FunctionDef)}
    return [kind for kind in KINDS if _METHOD[kind] in methods]


def _import(plugin: Plugin) -> ModuleType:
    if plugin.origin == "nftbench":
        return importlib.import_module(f"nftbench.{plugin.kind}.{plugin.name}")
    assert plugin.path is not None
    name = f"{FROM_FILE}{plugin.name}"
    module = sys.modules.get(name)
    if module is None or module.__file__ != str(plugin.path):
        for other in [one for one in sys.modules if one.startswith(f"{name}.")]:
            del sys.modules[other]  # a module of an earlier plugin with this name, which was a folder
        folder = [str(plugin.path.parent)] if plugin.path.name == "__init__.py" else None
        specification = importlib.util.spec_from_file_location(
            name, plugin.path, loader=_FromSource(name, str(plugin.path)), submodule_search_locations=folder
        )
        assert specification is not None
        assert specification.loader is not None
        module = importlib.util.module_from_spec(specification)
        sys.modules[name] = module  # dataclasses need to find their module
        try:
            specification.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return module


class _FromSource(SourceFileLoader):
    """Loads a module from its source, which keys and records name, and never from a compiled file beside it."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


class _FromSources:
    """Finds the modules in the folder of a --plugin file, for the same reason."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if not name.startswith(FROM_FILE) or path is None:
            return None
        loaders = [(ExtensionFileLoader, EXTENSION_SUFFIXES), (_FromSource, SOURCE_SUFFIXES)]
        for folder in path:
            found = FileFinder(folder, *loaders).find_spec(name, target)
            if found is not None:
                return found
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, _FromSources)


def class_in(module: ModuleType, kind: Kind) -> type[Any]:
    """The class of a module with the method of this kind's protocol.

    Raises:
        NftbenchError: there is none, or there are several.
    """
    own = [item for item in vars(module).values() if isinstance(item, type) and item.__module__ == module.__name__]
    classes = [cls for cls in own if _METHOD[kind] in vars(cls) and not cls.__name__.startswith("_")]
    if len(classes) != 1:
        raise NftbenchError(f"needs one class with the method {_METHOD[kind]!r}, has {len(classes)}")
    return classes[0]


def _values(plugin: Any) -> list[tuple[Any, Any]]:
    return [(field, getattr(plugin, field.name)) for field in fields(plugin) if field.init]


def _default(field: Any) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


def _as_list(cls: type[Any], key: str, value: Any) -> Any:
    """The value `a+b` as a list if the field is a tuple or list. A plus sign in brackets does not separate items."""
    annotation = next((str(field.type) for field in fields(cls) if field.name == key), "")
    if not annotation.startswith(("tuple", "list")) or isinstance(value, list):
        return value
    items = split(str(value), "+")
    return items if annotation.startswith(("tuple[str", "list[str")) else [_value(item) for item in items]


def _value(text: str) -> Any:
    """A YAML scalar; the text itself where it is none, for the check of types to refuse."""
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return text


@functools.cache
def _stock_task(name: str) -> Path | None:
    """The YAML file of a task of lm-eval, found by its `task:` line. Lm-eval's own index takes 5 to 40 s to build."""
    folder = task_files.lm_eval_folder()
    if folder is None:
        return None
    line = re.compile(rf"^task:\s*[\"']?{re.escape(name)}[\"']?\s*$", re.MULTILINE)
    for path in sorted(folder.rglob("*.yaml")):
        if line.search(path.read_text(encoding="utf-8", errors="replace")):
            return path
    return None
