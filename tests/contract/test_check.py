"""A plugin file is examined without pytest: every promise kept or broken, and where broken, what to change."""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path

import pytest

from nftbench.errors import LONGEST
from nftbench.planning import registry
from nftbench.planning.plugin_paths import plugin_path
from nftbench.testing import BrokenPromiseError, check_attack, check_defense, check_task
from nftbench.testing.file import check_file
from nftbench.testing.promises import Promise, examined, promise, works
from tests.conftest import PLUGIN

DEFENSE = """
@dataclass(frozen=True)
class Mine(Defense):
    stage: ClassVar = "posttrain"
    strength: float = 1.0

    def protect(self, model, context):
        return Protected(model)
"""
ATTACK = """
@dataclass(frozen=True)
class Mine(Attack):
    knowledge: ClassVar = frozenset()

    def prepare(self, release, context):
        return Prepared(release.model)

    def adapt(self, prepared, task, context):
        return context.sweep(prepared.model, task)
"""
NO_PLUGIN = "one of the methods protect, adapt, evaluate, measure; `nftbench new` writes a file with one"
SWEEP = "        return context.sweep(prepared.model, task)\n"
PREPARE = "        return Prepared(release.model)\n"
STEPS = """
        weights = list(release.model.network.parameters())
        optimizer = torch.optim.SGD(weights, lr=1e-3)
        for _ in range(3):
            sum(weight.sum() for weight in weights).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
"""
BY_HAND = """
        import copy

        network = copy.deepcopy(prepared.model.network)
        with torch.no_grad():
            next(network.parameters()).mul_(0.9)
        split = task.split("validation")
        points = [Point(0.0, 0, 0.1, 2.0), Point(0.1, 7, 0.2, 1.0)]
        return Outcome(network, task.evaluate(network, split), points[1], tuple(points), cost=Cost(steps=2))
"""
HIDDEN = """
        found = context.sweep(prepared.model, task)
        try:
            context.sweep(prepared.model, task)
        except NftbenchError:
            pass
        return found
"""


def write(folder: Path, text: str, name: str = "mine") -> Path:
    path = folder / f"{name}.py"
    path.write_text(PLUGIN + text)
    return path


def broken(kind: str, path: Path) -> dict[str, str]:
    """The broken promises of the plugin in this file, each with its problem."""
    check = {"defense": check_defense, "attack": check_attack}[kind]
    return {one.statement: one.problem for one in examined(partial(check, path, architectures=["gpt2"])) if one.problem}


@pytest.mark.parametrize(
    ("text", "statement", "problem"),
    [
        (DEFENSE.replace("stage:", "stages:"), "its class attributes", "no such attribute; did you mean 'stage'?"),
        (DEFENSE.replace("stage:", "stages:"), "its class attributes", "stage: is missing, and must be 'pretrain' or"),
        (DEFENSE.replace("stage:", "stages:"), "its class attributes", 'write `stage: ClassVar[Stage] = "posttrain"`'),
        (
            DEFENSE.replace("return Protected(model)", "pass"),
            "protect returns Protected",
            "it returned nothing: end it",
        ),
        (
            DEFENSE.replace("return Protected(model)", "1 / 0"),
            "protect ends without",
            "line 14 of mine.py: ZeroDivision",
        ),
        ("1 / 0\n" + DEFENSE, "it can be imported", "line 7 of mine.py: ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)\n" + DEFENSE, "it can be imported", "line 7 of mine.py: SystemExit: 3"),
        ("import nowhere\n" + DEFENSE, "it can be imported", "line 7 of mine.py: ModuleNotFoundError"),
        ("def f(:\n" + DEFENSE, "`--plugin` takes the file", "mine.py:7: this is not Python: invalid syntax"),
        ("x = 1\n", "`--plugin` takes the file", NO_PLUGIN),
        (DEFENSE.replace("(frozen=True)", ""), "Mine is a frozen dataclass", "write `@dataclass(frozen=True)`"),
        (DEFENSE.replace("(Defense)", ""), "Mine derives from nftbench.Defense", "write `class Mine(Defense):`"),
        (DEFENSE.replace("= 1.0", "= None or [1]"), "it can be imported", "its default is a list, which"),
        (DEFENSE.replace("float = 1.0", "float"), "it can be created as mine", "strength: has no default; name it"),
        (DEFENSE.replace("float", "'flaot'"), "its parameters have types", "strength: 'flaot' is no type"),
        (DEFENSE + DEFENSE.replace("Mine", "Other"), "it can be imported", "needs one class with the method 'protect'"),
        (
            DEFENSE.replace("strength: float", "label: ClassVar").replace("1.0", "'<b>'"),
            "it answers",
            "'<b>' is no label",
        ),
        (ATTACK, "the file holds a defense plugin", "it holds attacks"),
    ],
)
def test_a_broken_defense_is_told_what_to_change(
    text: str, statement: str, problem: str, tmp_path: Path, cache: Path
) -> None:
    found = broken("defense", write(tmp_path, text))
    ((said, what),) = found.items()
    assert said.startswith(statement)
    assert problem in what


def test_a_name_that_is_taken_is_told(tmp_path: Path) -> None:
    ((said, what),) = broken("defense", write(tmp_path, DEFENSE, "none")).items()
    assert said == "`--plugin` takes the file"
    assert "two defenses are named 'none': from nftbench and from" in what
    assert "rename the file" in what


@pytest.mark.parametrize(
    ("text", "statement", "problem"),
    [
        (ATTACK.replace(SWEEP, SWEEP.replace("return ", "") + SWEEP), "adapt sweeps once", "twice the budget: drop it"),
        (ATTACK.replace(SWEEP, HIDDEN), "adapt sweeps once", "twice the budget: drop it"),
        (ATTACK.replace(SWEEP, BY_HAND), "the cost counts every step of adapt", "2 of 7: train with context.sweep"),
        (ATTACK.replace(PREPARE, STEPS + PREPARE), "the cost counts every step of prepare", "0 of 3: train with"),
        (
            ATTACK.replace("frozenset()", "frozenset({'metod'})"),
            "its class attributes",
            "knowledge: an item must be 'method', 'data'",
        ),
        (ATTACK.replace("frozenset()", "{'data'}"), "its class attributes", "write for example `knowledge: ClassVar"),
        (
            ATTACK.replace(SWEEP, "        context.corpus\n" + SWEEP),
            "adapt ends without",
            "'data' in the attack's knowledge",
        ),
        (
            ATTACK.replace(PREPARE, "        context.corpus\n" + PREPARE),
            "prepare ends without",
            "public text needs 'data'",
        ),
        (ATTACK.replace(SWEEP, SWEEP.replace("return ", "")), "adapt returns Outcome", "it returned nothing: end it"),
        (ATTACK.replace(PREPARE, "        pass\n"), "prepare returns Prepared", "it returned nothing: end it"),
    ],
)
def test_a_broken_attack_is_told_what_to_change(
    text: str, statement: str, problem: str, tmp_path: Path, cache: Path
) -> None:
    found = broken("attack", write(tmp_path, text))
    (what,) = [what for said, what in found.items() if said.startswith(statement)]
    assert problem in what


def test_promises_that_do_not_rest_on_one_another_are_all_examined(tmp_path: Path, cache: Path) -> None:
    text = DEFENSE.replace(
        "return Protected(model)",
        "next(model.network.parameters()).data[0, 0] = float('nan')\n"
        "        mask = {name: weight.detach() for name, weight in model.network.named_parameters()}\n"
        "        return Protected(model, Secret(mask))",
    )
    found = broken("defense", write(tmp_path, text))
    assert list(found) == [
        "the release's weights are finite",
        "keeps_secret says whether protect returns a secret",
        "the secret mask is boolean",
    ]
    assert "write `keeps_secret: ClassVar[bool] = True`" in found["keeps_secret says whether protect returns a secret"]


def test_outside_of_an_examination_a_broken_promise_is_an_error() -> None:
    with pytest.raises(BrokenPromiseError, match="it is: no"):
        promise(False, "it is", "no")
    assert examined(lambda: promise(False, "it is", "no")) == (Promise("it is", "no"),)


def test_what_a_plugin_says_is_one_bounded_line() -> None:
    def fails() -> None:
        with works("it works"):
            raise RuntimeError("a\n\x1b[31mb" + 10_000 * "x")

    (one,) = examined(fails)
    assert one.problem.startswith("RuntimeError: a [31mb")
    assert len(one.problem) <= LONGEST
    assert one.problem.isprintable()


def test_a_defense_that_refuses_an_architecture_is_checked_on_the_others(tmp_path: Path, cache: Path) -> None:
    refuses = "        if suite.model['model_type'] in {}: raise NftbenchError('not this one')\n"
    text = DEFENSE + "\n    def check(self, suite):\n"
    check_defense(write(tmp_path, text + refuses.format(["llama"])), architectures=["gpt2", "llama"])
    ((said, what),) = broken("defense", write(tmp_path, text + refuses.format(["gpt2"]), "other")).items()
    assert (said, what) == ("it runs on one of gpt2", "its check refuses gpt2 (not this one)")


# ------------------------------------------------------------------------------------------------ what a check is given


def test_a_check_takes_all_that_names_a_plugin(tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path, DEFENSE + ATTACK.replace("Mine", "Broken"))  # of several plugins the defense is meant
    specification = importlib.util.spec_from_file_location("mine_elsewhere", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    import sys

    sys.modules["mine_elsewhere"] = module
    specification.loader.exec_module(module)
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "__init__.py").write_text("from .part import FACTOR\n" + PLUGIN + DEFENSE)
    (folder / "part.py").write_text("FACTOR = 2\n")
    for given in (path, str(path), f"{path}[strength=2]", module, module.Mine, module.Mine(2.0), folder, "none"):
        check_defense(given, architectures=["gpt2"])
    assert "mine" not in registry.available("defenses"), "nothing stays behind"
    ((said, what),) = [
        (one.statement, one.problem)
        for one in examined(partial(check_defense, f"{path}[strenght=2]", architectures=["gpt2"]))
        if one.problem
    ]
    assert said == "it can be created as mine[strenght=2]"
    assert "did you mean 'strength'" in what


def test_a_text_task_is_checked_by_its_file(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("task: mine\noutput_type: multiple_choise\ntest_split: test\n")
    (one,) = [one for one in examined(partial(check_task, path, architectures=["gpt2"])) if one.problem]
    assert one.statement == "it can be loaded"
    assert "output_type is multiple_choise" in one.problem


# ------------------------------------------------------------------------------------------- in a process of its own


@pytest.mark.slow
def test_what_cannot_work_in_a_run_breaks_a_promise(tmp_path: Path, cache: Path) -> None:
    """Each is confined as in a run, and a dead process harms no other."""
    from nftbench.running import isolation

    socket = DEFENSE.replace("return Protected(model)", "import socket; socket.socket(); return Protected(model)")
    dead = "import os\n" + DEFENSE.replace("return Protected(model)", "os._exit(3)")
    problems = {}
    for name, text in (("connects", socket), ("dies", dead), ("works", DEFENSE)):
        ((title, found),) = [(one.title, one) for one in check_file(str(write(tmp_path, text, name)))]
        problems[title] = {one.statement: one.problem for one in found.broken}
    assert problems["defense works"] == {}
    assert "exit code 3" in problems["defense dies"]["the check comes to its end"]
    if isolation.kind() == "landlock":
        assert (
            "line 14 of connects.py: PermissionError" in problems["defense connects"]["protect ends without an error"]
        )


@pytest.mark.parametrize("name", ["absent.py", "folder", "notes.txt"])
def test_what_is_no_plugin_file_is_refused(name: str, tmp_path: Path) -> None:
    from nftbench.errors import NftbenchError

    (tmp_path / "folder").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(NftbenchError, match=name):
        plugin_path(str(tmp_path / name))
