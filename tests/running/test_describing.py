"""Added plugins that cheat when they are imported or asked about themselves: the referee only reads their answers."""

from __future__ import annotations

import importlib.util
import py_compile
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from nftbench import scoring
from nftbench.contract import Passes
from nftbench.errors import LONGEST, NftbenchError
from nftbench.planning import facts, registry
from nftbench.planning.plan import Plan, plan
from nftbench.records.store import Store
from nftbench.running import describing, isolation, referee
from nftbench.running.describing import Describer
from nftbench.running.workspace import Workspace
from nftbench.testing import tiny_suite

WriteFile = Callable[[str, str], Path]

HEAD = "from dataclasses import dataclass\nfrom typing import ClassVar\n\nfrom nftbench import *\n"
DEFENSE = """
@dataclass(frozen=True)
class Mine(Defense):
    stage: ClassVar = "posttrain"
    claims: ClassVar = Claim(frozenset({"method", "data"}))
    share: float = 0.5
    names: tuple[str, ...] = ("a", "b")

    def protect(self, model, context):
        return Protected(model)
"""
ATTACK = """
@dataclass(frozen=True)
class Mine(Attack):
    knowledge: ClassVar = frozenset({"method"})

    def adapt(self, prepared, task, context):
        return context.unchanged(prepared.model, task)
"""
PATCHES = """
import torch
from huggingface_hub import constants
import nftbench.scoring
from nftbench.planning import facts, registry
from nftbench.running import referee

nftbench.scoring.score = referee.Referee.measure = facts.defense = registry.create = None
torch.set_default_dtype(torch.float64)
"""
FORGED = """
import json, os
from pathlib import Path

folder = Path(os.environ["TMPDIR"]).parent
answer = {"name": "NAME", "parameters": {}, "changed": [], "stage": "posttrain", "claims": None, "trivial": False}
answer |= {"keeps_secret": False, "task_aware": False, "releases_update": False, "ratio": None, "scope": "global"}
answer |= {"reference": "none", "control": None, "told": [], "label": None, "deterministic": False}
(folder / "answer.json").write_text(json.dumps(answer | {"OTHER": VALUE}))
(folder / "returned").touch()
os._exit(0)
"""


def forged(name: str = "mine", other: str = "told", value: str = "[]") -> str:
    return FORGED.replace("NAME", name).replace("OTHER", other).replace("VALUE", value) + DEFENSE


@pytest.fixture
def store(cache: Path, tmp_path: Path) -> Iterator[Store]:
    """Where records would be kept; added plugins are asked in processes that are kept from it."""
    (tmp_path / "results").mkdir()
    found = Store(tmp_path / "results", cache)
    with registry.added():
        facts.describe_by(Describer(found, tmp_path / "data"))
        yield found
    facts.describe_by(None)


@pytest.fixture
def add(store: Store, tmp_path: Path) -> WriteFile:
    """`add(name, source)`: a plugin file that is known as with --plugin, and may not be imported here."""

    def write(name: str, source: str) -> Path:
        path = tmp_path / f"{name}.py"
        path.write_text(HEAD + source)
        registry.add_file(path)
        return path

    return write


def test_a_plan_of_answers_is_the_plan_of_the_plugins(add: WriteFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same cells, keys, reasons and rows, whether the plugins are imported or only answer."""
    for name in ("nftbench_plugin_mine", "nftbench_plugin_choosy"):  # other tests import plugins of these names
        monkeypatch.delitem(sys.modules, name, raising=False)
    add("mine", DEFENSE)
    applies = "\n    def applies(self, defense):\n        return f'{defense.share:g}' if defense.claims else None\n"
    add("choosy", ATTACK + applies + "    def uses(self):\n        return ('full',)\n")
    suite = tiny_suite(defenses=["mine", "mine[share=0.25,names=c+2024]"], attacks=["choosy", "full"])

    def parts(found: Plan) -> list[Any]:
        return [found.cells, found.skips, found.releases, found.rows, found.defenses, found.attacks, found.built_on]

    answered = plan(suite)
    assert [skip.reason for skip in answered.skips] == ["0.5", "0.25"]
    assert "nftbench_plugin_mine" not in sys.modules
    with registry.importing_added():
        assert parts(plan(suite)) == parts(answered)
    del sys.modules["nftbench_plugin_mine"], sys.modules["nftbench_plugin_choosy"]


def test_an_added_defense_says_how_much_it_trains(add: WriteFile) -> None:
    """It is told the suite without its salt, and its answer must be a finite number that is not below 0."""
    method = "\n    def training_passes(self, suite):\n        return "
    add("trains", DEFENSE + method + "Passes(suite.pretraining.steps, 0.5 if suite.salt is None else 1.0)\n")
    suite = tiny_suite()
    assert facts.training_passes("trains", suite) == Passes(suite.pretraining.steps, 0.5)
    for name, answer in {"minus": "Passes(-1.0)", "nothing": "None", "endless": "Passes(float('inf'))"}.items():
        add(name, DEFENSE + method + answer + "\n")
        with pytest.raises(NftbenchError, match=f"{name}.py.*training_passes"):
            facts.training_passes(name, suite)


@pytest.mark.parametrize("kind", ["defenses", "attacks"])
def test_the_referee_refuses_to_import_an_added_plugin(add: WriteFile, kind: registry.Kind) -> None:
    add("mine", DEFENSE + ATTACK.replace("Mine", "Other"))
    with pytest.raises(NftbenchError, match="only a confined process may import it"):
        registry.create(kind, "mine")
    facts.describe_by(None)
    with pytest.raises(NftbenchError, match="has no confined process to ask it in"):
        plan(tiny_suite(**{kind: ["mine"]}))


def test_what_a_plugin_patches_reaches_neither_the_referee_nor_another_plugin(add: WriteFile) -> None:
    add("patches", PATCHES + DEFENSE)
    add("honest", DEFENSE)
    before = scoring.score, referee.Referee.measure, registry.create
    found = plan(tiny_suite(defenses=["patches", "honest"]))
    assert {str(cell.defense) for cell in found.cells} == {"none", "patches", "honest"}
    honest = found.defenses[facts.defense("honest").spec]
    assert (honest.name, dict(honest.parameters)) == ("honest", {"share": 0.5, "names": ("a", "b")})
    assert (scoring.score, referee.Referee.measure, registry.create) == before
    assert torch.get_default_dtype() == torch.float32


def test_the_code_that_runs_is_the_source_and_no_compiled_file_beside_it(add: WriteFile, tmp_path: Path) -> None:
    """Keys and records name the source alone."""

    def compiled(path: Path, source: str, place: str) -> None:
        path.write_text(HEAD + source)
        py_compile.compile(str(path), place, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)

    other, path = DEFENSE.replace("0.5", "0.9"), tmp_path / "mine.py"
    compiled(path, other, importlib.util.cache_from_source(str(path)))
    add("mine", DEFENSE)
    assert facts.defense("mine").parameters["share"] == 0.5
    folder = tmp_path / "folder"
    folder.mkdir()
    compiled(folder / "hidden.py", other, str(folder / "hidden.pyc"))
    (folder / "hidden.py").unlink()
    (folder / "shown.py").write_text("SHARE = 0.7")
    (folder / "__init__.py").write_text(HEAD + "from .shown import SHARE\n" + DEFENSE.replace("0.5", "SHARE"))
    registry.add_file(folder)
    assert facts.defense("folder").parameters["share"] == 0.7
    (folder / "__init__.py").write_text(HEAD + "from .hidden import Mine as Other\n" + DEFENSE)
    facts.describe_by(Describer(Store(tmp_path / "results", tmp_path / "cache")))
    with pytest.raises(NftbenchError, match=r"No module named 'nftbench_plugin_folder\.hidden'"):
        facts.defense("folder")


@pytest.mark.skipif(isolation.kind() != "landlock", reason="the system cannot hide folders")
def test_a_plugin_finds_neither_salt_nor_cache_nor_data(
    add: WriteFile, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    downloaded = tmp_path / "hub" / "datasets--sst2"
    downloaded.mkdir(parents=True)
    (tmp_path / "data").mkdir()
    (tmp_path / "copied").mkdir()
    (store.results / "records").mkdir()
    names = ("salt", "records/full.json", "leaderboard.json", "index.html", "dose.md", "dose.json", "../copied/salt")
    kept = [store.results / name for name in names]
    secrets = [*kept, store.cache / "told", tmp_path / "data" / "test.csv", downloaded / "test.parquet"]
    for path in secrets:
        path.write_text("secret")
    written = store.cache / "written"
    look = f"""
import pathlib

def tried(action):
    try:
        return str(action())
    except OSError as error:
        return type(error).__name__

FOUND = tuple(tried(pathlib.Path(path).read_text) for path in {list(map(str, secrets))})
FOUND += (tried(lambda: pathlib.Path({str(written)!r}).write_text("x")),)
"""
    check = "\n    def check(self, suite):\n        raise NftbenchError(f'the salt is {suite.salt}')\n"
    add("spy", look + DEFENSE.replace('("a", "b")', "FOUND") + check)
    assert facts.defense("spy").parameters["names"] == ("PermissionError",) * 11
    assert not written.exists()
    with pytest.raises(NftbenchError, match=r"^the salt is None$"):
        plan(tiny_suite(defenses=["spy"]))


REFUSED = {
    "raises": ("import nowhere_to_be_found\n" + DEFENSE, "ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
    "exits": ("import sys\nsys.exit(3)\n" + DEFENSE, "SystemExit: 3"),
    "exits at once": ("import os\nos._exit(0)\n" + DEFENSE, "ended by itself with exit code 0, and returned nothing"),
    "interrupts": ("raise KeyboardInterrupt\n" + DEFENSE, "KeyboardInterrupt:"),
    "sleeps": ("import time\ntime.sleep(1000)\n" + DEFENSE, "stopped after 2 s"),
    "not frozen": (DEFENSE.replace("(frozen=True)", ""), "Mine is not a frozen dataclass"),
    "wrong attribute": (
        DEFENSE.replace('"posttrain"', "None"),
        "stage: must be 'pretrain' or 'posttrain', and",
    ),
    "wrong parameter": (
        "import pathlib\n" + DEFENSE.replace("float = 0.5", "pathlib.Path = pathlib.Path('x')"),
        "must be a text, a number, True, False, None, or a tuple of these",
    ),
    "wrong claim": (forged(other="claims", value="{'knowledge': ['all']}"), "claims.knowledge.0: must be 'method', "),
    "wrong type": (forged(other="trivial", value="1"), "trivial: must be True or False, and is 1"),
    "wrong name": (forged(other="parameters", value="{'a]': 1}"), "the names of its parameters must be Python names"),
    "nested": (forged(other="parameters", value="{'a': {}}"), "must be a text, a number"),
    "another": (forged("none"), "it describes another plugin, 'none'"),
    "long": (forged(other="more", value="'x' * 2_000_000"), "left no answer of at most"),
    "no JSON": (forged().replace("json.dumps(", "str("), "invalid JSON"),
    "a link": (
        forged().replace(
            "os._exit",
            "(folder / 'answer.json').unlink()\n(folder / 'answer.json').symlink_to('/etc/passwd')\nos._exit",
        ),
        "left answer.json, which is no plain file",
    ),
    "random": (
        "import random\n"
        + DEFENSE.replace(
            "0.5", "0.5\n    def __post_init__(self): object.__setattr__(self, 'share', random.random())"
        ),
        "its parameters change when it is built again",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_plugin_that_does_not_answer_properly_is_refused_in_one_line(
    add: WriteFile, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(describing, "LIMIT", 2.0 if case == "sleeps" else 60.0)
    source, expected = REFUSED[case]
    path = add("mine", source)
    with pytest.raises(NftbenchError) as caught:
        plan(tiny_suite(defenses=["mine"]))
    message = str(caught.value)
    assert expected in message
    assert "\n" not in message
    assert str(path) in message or case == "random"


def test_a_plugin_is_asked_each_question_once(add: WriteFile) -> None:
    """So it cannot be one thing in the keys of cells and another in their records."""
    add("mine", "import random\nDRAWN = random.random()\n" + DEFENSE.replace("0.5", "DRAWN"))
    assert facts.defense("mine") == facts.defense("mine")


def test_an_attack_answers_for_each_defense(add: WriteFile) -> None:
    add("mine", ATTACK + "\n    def applies(self, defense):\n        return 'no\\nline ' + 1000 * 'x'\n")
    (reason,) = {skip.reason for skip in plan(tiny_suite(attacks=["mine"])).skips}
    assert reason.startswith("no line xxx")
    assert len(reason) == LONGEST
    uses = "\n    depth: int = 0\n\n    def uses(self):\n        return (f'endless[depth={self.depth + 1}]',)\n"
    add("endless", ATTACK + uses)
    with pytest.raises(NftbenchError, match="built on a chain of more than 10 attacks"):
        plan(tiny_suite(attacks=["endless"]))


@pytest.mark.slow
def test_other_rows_have_the_records_of_a_run_without_the_plugin(
    add: WriteFile,
    store: Store,
    tmp_path: Path,
    run_all: Callable[..., dict[tuple[str, str, str, int], Any]],
    bare: Callable[[Any], Any],
) -> None:
    add("mine", PATCHES + DEFENSE)
    add("beside", PATCHES + ATTACK)

    def records(place: str, defenses: list[str], attacks: list[str]) -> dict[tuple[str, str, str, int], Any]:
        here = Store(tmp_path / place, tmp_path / f"{place}-cache")
        return run_all(Workspace(plan(tiny_suite(defenses=defenses, attacks=attacks)), here))

    hostile = records("hostile", ["none", "mine"], ["full", "beside"])
    alone = records("alone", ["none"], ["full"])
    assert {key: bare(hostile[key]) for key in alone} == {key: bare(record) for key, record in alone.items()}
    assert {record.status for record in alone.values()} == {"ok"}
    assert ("mine", "beside", "toy_topic", 0) in hostile
