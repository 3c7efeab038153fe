"""Hashes of settings and code, and versions of the core: together they are the key of a number.

A key is a hash of settings, data, seeds and the code of the plugins involved. The core's own code is not hashed.
Instead, each of its three areas has a version, which is raised by hand. A test in tests/golden fails if numbers change
and the version of their area does not.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TRAINING = 2
"""Raised whenever corpora, pre-training or code shared by defenses give other numbers from the same settings."""
ATTACK = 2
"""Raised whenever the sweep or code shared by attacks gives other numbers from the same settings."""
EVALUATION = 2
"""Raised whenever the core's tasks or metrics give other numbers for the same network."""


def digest(*parts: Any) -> str:
    """sha256 of the canonical JSON of `parts`."""
    return hashlib.sha256(_CANONICAL.encode(parts).encode()).hexdigest()


_CANONICAL = json.JSONEncoder(sort_keys=True, default=str)
"""`json.dumps` with these options makes an encoder anew for each of thousands of keys."""


def file_hash(path: Path) -> str:
    """sha256 of a file's content. An unchanged file is read only once."""
    status = path.stat()
    return _file_hash(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=1024)
def _file_hash(path: Path, changed: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ----------------------------------------------------------------------------------------------------- code


@dataclass(frozen=True)
class Import:
    """A module in an import statement: `level` is the number of leading dots, `names` are those after `import`."""

    module: str
    level: int = 0
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Code:
    """What keys use of a Python file: the digest of its syntax, and its imports."""

    digest: str
    imports: tuple[Import, ...]


def code(path: Path) -> Code:
    """A Python file's syntax digest and imports. An unchanged file is read only once.

    Comments, docstrings, formatting and import lines do not change the digest. Renamings in imports (`x as y`) do. So
    does a method `training_passes`, which only says how long training takes, where the file itself uses it. The digest
    is the same under every version of Python. If this version cannot parse the file, or if the code is nested
    too deeply, its bytes are hashed.
    """
    status = path.stat()
    return _code(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=1024)
def _code(path: Path, changed: int, size: int) -> Code:
    try:
        tree = ast.parse(path.read_bytes(), str(path))
    except (SyntaxError, ValueError, RecursionError):
        return Code(file_hash(path), ())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    if not any(isinstance(node, ast.Attribute) and node.attr == FORECAST for node in ast.walk(tree)):
        _remove_forecasts(tree)
    try:
        syntax = digest(_plain(tree), sorted(_renamings(imports)))
    except RecursionError:  # such as a sum of a thousand terms
        syntax = file_hash(path)
    return Code(syntax, tuple(_imported(imports)))


def _remove_forecasts(tree: ast.Module) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            node.body = [
                part for part in node.body if not (isinstance(part, ast.FunctionDef) and part.name == FORECAST)
            ]


def _renamings(imports: Iterable[ast.Import | ast.ImportFrom]) -> set[tuple[str, str]]:
    """Every `x as y` in imports. Only the last part of a dotted `x` counts, so that modules may move."""
    pairs = {(alias.name.rpartition(".")[2], alias.asname) for node in imports for alias in node.names}
    return {(name, other) for name, other in pairs if other is not None and other != name}


def _imported(imports: Iterable[ast.Import | ast.ImportFrom]) -> Iterable[Import]:
    for node in imports:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name) for alias in node.names)
        else:
            yield Import(node.module or "", node.level, tuple(alias.name for alias in node.names))


FORECAST = "training_passes"
"""The method of a defense that changes no number, but only what a plan says of its time."""
NO_CODE = digest(["Module"], [])
"""The digest of a Python file with nothing but docstrings and import lines, such as an empty `__init__.py`."""
IGNORED = frozenset({"ctx", "kind", "type_comment", "type_ignores"})
"""Fields of syntax nodes that do not change what the code does."""


def _plain(node: Any) -> Any:
    """A syntax tree as nested lists: each node is its type and its fields, without fields that are None or empty.

    `ast.dump` would not do, because its text differs between versions of Python.
    """
    if isinstance(node, ast.Constant):  # 1, True and 1.0 are equal in Python, but differ as code
        # ascii, because Python versions differ in the letters that repr escapes
        return [type(node.value).__name__, ascii(node.value)]
    if isinstance(node, ast.JoinedStr):
        return ["JoinedStr", _joined(node)]
    if isinstance(node, ast.AST):
        named = [(name, value) for name, value in ast.iter_fields(node) if name not in IGNORED]
        plain = [(name, _block(value) if _is_block(name, value) else _plain(value)) for name, value in named]
        return [type(node).__name__, *(pair for pair in plain if pair[1] is not None and pair[1] != [])]
    if isinstance(node, list):
        return [_plain(item) for item in node]
    return node if node is None or isinstance(node, int | str) else repr(node)


def _is_block(name: str, value: Any) -> bool:
    return name in ("body", "orelse", "finalbody") and isinstance(value, list)


def _block(statements: list[ast.stmt]) -> list[Any]:
    """A block's statements, without those that do nothing."""
    return [_plain(statement) for statement in statements if not _does_nothing(statement)]


def _does_nothing(node: ast.stmt) -> bool:
    """Whether a statement is an import, a docstring or other lone string, or `pass`."""
    if isinstance(node, ast.If):  # `if TYPE_CHECKING:` with imports
        return _is_type_checking(node.test) and all(map(_does_nothing, [*node.body, *node.orelse]))
    lone_string = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and type(node.value.value) is str
    return lone_string or isinstance(node, ast.Import | ast.ImportFrom | ast.Pass)


def _is_type_checking(test: ast.expr) -> bool:
    name = test.id if isinstance(test, ast.Name) else test.attr if isinstance(test, ast.Attribute) else None
    return name == "TYPE_CHECKING"


def _joined(node: ast.JoinedStr) -> list[Any]:
    """The parts of an f-string. Adjacent text parts are joined, because Python versions split text differently."""
    parts: list[Any] = []
    for part in node.values:
        plain = _plain(part)
        if isinstance(part, ast.Constant):
            if parts and parts[-1][0] == "text":
                parts[-1][1] += part.value
            elif part.value:
                parts.append(["text", part.value])
        else:
            parts.append(plain)
    return parts
