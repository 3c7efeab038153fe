"""A YAML file becomes a Suite, or one line that names the file, the key and the nearest valid name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from nftbench import suites
from nftbench.errors import NftbenchError
from nftbench.records.spec import Spec
from nftbench.testing import tiny_suite

TEXT = {"source": "text", "train": "wiki/*.txt", "heldout": "held.txt", "vocabulary": 300}
CLAIM = {"says": "x", "read": {"rows": ["none"], "read": "score"}}


def content(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {**tiny_suite().model_dump(mode="json"), **changes}
    return found


def refused(changes: dict[str, Any]) -> str:
    with pytest.raises(NftbenchError) as caught:
        suites.parse(content(**changes), "mine.yaml")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("mine.yaml: ")
    return message


def test_a_suite_file_is_read_with_all_its_settings(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content()))
    assert suites.read(str(path)) == tiny_suite()


def test_a_list_is_short_for_a_family_without_stairs() -> None:
    ladder = {"noise": ["noise", "noise[scale=0.4]"], "narrow": {"doses": ["narrow"], "stairs": True}}
    found = suites.parse(content(ladder=ladder))
    assert found.ladder["noise"] == suites.Family(doses=("noise", "noise[scale=0.4]"), stairs=False)
    assert found.ladder["narrow"].stairs
    assert found.doses == ("noise", "noise[scale=0.4]", "narrow")


@pytest.mark.parametrize("name", suites.names())
def test_the_ladders_early_stops_are_checkpoints_of_the_undefended_run(name: str) -> None:
    """They would each cost a pre-training run of their own otherwise."""
    suite = suites.read(name)
    doses = [spec for spec in map(Spec.parse, suite.doses) if spec.name == "early_stop"]
    assert {dict(spec.parameters).get("fraction", 0.5) for spec in doses} <= {*suite.pretraining.checkpoints}


@pytest.mark.parametrize("name", ["small", "standard", "development", "wiki-small", "wiki"])
def test_suites_that_rank_have_a_ladder(name: str) -> None:
    suite = suites.read(name)
    assert sum(len(family.doses) >= 5 and not family.stairs for family in suite.ladder.values()) >= 2
    assert suite.initialisations == 4
    assert set(suite.ladder_attacks) <= set(suite.attacks)


@pytest.mark.parametrize("name", suites.names())
def test_rankings_of_the_toy_language_draw_their_salt(name: str) -> None:
    suite = suites.read(name)
    drawn = name in ("small", "standard", "full-catalogue", "mask-recovery")
    assert suite.salt == ("public" if suite.corpus.source == "toy" and not drawn else None)


def test_the_gates_runs_pair_seed_by_seed_on_every_machine() -> None:
    """A written salt gives the same grammars. With fewer than eight pairs a paired test may see less than Welch's."""
    suite = suites.read("ci")
    assert suite.salt is not None
    assert len(suite.seeds) >= 8


@pytest.mark.parametrize("name", suites.names())
def test_every_shipped_suite_can_be_read(name: str) -> None:
    assert suites.read(name).name == name


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"taks": ["toy_topic"]}, "unknown key 'taks'; did you mean 'tasks'?"),
        (
            {"budget": {**content()["budget"], "duration": [1]}},
            "unknown key 'budget.duration'; did you mean 'durations'?",
        ),
        ({"pretraining": {"steps": 5, "learning_rat": 1}}, "did you mean 'learning_rate'?"),
        ({"corpus": {"sorce": "toy"}}, "unknown key 'corpus.sorce'; did you mean 'source'?"),
        ({"claims": [{**CLAIM, "abov": 0}]}, "unknown key 'claims.0.abov'; did you mean 'above'?"),
        (
            {"claims": [CLAIM, {**CLAIM, "read": {"rows": ["none"], "reads": "score"}}]},
            "unknown key 'claims.1.read.reads'; did you mean 'read'?",
        ),
        (
            {"claims": [{**CLAIM, "minus": {"row": ["none"], "read": "score"}}]},
            "unknown key 'claims.0.minus.row'; did you mean 'rows'?",
        ),
        (
            {"name": "../elsewhere"},
            "name: must be letters, digits, blanks and - . _, the first a letter or a digit, and",
        ),
        ({"seeds": []}, "seeds: "),
        ({"seeds": [0, 1, 0]}, "seeds: 0 is listed twice"),
        ({"seeds": [-1]}, "seeds.0: "),
        ({"defenses": []}, "defenses: "),
        ({"attacks": ["none", "full", "none"]}, "attacks: none is listed twice"),
        ({"model": {"n_layer": 2}}, "model: needs model_type"),
        ({"pretraining": {"steps": 0}}, "pretraining.steps: "),
        ({"pretraining": {"steps": 9, "learning_rate": -1e-3}}, "pretraining.learning_rate: "),
        ({"pretraining": {"steps": 9, "learning_rate": float("nan")}}, "pretraining.learning_rate: "),
        ({"pretraining": {"steps": 9, "checkpoints": [1.5]}}, "pretraining.checkpoints.0: "),
        ({"pretraining": {"steps": 9, "schedule": "cosin"}}, "pretraining.schedule: "),
        ({"utility_bar": 0.95}, "unknown key 'utility_bar'"),
        ({"ladder": {"noise": []}}, "ladder.noise.doses: "),
        ({"ladder": {"noise": {"dose": ["noise"]}}}, "unknown key 'ladder.noise.dose'; did you mean 'doses'?"),
        ({"ladder_attacks": ["full", "full"]}, "ladder_attacks: full is listed twice"),
        ({"initialisations": 0}, "initialisations: "),
        ({"salt": ""}, "salt: "),
        ({"salt": "two words"}, "salt: must be one word, without blanks, and is 'two words'"),
        ({"corpus": {**TEXT}, "salt": "public"}, "salt is for the toy language, and corpus.source is text"),
        ({"ranking": ["methods"]}, "ranking"),
        ({"corpus": {"source": "text"}}, "corpus: source text needs train, heldout, vocabulary"),
        ({"pretraining": {"steps": 9, "warmup": 10}}, "pretraining.warmup 10 is longer than the 9 steps"),
        ({"pretraining": {"steps": 10, "warmup": 8, "schedule": "wsd"}}, "the last 0.3 of the steps are longer than"),
        ({"corpus": {**TEXT, "train": "/abs/a.txt"}}, "corpus: '/abs/a.txt' is no path or pattern under --data"),
        ({"corpus": {**TEXT, "heldout": ""}}, "corpus: '' is no path or pattern under --data"),
        ({"corpus": {"source": "hub", "train": "a", "heldout": "b", "vocabulary": 9}}, "corpus: source hub needs path"),
    ],
)
def test_bad_settings_are_refused_by_name(changes: dict[str, Any], expected: str) -> None:
    assert expected in refused(changes)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"learning_rates": {}}, "budget.learning_rates: "),
        ({"warmup": 5}, "budget.warmup 5 is longer than the longest duration, 4"),
        ({"learning_rates": {"adamw": [1e-3]}}, "budget.learning_rates: adamw needs at least two"),
        ({"learning_rates": {"adamw": [1e-2, 1e-3]}}, "rising"),
        ({"learning_rates": {"adamw": [1e-3, 1e-3]}}, "rising"),
        ({"learning_rates": {"adamw": [-1e-3, 1e-3]}}, "budget.learning_rates.adamw.0: "),
        ({"learning_rates": {"adam": [1e-3, 1e-2]}}, "budget.learning_rates.adam: "),
        ({"durations": [0]}, "budget.durations: at least one duration must be above 0"),
        ({"durations": []}, "budget.durations: at least one duration must be above 0"),
        ({"durations": [-5]}, "budget.durations.0: "),
        ({"restarts": 0}, "budget.restarts: "),
        ({"timeout": 0}, "budget.timeout: "),
    ],
)
def test_bad_budgets_are_refused_by_name(changes: dict[str, Any], expected: str) -> None:
    assert expected in refused({"budget": {**content()["budget"], **changes}})


@pytest.mark.parametrize(
    "changes",
    [
        {"pretraining": {"steps": 10, "warmup": 10}},
        {"pretraining": {"steps": 10, "warmup": 7, "schedule": "wsd"}},
        {"budget": {"durations": [4], "warmup": 4}},
        {"budget": {"durations": [4], "warmup": 9, "decay": True}},
    ],
)
def test_a_warm_up_may_end_with_the_run(changes: dict[str, Any]) -> None:
    assert tiny_suite(**changes)


def test_step_0_is_always_among_the_durations() -> None:
    assert tiny_suite(budget={"durations": [8, 2, 8]}).budget.durations == (0, 2, 8)


def test_changes_replace_settings_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content()))
    changed = suites.read(
        str(path), ["budget.timeout=5", "seeds=[3, 4]", "budget.learning_rates.sgd=[1e-2, 1e-1]", "about=a=b"]
    )
    assert changed.budget.timeout == 5
    assert changed.seeds == (3, 4)
    assert changed.budget.learning_rates["sgd"] == (0.01, 0.1)
    assert changed.about == "a=b"
    assert changed.budget.durations == tiny_suite().budget.durations


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("budget.timeot=5", "unknown key 'budget.timeot'; did you mean 'timeout'?"),
        ("seeds", "write key=value"),
        ("=5", "write key=value"),
        ("budget..restarts=5", "write key=value"),
        ("seeds=", "seeds: write a list, or seeds=[0, 1"),
        ("name.x=1", "'name' is not a section"),
        ("seeds=[1", "the value is not YAML"),
        ("budget={batch: 1, batch: 2}", "the value is not YAML: 'batch' is given twice"),
        ("salt=2024-13-45", "the value is not YAML"),
        ("budget=7", "budget: "),
    ],
)
def test_bad_changes_are_refused(change: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content()))
    with pytest.raises(NftbenchError) as caught:
        suites.read(str(path), [change])
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_is_named_once_and_the_line_of_an_error_is_told(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    for text, expected in {
        "name: mine\n": f"{path}: model: is missing; pretraining: is missing; ",
        "name: mine\nseeds: [0]\nseeds: [1]\n": f"{path}: not YAML: line 3: 'seeds' is given twice",
        "name: mine\nbudget: {batch: 1, batch: 2}\n": f"{path}: not YAML: line 2: 'batch' is given twice",
        "name: mine\nseeds: [0\n": f"{path}: not YAML: line 3: expected ',' or ']', but got ",
        "": f"{path}: is empty; ",
    }.items():
        path.write_text(text)
        with pytest.raises(NftbenchError) as caught:
            suites.read(str(path))
        assert str(caught.value).startswith(expected)


@pytest.mark.parametrize(
    "text", ["[1, 2", "- a\n- b\n", "", "just words", "!!python/object:os.system {}", "\x00\xff", "salt: 2024-13-45"]
)
def test_a_file_that_is_no_suite_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(NftbenchError) as caught:
        suites.read(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_misspelt_suite_name_is_refused_with_the_nearest_one(tmp_path: Path) -> None:
    with pytest.raises(NftbenchError, match="did you mean 'smoke'"):
        suites.read("smok")
    with pytest.raises(NftbenchError, match="no such suite file"):
        suites.read(str(tmp_path / "none.yaml"))


def test_several_problems_are_all_named() -> None:
    message = refused({"taks": [], "seeds": []})
    assert "taks" in message
    assert "seeds" in message


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("budget.restarts=many", "--set: budget.restarts: must be a whole number, and is 'many'"),
        ("budget.restarts=0", "--set: budget.restarts: must be above 0, and is 0"),
        ("budget.clip=[1]", "--set: budget.clip: must be a number, and is [1]"),
        ("budget.decay=perhaps", "--set: budget.decay: must be true or false, and is 'perhaps'"),
        ("about=5", "--set: about: must be a text, and is 5"),
        ("attacks=full", "--set: attacks: write a list, as in attacks=[full]"),
        ("attacks=[]", "--set: attacks: must hold 1 or more, and is []"),
        ("corpus.source=toyy", "--set: corpus.source: must be 'toy', 'text', 'hub' or 'none', and is 'toyy'"),
        ("budget=5", "--set: budget: must be a section of keys and values, and is 5"),
        ("pretraining={}", "--set: pretraining.steps: is missing"),
        ("model={path: 5}", "--set: model: path: must be a text, and is 5"),
        ("budget.restart=5", "--set: unknown key 'budget.restart'; did you mean 'restarts'?"),
        ("budgt.restarts=5", "--set: unknown key 'budgt'; did you mean 'budget'?"),
        ("pretraining.warmup=999", "--set: suite: pretraining.warmup 999 is longer than the 20 steps"),
    ],
)
def test_a_wrong_change_is_told_in_one_plain_sentence_that_blames_the_change(
    change: str, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content()))
    with pytest.raises(NftbenchError) as caught:
        suites.read(str(path), [change])
    assert str(caught.value) == expected


def test_an_option_that_changes_the_suite_is_blamed_by_its_own_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content(initialisations=4)))
    given = {"--model folder": 'model={"path": "folder"}'}
    with pytest.raises(NftbenchError) as caught:
        suites.read(str(path), ["budget.restarts=x"], given)
    said = str(caught.value)
    assert said == ("--set: budget.restarts: must be a whole number, and is 'x'")
    with pytest.raises(NftbenchError) as caught:
        suites.read(str(path), ["about=x"], given)
    assert str(caught.value).startswith("--model folder: suite: initialisations is 4, and a given base has one")
    with pytest.raises(NftbenchError) as caught:
        suites.read(str(path), (), {"--model ": 'model={"path": ""}'})
    assert str(caught.value).startswith("--model : model: path: must ")
    assert suites.read(str(path), ["initialisations=1"], given).given is not None


def test_unknown_keys_come_first_and_each_error_names_its_source(tmp_path: Path) -> None:
    """What a file has wrong itself is not blamed on `--set`."""
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content(seeds=[-1], taks=["toy_topic"], initialisations=0)))
    with pytest.raises(NftbenchError) as caught:
        suites.read(str(path), ["budget.restarts=x"])
    assert str(caught.value) == (
        f"{path}: unknown key 'taks'; did you mean 'tasks'?; initialisations: must be above 0, and is 0; "
        "--set: budget.restarts: must be a whole number, and is 'x'; "
        f"{path}: seeds.0: must be 0 or more, and is -1"
    )
