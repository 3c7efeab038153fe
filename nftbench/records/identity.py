"""What makes two numbers the same number: hashes of settings and of code, and the versions of the core.

A key hashes settings, data, seeds and the code of the plugins involved. The core's own code is not hashed: its three
areas have versions, which are raised by hand. The test in tests/golden fails where numbers move and a version does not.
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

TRAINING = 1
"""Raised whenever corpora, pre-training or what defenses share give other numbers from the same settings."""
ATTACK = 1
"""Raised whenever the sweep or what attacks share give other numbers from the same settings."""
EVALUATION = 1
"""Raised whenever a task or a metric of the core gives other numbers for the same network."""


def digest(*parts: Any) -> str:
    """sha256 of the canonical JSON of `parts`."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """sha256 of a file's content, read once for each version of the file."""
    status = path.stat()
    return _file_hash(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=1024)
def _file_hash(path: Path, changed: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ----------------------------------------------------------------------------------------------------- code


@dataclass(frozen=True)
class Import:
    """One import statement's module: `level` counts the leading dots, `names` are what `from` takes of it."""

    module: str
    level: int = 0
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Code:
    """A Python file as keys see it: the digest of its syntax, and what it imports."""

    digest: str
    imports: tuple[Import, ...]


def code(path: Path) -> Code:
    """A Python file's syntax digest and imports, read once for each version of the file.

    Comments, docstrings, formatting and import lines do not count; names that an import gives anew (`x as y`) do. The
    digest is the same under every version of Python. A file that this version cannot read, or that is
    nested too deeply, counts by its bytes.
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
    try:
        syntax = digest(_plain(tree), sorted(_renamings(imports)))
    except RecursionError:  # such as a sum of a thousand terms
        syntax = file_hash(path)
    return Code(syntax, tuple(_imported(imports)))


def _renamings(imports: Iterable[ast.Import | ast.ImportFrom]) -> set[tuple[str, str]]:
    """Every `x as y`; of a dotted `x` the last part, so that a module may move."""
    pairs = {(alias.name.rpartition(".")[2], alias.asname) for node in imports for alias in node.names}
    return {(name, other) for name, other in pairs if other is not None and other != name}


def _imported(imports: Iterable[ast.Import | ast.ImportFrom]) -> Iterable[Import]:
    for node in imports:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name) for alias in node.names)
        else:
            yield Import(node.module or "", node.level, tuple(alias.name for alias in node.names))


NO_CODE = digest(["Module"], [])
"""The digest of a Python file with nothing but docstrings and import lines, such as an empty `__init__.py`."""
IGNORED = frozenset({"ctx", "kind", "type_comment", "type_ignores"})
"""Fields of syntax nodes that say nothing about what the code does."""


def _plain(node: Any) -> Any:
    """A syntax tree as lists: a node is its type and its fields, without those that are None or empty.

    Not `ast.dump`, whose text differs between versions of Python.
    """
    if isinstance(node, ast.Constant):  # 1, True and 1.0 are equal in Python, and are not the same code
        return [
            type(node.value).__name__,
            ascii(node.value),
        ]  # not repr, for which Python versions escape other letters
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
    """Statements without imports and lone strings; `pass` fills none and so says nothing."""
    return [_plain(one) for one in statements if not _says_nothing(one)]


def _says_nothing(node: ast.stmt) -> bool:
    if isinstance(node, ast.If):  # `if TYPE_CHECKING:` over import lines
        return _is_type_checking(node.test) and all(map(_says_nothing, [*node.body, *node.orelse]))
    lone_string = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and type(node.value.value) is str
    return lone_string or isinstance(node, ast.Import | ast.ImportFrom | ast.Pass)


def _is_type_checking(test: ast.expr) -> bool:
    name = test.id if isinstance(test, ast.Name) else test.attr if isinstance(test, ast.Attribute) else None
    return name == "TYPE_CHECKING"


def _joined(node: ast.JoinedStr) -> list[Any]:
    """The parts of an f-string, with neighbouring text in one: Python versions cut it at other places."""
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
