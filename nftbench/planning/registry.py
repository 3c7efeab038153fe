"""Plugins by name: a file in defenses/, attacks/, tasks/ or yardsticks/, an entry point, or one given with --plugin.

Names are found without importing anything; a plugin is imported when it is asked for. Its name is its file's stem (or
its entry point's name), its class the one in that file which has the protocol's method. A text task is a YAML file.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, get_args

import yaml

from nftbench.contract import Attack, Defense, Task, Yardstick
from nftbench.errors import NftbenchError, suggest
from nftbench.records.spec import Spec

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Kind = Literal["defenses", "attacks", "tasks", "yardsticks"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_METHOD: dict[Kind, str] = {"defenses": "protect", "attacks": "adapt", "tasks": "evaluate", "yardsticks": "measure"}
PROTOCOLS: dict[Kind, type[Any]] = {"defenses": Defense, "attacks": Attack, "tasks": Task, "yardsticks": Yardstick}


@dataclass(frozen=True)
class Plugin:
    """Where a plugin is; finding out imports nothing."""

    kind: Kind
    name: str
    origin: str
    """`nftbench`, the distribution behind an entry point, the path given with --plugin, or `lm-eval`."""
    path: Path | None = None
    """Its source file; None for an entry point, whose file is not known before it is imported."""
    entry_point: EntryPoint | None = None

    @property
    def about(self) -> str:
        """The first line of the docstring, or of a YAML file's leading comment."""
        if self.path is None:
            return f"(from {self.origin})"
        text = self.path.read_text(encoding="utf-8")
        if self.path.suffix == ".yaml":
            first = text.split("\n", 1)[0]
            return first.removeprefix("#").strip() if first.startswith("#") else ""
        return (ast.get_docstring(ast.parse(text)) or "").split("\n", 1)[0]


_added: dict[tuple[Kind, str], Plugin] = {}


def add_file(path: str | Path) -> list[Plugin]:
    """Make the plugins of a file available, whichever kinds it holds (`--plugin path/to/file.py`).

    Raises:
        NftbenchError: no such file, it cannot be read, it holds no plugin, or a name is taken already.
    """
    path = Path(path).resolve()
    if not path.is_file():
        raise NftbenchError(f"--plugin {path}: no such file")
    try:
        kinds = _kinds(path)
    except (SyntaxError, UnicodeDecodeError) as error:
        raise NftbenchError(f"--plugin {path}: {error}") from None
    if not kinds:
        raise NftbenchError(f"--plugin {path}: holds no class with {', '.join(_METHOD.values())}")
    added = [Plugin(kind, path.stem, str(path), path) for kind in kinds]
    for plugin in added:
        known = available(plugin.kind).get(plugin.name)
        if known is not None and known != plugin:
            raise NftbenchError(f"two {plugin.kind} are named {plugin.name!r}: from {known.origin} and from {path}")
        _added[plugin.kind, plugin.name] = plugin
    return added


def available(kind: Kind) -> dict[str, Plugin]:
    """All plugins of a kind by name, sorted.

    Raises:
        NftbenchError: two plugins from different places have one name.
    """
    found: dict[str, Plugin] = {}
    for plugin in _candidates(kind):
        other = found.setdefault(plugin.name, plugin)
        if other != plugin:
            raise NftbenchError(f"two {kind} are named {plugin.name!r}: from {other.origin} and from {plugin.origin}")
    return dict(sorted(found.items()))


def find(kind: Kind, name: str) -> Plugin:
    """The plugin of this name; a task may also be one of lm-eval's own.

    Raises:
        NftbenchError: there is none; names the nearest one.
    """
    known = available(kind)
    if name in known:
        return known[name]
    path = _stock_task(name) if kind == "tasks" else None
    if path is None:
        raise NftbenchError(f"no {kind.removesuffix('s')} is named {name!r}{suggest(name, list(known))}")
    return Plugin("tasks", name, "lm-eval", path)


def parse(text: str) -> Spec:
    """`lora[rank=16,targets=attention]` as a `Spec`. Values are YAML scalars; `a+b` is a list if the field is one."""
    name, bracket, rest = text.strip().partition("[")
    if not bracket:
        return Spec(name)
    if not rest.endswith("]"):
        raise NftbenchError(f"{text!r}: the bracket is not closed; write name[key=value,key=value]")
    parameters: list[tuple[str, Any]] = []
    for item in split(rest[:-1]):
        key, separator, value = item.partition("=")
        if not separator:
            raise NftbenchError(f"{text!r}: {item!r} is not key=value")
        if key.strip() in dict(parameters):
            raise NftbenchError(f"{text!r}: {key.strip()!r} stands there twice")
        try:
            parameters.append((key.strip(), yaml.safe_load(value)))
        except yaml.YAMLError:
            raise NftbenchError(f"{text!r}: {value!r} is no value; quote it as in YAML") from None
    return Spec(name, tuple(parameters))


def split(text: str, mark: str = ",") -> list[str]:
    """The parts between marks, stripped, without empty ones; a mark within brackets, however deep, parts nothing."""
    parts, depth = [""], 0
    for character in text:
        depth += (character == "[") - (character == "]")
        if character == mark and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def create(kind: Kind, text: str) -> Any:
    """The plugin that a spec names, its parameters checked against the fields of its dataclass.

    Raises:
        NftbenchError: unknown name or parameter, a value of another type, or what the plugin itself refuses.
    """
    from pydantic import ValidationError

    spec = parse(text)
    cls = load(find(kind, spec.name))
    known = [field.name for field in fields(cls) if field.init]
    for key, _ in spec.parameters:
        if key not in known:
            raise NftbenchError(f"{text!r}: {spec.name} has no parameter {key!r}{suggest(key, known)}")
    parameters = {key: _as_list(cls, key, value) for key, value in spec.parameters}
    try:
        return _checker(cls).validate_python(parameters)  # type: ignore[arg-type]  # mypy: classes are no Hashable
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        raise NftbenchError(f"{text!r}: {key + ': ' if key else ''}{message}") from None


@functools.cache
def _checker(cls: Any) -> TypeAdapter[Any]:
    """Built once for each class, which takes a thousand times as long as using it."""
    from pydantic import TypeAdapter

    return TypeAdapter(cls)


def spec_of(name: str, plugin: Any) -> Spec:
    """The shortest spec that creates this plugin again: fields at their defaults are left out."""
    return Spec(name, tuple((field.name, value) for field, value in _values(plugin) if value != _default(field)))


def parameters(plugin: Any) -> dict[str, Any]:
    """Every hyper-parameter of a plugin with its value, defaults included."""
    return {field.name: value for field, value in _values(plugin)}


def load(plugin: Plugin) -> type[Any]:
    """Import a plugin and return its class.

    Raises:
        NftbenchError: importing it fails, or its class is no frozen dataclass.
    """
    try:
        if plugin.entry_point is not None:
            loaded = plugin.entry_point.load()
            cls = _class_in(loaded, plugin.kind) if isinstance(loaded, ModuleType) else loaded
        else:
            cls = _class_in(_import(plugin), plugin.kind)
    except Exception as error:
        raise NftbenchError(
            f"{plugin.kind} {plugin.name!r} ({plugin.origin}): {type(error).__name__}: {error}"
        ) from error
    protocol = PROTOCOLS[plugin.kind]
    if protocol not in cls.__mro__:
        raise NftbenchError(
            f"{plugin.kind} {plugin.name!r} ({plugin.origin}): derive from nftbench.{protocol.__name__}"
        )
    if not is_dataclass(cls) or not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise NftbenchError(
            f"{plugin.kind} {plugin.name!r} ({plugin.origin}): {cls.__name__} is not a frozen dataclass"
        )
    return cls


def source_hash(plugin: Plugin) -> str:
    """Hash of a plugin's source. Comments and docstrings do not count in Python files; a YAML task counts in full,
    together with the Python files that its `!function` tags name."""
    digest = hashlib.sha256()
    if plugin.path is not None and plugin.path.suffix == ".yaml":
        text = plugin.path.read_text(encoding="utf-8")
        digest.update(text.encode())
        for module in sorted(set(re.findall(r"!function\s+([\w.]+)\.\w+", text))):
            digest.update(_code(plugin.path.parent / f"{module.replace('.', '/')}.py").encode())
    else:
        path = plugin.path or Path(inspect.getfile(load(plugin)))
        digest.update(_code(path).encode())
    return digest.hexdigest()


def _code(path: Path) -> str:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [line for line in node.body if not _is_string(line)] or [ast.Pass()]
    return ast.unparse(tree)


def _is_string(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _candidates(kind: Kind) -> Iterator[Plugin]:
    package = importlib.util.find_spec(f"nftbench.{kind}")
    folders = package.submodule_search_locations if package is not None else None
    for folder in folders or ():
        for path in sorted(Path(folder).iterdir()):
            if path.suffix not in (".py", ".yaml") or path.stem.startswith("_"):
                continue
            try:
                if kind in _kinds(path):
                    yield Plugin(kind, path.stem, "nftbench", path)
            except (SyntaxError, UnicodeDecodeError) as error:
                warnings.warn(f"{path}: left out: {error}", stacklevel=2)
    for entry_point in _entry_points(kind, tuple(sys.path)):
        distribution = entry_point.dist.name if entry_point.dist is not None else entry_point.value
        yield Plugin(kind, entry_point.name, distribution, entry_point=entry_point)
    yield from (plugin for (its_kind, _), plugin in _added.items() if its_kind == kind)


@functools.cache
def _entry_points(kind: Kind, search_path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """What installed packages offer; looked for once for each `sys.path`."""
    return tuple(entry_points(group=f"nftbench.{kind}"))


def _kinds(path: Path) -> list[Kind]:
    """The kinds of plugin that a file holds, from its syntax alone."""
    return _kinds_of(path, path.stat().st_mtime_ns)


@functools.cache
def _kinds_of(path: Path, changed: int) -> list[Kind]:
    if path.suffix == ".yaml":
        return ["tasks"]
    classes = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)]
    methods = {item.name for cls in classes for item in cls.body if isinstance(item, ast.FunctionDef)}
    return [kind for kind in KINDS if _METHOD[kind] in methods]


def _import(plugin: Plugin) -> ModuleType:
    if plugin.origin == "nftbench":
        return importlib.import_module(f"nftbench.{plugin.kind}.{plugin.name}")
    assert plugin.path is not None
    name = f"nftbench_plugin_{plugin.name}"
    module = sys.modules.get(name)
    if module is None or module.__file__ != str(plugin.path):
        specification = importlib.util.spec_from_file_location(name, plugin.path)
        assert specification is not None
        assert specification.loader is not None
        module = importlib.util.module_from_spec(specification)
        sys.modules[name] = module  # dataclasses look their module up there
        try:
            specification.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return module


def _class_in(module: ModuleType, kind: Kind) -> type[Any]:
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
    """`a+b` as a list, where the field is a tuple or list; a plus within brackets parts nothing."""
    annotation = next((str(field.type) for field in fields(cls) if field.name == key), "")
    if annotation.startswith(("tuple", "list")) and not isinstance(value, list):
        return [yaml.safe_load(item) for item in split(str(value), "+")]
    return value


@functools.cache
def _stock_task(name: str) -> Path | None:
    """The file of one of lm-eval's own tasks, found by its `task:` line: building lm-eval's index takes 5 to 40 s."""
    package = importlib.util.find_spec("lm_eval")
    if package is None or not package.submodule_search_locations:
        return None
    line = re.compile(rf"^task:\s*[\"']?{re.escape(name)}[\"']?\s*$", re.MULTILINE)
    for path in sorted((Path(package.submodule_search_locations[0]) / "tasks").rglob("*.yaml")):
        if line.search(path.read_text(encoding="utf-8", errors="replace")):
            return path
    return None
