"""The digest of a file's syntax: it changes with the code, and not with comments, docstrings or formatting."""

from __future__ import annotations

import ast
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from nftbench.records import identity

ROOT = Path(__file__).parents[2]
FILES = sorted(
    path for folder in ("attacks", "defenses", "tasks", "nftbench/data") for path in (ROOT / folder).glob("*.py")
)
Write = Callable[[str], Path]


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory) -> Write:
    """`write(text)`: a new file with this text."""
    folder, count = tmp_path_factory.mktemp("files"), 0

    def new(text: str) -> Path:
        nonlocal count
        count += 1
        path = folder / f"{count}.py"
        path.write_text(text, encoding="utf-8")
        return path

    return new


def bodies(tree: ast.Module) -> list[list[ast.stmt]]:
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef
    return [node.body for node in ast.walk(tree) if isinstance(node, kinds)]


def reformatted(text: str, draw: random.Random) -> str:
    return ast.unparse(ast.parse(text))


def commented(text: str, draw: random.Random) -> str:
    """A comment before each of some statements, and blank lines."""
    lines = text.split("\n")
    starts = {body[0].lineno - 1 for body in bodies(ast.parse(text)) if body}
    starts = {number for number in starts if draw.random() < 0.5 and not lines[number - 1].endswith("\\")}
    inserted = [f"\n    # why {number}\n{line}" if number in starts else line for number, line in enumerate(lines)]
    return "\n".join(inserted) + "\n# the end\n"


def documented(text: str, draw: random.Random) -> str:
    """Docstrings where there are none, and lone strings between statements, as attributes are documented."""
    tree = ast.parse(text)
    for body in bodies(tree):
        body.insert(0, ast.Expr(ast.Constant("About.")))
        body.insert(draw.randrange(1, len(body) + 1), ast.Expr(ast.Constant("What stands above.")))
    future = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
    tree.body = [tree.body[0], *future, *(node for node in tree.body[1:] if node not in future)]
    return ast.unparse(ast.fix_missing_locations(tree))


def without_imports(text: str, draw: random.Random) -> str:
    """Every import line that renames nothing taken away."""
    tree = ast.parse(text)

    class Remove(ast.NodeTransformer):
        def visit_Import(self, node: ast.Import) -> ast.stmt | None:
            return node if any(alias.asname for alias in node.names) else None

        def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.stmt | None:
            return node if any(alias.asname for alias in node.names) else None

    tree = Remove().visit(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.If | ast.FunctionDef) and not node.body:
            node.body = [ast.Pass()]
    return ast.unparse(ast.fix_missing_locations(tree))


@pytest.mark.parametrize("rewritten", [reformatted, commented, documented, without_imports])
@given(path=st.sampled_from(FILES), draw=st.randoms(use_true_random=False))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_code_that_is_only_written_in_another_way_is_the_same_code(
    rewritten: Callable[[str, random.Random], str], path: Path, draw: random.Random, write: Write
) -> None:
    other = write(rewritten(path.read_text(encoding="utf-8"), draw))
    assert identity.code(other).digest == identity.code(path).digest


def constants(tree: ast.Module) -> list[ast.Constant]:
    """Those that count: neither docstrings, nor numbers for the forecast alone."""
    lone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    forecasts = [
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == identity.FORECAST
    ]
    lone |= {id(node) for forecast in forecasts for node in ast.walk(forecast)}
    return [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in lone]


def another(value: Any) -> Any:
    if isinstance(value, bool) or value is None or value is ...:
        return "changed"
    return value + (b"x" if isinstance(value, bytes) else "x" if isinstance(value, str) else 1)


@given(path=st.sampled_from(FILES), data=st.data())
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_another_constant_is_other_code(path: Path, data: st.DataObject, write: Write) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = constants(tree)
    if not found:
        return
    chosen = data.draw(st.sampled_from(range(len(found))))
    found[chosen].value = another(found[chosen].value)
    assert identity.code(write(ast.unparse(tree))).digest != identity.code(path).digest


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("import a\nimport b\nf()", "import b\nf()"),
        ("from a.b import c as d\nd()", "from other.place import c as d\nd()"),
        ("import a.b as c\nc()", "from a import b as c\nc()"),
        ("import a.b as b\nb()", "from a import b\nb()"),
        ("if TYPE_CHECKING:\n    import a\nf()", "f()"),
        ("if typing.TYPE_CHECKING:\n    from a import b\nf()", "import b\nf()"),
        ("class A:\n    pass", "class A:\n    'About.'"),
        ("def f():\n    import a\n    return a", "def f():\n    'Does.'\n    return a"),
        ("x = 'a' f'b{y}' 'c'", "x = f'ab{y}c'"),
        ("x = 'a' 'b'", 'x = "ab"'),
        ("x = u'a'", "x = 'a'"),
        ("x = 0x10", "x = 16"),
        ("x = (\n    1,\n    2,\n)", "x = 1, 2"),
        ("x = 1  # type: int", "x = 1"),
        ("class A:\n    def training_passes(self, suite):\n        return Passes(1)", "class A: pass"),
    ],
)
def test_the_same_code(one: str, other: str, write: Write) -> None:
    assert identity.code(write(one)).digest == identity.code(write(other)).digest


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("from a import b as d\nd()", "from a import c as d\nd()"),
        ("import a as b\nb()", "import a\nb()"),
        ("x = 1", "x = 1.0"),
        ("x = 1", "x = True"),
        ("x = None", "x = ''"),
        ("x = 'None'", "x = None"),
        ("x = 'a'", "x = b'a'"),
        ("x = f'{y}'", "x = f'{y!r}'"),
        ("x = f'{y:.2f}'", "x = f'{y:.3f}'"),
        ("x = f'{y}'", "x = '{y}'"),
        ("x = {**a, 'k': 1}", "x = {'k': 1, **a}"),
        ("f(a, b)", "f(b, a)"),
        ("f(a=1, b=2)", "f(b=2, a=1)"),
        ("def f(*, a, b=1): ...", "def f(*, a=1, b): ..."),
        ("def f(): ...", "async def f(): ..."),
        ("if a:\n    import b\nf()", "f()"),
        ("match x:\n    case None: f()", "match x:\n    case True: f()"),
        ("x: int = 1", "x: float = 1"),
        ("@a\ndef f(): ...", "def f(): ..."),
        ("def training_passes(): return 1", "def training_passes(): return 2"),
        (
            "class A:\n    def training_passes(self): return 1\n    def protect(self): return self.training_passes()",
            "class A:\n    def training_passes(self): return 2\n    def protect(self): return self.training_passes()",
        ),
    ],
)
def test_other_code(one: str, other: str, write: Write) -> None:
    assert identity.code(write(one)).digest != identity.code(write(other)).digest


def test_a_file_is_read_again_when_it_has_changed(write: Write) -> None:
    path = write("x = 1\n")
    before = identity.code(path).digest, identity.file_hash(path)
    path.write_text("x = 10\n")
    after = identity.code(path).digest, identity.file_hash(path)
    assert not set(before) & set(after)


def test_what_is_no_python_counts_by_its_bytes(write: Write) -> None:
    path = write("def f(:\n")
    assert identity.code(path) == identity.Code(identity.file_hash(path), ())


@pytest.mark.parametrize("deep", ["x = " + " + ".join(["a"] * 2000), "x = " + "(" * 3000 + ")" * 3000])
def test_what_is_nested_too_deeply_counts_by_its_bytes(deep: str, write: Write) -> None:
    path = write(f"import b\n{deep}\n")
    assert identity.code(path).digest == identity.file_hash(path)


def test_the_order_of_keys_does_not_count() -> None:
    assert identity.digest({"a": 1, "b": [2]}) == identity.digest({"b": [2], "a": 1})
    assert identity.digest([1], 2) != identity.digest(1, [2])
