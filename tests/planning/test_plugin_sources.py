"""A plugin's cells run again after an edit to the code of any of its own files, and after no other edit."""

from __future__ import annotations

import shutil
import site
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nftbench.errors import NftbenchError
from nftbench.planning import registry, task_files
from nftbench.planning.plan import plan
from nftbench.planning.plugin_sources import Source, methods, own_files, source_digest
from nftbench.planning.registry import Plugin
from nftbench.testing import tiny_suite

MINE = """\
from dataclasses import dataclass
from typing import ClassVar

from nftbench import Defense, Protected
{line}


@dataclass(frozen=True)
class Mine(Defense):
    stage: ClassVar[str] = "posttrain"

    def protect(self, model, context):
        return Protected(weaken(model))
"""
HELPER = "def weaken(model):\n    return model\n"


@dataclass(frozen=True)
class Example:
    """A plugin named `mine` of several files."""

    main: Path
    helper: Path
    beyond: Path
    """Imported by the helper alone."""

    def keys(self) -> set[str]:
        """Keys of its cells."""
        suite = tiny_suite(defenses=["none", "mine"], attacks=["none", "full"])
        return {cell.key for cell in plan(suite).cells if cell.defense.name == "mine"}

    def edit(self, path: Path, old: str, new: str) -> None:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))


def write(folder: Path, main: str, helper: str, line: str) -> Example:
    """The three files, importing each other by relative imports where the helper does."""
    folder.mkdir(parents=True, exist_ok=True)
    example = Example(folder / main, folder / helper, folder / "beyond.py")
    dot = "." if "." in line.split()[1] else ""
    example.main.write_text(MINE.format(line=line))
    example.helper.write_text(f"from {dot}beyond import FACTOR\n\n\n{HELPER}")
    example.beyond.write_text("FACTOR = 2\n")
    return example


def as_folder(tmp_path: Path, patch: pytest.MonkeyPatch) -> Example:
    example = write(tmp_path / "mine", "__init__.py", "helper.py", "from .helper import weaken")
    registry.add_file(tmp_path / "mine")
    return example


def as_file(tmp_path: Path, patch: pytest.MonkeyPatch) -> Example:
    example = write(tmp_path / "files", "mine.py", "helper_beside.py", "from helper_beside import weaken")
    patch.syspath_prepend(str(tmp_path / "files"))
    registry.add_file(example.main)
    return example


def as_entry_point(tmp_path: Path, patch: pytest.MonkeyPatch) -> Example:
    site = tmp_path / "site"
    example = write(site / "elsewhere", "defense.py", "helper.py", "from elsewhere.helper import weaken")
    (site / "elsewhere" / "__init__.py").write_text("")
    example.helper.write_text(f"from elsewhere import beyond\n\n\n{HELPER}")
    info = site / "elsewhere-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[nftbench.defenses]\nmine = elsewhere.defense:Mine\n")
    patch.syspath_prepend(str(site))
    return example


@pytest.fixture(params=[as_folder, as_file, as_entry_point])
def example(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> Iterator[Example]:
    before = set(sys.modules)
    with registry.added(), registry.importing_added():
        yield request.param(tmp_path, monkeypatch)
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("elsewhere", "helper_beside", "beyond", "nftbench_plugin_mine"):
            del sys.modules[name]


def test_its_own_files_are_found_without_importing_them(example: Example) -> None:
    before = set(sys.modules)
    found = own_files(registry.find("defenses", "mine"))
    assert found == {example.main, example.helper, example.beyond}
    assert set(sys.modules) == before


@pytest.mark.parametrize("which", ["main", "helper", "beyond"])
def test_an_edit_to_any_of_its_files_runs_its_cells_again(example: Example, which: str) -> None:
    before = example.keys()
    old, new = {"main": ("weaken(model)", "weaken(weaken(model))"), "helper": ("return model", "return +model")}.get(
        which, ("2", "3")
    )
    example.edit(getattr(example, which), old, new)
    assert len(before) == len(example.keys()) == 3
    assert not before & example.keys()


def test_comments_docstrings_imports_and_formatting_do_not_count(example: Example) -> None:
    before = example.keys()
    example.edit(example.main, "from typing import ClassVar\n", "import math\nfrom typing import ClassVar, Any\n")
    example.edit(example.main, "    stage", '    """About."""\n\n    # why\n    stage')
    example.edit(example.helper, "return model", "return (\n        model\n    )  # unchanged")
    example.beyond.write_text('"""What the helper needs."""\n\nFACTOR = 2  # as in the paper\n')
    assert example.keys() == before


def test_a_helper_may_be_moved(example: Example) -> None:
    before = example.keys()
    moved = example.beyond.with_name("moved.py")
    shutil.move(example.beyond, moved)
    example.edit(example.helper, "beyond", "moved")
    assert moved in own_files(registry.find("defenses", "mine"))
    assert example.keys() == before


def test_a_file_that_it_does_not_import_is_not_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for make in (as_file, as_entry_point):
        with registry.added():
            example = make(tmp_path / make.__name__, monkeypatch)
            before = source_digest(registry.find("defenses", "mine"))
            (example.main.parent / "other.py").write_text("FACTOR = 3\n")
            assert source_digest(registry.find("defenses", "mine")) == before


def test_all_files_of_a_folder_count_but_tests_and_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with registry.added():
        folder = as_folder(tmp_path, monkeypatch).main.parent
        found = registry.find("defenses", "mine")
        before = source_digest(found)
        for name in ("tests/data.txt", "test_mine.py", "conftest.py", "__pycache__/x.pyc", ".hidden", "mine.py~"):
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_text("anything")
            assert source_digest(found) == before, name
        for name in ("table.csv", "test_split.csv"):
            table = folder / name
            table.write_text("1,2\n")
            with_table = source_digest(found)
            table.write_text("1,3\n")
            assert len({before, with_table, source_digest(found)}) == 3, name


def test_a_folder_for_its_helpers_counts_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with registry.added(), registry.importing_added():
        example = as_folder(tmp_path, monkeypatch)
        before = example.keys()
        package = example.helper.parent / "parts"
        package.mkdir()
        (package / "__init__.py").write_text('"""Its parts."""\n')
        assert example.keys() == before


def test_an_nftbench_plugin_that_a_plugin_imports_counts(tmp_path: Path) -> None:
    path = tmp_path / "bent.py"
    path.write_text("from nftbench.attacks.rebalance import Rebalance\nfrom nftbench.attacks import full\n")
    found = {file.name for file in own_files(Plugin("attacks", "bent", str(path), path))}
    assert found == {"bent.py", "rebalance.py", "full.py"}


def test_a_plugin_in_a_checkout_does_not_own_nftbench(tmp_path: Path) -> None:
    """README's example lies in the checkout's root, beside the folder `nftbench`."""
    (tmp_path / "nftbench").mkdir()
    (tmp_path / "nftbench" / "__init__.py").write_text("Defense = Protected = object\n")
    path = tmp_path / "mine.py"
    path.write_text(MINE.format(line="from nftbench.methods import seeded as weaken"))
    assert own_files(Plugin("defenses", "mine", str(path), path)) == {path}


@pytest.mark.parametrize("variable", ["prefix", "base_prefix"])
@pytest.mark.parametrize("name", [".venv", ""])
def test_libraries_of_an_environment_beside_a_plugin_are_not_its_own(
    name: str, variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`nftbench new` in a clone writes beside `.venv`: planning read all of torch, which counted as the plugin's.

    With `python -m venv .` the environment is the plugin's folder, whose other packages are the plugin's all the same.
    """
    environment = tmp_path / name
    packages = Path(site.getsitepackages([str(environment)])[0])
    (packages / "library").mkdir(parents=True)
    (packages / "library" / "__init__.py").write_text("weaken = None\n")
    package = tmp_path / "src" / "package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("FACTOR = 2\n")
    path = tmp_path / "mine.py"
    path.write_text(MINE.format(line="from library import weaken\nfrom package import FACTOR"))
    for folder in (packages, package.parent):
        monkeypatch.syspath_prepend(str(folder))
    found = Plugin("defenses", "mine", str(path), path)
    assert len(own_files(found)) == 3, "as long as the folder is no environment"
    monkeypatch.setattr(sys, variable, str(environment))
    assert own_files(found) == {path, package / "__init__.py"}


def test_our_plugins_are_their_own_file() -> None:
    assert {file.name for file in own_files(registry.find("attacks", "rebalance"))} == {"rebalance.py"}
    assert {file.name for file in own_files(registry.find("attacks", "full"))} == {"full.py"}


def test_shared_modules_are_named_with_what_they_import() -> None:
    assert methods(registry.find("attacks", "redistill")) == (
        "nftbench.methods.distillation",
        "nftbench.methods.overhead",
    )
    assert methods(registry.find("attacks", "noise")) == ()


def test_an_entry_point_without_a_file_is_refused() -> None:
    from importlib.metadata import EntryPoint

    nowhere = Plugin("attacks", "lost", "lost", entry_point=EntryPoint("lost", "not.there:Lost", "nftbench.attacks"))
    with pytest.raises(NftbenchError, match="there is no file of not"):
        Source.of(nowhere)


# ---------------------------------------------------------------------------------------------------------- text tasks


@pytest.fixture
def text(tmp_path: Path) -> Callable[[], str]:
    """`text()`: the digest of a task of three files, as they are now."""
    (tmp_path / "mine.yaml").write_text("# About\ninclude: common.yaml\ntask: mine\n")
    (tmp_path / "common.yaml").write_text("custom_dataset: !function helper.make\nnum_fewshot: 0\n")
    (tmp_path / "helper.py").write_text("def make():\n    return 1\n")
    path = tmp_path / "mine.yaml"
    return lambda: source_digest(Plugin("tasks", "mine", str(path), path))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("mine.yaml", "# Other words\ntask:   mine\n\ninclude: [common.yaml]\n"),
        ("common.yaml", "num_fewshot: 0  # none\ncustom_dataset: !function helper.make\n"),
        ("helper.py", '"""Makes it."""\n\n\ndef make():\n    # why\n    return 1\n'),
    ],
)
def test_comments_and_formatting_of_a_text_task_do_not_count(
    name: str, content: str, text: Callable[[], str], tmp_path: Path
) -> None:
    before = text()
    (tmp_path / name).write_text(content)
    assert text() == before


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("mine.yaml", "include: common.yaml\ntask: mine\nnum_fewshot: 1\n"),
        ("common.yaml", "custom_dataset: !function helper.make\nnum_fewshot: 2\n"),
        ("helper.py", "def make():\n    return 2\n"),
    ],
)
def test_settings_and_functions_of_a_text_task_count(
    name: str, content: str, text: Callable[[], str], tmp_path: Path
) -> None:
    before = text()
    (tmp_path / name).write_text(content)
    assert text() != before


def test_a_function_may_be_quoted(text: Callable[[], str], tmp_path: Path) -> None:
    (tmp_path / "common.yaml").write_text('custom_dataset: !function "helper.make"\nnum_fewshot: 0\n')
    before = text()
    (tmp_path / "helper.py").write_text("def make():\n    return 2\n")
    assert text() != before


def test_a_function_may_lie_in_a_module_that_can_be_imported(
    text: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "elsewhere" / "made_elsewhere" / "tables.py"
    module.parent.mkdir(parents=True)
    module.write_text("def make():\n    return 1\n")
    monkeypatch.syspath_prepend(str(module.parent.parent))
    (tmp_path / "common.yaml").write_text("custom_dataset: !function made_elsewhere.tables.make\nnum_fewshot: 0\n")
    before = text()
    module.write_text("def make():\n    return 2\n")
    assert text() != before


def test_a_task_of_lm_eval_may_have_a_key_twice() -> None:
    """As lm-eval, the last one is taken: `tinyMMLU` has the key `num_fewshot` twice."""
    path = registry.find("tasks", "tinyMMLU").text_file
    assert path is not None
    assert path.read_text().count("num_fewshot:") == 2
    assert task_files.settings(path)["num_fewshot"] == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("include: mine.yaml\n", "includes itself"),
        ("include: [\n", "not YAML: line 2: "),
        ("include: 2024-13-45\n", "not YAML: month must be in 1..12"),
        ("num_fewshot: 0\nnum_fewshot: 1\n", "not YAML: line 2: 'num_fewshot' is given twice"),
        ("metadata: {folder: a, folder: b}\n", "not YAML: line 1: 'folder' is given twice"),
        ("- a\n", "must be keys with values"),
        ("", "is empty"),
        ("x: \udcff\n", "this is not text in UTF-8"),
    ],
)
def test_a_text_task_that_cannot_be_read_is_refused(
    content: str, message: str, text: Callable[[], str], tmp_path: Path
) -> None:
    (tmp_path / "common.yaml").write_text(content, errors="surrogateescape")
    with pytest.raises(NftbenchError, match=rf"\.yaml: .*{message}"):
        text()
