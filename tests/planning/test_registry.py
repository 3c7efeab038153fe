"""Plugins by name: folders, entry points and files. A broken plugin hides no other; two of one name are refused."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, strategies as st

import nftbench
from nftbench.errors import NftbenchError
from nftbench.planning import registry
from nftbench.planning.registry import KINDS
from nftbench.records.spec import Spec, split

WriteFile = Callable[[str, str], Path]
ROOT = Path(nftbench.__file__).parent.parent

MINE = """
@dataclass(frozen=True)
class Mine(Defense):
    stage: ClassVar = "posttrain"
    strength: float = 1.0

    def protect(self, model, context):
        return Protected(model)
"""


def source(kind: str) -> str:
    base, method = {"defenses": ("Defense", "protect"), "attacks": ("Attack", "adapt"), "tasks": ("Task", "evaluate")}[
        kind
    ]
    stage = '    stage: ClassVar = "posttrain"\n' if kind == "defenses" else ""
    return f"@dataclass(frozen=True)\nclass {base}Of({base}):\n{stage}    def {method}(self, *_): ...\n"


def refusal(kind: registry.Kind, text: str) -> str:
    with pytest.raises(NftbenchError) as caught:
        registry.create(kind, text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --------------------------------------------------------------------------------------------------------------- specs


EVERYTHING = """
from dataclasses import dataclass
from typing import Literal

from nftbench import Attack


@dataclass(frozen=True)
class Everything(Attack):
    count: int = 3
    rate: float = 0.1
    on: bool = False
    kind: Literal["a", "b"] = "a"
    layers: tuple[int, ...] = (1, 2)
    limit: float | None = None

    def adapt(self, prepared, task, context): ...
"""


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Iterator[type[Any]]:
    """The class of an attack with parameters of every kind."""
    path = tmp_path_factory.mktemp("plugins") / "everything.py"
    path.write_text(EVERYTHING)
    with registry.added(path) as (found,), registry.importing_added():
        yield registry.load(found)


@given(
    count=st.integers(-9, 10**6),
    rate=st.floats(allow_nan=False, allow_infinity=False),
    on=st.booleans(),
    kind=st.sampled_from(["a", "b"]),
    layers=st.lists(st.integers(0, 99), min_size=1, max_size=4),
)
def test_a_printed_spec_creates_the_same_plugin(
    everything: type[Any], count: int, rate: float, on: bool, kind: str, layers: list[int]
) -> None:
    one = everything(count, rate, on, kind, tuple(layers))
    assert registry.create("attacks", str(registry.spec_of("everything", one))) == one


@example("0[")
@example("a]")
@example("],[")
@example("a='")
@example("2024-13-45")
@example("0x_")
@given(text=st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=20))
def test_a_text_is_printed_so_that_it_is_read_again(text: str) -> None:
    spec = Spec("checkpoint", (("path", text), ("reference", "x")))
    assert Spec.parse(str(spec)) == spec
    assert split(f"none,{spec},none") == ["none", str(spec), "none"]


def test_quotes_are_only_where_they_are_needed() -> None:
    plain = Spec("checkpoint", (("path", "runs/a b's+c[x=1,y=2]"),))
    assert str(plain) == "checkpoint[path=runs/a b's+c[x=1,y=2]]"
    assert Spec.parse("""a[b='2024', c="x,y", d=2024]""").parameters == (("b", "2024"), ("c", "x,y"), ("d", 2024))
    assert str(Spec("a", (("b", "2024"), ("c", None), ("d", "it's, yes")))) == "a[b='2024',c=null,d='it''s, yes']"


def test_a_list_of_texts_may_hold_numbers(plugin: WriteFile) -> None:
    plugin("mine", MINE.replace("strength: float = 1.0", "names: tuple[str, ...] = ()"))
    assert registry.create("defenses", "mine[names=a+2024+true]").names == ("a", "2024", "true")
    assert registry.create("defenses", "mine[names=2024]").names == ("2024",)


@pytest.mark.parametrize("item", ["{", "2024-13-45"])
def test_an_item_of_a_list_that_is_no_yaml_is_refused_as_it_is_written(everything: type[Any], item: str) -> None:
    with pytest.raises(NftbenchError, match=re.escape(f"must be a whole number, and is {item!r}")):
        registry.create("attacks", f"everything[layers=1+{item}]")


def test_specs_leave_out_defaults_and_are_read_with_spaces_and_nested_brackets(everything: type[Any]) -> None:
    assert str(registry.spec_of("everything", everything())) == "everything"
    printed = str(registry.spec_of("everything", everything(rate=1e-3, on=True, layers=(5, 6))))
    assert printed == "everything[rate=0.001,on=true,layers=5+6]"
    assert Spec.parse(" lora[rank=16, targets=attention] ") == Spec("lora", (("rank", 16), ("targets", "attention")))
    assert Spec.parse("lora[]") == Spec("lora")
    assert split("a[b=c[d=1,e=2],f=3], g ,,h[i=1]") == ["a[b=c[d=1,e=2],f=3]", "g", "h[i=1]"]
    assert Spec.parse("a[b=c[d=1,e=2],f=3]") == Spec("a", (("b", "c[d=1,e=2]"), ("f", 3)))


@pytest.mark.parametrize(
    "text",
    [
        "lora[rank=8",
        "lora[rank]",
        "lora[rank={]",
        "lora[rank=2024-13-45]",
        "lora[rank=8,rank=16]",
    ],
)
def test_a_malformed_spec_is_refused(text: str) -> None:
    assert text[:5] in refusal("attacks", text)


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("attacks", "lora[rnak=8]", "lora has no parameter 'rnak'; did you mean 'rank'?"),
        ("attacks", "lora[rank=two]", "'lora[rank=two]': rank: must be a whole number, and is 'two'"),
        ("attacks", "lora[rank=2.5]", "'lora[rank=2.5]': rank: must be a whole number, and is 2.5"),
        ("attacks", "lora[targets=atention]", "targets: "),
        ("attacks", "full[optimizer=adam]", "optimizer: "),
        ("attacks", "fulll", "no attack is named 'fulll'; did you mean 'full'?"),
        ("defenses", "random_masc", "no defense is named 'random_masc'; did you mean 'random_mask'?"),
        ("defenses", "checkpoint", "path: "),
        ("defenses", "checkpoint[path=2024]", "path: 2024 is no text; write path='2024'"),
        ("defenses", "checkpoint[path=true]", "path: True is no text; write path='True'"),
        ("tasks", "toy_topik", "no task is named 'toy_topik'; did you mean 'toy_topic'?"),
        ("defenses", "", "no defense is named ''"),
    ],
)
def test_misspellings_and_values_of_another_type_are_named(kind: registry.Kind, text: str, expected: str) -> None:
    assert expected in refusal(kind, text)


# --------------------------------------------------------------------------------------------------------------- files


def test_a_plugin_file_is_known_by_its_name(plugin: WriteFile) -> None:
    path = plugin("mine", '"""Does mine.\n\nMore."""\n' + MINE)
    found = registry.find("defenses", "mine")
    assert found.path == path
    assert registry.create("defenses", "mine[strength=2]").strength == 2.0
    registry.add_file(path)  # twice the same file is no quarrel


def test_a_folder_is_a_plugin_and_its_files_import_each_other(tmp_path: Path) -> None:
    for place in ("one", "other"):
        folder = tmp_path / place / "mine"
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text(
            '"""Does mine."""\nfrom dataclasses import dataclass\nfrom typing import ClassVar\nfrom nftbench import *\n'
            "from . import helper\n" + MINE.replace("1.0", "helper.STRENGTH")
        )
        (folder / "helper.py").write_text(f"STRENGTH = {len(place)}.0\n")
        for path in (folder, folder / "__init__.py"):
            with registry.added(path) as (found,), registry.importing_added():
                assert (found.name, found.origin, found.about) == ("mine", str(folder), "Does mine.")
                assert registry.create("defenses", "mine").strength == len(place)


def test_a_folder_without_a_plugin_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NftbenchError, match="no such file"):
        registry.add_file(tmp_path)
    (tmp_path / "__init__.py").write_text("x = 1\n")
    with pytest.raises(NftbenchError, match="has no class with one of the methods protect"):
        registry.add_file(tmp_path)


def test_added_plugins_are_forgotten_at_the_end_of_the_block(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.py" for name in ("first", "second")]
    for path in paths:
        path.write_text(source("attacks"))
    with registry.added(paths[0]):
        registry.add_file(paths[1])
        assert {"first", "second"} <= registry.available("attacks").keys()
    assert not {"first", "second"} & registry.available("attacks").keys()


def test_a_file_may_hold_several_kinds(plugin: WriteFile) -> None:
    plugin("both", source("defenses") + source("attacks") + source("tasks").replace("class ", "class _"))
    assert registry.load(registry.find("defenses", "both")).__name__ == "DefenseOf"
    assert registry.load(registry.find("attacks", "both")).__name__ == "AttackOf"


@pytest.mark.parametrize("name", ["none", "full"])
def test_two_plugins_of_one_name_are_refused(name: str, plugin: WriteFile) -> None:
    kind = "attacks" if name == "full" else "defenses"
    with pytest.raises(NftbenchError, match=f"two {kind} are named '{name}': from nftbench and from "):
        plugin(name, source(kind))
    assert registry.find(kind, name).origin == "nftbench"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def f(:\n", "invalid syntax"),
        ("x = 1\n", "has no class with one of the methods protect, adapt, evaluate, measure"),
        (source("defenses") + source("tasks"), "holds defenses and tasks; the referee imports tasks and yardsticks"),
        (source("tasks") + source("attacks"), "holds attacks and tasks; the referee imports tasks and yardsticks"),
        (None, "no such file"),
    ],
)
def test_a_file_that_is_no_plugin_is_refused(text: str | None, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(NftbenchError, match=expected) as caught:
        registry.add_file(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import nowhere_to_be_found\n" + MINE, "ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        (MINE.replace("(frozen=True)", ""), "is not a frozen dataclass"),
        (MINE.replace("@dataclass(frozen=True)\n", ""), "is not a frozen dataclass"),
        (MINE.replace("(Defense)", ""), "derive from nftbench.Defense"),
        (MINE + MINE.replace("Mine", "Second"), "needs one class with the method 'protect', has 2"),
    ],
)
def test_a_class_that_is_no_plugin_is_refused(text: str, expected: str, plugin: WriteFile) -> None:
    plugin("mine", text)
    assert expected in refusal("defenses", "mine")
    assert registry.create("defenses", "none")


@pytest.mark.parametrize(
    ("kind", "attribute", "expected"),
    [
        ("defenses", "stage = None", "stage: must be 'pretrain' or 'posttrain', and is None"),
        ("defenses", "stage = 'pre-train'", "stage: must be 'pretrain' or 'posttrain', and is 'pre-train'"),
        ("defenses", "trivial = 'no'", "trivial: must be True or False, and is 'no'"),
        ("defenses", "keeps_secret = 1", "keeps_secret: must be True or False, and is 1"),
        ("defenses", "claims = 'secret'", "claims: must be an object of the class Claim, and is 'secret'"),
        ("defenses", "claims = Claim(frozenset({'metod'}))", "claims.knowledge: an item must be 'method', 'data', "),
        ("defenses", "claims = Claim(adaptation='lora')", "claims.adaptation: must be 'finetuning', "),
        ("attacks", "knowledge = frozenset({'metod'})", "knowledge: an item must be 'method', 'data', "),
        ("attacks", "knowledge = {'method'}", "knowledge: must be a frozenset, and is {'method'}"),
        ("attacks", "knowledge = property(lambda self: 'method')", "knowledge: must be a frozenset, and is 'method'"),
        ("attacks", "adaptation = 'finetunning'", "adaptation: must be 'finetuning', "),
        ("attacks", "against = 'pmp'", "against: must be a frozenset, and is 'pmp'"),
        ("attacks", "trains = None", "trains: must be True or False, and is None"),
        ("attacks", "optimizer = 'adam'", "optimizer: must be 'adamw', 'sgd' or 'muon', and is 'adam'"),
        ("attacks", "trained_weights = 'most'", "trained_weights: must be "),
        ("tasks", "trainable = 'yes'", "trainable: must be True or False, and is 'yes'"),
        ("tasks", "trainable = property(lambda self: None)", "trainable: must be True or False, and is None"),
    ],
)
def test_a_class_attribute_of_another_type_is_refused(
    kind: registry.Kind, attribute: str, expected: str, plugin: WriteFile
) -> None:
    plugin("mine", source(kind).replace("    def ", f"    {attribute}\n    def "))
    assert expected in refusal(kind, "mine")


def test_a_defense_without_a_stage_is_refused(plugin: WriteFile) -> None:
    plugin("mine", source("defenses").replace("stage", "phase"))
    assert "stage: is missing, and must be 'pretrain' or 'posttrain'" in refusal("defenses", "mine")


@pytest.mark.parametrize(
    ("kind", "attribute", "meant"),
    [
        ("defenses", "stages = 'posttrain'", "stage"),
        ("defenses", "claim: ClassVar = Claim()", "claims"),
        ("defenses", "trivail = True", "trivial"),
        ("attacks", "knowlege = property(lambda self: frozenset())", "knowledge"),
        ("attacks", "knowlege = frozenset()", "knowledge"),
    ],
)
def test_a_misspelt_class_attribute_is_refused(
    kind: registry.Kind, attribute: str, meant: str, plugin: WriteFile
) -> None:
    without = re.sub(rf"    {meant}: .*\n", "", source(kind))
    path = plugin("mine", without.replace("    def ", f"    {attribute}\n    def "))
    name = attribute.split(":")[0].split(" ")[0]
    found = refusal(kind, "mine")
    assert found.startswith(f"{kind} 'mine' ({path}): {name}: nftbench.")
    assert found.endswith(f" has no such attribute; did you mean {meant!r}?")


def test_an_attribute_with_a_name_of_its_own_is_no_misspelling(plugin: WriteFile) -> None:
    own = ("stages = 3", "claim_of_paper = ''", "labels: tuple[str, ...] = ('a', 'b')", "def claim(self): pass", "")
    plugin("mine", source("defenses").replace("    def ", "    " + "\n    ".join(own) + "def ", 1))
    assert registry.create("defenses", "mine").labels == ("a", "b")


@pytest.mark.parametrize(
    ("parameter", "expected"),
    [
        ("x: 'flaot' = 0.5", "x: 'flaot' is no type of a parameter; write one such as float, str"),
        ("x: [int] = 3", "is no type of a parameter"),
        ("x: 0.5 = 0.5", "x: '0.5' is no type of a parameter"),
        ("x: 'float(' = 0.5", "x: 'float(' is no type of a parameter"),
        ("x: float = 'much'", "x: its default must be a number, and is 'much'"),
        ("x: tuple[int, ...] = 3", "x: its default must be a tuple, and is 3"),
        ("x: bool = 'perhaps'", "x: its default must be True or False, and is 'perhaps'"),
        ("x: float", "x: has no default; name it, as in mine[x=…], or give it one in the class"),
        ("x: float = 1.0\n    y: int", "y: has no default and stands below a parameter with one; give it a default"),
        ("x: list[int] = []", "x: its default is a list, which can be changed; write a tuple, as in `= (1, 2)`"),
    ],
)
def test_a_parameter_without_a_right_type_or_default_is_refused(
    parameter: str, expected: str, plugin: WriteFile
) -> None:
    path = plugin("mine", source("defenses").replace("    def ", f"    {parameter}\n    def ", 1))
    found = refusal("defenses", "mine")
    assert expected in found
    assert found.startswith(f"defenses 'mine' ({path}): ")
    assert not re.search(r"pydantic|https?:|\n|Error", found)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Another installed package with entry points: a module and a dist-info on the path."""

    def install(name: str, entries: str, **modules: str) -> Path:
        site = tmp_path / name
        info = site / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(entries)
        for module, text in modules.items():
            (site / f"{module}.py").write_text(
                "from dataclasses import dataclass\nfrom typing import ClassVar\nfrom nftbench import *\n" + text
            )
            monkeypatch.delitem(sys.modules, module, raising=False)
        monkeypatch.syspath_prepend(str(site))
        return site

    return install


@pytest.fixture
def importing() -> Iterator[None]:
    """As in a process of a plugin's own."""
    with registry.importing_added():
        yield


@pytest.mark.usefixtures("importing")
def test_an_entry_point_of_another_package_is_a_plugin(package: Callable[..., Path]) -> None:
    package(
        "elsewhere",
        "[nftbench.defenses]\nabroad = elsewhere_defense:Mine\n[nftbench.attacks]\nmodule = elsewhere_attack\n",
        elsewhere_defense=MINE,
        elsewhere_attack=source("attacks"),
    )
    assert registry.find("defenses", "abroad").origin == "elsewhere"
    assert "elsewhere_defense" not in sys.modules, "finding imports nothing"
    assert registry.create("defenses", "abroad[strength=3]").strength == 3.0
    assert registry.create("attacks", "module")


@pytest.mark.usefixtures("importing")
def test_a_broken_entry_point_hides_no_other(package: Callable[..., Path]) -> None:
    package(
        "broken",
        "[nftbench.defenses]\nbad = broken_module:Nope\ngone = not_there:Mine\ngood = fine_module:Mine\n",
        broken_module="raise RuntimeError('boom')\n",
        fine_module=MINE,
    )
    assert {"bad", "gone", "good", "none"} <= set(registry.available("defenses"))
    assert registry.create("defenses", "good")
    assert "RuntimeError: boom" in refusal("defenses", "bad")
    assert "not_there" in refusal("defenses", "gone")


def test_an_entry_point_with_a_taken_name_is_refused(package: Callable[..., Path]) -> None:
    package("usurper", "[nftbench.attacks]\nfull = usurper_module:Mine\n", usurper_module=source("attacks"))
    with pytest.raises(NftbenchError, match="two attacks are named 'full': from nftbench and from usurper"):
        registry.available("attacks")
    assert registry.create("defenses", "none")


def test_a_broken_file_in_the_folder_warns_and_hides_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "defenses"
    folder.mkdir()
    (folder / "broken.py").write_text("def protect(:\n")
    (folder / "binary.py").write_bytes(b"\xff\xfe\x00")
    (folder / "_private.py").write_text(source("defenses"))
    for name, text in (("whole", source("defenses")), ("empty", ""), ("__pycache__", source("defenses"))):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(text)
    (folder / "data").mkdir()
    (folder / "fine.py").write_text(source("defenses"))
    import importlib.util
    from types import SimpleNamespace

    plain = importlib.util.find_spec

    def spec(name: str, *rest: object) -> object:
        return SimpleNamespace(submodule_search_locations=[str(folder)]) if name == "nftbench.defenses" else plain(name)

    monkeypatch.setattr(importlib.util, "find_spec", spec)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert set(registry.available("defenses")) == {"fine", "whole"}
    assert {Path(str(one.message).split(":")[0]).name for one in caught} == {"broken.py", "binary.py"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_nftbench_plugin_has_a_first_line_that_is_a_sentence(kind: registry.Kind) -> None:
    for plugin in registry.available(kind).values():
        if plugin.origin == "nftbench":
            assert plugin.about.rstrip().endswith("."), f"{plugin.path}: the first line is a sentence"


def test_a_plus_within_brackets_does_not_split_a_list() -> None:
    spec = "pipeline[preparations=pipeline[preparations=heal+rebalance,tuners=full]+heal,tuners=full]"
    found = registry.create("attacks", spec)
    assert found.preparations == ("pipeline[preparations=heal+rebalance,tuners=full]", "heal")
    assert str(registry.spec_of("pipeline", found)) == spec
    assert registry.create("attacks", "pipeline[tuners=full+lora[alpha=1e+2]]").tuners == ("full", "lora[alpha=1e+2]")


def test_the_attacks_against_a_defense_are_those_whose_classes_say_so() -> None:
    """They are read from the files, which must not say it in another way."""
    classes = {name: registry.load(plugin) for name, plugin in registry.available("attacks").items()}
    for defense in registry.available("defenses"):
        expected = tuple(name for name, cls in classes.items() if defense in cls.against)
        assert registry.written_against(defense) == expected


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("pm\u0440", "the name 'pm\\u0440' has other signs than the letters A to Z"),
        ("pmp\u200b", "has other signs"),
        ("pmp (official)", "has other signs"),
        ("PMP", "the name 'PMP' looks like 'pmp'"),
        ("Iox", "looks like 'lox'"),
        ("undefended", "looks like 'undefended'"),
    ],
)
def test_a_plugin_has_no_name_that_could_be_taken_for_another(name: str, problem: str, tmp_path: Path) -> None:
    """Its rows would pass for those of the other one."""
    path = tmp_path / f"{name}.py"
    path.write_text(source("defenses"))
    with registry.added(), pytest.raises(NftbenchError, match=re.escape(problem)):
        registry.add_file(path)
    path = path.rename(tmp_path / "pmp-2.py")
    with registry.added(path) as (plugin,):
        assert plugin.name == "pmp-2"
