"""The command line as a user meets it: what it prints, what it writes, and its exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from nftbench.cli import execution
from nftbench.cli.execution import FIGURES
from nftbench.planning import registry
from nftbench.records.identity import digest
from nftbench.records.manifest import Manifest, PlannedCell
from nftbench.records.record import Record
from nftbench.records.store import Store
from nftbench.suites.schema import Suite
from nftbench.testing import tiny_suite
from tests import checkpoints, factories
from tests.conftest import PLUGIN

SUITE = {
    "defenses": ["none", "early_stop"],
    "attacks": ["none", "full"],
    "budget": {"durations": [2], "restarts": 1, "extension": 0},
}
IDLE = """
@dataclass(frozen=True)
class Idle(Attack):
    knowledge: ClassVar = frozenset()

    def adapt(self, prepared, task, context):
        return context.unchanged(prepared.model, task)
"""
MINE = """
@dataclass(frozen=True)
class Mine(Defense):
    stage: ClassVar[str] = "posttrain"
    shift: float = 0.0

    def protect(self, model, context):
        model.network.get_input_embeddings().weight.data.add_(self.shift)
        return Protected(model)
"""
BROKEN = """
@dataclass(frozen=True)
class Broken(Defense):
    stage: ClassVar[str] = "posttrain"

    def protect(self, model, context):
        raise RuntimeError("boom")
"""
HEAVY = ("torch", "transformers", "tokenizers", "datasets", "peft", "lm_eval", "numpy", "scipy", "pandas")

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    return write_suite(tmp_path)


def write_suite(folder: Path, **changes: Any) -> str:
    suite: Suite = tiny_suite(**{**SUITE, **changes})
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(suite.model_dump(mode="json")))
    return path.name


def write_plugin(folder: Path, name: str, source: str) -> str:
    (folder / f"{name}.py").write_text(f'"""{name.title()}: a plugin of a test."""\n' + PLUGIN + source)
    return f"{name}.py"


def records(folder: str | Path = "runs/tiny") -> dict[str, Record]:
    return Store(Path(folder), Path()).records()


def cells(folder: str | Path = "runs/tiny") -> set[tuple[str, str, str, int]]:
    return {(one.defense, one.attack, one.task, one.seed) for one in records(folder).values()}


def planned(folder: str | Path = "runs/tiny") -> set[tuple[str, str, str, int]]:
    return {cell[:4] for cell in Store(Path(folder), Path()).manifest().cells}


def listed(text: str) -> set[str]:
    """First words of the indented lines."""
    return {line.split()[0] for line in text.splitlines() if line.startswith("  ")}


def named_rows(plan: str) -> set[str]:
    """The defenses in a plan's first table."""
    return set(re.findall(r"^│ (\S+) +│ +\d+ │ +\d+ │$", plan.partition("┃ attack")[0], re.MULTILINE))


# ------------------------------------------------------------------------------------------------------- list, info


def test_list_names_everything_with_a_line_about_it(call: Call) -> None:
    code, out, _ = call("list")
    assert code == 0
    assert [line for line in out.splitlines() if not line.startswith(" ")] == [*registry.KINDS, "suites"]
    assert {"none", "pmp", "lora", "scratch", "toy_topic", "small", "smoke"} <= listed(out)
    assert any(line.startswith("  pmp") and "Private Mask Pre-Training" in line for line in out.splitlines())


def test_list_of_one_kind(call: Call) -> None:
    _, out, _ = call("list", "attacks")
    assert listed(out) == set(registry.available("attacks"))


def test_list_has_added_plugins(call: Call, tmp_path: Path) -> None:
    path = write_plugin(tmp_path, "mine", MINE)
    _, out, _ = call("list", "defenses", "--plugin", path)
    assert "mine" in listed(out)
    assert "mine.py" in next(line for line in out.splitlines() if line.startswith("  mine"))


@pytest.mark.parametrize(
    ("words", "packages"), [(["--help"], set()), (["list"], {"pydantic", "pydantic_core", "yaml"})]
)
def test_light_verbs_load_only_the_packages_that_they_need(words: list[str], packages: set[str]) -> None:
    """The packages of the interpreter, of typer and of pydantic themselves are not ours to count."""
    code = (
        "import sys, importlib.metadata as metadata\n"
        f"from nftbench.cli import main\nmain({words!r})\n"
        "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    loaded = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True).stderr
    known = {"pydantic", "pydantic_core", "yaml", "rich", "click", *HEAVY}
    assert set(loaded.split()) & known == packages


def test_info_shows_paper_parameters_and_claim(call: Call) -> None:
    code, out, _ = call("info", "pmp")
    assert code == 0
    for text in ("https://arxiv.org/abs/2602.00446", "ratio: float = 0.7", "stage: pretrain", "method+data", "pmp.py"):
        assert text in out
    assert "knowledge: attackers who know secret" in call("info", "authorized")[1]
    assert "path: str (required)" in call("info", "checkpoint")[1]


def test_info_shows_every_kind_of_a_name(call: Call) -> None:
    _, out, _ = call("info", "none")
    assert [line for line in out.splitlines() if line and not line.startswith(" ")] == ["defense none", "attack none"]


def test_info_of_tasks_and_suites_shows_their_settings(call: Call, tiny: str) -> None:
    assert "doc_to_choice: choices" in call("info", "toy_topic")[1]
    settings = yaml.safe_load(call("info", tiny)[1].split("\n", 1)[1])
    assert settings["budget"]["durations"] == [0, 2]


@pytest.mark.parametrize("kind", registry.KINDS)
def test_info_knows_every_kind(call: Call, kind: registry.Kind) -> None:
    name = next(iter(registry.available(kind)))
    code, out, _ = call("info", name)
    assert code == 0
    assert f"{kind.removesuffix('s')} {name}" in out


def test_info_of_a_plugin_file(call: Call, tmp_path: Path) -> None:
    code, out, _ = call("info", "mine", "--plugin", write_plugin(tmp_path, "mine", MINE))
    assert code == 0
    assert "Mine: a plugin of a test." in out
    assert "shift: float = 0.0" in out


def test_info_of_a_file_that_ends_the_process_says_so(call: Call, tmp_path: Path) -> None:
    path = write_plugin(tmp_path, "quits", f"raise SystemExit(0)\n{MINE}")
    code, out, err = call("info", "quits", "--plugin", path)
    assert (code, out) == (2, "")
    assert "SystemExit" in err


def test_a_line_about_a_plugin_moves_no_cursor(call: Call, tmp_path: Path) -> None:
    write_plugin(tmp_path, "mine", MINE)
    path = tmp_path / "mine.py"
    path.write_text(path.read_text().replace("Mine: a", r"Mine:\x1b[2J a", 1))
    assert "\x1b" not in call("list", "defenses", "--plugin", path)[1]


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"]])
def test_help_without_a_verb(words: list[str], call: Call) -> None:
    code, out, _ = call(*words)
    assert code == 0
    assert {"list", "info", "plan", "run", "report", "calibrate", "lm-eval"} <= listed(out)


# -------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rnu", "tiny.yaml"], "Did you mean 'run'?"),
        (["run"], "Missing argument 'SUITE'; nftbench run --help lists what there is"),
        (["frobnicate"], "No such command 'frobnicate'; nftbench --help lists what there is"),
        (["run", "smoke", "--jobs", "abc"], "'--jobs': must be a whole number, and is 'abc'; nftbench run --help"),
        (["check", "."], "a folder without an `__init__.py`; name the files in it, as *.py"),
        (["run", "tiny.yaml", "--defence", "none"], "--defenses"),
        (["run", "smal"], "no suite named 'smal'; did you mean 'small'?"),
        (["run", "nowhere.yaml"], "nowhere.yaml: no such suite file"),
        (["list", "defences"], "did you mean 'defenses'?"),
        (["info", "lora[rank=2]"], "give the name alone, without parameters: lora"),
        (["check", "bytes.yaml"], "bytes.yaml: this is not text in UTF-8"),
        (["list", "--plugin", "bytes.yaml"], "bytes.yaml: this is not text in UTF-8"),
        (["compare", ".", ".", "--out", "."], "file '.' is a directory"),
        (["run", "tiny.yaml", "--out", "tiny.yaml/x"], "tiny.yaml/x/salt: a folder is needed here, and a file is in"),
        (["info", "pmpp"], "nothing is named 'pmpp'; did you mean 'pmp'?"),
        (
            ["run", "tiny.yaml", "--defenses", "erly_stop"],
            "no defense is named 'erly_stop'; did you mean 'early_stop'?",
        ),
        (["run", "tiny.yaml", "--attacks", "lorra"], "no attack is named 'lorra'; did you mean 'lora'?"),
        (["run", "tiny.yaml", "--tasks", "toy_topc"], "no task is named 'toy_topc'; did you mean 'toy_topic'?"),
        (["run", "tiny.yaml", "--seeds", "0,5"], "tiny has no seed 5; its seeds: 0"),
        (["run", "tiny.yaml", "--seeds", "one"], "'one' is not a seed"),
        (["run", "tiny.yaml", "--seeds", ""], "--seeds '' names nothing"),
        (["run", "tiny.yaml", "--attacks", ""], "--attacks '' names nothing"),
        (["plan", "tiny.yaml", "--defenses", " "], "--defenses ' ' names nothing"),
        (["plan", "tiny.yaml", "--tasks", ","], "--tasks ',' names nothing"),
        (["run", "tiny.yaml", "--defenses", "early_stop[fraction=2]"], "fraction must lie between 0 and 1"),
        (["run", "tiny.yaml", "--set", "budget.durration=[1]"], "--set: unknown key 'budget.durration'; did you"),
        (
            ["run", "tiny.yaml", "--set", "budget={durration: 1}"],
            "--set: unknown key 'budget.durration'; did you mean ",
        ),
        (["run", "tiny.yaml", "--set", "budget.restarts=many"], "--set: budget.restarts: "),
        (["run", "tiny.yaml", "--set", "seeds"], "write key=value"),
        (["run", "tiny.yaml", "--set", "seeds=[]"], "seeds:"),
        (["plan", "tiny.yaml", "--set", "seeds=5"], "write a list, as in seeds=[5], or seeds=[0, 1, 2, 3, 4] for five"),
        (
            ["plan", "tiny.yaml", "--set", "defenses=[none, checkpoint[path=x]]"],
            'quote a specification, as in "checkpoint[path=x]"',
        ),
        (["run", "meta-llama/Llama-3.2-1B"], "nftbench audit meta-llama/Llama-3.2-1B --reference TWIN"),
        (["plan", "tiny.yaml", "--tasks", "hellaswag"], "know the words of the toy language alone"),
        (["run", "tiny.yaml", "--set", "model.n_layers=2"], "did you mean 'n_layer'?"),
        (["run", "tiny.yaml", "--set", "model.n_head=3"], "divisible"),
        (["plan", "tiny.yaml", "--defenses", "dlr_lock", "--set", "model.n_head=3"], "divisible"),
        (["run", "tiny.yaml", "--set", "model.n_head=0"], "gpt2 cannot be built: ZeroDivisionError"),
        (["run", "tiny.yaml", "--set", "model.n_layer=two"], "gpt2 cannot be built: "),
        (["run", "tiny.yaml", "--plugin", "nowhere.py"], "nowhere.py: no such file"),
        (["run", "tiny.yaml", "--data", "nowhere"], "'nowhere' does not exist"),
        (["run", "tiny.yaml", "--device", "cdua"], "did you mean 'cuda'?"),
        (["run", "tiny.yaml", "--device", "gpu"], "did you mean 'cuda'?"),
        (["run", "tiny.yaml", "--device", "cuda:99"], "CUDA devices"),
        (["run", "tiny.yaml", "--jobs", "0"], "--jobs"),
        (["run", "tiny.yaml", "--limit", "0"], "--limit"),
        (["run", "tiny.yaml", "--shard", "3"], "write the number of the share and how many there are, as in 3/16"),
        (["run", "tiny.yaml", "--shard", "3/2"], "the first number is from 1 to the second one"),
        (["run", "tiny.yaml", "--address", "auto"], "--address is for --executor ray"),
        (["run", "tiny.yaml", "--parallel-config", "tiny.yaml"], "--parallel-config is for --executor slurm"),
        (["run", "tiny.yaml", "--attacks", "authorized", "--defenses", "none"], "the defense keeps no secret"),
        (["run", "wiki-small"], "give the folder with --data"),
        (["run", "wiki-small", "--data", "."], "no file matches"),
        (["run", "tiny.yaml", "--plugin", "unstaged.py[x=1]"], "no such file; write parameters into --defenses or "),
        (["run", "tiny.yaml", "--plugin", "a[1].py"], "a name holds no brackets and commas; rename it"),
        (["run", "tiny.yaml", "--out", "runs/\udcff"], "'runs/\\udcff': is not text in UTF-8"),
        (["report", "."], "manifest.json is missing"),
        (["report", "nowhere"], "nowhere: no such folder"),
        (["report", "tiny.yaml"], "'tiny.yaml' is a file"),
        (["pack", "tiny.yaml"], "'tiny.yaml' is a file"),
        (["run", "tiny.yaml", "--out", "tiny.yaml"], "'tiny.yaml' is a file"),
        (["run", "tiny.yaml", "--cache", "tiny.yaml"], "'tiny.yaml' is a file"),
        (["plan", "tiny.yaml", "--plugin", "unstaged.py"], "no such attribute; did you mean 'stage'?"),
    ],
)
def test_bad_input_is_one_line_and_changes_nothing(call: Call, tiny: str, words: list[str], said: str) -> None:
    write_plugin(Path(), "unstaged", MINE.replace("stage", "stages"))
    write_plugin(Path(), "a[1]", MINE)
    Path("bytes.yaml").write_bytes(b"x: \xff\n")
    code, out, err = call(*words)
    assert code == 2
    assert all(line.startswith(("tiny: planning;", "tiny.yaml: reading the suite")) for line in out.splitlines())
    assert err.startswith("nftbench: ")
    assert said in err
    assert err.count("\n") == 1
    assert not Path("runs").exists()


def test_a_manifest_of_something_else_is_refused(call: Call, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    code, _, err = call("report", ".")
    assert code == 2
    assert "manifest.json: not a manifest of nftbench: suite: is missing" in err


# -------------------------------------------------------------------------------------------------------- plan, run


def test_plan_counts_cells_and_says_what_is_skipped(
    call: Call, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NFTBENCH_CACHE", str(tmp_path / "empty"))
    code, out, _ = call("plan", tiny, "--attacks", "none,full,authorized")
    assert code == 0
    assert "tiny: 0 of 6 cells done in runs/tiny; 4 jobs" in out
    assert "early_stop: the defense keeps no secret" in out
    assert "no records yet" in out
    assert re.search(r"│ full +│ +0 │ +2 │", out)
    assert not Path("runs").exists()


@pytest.mark.parametrize("size", ["20GB", "much"])
def test_a_cache_is_that_of_one_command_line_alone(
    size: str, call: Call, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NFTBENCH_CACHE_SIZE", raising=False)
    before = dict(os.environ)
    seen: list[str] = []
    monkeypatch.setattr(execution, "check_base", lambda suite: seen.append(os.environ["NFTBENCH_CACHE"]))
    call("plan", tiny, "--cache", "other", "--cache-size", size)
    assert seen == ([str(Path("other").resolve())] if size == "20GB" else [])
    assert dict(os.environ) == before


def test_plan_goes_by_records_where_there_are_some(call: Call, tiny: str) -> None:
    call("run", tiny, "--jobs", 1, "--defenses", "none")
    _, out, _ = call("plan", tiny)
    assert "tiny: 3 of 6 cells done in runs/tiny; 4 jobs" in out
    assert "as 3 releases and jobs of its records took" in out
    call("run", tiny, "--jobs", 1)
    assert "time: nothing is left to run" in call("plan", tiny)[1]


def test_run_ends_in_a_leaderboard_and_resumes(call: Call, tiny: str) -> None:
    code, out, err = call("run", tiny, "--jobs", 1)
    assert (code, err) == (0, "")
    assert cells() == planned()
    assert len(cells()) == 6
    assert out.startswith("tiny: planning; 0 records in runs/tiny\ntiny: 0 of 6 cells done; 4 jobs to run, about ")
    assert "[6/6 cells done] early_stop full seed 0: 1 task, ok" in out
    page = Path("runs/tiny/leaderboard.md").read_text()
    assert "early_stop" in page
    assert f"nftbench run {tiny} --jobs 1" in page
    written = {path: path.stat().st_mtime_ns for path in Path("runs/tiny/records").iterdir()}
    code, out, _ = call("run", tiny, "--jobs", 1)
    assert code == 0
    assert out.splitlines()[:3] == [
        "tiny: planning; 6 records in runs/tiny",
        "sources of 6 cells: 6 as today",
        "tiny: 6 of 6 cells done; nothing is left to run",
    ]
    assert "seed 0:" not in out
    assert {path: path.stat().st_mtime_ns for path in Path("runs/tiny/records").iterdir()} == written


def test_another_processor_is_named_before_any_work(call: Call, tiny: str) -> None:
    call("run", tiny, "--jobs", 1, "--attacks", "none")
    for path in Path("runs/tiny/records").iterdir():
        content = json.loads(path.read_text())
        content["provenance"]["hardware"]["vendor"] = "AnotherVendor"
        path.write_text(json.dumps(content))
    for verb in ("plan", "run"):
        _, out, _ = call(verb, tiny, "--jobs", 1, "--attacks", "none")
        said = out.splitlines()[1:3]  # before the table of cells, and before any job
        assert any("records come from another processor" in line for line in said)
        assert any("AnotherVendor" in line for line in said)


def test_figures_are_drawn_where_scores_changed_or_one_is_missing(call: Call, tiny: str) -> None:
    def drawn() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in Path("runs/tiny").glob("*.*g")}

    call("run", tiny, "--jobs", 1)
    first = drawn()
    assert set(first) == set(FIGURES)
    _, out, _ = call("run", tiny, "--jobs", 1)
    assert drawn() == first
    assert [line for line in out.splitlines() if line.endswith((".png", ".svg"))] == [
        f"runs/tiny/{name}" for name in FIGURES
    ]
    Path("runs/tiny/attacks.png").unlink()
    call("run", tiny, "--jobs", 1)
    second = drawn()
    assert set(second) == set(FIGURES)
    call("run", tiny, "--jobs", 1, "--set", "ranking=[method]")
    assert drawn()["frontier.png"] > second["frontier.png"]


def test_a_checkpoint_is_estimated_by_its_own_size(tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is given is not pre-trained, and the suite's own model, a thousand times smaller, says nothing about it."""
    from nftbench.planning.plan import plan
    from nftbench.running import estimate, forecast, speed

    monkeypatch.setattr(speed, "slowness", lambda *, large: 1.0)
    given = checkpoints.write(tmp_path / "given", n_embd=256, n_layer=4, n_head=4)
    parameters, nothing = (given / checkpoints.WEIGHTS).stat().st_size / 4, Store(tmp_path / "none", tmp_path / "none")
    suite = tiny_suite(defenses=[f"checkpoint[path={given}]"], attacks=["none", "full"])
    whole = plan(suite)
    left = estimate.remaining(whole, nothing, set())
    small = estimate.parameters_of(suite)
    assert small < parameters / 200
    grown = {**suite.model, "n_embd": 256, "n_layer": 4, "n_head": 4}
    alike = plan(suite.model_copy(update={"defenses": ("none",), "model": grown}))
    attacks = replace(estimate.remaining(alike, nothing, set()), releases=(), bases=())
    expected = forecast.forecast(alike, attacks, estimate.parameters_of(alike.suite)).total(1)
    making = len(left.releases) * forecast.STEP_SECONDS
    assert forecast.forecast(whole, left, small).total(1) - making == pytest.approx(expected, rel=0.05)
    write_suite(tmp_path, defenses=[f"checkpoint[path={given}]"])
    _, out, _ = call("plan", "tiny.yaml", "--cache", "cache", "--jobs", 2)
    disk, memory = (float(re.findall(rf"{name}: about ([\d.]+) [MG]B", out)[0]) for name in ("disk", "memory"))
    assert disk == pytest.approx(parameters * 4 / 1e6, rel=0.05)
    assert memory == pytest.approx(2 * (estimate.PROCESS_BYTES + 24 * parameters) / 1e9, rel=0.05)


def test_a_narrowed_run_is_part_of_the_whole_plan(call: Call, tiny: str) -> None:
    code, out, _ = call("run", tiny, "--jobs", 1, "--defenses", "none", "--attacks", "full")
    assert code == 0
    assert cells() == {("none", "full", "toy_topic", 0)}
    assert len(planned()) == 6
    page = Path("runs/tiny/leaderboard.md").read_text()
    assert "1 of 6 cells recorded" in page
    assert "tiny: 0 of 1 cells done (a part of the suite's 6); 1 job to run" in out
    assert "incomplete" in page
    call("run", tiny, "--jobs", 1, "--defenses", "early_stop", "--attacks", "full")
    assert "partial: by full on toy_topic alone" in Path("runs/tiny/leaderboard.md").read_text()


def test_force_redoes_the_narrowed_cells_alone(call: Call, tiny: str) -> None:
    call("run", tiny, "--jobs", 1)
    before = {path.name: path.stat().st_mtime_ns for path in Path("runs/tiny/records").iterdir()}
    call("run", tiny, "--jobs", 1, "--force", "--attacks", "full", "--defenses", "none")
    after = {path.name: path.stat().st_mtime_ns for path in Path("runs/tiny/records").iterdir()}
    assert before.keys() == after.keys()
    changed = {name for name in after if after[name] != before[name]}
    assert [name.startswith("none-full-toy_topic-0-") for name in changed] == [True]


@pytest.mark.parametrize(
    ("filters", "rows"),
    [
        ("early_stop", {"early_stop", "early_stop[fraction=0.3]"}),
        ("early_stop[fraction=0.5]", {"early_stop"}),
        ("early_stop[fraction=0.3],none", {"early_stop[fraction=0.3]", "none"}),
        ("noise[scale=0.2]", {"noise[scale=0.2]"}),
    ],
)
def test_a_filter_names_rows_by_name_or_by_parameters(call: Call, tmp_path: Path, filters: str, rows: set[str]) -> None:
    """A name is every row of that name, brackets are one row; what the suite lacks is added."""
    suite = write_suite(tmp_path, defenses=["none", "early_stop", "early_stop[fraction=0.3]"])
    _, out, _ = call("plan", suite, "--defenses", filters)
    assert named_rows(out) == rows


def test_utility_tasks_can_be_named(call: Call, tiny: str) -> None:
    _, out, _ = call("plan", tiny, "--tasks", "toy_agreement_pronoun")
    assert "tiny: 0 of 2 cells done in runs/tiny; 2 jobs" in out


def test_set_changes_the_suite(call: Call, tiny: str) -> None:
    _, out, _ = call("plan", tiny, "--set", "seeds=[3,4,5]", "--set", "attacks=[none]")
    assert "tiny: 0 of 12 cells done in runs/tiny; 6 jobs" in out


def test_a_plugin_file_gets_a_row_beside_the_known_ones(call: Call, tiny: str, tmp_path: Path) -> None:
    mine, idle = write_plugin(tmp_path, "mine", MINE), write_plugin(tmp_path, "idle", IDLE)
    code, _, _ = call("run", tiny, "--jobs", 1, "--plugin", mine, "--plugin", idle)
    assert code == 0
    assert {defense for defense, *_ in cells()} == {"none", "early_stop", "mine"}
    assert json.loads(Path("runs/tiny/manifest.json").read_text())["added"] == ["idle"]
    assert "| mine |" in Path("runs/tiny/leaderboard.md").read_text()


def test_an_attack_that_set_lists_is_still_an_added_one(call: Call, tiny: str, tmp_path: Path) -> None:
    """Whoever adds it could list it: only the suite's own file makes an attack count on every row."""
    idle = write_plugin(tmp_path, "idle", IDLE)
    assert call("run", tiny, "--jobs", 1, "--plugin", idle, "--set", "attacks=[none,idle]")[0] == 0
    assert json.loads(Path("runs/tiny/manifest.json").read_text())["added"] == ["idle"]


def test_a_plugin_named_with_parameters_is_that_row_alone(call: Call, tiny: str, tmp_path: Path) -> None:
    mine = write_plugin(tmp_path, "mine", MINE)
    _, out, _ = call("plan", tiny, "--plugin", mine, "--defenses", "mine[shift=0.5],none")
    assert named_rows(out) == {"mine[shift=0.5]", "none"}


def test_a_task_file_is_attacked_too(call: Call, tiny: str, tmp_path: Path) -> None:
    folder = Path(str(registry.find("tasks", "toy_topic").path)).parent
    (tmp_path / "toy.py").write_text((folder / "toy.py").read_text())
    (tmp_path / "again.yaml").write_text((folder / "toy_topic.yaml").read_text().replace("toy_topic", "again"))
    _, out, _ = call("plan", tiny, "--plugin", "again.yaml")
    assert "tiny: 0 of 10 cells done in runs/tiny; 4 jobs" in out


def test_a_failed_cell_is_said_and_the_others_are_kept(call: Call, tiny: str, tmp_path: Path) -> None:
    broken = write_plugin(tmp_path, "broken", BROKEN)
    code, _, err = call("run", tiny, "--jobs", 1, "--plugin", broken)
    assert code == 1
    assert "3 of 9 cells are not ok, first broken × none on toy_topic, seed 0: failed (RuntimeError: boom" in err
    assert err.count("\n") == 1
    assert [one.status for one in records().values() if one.defense != "broken"] == ["ok"] * 6


def test_a_limited_run_is_never_ranked(call: Call, tiny: str) -> None:
    code, _, _ = call("run", tiny, "--jobs", 1, "--limit", 8)
    assert code == 0
    assert all(one.limited for one in records().values())
    assert "run under --limit" in Path("runs/tiny/leaderboard.md").read_text()


def test_worker_processes_know_the_plugins(call: Call, tiny: str, tmp_path: Path) -> None:
    mine = write_plugin(tmp_path, "mine", MINE)
    code, _, _ = call("run", tiny, "--jobs", 2, "--plugin", mine, "--defenses", "mine,none")
    assert code == 0
    assert {defense for defense, *_ in cells()} == {"none", "mine"}


@pytest.mark.filterwarnings("default")
def test_a_corrupt_record_is_said_in_one_line_and_made_again(call: Call, tiny: str) -> None:
    call("run", tiny, "--jobs", 1)
    victim = sorted(Path("runs/tiny/records").iterdir())[0]
    victim.write_text(victim.read_text()[:100])
    code, _, err = call("run", tiny, "--jobs", 1)
    assert code == 0
    assert err.startswith("nftbench: warning: ")
    assert victim.name in err
    assert err.count("\n") == 1
    assert cells() == planned()


# ----------------------------------------------------------------------------------------------------------- report


def made() -> list[Record]:
    """Records with keys that are fit for file names."""
    return [replace(one, key=digest(one.key)) for one in factories.suite()]


def write_results(folder: Path, found: Sequence[Record]) -> None:
    """A folder as a run leaves it."""
    store = Store(folder, folder)
    for record in found:
        store.write(record)
    cells = tuple(PlannedCell(one.defense, one.attack, one.task, one.seed, one.key) for one in found)
    suite = tiny_suite(ranking=["method", "data"])
    store.write_manifest(Manifest(suite=suite, cells=cells, ladder=factories.LADDER, command="nftbench run tiny"))


def test_a_refuted_claim_is_an_error_where_asked_for(call: Call, tmp_path: Path) -> None:
    found = [replace(one, key=digest(one.key)) for one in [*factories.suite(), *factories.sweep("mask", (0.82,) * 5)]]
    write_results(tmp_path / "tiny", found)
    assert call("report", "tiny")[0] == 0
    code, _, err = call("report", "tiny", "--fail-on-claims")
    assert (code, err) == (1, "nftbench: 1 claim fails: mask: its claim is refuted\n")
    write_results(tmp_path / "good", made())
    assert call("report", "good", "--fail-on-claims")[0] == 0


@pytest.mark.parametrize("words", [("--defenses", "pnp"), ("--attacks", "none,lorra[rank=2]")])
def test_a_wrong_name_is_told_before_torch_is_loaded(tmp_path: Path, words: tuple[str, str]) -> None:
    """It came after the seconds that planning takes."""
    code = "import sys; from nftbench.cli import main; code = main(sys.argv[1:]); print(code, 'torch' in sys.modules)"
    command = [sys.executable, "-P", "-c", code, "plan", "smoke", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "2 False"
    assert "did you mean" in done.stderr


def test_report_ranks_again_without_torch(tmp_path: Path) -> None:
    write_results(tmp_path / "tiny", made())
    code = (
        "import sys\nfrom nftbench.cli import main\ncode = main(['report', sys.argv[1]])\n"
        "print('torch' in sys.modules, file=sys.stderr)\nsys.exit(code)"
    )
    command = [sys.executable, "-P", "-c", code, str(tmp_path / "tiny")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "False"
    assert "pmp" in done.stdout
    page = (tmp_path / "tiny" / "leaderboard.md").read_text()
    assert page.endswith("nftbench run tiny\n")
    board = factories.scored(factories.suite())
    content = json.loads((tmp_path / "tiny" / "leaderboard.json").read_text())
    assert [row["defense"] for row in content["scores"]] == [score.defense for score in board.scores]


def test_report_makes_one_page_of_several_folders(call: Call, tmp_path: Path) -> None:
    for name in ("tiny", "other"):
        write_results(tmp_path / name, made())
    code, out, _ = call("report", "tiny", "other", "--html", "site")
    assert code == 0
    assert out.splitlines()[-1] == str(Path("site") / "index.html")
    page = (tmp_path / "site" / "index.html").read_text()
    assert page.count('role="tabpanel"') == 2
    for name in ("tiny", "other"):
        assert "tabpanel" not in (tmp_path / name / "index.html").read_text().partition("<script>")[0]


def test_report_writes_nothing_where_one_folder_is_wrong(call: Call, tmp_path: Path) -> None:
    write_results(tmp_path / "tiny", made())
    before = sorted((tmp_path / "tiny").iterdir())
    assert call("report", "tiny", "nowhere") == (2, "", "nftbench: nowhere: no such folder\n")
    assert sorted((tmp_path / "tiny").iterdir()) == before


def test_report_leaves_out_records_of_other_settings(call: Call, tmp_path: Path) -> None:
    """A record of the same cell under another key would count as one that is there twice."""
    write_results(tmp_path / "tiny", made())
    stale = replace(made()[0], key="stale")
    Store(tmp_path / "tiny", tmp_path).write(stale)
    code, out, _ = call("report", "tiny")
    assert code == 0
    assert "recorded twice" not in (tmp_path / "tiny" / "leaderboard.md").read_text()
    first = f"{stale.defense} × {stale.attack} on {stale.task}, seed {stale.seed}"
    assert "records in tiny that do not count: 1 of planned cells, but made with another salt, or other" in out
    assert first in out


def test_info_finds_the_file_of_a_plugin_that_nobody_named(call: Call, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("")
    assert call("info", "mine")[2] == "nftbench: nothing is named 'mine'; for the file mine.py, add --plugin mine.py\n"


def test_report_keeps_a_leaderboard_that_an_empty_one_would_replace(call: Call, tmp_path: Path) -> None:
    """A run with a mistyped setting changes the plan, and no record of the finished run before counts any more."""
    write_results(tmp_path / "tiny", made())
    assert call("report", "tiny")[0] == 0
    store = Store(tmp_path / "tiny", tmp_path)
    manifest = store.manifest()
    others = tuple(one._replace(key=f"other-{one.key}") for one in manifest.cells)
    store.write_manifest(replace(manifest, cells=others))
    before = {path: path.read_bytes() for path in (tmp_path / "tiny").glob("leaderboard*")}
    code, _, err = call("report", "tiny")
    assert code == 2
    assert (
        err
        == f"nftbench: tiny: holds no record of any planned cell; {len(made())} in it are of other settings or code\n"
    )
    assert {path: path.read_bytes() for path in (tmp_path / "tiny").glob("leaderboard*")} == before
    store.forget({record.key for record in made()})
    assert call("report", "tiny")[2] == "nftbench: tiny: holds no record of any planned cell: no cell is done yet\n"


def test_records_of_another_machine_are_taken(call: Call, tmp_path: Path) -> None:
    """A key holds no machine, so that a suite's seeds may be run on several and their records copied together."""
    found = made()
    here, there = tmp_path / "tiny", tmp_path / "there"
    write_results(here, found)
    for record in found[1::2]:
        path = Store(here, tmp_path).path(record)
        (there / "records").mkdir(parents=True, exist_ok=True)
        path.rename(there / "records" / path.name)
    for path in (there / "records").iterdir():
        path.rename(here / "records" / f"copy of {path.name}")
    code, out, _ = call("report", "tiny")
    assert code == 0
    assert "left out" not in out
    content = json.loads((here / "leaderboard.json").read_text())
    assert [row["defense"] for row in content["scores"]] == [
        score.defense for score in factories.scored(factories.suite()).scores
    ]


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_a_terminal_without_our_characters_shows_others(encoding: str, tmp_path: Path) -> None:
    write_results(tmp_path / "tiny", made())
    command = [sys.executable, "-P", "-m", "nftbench", "report", str(tmp_path / "tiny")]
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = subprocess.run(command, capture_output=True, check=True, env=environment)
    assert b"pmp" in done.stdout
    assert done.stderr == b""
    assert (tmp_path / "tiny" / "leaderboard.md").is_file()


def test_the_leaderboard_is_written_before_it_is_printed(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    write_results(tmp_path / "tiny", made())
    monkeypatch.setattr("rich.console.Console.print", full)
    code, _, err = call("report", "tiny")
    assert (code, err) == (2, "nftbench: [Errno 28] No space left on device\n")
    assert (tmp_path / "tiny" / "leaderboard.md").is_file()


# ----------------------------------------------------------------------------------------------------------- lm-eval


def test_lm_eval_gets_every_argument_and_our_tasks(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval import __main__ as lm_eval_main

    from nftbench import tasks

    got: list[str] = []
    monkeypatch.setattr(lm_eval_main, "cli_evaluate", lambda: got.extend(sys.argv))
    code, _, _ = call("lm-eval", "run", "--model", "hf", "--tasks", "toy_topic", "--help")
    assert code == 0
    assert got == [
        "lm-eval",
        "run",
        "--include_path",
        tasks.__path__[0],
        *["--model", "hf", "--tasks", "toy_topic", "--help"],
    ]
