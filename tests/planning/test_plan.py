"""A plan makes cells of a suite: which are planned, which are skipped and why, and what their keys depend on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nftbench.device import Device
from nftbench.errors import NftbenchError
from nftbench.planning import keys as plan_keys, pinning
from nftbench.planning.keys import Area
from nftbench.planning.plan import Plan, narrow, plan
from nftbench.records import identity, manifest as manifests
from nftbench.records.record import Cell
from nftbench.records.spec import Spec
from nftbench.suites.differences import differing
from nftbench.suites.reading import parse
from nftbench.suites.schema import Suite
from nftbench.testing import tiny_suite
from tests import checkpoints

WriteFile = Callable[[str, str], Path]

DEFENSES = ["none", "early_stop", "random_mask", "pmp"]
ATTACKS = ["none", "scratch", "full", "authorized"]
TASKS = ["toy_topic", "toy_tone"]


def suite(**changes: Any) -> Suite:
    return tiny_suite(**{"defenses": DEFENSES, "attacks": ATTACKS, "tasks": TASKS, "seeds": [0, 1], **changes})


def keys(found: Plan) -> dict[tuple[str, str, str, int], str]:
    return {place(cell): cell.key for cell in found.cells}


def place(cell: Cell) -> tuple[str, str, str, int]:
    return str(cell.defense), str(cell.attack), str(cell.task), cell.seed


def test_every_defense_attack_task_and_seed_is_planned() -> None:
    found = plan(suite())
    expected = set()
    for seed in (0, 1):
        for defense in DEFENSES:
            expected |= {(defense, "full", task, seed) for task in TASKS}
            expected |= {(defense, "none", task, seed) for task in [*TASKS, "toy_agreement_pronoun"]}
        expected |= {("none", "scratch", task, seed) for task in TASKS}
        for defense in ("random_mask", "pmp"):
            expected |= {(defense, "authorized", task, seed) for task in TASKS}
    assert set(keys(found)) == expected
    assert len(found.cells) == len(expected) == len(set(keys(found).values()))


def test_a_skipped_attack_has_a_reason() -> None:
    skips = {(skip.defense, skip.attack): skip.reason for skip in plan(suite()).skips}
    assert skips == {
        ("none", "authorized"): "the defense keeps no secret",
        ("early_stop", "authorized"): "the defense keeps no secret",
    }


def test_an_attack_may_decline_a_defense(plugin: WriteFile) -> None:
    plugin(
        "choosy",
        "@dataclass(frozen=True)\nclass Choosy(Attack):\n    against: ClassVar = frozenset({'pmp'})\n"
        "    def applies(self, defense):\n"
        "        return None if defense.keeps_secret else 'there is no mask to guess'\n"
        "    def adapt(self, prepared, task, context):\n        return context.unchanged(prepared.model, task)\n",
    )
    found = plan(suite(attacks=["none", "choosy"], seeds=[0]))
    assert {str(cell.defense) for cell in found.cells if str(cell.attack) == "choosy"} == {"random_mask", "pmp"}
    assert {skip.reason for skip in found.skips} == {"there is no mask to guess"}


KNOWS = (
    "@dataclass(frozen=True)\nclass {name}(Attack):\n    knowledge: ClassVar = frozenset({knowledge})\n"
    "    steps: int = 3\n"
    "    def uses(self):\n        return {uses}\n"
    "    def adapt(self, prepared, task, context):\n        return context.sweep(prepared.model, task)\n"
)


def knows(name: str, *knowledge: str, uses: tuple[str, ...] = ()) -> str:
    return KNOWS.format(name=name.title(), knowledge=set(knowledge) or "()", uses=uses)


LINEAR = {
    "name": "tables",
    "model": {"model_type": "linear", "input_dim": 10},
    "corpus": {"source": "none"},
    "pretraining": {"task": "diabetes[target=bmi]", "only": "head", "steps": 5, "warmup": 1},
    "defenses": ["none", "condition_number[harmful=diabetes,epochs=5]"],
    "tasks": ["diabetes"],
    "utility": ["diabetes[target=s5]"],
    "budget": {"learning_rates": {"adamw": [1e-2, 3e-2]}, "durations": [10], "warmup": 2},
    "seeds": [0],
}


def test_public_text_is_needed_where_an_attack_asks_for_it(plugin: WriteFile) -> None:
    plugin("reads", knows("reads", "data"))
    plugin("both", knows("both", "method", "data"))
    plugin("plain", knows("plain", "method"))
    attacks = ["none", "reads", "both", "plain"]
    found = plan(parse({**LINEAR, "attacks": attacks}))
    assert {str(cell.attack) for cell in found.cells} == {"none", "plain"}
    expected = {(defense, attack) for defense in LINEAR["defenses"] for attack in ("reads", "both")}
    assert {(skip.defense, skip.attack) for skip in found.skips} == expected
    assert {skip.reason for skip in found.skips} == {"the suite has no public text"}
    assert not plan(suite(attacks=attacks)).skips, "a suite with a corpus has it"


def test_a_sibling_is_asked_of_defenses_with_a_secret(plugin: WriteFile) -> None:
    plugin("later", knows("later", "sibling"))
    found = plan(suite(attacks=["none", "later"], defenses=[*DEFENSES, "noise"]))
    assert {str(cell.defense) for cell in found.cells if str(cell.attack) == "later"} == {"random_mask", "pmp"}
    reason = "the defense keeps no secret that a second checkpoint could show"
    assert {(skip.defense, skip.attack): skip.reason for skip in found.skips} == {
        (defense, "later"): reason for defense in ("none", "early_stop", "noise")
    }


def test_an_attacks_knowledge_may_depend_on_its_parameters(plugin: WriteFile) -> None:
    """One file, and each of its variants is planned for what it needs."""
    source = knows("varies").replace("    knowledge: ClassVar = frozenset(())\n", "")
    plugin(
        "varies",
        source.replace("steps: int = 3", "to: str = 'base'")
        + "    @property\n    def knowledge(self):\n        return frozenset({self.to})\n",
    )
    found = plan(suite(attacks=["none", "varies", "varies[to=secret]", "varies[to=sibling]"], seeds=[0]))
    tried = {(str(cell.defense), str(cell.attack)) for cell in found.cells if str(cell.attack) != "none"}
    assert tried == {
        *((defense, "varies") for defense in DEFENSES),
        *((defense, f"varies[to={to}]") for defense in ("random_mask", "pmp") for to in ("secret", "sibling")),
    }


def test_reference_rows_are_added_and_scratch_is_planned_once_for_each(tmp_path: Path) -> None:
    folders = [checkpoints.write(tmp_path / name) for name in ("protected", "twin")]
    twin = f"checkpoint[path={folders[1]}]"
    audited = f"checkpoint[path={folders[0]},reference={folders[1]}]"
    found = plan(suite(defenses=["none", "pmp", audited], seeds=[0]))
    assert {str(cell.defense) for cell in found.cells} == {"none", "pmp", audited, twin}
    assert found.rows[Spec.parse(audited)].reference == twin
    assert found.rows[Spec.parse("pmp")].reference == "none"
    scratch = [
        place(cell)[0] for cell in found.cells if str(cell.attack) == "scratch" and str(cell.task) == "toy_topic"
    ]
    assert sorted(scratch) == sorted(["none", twin])


def test_rows_hold_the_facts_that_scoring_needs() -> None:
    found = plan(suite())
    rows = {name: found.rows[Spec.parse(name)] for name in DEFENSES}
    assert [rows[name].trivial for name in DEFENSES] == [False, True, False, False]
    assert rows["pmp"].claim is not None
    assert rows["pmp"].claim.knowledge == {"method", "data"}
    assert rows["none"].claim is None
    assert {cell.task.name: found.role(cell) for cell in found.cells} == {
        "toy_topic": "ranked",
        "toy_tone": "ranked",
        "toy_agreement_pronoun": "utility",
    }


CONFIDER = """
@dataclass(frozen=True)
class Confider(Defense):
    stage: ClassVar[str] = "posttrain"

    def told(self):
        return ("toy_topic",)

    def protect(self, model, context):
        return Protected(model)
"""


def test_a_defense_that_names_tasks_is_told_them_and_is_task_aware(plugin: WriteFile) -> None:
    plugin("confider", CONFIDER)
    row = plan(suite(defenses=["none", "confider"])).rows[Spec.parse("confider")]
    assert (row.task_aware, row.told) == (True, ("toy_topic",))


def test_defense_none_and_attack_none_are_always_planned(tmp_path: Path) -> None:
    found = keys(plan(suite(defenses=["pmp"], attacks=["full"])))
    assert {("none", "none", "toy_topic", 0), ("pmp", "none", "toy_topic", 0)} <= set(found)
    checkpoints.write(tmp_path)
    audit = keys(plan(suite(defenses=[f"checkpoint[path={tmp_path}]"])))
    assert "none" not in {defense for defense, *_ in audit}, "a checkpoint is scored against its own twin alone"


def test_the_cells_of_a_checkpoint_depend_on_its_weights_and_its_chat_template(tmp_path: Path) -> None:
    """A template in a file of its own decides what an attacker's prompts look like."""
    folder = checkpoints.write(tmp_path / "given")

    def found() -> set[str]:
        return set(keys(plan(suite(defenses=[f"checkpoint[path={folder}]"]))).values())

    first = found()
    (folder / "notes.md").write_text("nothing that is loaded")
    assert found() == first
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    second = found()
    assert not first & second
    content = bytearray((folder / checkpoints.WEIGHTS).read_bytes())
    content[-1] ^= 1
    (folder / checkpoints.WEIGHTS).write_bytes(content)
    assert not (first | second) & found()


def test_the_cells_of_a_release_on_the_hub_depend_on_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub id leads to whatever its owner has uploaded last."""
    row = "smaller[path=some/model]"

    def found(commit: str) -> Plan:
        monkeypatch.setattr(pinning, "commit", lambda path, revision: commit)
        return plan(suite(defenses=["none", row]))

    before, after = found("a" * 40), found("b" * 40)
    assert before.commits == {Spec.parse(row): "a" * 40}
    assert {cell[0] for cell, key in keys(before).items() if keys(after)[cell] != key} == {row}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"defenses": ["none", "pnp"]}, "did you mean 'pmp'?"),
        ({"attacks": ["none", "fulll"]}, "did you mean 'full'?"),
        ({"tasks": ["toy_topics"]}, "did you mean 'toy_topic'?"),
        ({"utility": ["toy_agreement_pronou"]}, "did you mean 'toy_agreement_pronoun'?"),
        ({"tasks": ["toy_topic[size=3]"]}, "has no parameter 'size'"),
        ({"defenses": ["none", "checkpoint[path=nowhere]"]}, "neither a folder nor a hub id"),
        ({"defenses": ["none", f"checkpoint[path={Path(__file__).parent}]"]}, "holds no model: it lacks a config.json"),
    ],
)
def test_a_misspelt_name_is_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(NftbenchError) as caught:
        plan(suite(**changes))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("named", ["rigged[weak=true]", "early_stop", "checkpoint[path=.]"])
def test_a_defense_that_names_another_reference_than_the_undefended_model_is_refused(
    named: str, plugin: Callable[[str, str], Path]
) -> None:
    plugin(
        "rigged",
        "@dataclass(frozen=True)\nclass Rigged(Defense):\n    stage: ClassVar = 'pretrain'\n    weak: bool = False\n"
        f"    def reference_row(self):\n        return 'none' if self.weak else {named!r}\n"
        "    def protect(self, model, context):\n        return Protected(model)\n",
    )
    with pytest.raises(NftbenchError, match=r"^rigged: its reference row must be none, and it is [^\n]*$"):
        plan(suite(defenses=["none", "rigged"]))


def test_defaults_written_out_are_the_same_row() -> None:
    found = plan(suite(defenses=["none", "early_stop", "early_stop[fraction=0.5]", "pmp[ratio=0.70]"], seeds=[0]))
    assert {str(cell.defense) for cell in found.cells} == {"none", "early_stop", "pmp"}


def test_a_task_has_one_role() -> None:
    with pytest.raises(NftbenchError, match="toy_topic is among both tasks and utility"):
        suite(utility=["toy_agreement_pronoun", "toy_topic"])


# ---------------------------------------------------------------------------------------------------------------- keys

CHANGED = {
    "model": {"model": {"n_layer": 2}},
    "grammar": {"corpus": {"grammar": 5}},
    "salt": {"salt": "another"},
    "sentences": {"corpus": {"sentences": 301}},
    "block": {"corpus": {"block": 16}},
    "heldout_blocks": {"corpus": {"heldout_blocks": 15}},
    "steps": {"pretraining": {"steps": 21}},
    "pretraining batch": {"pretraining": {"batch": 9}},
    "pretraining rate": {"pretraining": {"learning_rate": 4e-3}},
    "pretraining decay": {"pretraining": {"weight_decay": 0.0}},
    "decay of vectors": {"pretraining": {"decay_vectors": True}},
    "betas": {"pretraining": {"betas": [0.9, 0.99]}},
    "pretraining clip": {"pretraining": {"clip": 2.0}},
    "pretraining warmup": {"pretraining": {"warmup": 5}},
    "schedule": {"pretraining": {"schedule": "linear"}},
    "final": {"pretraining": {"final": 0.2}},
    "decay": {"pretraining": {"decay": 0.45}},
}
BUDGET = {
    "learning_rates": {"adamw": [1e-3, 2e-3]},
    "durations": [2, 5],
    "batch": 9,
    "warmup": 3,
    "clip": None,
    "weight_decay": 0.1,
    "decay": True,
    "average": True,
    "extension": 2,
    "restarts": 2,
    "preparation_steps": 201,
    "max_train_documents": 33,
    "max_validation_documents": 41,
    "max_test_documents": 41,
    "max_utility_documents": 43,
}


@pytest.mark.parametrize("changes", [*CHANGED.values(), *({"budget": {key: value}} for key, value in BUDGET.items())])
def test_settings_that_change_results_change_the_key(changes: dict[str, Any]) -> None:
    small = {"defenses": ["none", "random_mask"], "attacks": ["none", "full"], "tasks": ["toy_topic"], "seeds": [0]}
    before, after = keys(plan(suite(**small))), keys(plan(suite(**small, **changes)))
    assert before.keys() == after.keys()
    assert not set(before.values()) & set(after.values())


def test_every_setting_of_budget_and_pretraining_is_tried() -> None:
    """A field added to the suite must be thought of here: it changes the key, or it is known not to."""
    from nftbench.suites.schema import Budget, CorpusSettings, Pretraining

    assert set(Budget.model_fields) == {*BUDGET, "timeout", "tokens_at_once"}
    tried = {key for changes in CHANGED.values() for section in changes.values() for key in section}
    assert set(Pretraining.model_fields) - tried == {"checkpoints", "task", "only", "allowance", "timeout"}
    hub_and_text = {"source", "train", "heldout", "path", "name", "revision", "column", "vocabulary"}
    assert set(CorpusSettings.model_fields) - tried == hub_and_text


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"about": "words"},
        {"ladder": {"noise": ["noise"]}},
        {"initialisations": 3},
        {"ranking": ["method"]},
        {"pretraining": {"checkpoints": [0.25, 0.5]}},
        {"pretraining": {"allowance": 2.0, "timeout": 60}},
        {"budget": {"timeout": 60}},
        {"budget": {"tokens_at_once": 512}},
        {"seeds": [1, 0, 7]},
        {"defenses": ["pmp", "random_mask", "none", "early_stop", "noise"]},
        {"tasks": ["toy_tone", "toy_topic", "toy_agreement"]},
        {"attacks": ["authorized", "full", "scratch", "none", "lora"]},
    ],
)
def test_settings_that_change_no_results_leave_the_key(changes: dict[str, Any]) -> None:
    before, after = keys(plan(suite())), keys(plan(suite(**changes)))
    assert {cell: after.get(cell) for cell in before} == before


@pytest.mark.parametrize(
    ("section", "changes"),
    [
        ("pretraining", {"allowance": 2.0, "timeout": 60, "checkpoints": [0.25, 0.5]}),
        ("budget", {"timeout": 60, "tokens_at_once": 512}),
    ],
)
def test_settings_that_leave_the_key_are_no_difference_between_suites(section: str, changes: dict[str, Any]) -> None:
    """Or else compare and merge would refuse records with the same keys."""
    one, other = (made.model_dump(mode="json") for made in (suite(), suite(**{section: changes})))
    assert one[section] != other[section]
    assert list(differing(one, other)) == []


def test_where_a_checkpoint_lies_is_no_difference_if_both_sides_have_its_hash() -> None:
    def model(path: str, sha256: str | None) -> dict[str, Any]:
        return {"model": {"path": path, "sha256": sha256}}

    assert list(differing(model("a", "1"), model("b", "1"))) == []
    assert list(differing(model("a", "1"), model("a", "2"))) == ["model.sha256"]
    assert list(differing(model("a", None), model("b", None))) == ["model.path"]
    assert list(differing(model("a", "1"), model("b", None))) == ["model.path", "model.sha256"]


def test_seeds_tasks_device_and_limit_are_in_the_key() -> None:
    found = plan(suite())
    assert len(set(keys(found).values())) == len(found.cells)
    for other in (plan(suite(), device=Device("cuda")), plan(suite(), limit=8)):
        assert not set(keys(other).values()) & set(keys(found).values())
    assert keys(plan(suite(), device=Device("cuda", 1))) == keys(plan(suite(), device=Device("cuda", 0)))


def test_a_plugins_parameters_are_in_the_key() -> None:
    before = keys(plan(suite(defenses=["none", "pmp"])))
    after = keys(plan(suite(defenses=["none", "pmp[ratio=0.5]"])))
    changed = {cell[0] for cell, key in after.items() if before.get(cell) != key}
    assert changed == {"pmp[ratio=0.5]"}
    cells = plan(suite(attacks=["none", "full", "full[optimizer=sgd]"])).cells
    assert len({cell.key for cell in cells}) == len(cells)


def test_a_plugins_code_is_in_the_key_and_its_comments_are_not(plugin: WriteFile) -> None:
    text = (
        "@dataclass(frozen=True)\nclass Mine(Defense):\n    stage: ClassVar = 'posttrain'\n"
        "    def protect(self, model, context):\n        return Protected(model)\n"
    )
    path = plugin("mine", text)
    asked = suite(defenses=["none", "mine"], seeds=[0])
    before = keys(plan(asked))
    whole = path.read_text()
    path.write_text('"""About."""\n# why\n' + whole)
    assert keys(plan(asked)) == before
    path.write_text(whole.replace("return", "model = model\n        return"))
    after = keys(plan(asked))
    assert {cell[0] for cell in before if before[cell] != after[cell]} == {"mine"}


def test_the_code_of_an_attack_is_in_the_key_of_attacks_built_on_it(plugin: WriteFile) -> None:
    """However deep: code and settings; not comments, and no other attack's cells."""
    paths = {
        "ground": plugin("ground", knows("ground", "method")),
        "middle": plugin("middle", knows("middle", "method", uses=("ground[steps=4]",))),
        "other": plugin("other", knows("other", "method")),
    }
    top = plugin("top", knows("top", "method", uses=("full", "middle")))
    asked = suite(attacks=["none", "full", "ground", "middle", "other", "top"], defenses=["none"], seeds=[0])

    def changed() -> set[str]:
        after = keys(plan(asked))
        found = {cell[1] for cell in after if after[cell] != before[cell]}
        before.update(after)
        return found

    before = keys(plan(asked))
    ground = paths["ground"].read_text()
    paths["ground"].write_text('"""About."""\n# why\n' + ground)
    assert changed() == set()
    paths["ground"].write_text(ground.replace("return context", "task = task\n        return context"))
    assert changed() == {"ground", "middle", "top"}
    paths["other"].write_text(
        paths["other"].read_text().replace("return context", "task = task\n        return context")
    )
    assert changed() == {"other"}
    plugin_text = top.read_text()
    top.write_text(plugin_text.replace("'middle'", "'middle', 'other'"))
    assert changed() == {"top"}


def test_an_attacks_parameters_are_in_the_key_of_attacks_built_on_it() -> None:
    specs = [f"pipeline[preparations={first},tuners=full]" for first in ("heal", "heal[steps=7]", "rebalance")]
    found = plan(suite(attacks=["none", *specs], defenses=["none"], tasks=["toy_topic"], seeds=[0])).cells
    assert len({cell.key for cell in found}) == len(found)
    assert {str(cell.attack) for cell in found} == {"none", *specs}


@pytest.mark.parametrize(
    ("uses", "expected"),
    [
        (("authorized",), "top: it uses 'authorized', which needs more knowledge; add to its own: secret"),
        (("full", "deep"), "top: it uses 'deep', which needs more knowledge; add to its own: base, data"),
        (("low",), "low: it uses 'authorized', which needs more knowledge; add to its own: secret"),
        (("ful",), "no attack is named 'ful'; did you mean 'full'?"),
        (("full[optimiser=sgd]",), "has no parameter 'optimiser'; did you mean 'optimizer'?"),
    ],
)
def test_an_attack_may_not_be_built_on_one_that_knows_more(
    uses: tuple[str, ...], expected: str, plugin: WriteFile
) -> None:
    plugin("deep", knows("deep", "method", "data", "base"))
    plugin("low", knows("low", uses=("authorized",)))
    plugin("top", knows("top", "method", uses=uses))
    with pytest.raises(NftbenchError) as caught:
        plan(suite(attacks=["none", "top"]))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_attack_may_be_built_on_one_that_knows_as_much(plugin: WriteFile) -> None:
    plugin("deep", knows("deep", "method", "data"))
    plugin("top", knows("top", "method", "data", "base", uses=("deep", "full")))
    assert "top" in {str(cell.attack) for cell in plan(suite(attacks=["none", "top"])).cells}


def test_a_checkpoints_files_are_in_the_key(tmp_path: Path) -> None:
    folder = checkpoints.write(tmp_path / "model")
    asked = suite(defenses=["none", f"checkpoint[path={folder}]"], seeds=[0])
    before = keys(plan(asked))
    checkpoints.write(folder, seed=1)
    after = keys(plan(asked))
    assert {cell[0] for cell in before if before[cell] != after[cell]} == {f"checkpoint[path={folder}]"}


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda folder: (folder / checkpoints.WEIGHTS).unlink(), "has no weights in the safetensors format"),
        (lambda folder: [file.unlink() for file in folder.glob("tokenizer*")], "has no tokenizer"),
        (lambda folder: checkpoints.edit(folder, lambda _: {"other": torch.ones(1)}), "the files lack "),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be loaded as a causal LM"),
        (lambda folder: (folder / checkpoints.WEIGHTS).write_bytes(b"cut"), "is damaged or incomplete"),
    ],
)
@pytest.mark.parametrize("role", ["path", "reference"])
def test_a_checkpoint_that_cannot_be_audited_is_refused(
    role: str, broken: Callable[[Path], object], said: str, tmp_path: Path
) -> None:
    folders = {name: checkpoints.write(tmp_path / name) for name in ("path", "reference")}
    broken(folders[role])
    spec = Spec("checkpoint", tuple((name, str(folder)) for name, folder in folders.items()))
    with pytest.raises(NftbenchError, match=said) as caught:
        plan(suite(defenses=[str(spec)]))
    assert str(folders[role]) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["2024", "null", "it's", "a,b=[c", "1e5", "x + y"])
def test_a_checkpoints_folder_may_have_any_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoints.write(tmp_path / name)
    spec = Spec("checkpoint", (("path", name),))
    (row,) = {cell.defense for cell in plan(suite(defenses=[str(spec)], seeds=[0])).cells}
    assert row == spec


def test_local_text_is_in_the_key_by_content(tmp_path: Path) -> None:
    corpus = {"source": "text", "train": "t.txt", "heldout": "h.txt", "vocabulary": 300}
    found = []
    for name, text in (("one", "a b c"), ("same", "a b c"), ("two", "a b d")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "t.txt").write_text(text)
        (folder / "h.txt").write_text("held out")
        found.append(keys(plan(suite(corpus=corpus, defenses=["none"], seeds=[0]), data=folder)))
    assert found[0] == found[1]
    assert not set(found[0].values()) & set(found[2].values())


def raised(area: Area, asked: Suite) -> Plan:
    """The plan under another version of an area."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(identity, area.upper(), 99)
        return plan(asked)


def changed_attacks(area: Area, **changes: Any) -> set[str]:
    """The attacks of which at least one key changes with an area's version."""
    asked = suite(yardsticks=["landscape"], seeds=[0], **changes)
    before, after = keys(plan(asked)), keys(raised(area, asked))
    return {f"{cell[1]} {cell[2]}" for cell in before if before[cell] != after[cell]}


def test_the_version_of_each_area_is_in_the_keys_that_it_affects() -> None:
    everything = changed_attacks("training")
    assert changed_attacks("evaluation") == everything
    assert {"none toy_topic", "full toy_topic", "none landscape"} <= everything
    # A release that is only measured does not depend on how attacks train.
    assert changed_attacks("attack") == {place for place in everything if place[:5] != "none "} | {"none landscape"}


def test_an_attack_that_holds_the_base_depends_on_the_code_of_the_reference_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = suite(defenses=["none", "random_mask"], attacks=["none", "full", "difference"], seeds=[0])
    before, source = keys(plan(asked)), plan_keys.plugin_source
    edited = lambda kind, name: "edited" if name == "none" else source(kind, name)  # noqa: E731
    monkeypatch.setattr(plan_keys, "plugin_source", edited)
    after = keys(plan(asked))
    changed = {
        attack
        for (defense, attack, *_), key in before.items()
        if defense == "random_mask" and key not in after.values()
    }
    assert changed == {"none", "difference"}  # the attack `none` is a plugin named like the row, and was edited too


def test_a_release_depends_on_evaluation_where_its_defense_is_told_tasks(plugin: WriteFile) -> None:
    plugin("confider", CONFIDER)
    asked = suite(defenses=["none", "confider"], seeds=[0])
    before, after = plan(asked).releases, raised("evaluation", asked).releases
    assert {name for (name, _), key in before.items() if after[name, 0] != key} == {"confider"}


def test_cells_of_one_defense_and_seed_share_a_release() -> None:
    found = plan(suite())
    releases: dict[tuple[str, int], set[str]] = {}
    for cell in found.cells:
        releases.setdefault((str(cell.defense), cell.seed), set()).add(cell.release)
    assert all(len(one) == 1 for one in releases.values())
    assert len({key for one in releases.values() for key in one}) == len(releases) == 8


# ---------------------------------------------------------------------------------------------------- jobs, narrowing


def test_jobs_hold_every_cell_once_in_the_order_of_seeds() -> None:
    found = plan(suite())
    jobs = found.jobs()
    assert sorted(cell.key for job in jobs for cell in job.cells) == sorted(cell.key for cell in found.cells)
    assert [job.seed for job in jobs] == sorted(job.seed for job in jobs)
    assert len({job.key for job in jobs}) == len(jobs)
    for job in jobs:
        assert {(cell.defense, cell.attack, cell.seed) for cell in job.cells} == {(job.defense, job.attack, job.seed)}


def test_a_narrowed_plan_holds_the_named_cells_with_the_same_keys() -> None:
    whole = plan(suite(attacks=["none", "full", "full[optimizer=sgd]"]))
    assert narrow(whole) == whole
    part = narrow(whole, defenses=["pmp", "none"], attacks=["full"], tasks=["toy_tone"], seeds=[1])
    assert {place(cell) for cell in part.cells} == {
        (defense, attack, "toy_tone", 1) for defense in ("pmp", "none") for attack in ("full", "full[optimizer=sgd]")
    }
    for spec, wanted in (("full[optimizer=sgd]", "full[optimizer=sgd]"), ("full[optimizer=adamw]", "full")):
        assert {str(cell.attack) for cell in narrow(whole, attacks=[spec]).cells} == {wanted}
    assert set(keys(part).values()) <= set(keys(whole).values())


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (
            {"attacks": ["authorized"], "defenses": ["none"]},
            "no cell matches the filters (authorized against none: the defense keeps",
        ),
        ({"attacks": ["full[optimizer=sgd]"]}, "no cell matches the filters"),
        ({"defenses": ["pnp[ratio=1]"]}, "no defense is named 'pnp'; did you mean 'pmp'?"),
        ({"tasks": ["toy_topic[shots=1]"]}, "a text task has no parameter 'shots'"),
        ({"seeds": [5]}, "has no seed 5; its seeds: 0, 1"),
    ],
)
def test_a_filter_that_matches_nothing_is_refused(filters: dict[str, Any], expected: str) -> None:
    with pytest.raises(NftbenchError) as caught:
        narrow(plan(suite()), **filters)
    assert expected in str(caught.value)


@pytest.mark.parametrize("attack", ["full[optimizer=muon]", "pipeline[tuners=full+full[optimizer=muon]]"])
def test_an_optimizer_without_a_grid_is_refused(attack: str) -> None:
    with pytest.raises(NftbenchError, match=r"full\[optimizer=muon\]: budget.learning_rates has no grid for 'muon'"):
        plan(suite(attacks=["none", attack], budget={"learning_rates": {"adamw": [1e-3, 1e-2]}}))


def test_the_manifest_is_json_and_lists_every_cell() -> None:
    found = plan(suite(), limit=3)
    manifest = json.loads(manifests.dump(found.manifest("nftbench run tiny")))
    assert [tuple(cell[:4]) for cell in manifest["cells"]] == [place(cell) for cell in found.cells]
    assert manifest["command"] == "nftbench run tiny"
    assert manifest["limit"] == 3
    assert ["none", "authorized", "the defense keeps no secret"] in manifest["skips"]
    assert Suite.model_validate({**manifest["suite"], "salt": "public"}) == found.suite


def test_a_plan_is_frozen() -> None:
    found = plan(suite())
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.cells = ()  # type: ignore[misc]
    assert replace(found, cells=()).jobs() == []


def test_a_finished_model_that_is_changed_has_no_sibling(plugin: WriteFile) -> None:
    plugin(
        "late",
        "@dataclass(frozen=True)\nclass Late(Defense):\n    stage: ClassVar = 'posttrain'\n"
        "    keeps_secret: ClassVar = True\n"
        "    def protect(self, model, context):\n        return Protected(model)\n",
    )
    plugin("later", knows("later", "sibling"))
    found = plan(suite(attacks=["none", "later"], defenses=["none", "late"], seeds=[0]))
    reasons = {skip.defense: skip.reason for skip in found.skips}
    assert reasons["late"] == "the defense changes a finished model: its run has no second checkpoint"


def test_an_attack_may_not_be_built_on_itself(plugin: WriteFile) -> None:
    plugin("round", knows("round", uses=("back",)))
    plugin("back", knows("back", uses=("round",)))
    with pytest.raises(NftbenchError, match="round: it is built on itself"):
        plan(suite(attacks=["none", "round"]))


def test_the_manifest_names_attacks_against_a_defense_that_the_suite_lacks() -> None:
    lacking = plan(tiny_suite(defenses=["none", "random_mask", "early_stop"])).manifest()
    assert lacking.left_out == {"random_mask": ("heal", "mask_recovery")}
    assert plan(tiny_suite(defenses=["none", "random_mask"], attacks=["none", "heal"])).manifest().left_out == {}
