"""The referee makes records of a job: bad plugins fail alone, secrets stay secret, failed cells are tried again."""

from __future__ import annotations

import functools
import json
import math
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from nftbench.contract import Secret
from nftbench.errors import NftbenchError
from nftbench.models import networks
from nftbench.planning import registry
from nftbench.planning.plan import narrow
from nftbench.running import failures, referee, releases
from nftbench.running.owner import Owner, make_base
from nftbench.running.releases import load_secret, make_release
from nftbench.running.workspace import Workspace, load_task
from nftbench.training import sweep
from tests.apart import attack_here
from tests.leaks import leaks, reachable

MakeWorkspace = Callable[..., Workspace]
WriteFile = Callable[[str, str], Path]
Records = dict[tuple[str, str, str, int], Any]
RunAll = Callable[..., Records]

DEFENSE = """
@dataclass(frozen=True)
class Mine(Defense):
    stage: ClassVar = "{stage}"
    keeps_secret: ClassVar = {keeps_secret}

    def protect(self, model, context):
        {body}
"""
ATTACK = """
@dataclass(frozen=True)
class Mine(Attack):
    knowledge: ClassVar = frozenset({knowledge})

    def prepare(self, release, context):
        {prepare}

    def adapt(self, prepared, task, context):
        {adapt}
"""


def defense(body: str, *, stage: str = "posttrain", keeps_secret: bool = False) -> str:
    return DEFENSE.format(body=body.replace("\n", "\n        "), stage=stage, keeps_secret=keeps_secret)


def carry_out_here(here: Workspace) -> Records:
    """Every record of the plan, with this process as the referee."""
    for job in here.plan.jobs():
        referee.execute(here, job)
    return {(one.defense, one.attack, one.task, one.seed): one for one in here.store.records().values()}


def attack(adapt: str, *, prepare: str = "return Prepared(release.model)", knowledge: str = "()") -> str:
    indent = "\n        "
    return ATTACK.format(adapt=adapt.replace("\n", indent), prepare=prepare.replace("\n", indent), knowledge=knowledge)


# -------------------------------------------------------------------------------------------------------- bad plugins

BAD: dict[str, tuple[str, str]] = {
    "raises": ("raise KeyError('no such\\nthing')", "KeyError: 'no such\\nthing'"),
    "gives_nan": (
        "next(model.network.parameters()).data[0, 0] = float('nan')\nreturn Protected(model)",
        "the release's weights are not finite: transformer.wte.weight",
    ),
    "gives_another_mask": (
        "mask = {name: torch.ones(2, dtype=torch.bool) for name, _ in model.network.named_parameters()}\n"
        "return Protected(model, Secret(mask))",
        "the secret mask does not fit the release: transformer.wte.weight",
    ),
    "gives_half_a_mask": ("return Protected(model, Secret({}))", "the secret mask does not fit the release"),
    "hides_its_secret": (
        "mask = {name: torch.ones_like(weight).bool() for name, weight in model.network.named_parameters()}\n"
        "return Protected(model, Secret(mask))",
        "the class says keeps_secret = False, but protect returned a secret",
    ),
    "has_no_mask": ("return Protected(model)", "the class says keeps_secret = True, but protect returned no secret"),
    "hides_settings": (
        "model.network.config.notes = 'x' * 20000\nreturn Protected(model)",
        "the release's config.json has 20",
    ),
    "hides_generation_settings": (
        "model.network.generation_config.notes = 'x' * 20000\nreturn Protected(model)",
        "the release's generation_config.json has 20",
    ),
    "gives_no_protected": ("return model", "protect returned Model, not Protected"),
    "gives_nothing": ("pass", "protect returned NoneType, not Protected"),
    "shrinks_vocabulary": ("model.network.resize_token_embeddings(7)\nreturn Protected(model)", "7"),
    "forgets_tokenizer": ("return Protected(Model(model.network))", "tokenizer"),
}


def test_bad_defenses_fail_and_say_why_while_other_rows_go_on(
    workspace: MakeWorkspace, plugin: WriteFile, run_all: RunAll
) -> None:
    for name, (body, _) in BAD.items():
        plugin(name, defense(body, keeps_secret="mask" in name))
    records = run_all(workspace(defenses=["none", *BAD], attacks=["none", "full"]))
    assert len(records) == 3 * (1 + len(BAD))
    assert {record.status for (row, *_), record in records.items() if row == "none"} == {"ok"}
    for name, (_, reason) in BAD.items():
        row = [record for (defense, *_), record in records.items() if defense == name]
        assert {record.status for record in row} == {"failed"}
        (found,) = {record.reason for record in row}  # all cells of the row have the defense's reason
        assert found
        assert "\n" not in found
        assert reason in found


def test_gradients_that_cannot_be_checked_fail_no_row(
    workspace: MakeWorkspace, plugin: WriteFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some layers compute in one precision alone."""

    def no_float64(*_: Any) -> float:
        raise RuntimeError("expected Float32\nand got Double")

    monkeypatch.setattr(releases, "gradient_error", no_float64)
    plugin("as_it_is", defense("return Protected(model)"))
    here = workspace(fresh=True, defenses=["none", "as_it_is"], attacks=["none"])
    for record in [one for job in here.plan.jobs() for one in referee.execute(here, job) or []]:
        assert record.status == "ok"
        assert record.protection is not None
        assert record.protection.gradient_error is None
        assert record.protection.unchecked == "RuntimeError: expected Float32 and got Double"


def test_bad_attacks_fail_and_say_why_while_other_attacks_go_on(
    workspace: MakeWorkspace, plugin: WriteFile, run_all: RunAll
) -> None:
    plugin("breaks", attack("raise RuntimeError('first\\nsecond')"))
    plugin("exits", attack("raise SystemExit(3)"))
    plugin("interrupts", attack("raise KeyboardInterrupt"))
    records = run_all(workspace(attacks=["none", "breaks", "exits", "interrupts", "full"]))
    assert {attack: record.status for (_, attack, *_), record in records.items()} == {
        "none": "ok",
        "breaks": "failed",
        "exits": "failed",
        "interrupts": "failed",
        "full": "ok",
    }
    assert records["none", "breaks", "toy_topic", 0].reason == "RuntimeError: first second (breaks.py:16)"
    assert records["none", "interrupts", "toy_topic", 0].reason == "KeyboardInterrupt: (interrupts.py:16)"


def test_an_attack_that_fails_on_one_task_keeps_its_other_cells(
    workspace: MakeWorkspace, plugin: WriteFile, run_all: RunAll
) -> None:
    plugin(
        "picky",
        attack(
            "count = len(task.split('train').batch([0])[0])\n"
            "if len(seen) == 0:\n    seen.append(1)\n    raise ValueError('not this one')\n"
            "return context.unchanged(prepared.model, task)"
        ).replace("@dataclass", "seen = []\n\n@dataclass"),
    )
    records = run_all(workspace(attacks=["none", "picky"], tasks=["toy_topic", "toy_tone"]))
    assert sorted(record.status for (_, attack, *_), record in records.items() if attack == "picky") == ["failed", "ok"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MemoryError("no room"), "oom"),
        (torch.OutOfMemoryError("no room"), "oom"),
        (sweep.CellTimeoutError("more than 3 s"), "timeout"),
        (sweep.NonFiniteError("nothing stays finite"), "nonfinite"),
        (NftbenchError("write it so"), "failed"),
        (ValueError("x"), "failed"),
    ],
)
def test_an_error_has_a_status_and_its_own_words_as_reason(error: Exception, status: str) -> None:
    found, reason = failures.status_of(error)
    assert found == status
    assert str(error) in reason


def test_failed_cells_are_tried_again_and_settled_ones_are_not(
    workspace: MakeWorkspace, plugin: WriteFile, run_all: RunAll, tmp_path: Path
) -> None:
    """An attack fails in the first run and works in the second, although its plugin file has not changed."""
    ready = tmp_path / "ready"
    body = f"if not Path('{ready}').exists():\n    raise ValueError('not yet')\n"
    plugin("moody", "from pathlib import Path\n" + attack(body + "return context.unchanged(prepared.model, task)"))
    here = workspace(attacks=["none", "full", "moody"])
    first = run_all(here)
    assert first["none", "moody", "toy_topic", 0].status == "failed"
    settled = replace(first["none", "full", "toy_topic", 0], status="nonfinite", reason="by hand")
    here.store.write(settled)
    before = {path: path.stat().st_mtime_ns for path in (here.store.results / "records").iterdir()}
    ready.touch()
    second = run_all(here)
    assert second["none", "moody", "toy_topic", 0].status == "ok"
    assert second["none", "full", "toy_topic", 0] == settled
    after = {path: path.stat().st_mtime_ns for path in (here.store.results / "records").iterdir()}
    (changed,) = (path.name for path in after if before.get(path) != after[path])
    assert "moody" in changed


def test_a_settled_record_stays_when_a_process_wakes_up_that_was_stopped_for_long(workspace: MakeWorkspace) -> None:
    """Another one has taken its job meanwhile, and has written the records."""
    here = workspace(attacks=["none"], tasks=["toy_topic"])
    (job,) = here.plan.jobs()
    late = referee.Referee(here, job)
    first = referee.execute(here, job)
    assert first is not None
    assert late.run(job.cells) == first
    assert list(here.store.records().values()) == sorted(first, key=lambda one: here.store.path(one).name)


# -------------------------------------------------------------------------------------------------------------- leaks


SPY = """
@dataclass(frozen=True)
class Spy(Attack):
    knowledge: ClassVar = frozenset({knowledge})
    seen: ClassVar = []

    def prepare(self, release, context):
        self.seen.append(release)
        return Prepared(release.model)

    def adapt(self, prepared, task, context):
        outcome = context.sweep(prepared.model, task)
        self.seen.extend([prepared, task, context, self, outcome])
        return outcome
"""


def spied(workspace: MakeWorkspace, plugin: WriteFile, folder: Path, knowledge: str) -> tuple[list[Any], Secret, Path]:
    """What an attack on `random_mask` is given, the secret, and the cache."""
    plugin("spy", SPY.replace("{knowledge}", knowledge))
    here = workspace(defenses=["none", "random_mask"], attacks=["none", "spy"])
    here = replace(here, plan=narrow(here.plan, defenses=["random_mask"]))
    (job,) = (job for job in here.plan.jobs() if job.attack.name == "spy")
    attack_here(here, job, folder)
    seen = registry.load(registry.find("attacks", "spy")).seen
    assert len(seen) == 6
    secret = load_secret(here, here.plan.cells[0].release)
    assert secret is not None
    return seen, secret, here.store.cache


@pytest.mark.parametrize("knowledge", ["()", "{'method', 'base', 'sibling'}", "{'data'}"])
def test_nothing_that_an_attack_is_given_leads_to_the_secret(
    knowledge: str, workspace: MakeWorkspace, plugin: WriteFile, tmp_path: Path
) -> None:
    seen, secret, cache = spied(workspace, plugin, tmp_path / "attack", knowledge)
    assert leaks(seen, secret.mask, cache) == []
    assert not any(isinstance(item, Secret) for _, item in reachable(seen))
    if "data" in knowledge:
        assert seen[3].corpus.train.ndim == 2


def test_leaks_are_found_in_closures_slots_hooks_and_buffers() -> None:
    """So the tests above can fail."""
    mask = {"weight": torch.tensor([[True, False], [False, True]])}

    class Slotted:
        __slots__ = ("kept",)

        def __init__(self, kept: Tensor) -> None:
            self.kept = kept

    def closure() -> Tensor:
        return mask["weight"]

    hooked = nn.Linear(2, 2)
    hooked.weight.register_hook(mask["weight"].to(torch.float32).mul)
    buffered = nn.Linear(2, 2)
    buffered.register_buffer("kept", ~mask["weight"])
    watched = nn.Linear(2, 2)
    watched.register_forward_hook(functools.partial(lambda kept, *_: None, mask["weight"]))
    for hiding in (Slotted(mask["weight"]), closure, buffered, watched, {1: [(mask["weight"].float(),)]}):
        assert leaks(hiding, mask, Path("/cache")), hiding
    assert leaks([Path("/cache/secrets")], mask, Path("/cache"))
    assert leaks({"x": lambda at="/cache/releases/1": at}, mask, Path("/cache"))
    assert not leaks([nn.Linear(2, 2), "/elsewhere"], mask, Path("/cache"))


@pytest.mark.parametrize(
    "spec", ["random_mask", "pmp[discovery_steps=3]", "pmp[complement=released,discovery_steps=3]"]
)
def test_a_published_model_has_neither_hooks_nor_frozen_weights(spec: str, workspace: MakeWorkspace) -> None:
    here = workspace(defenses=["none", spec])
    job = next(job for job in here.plan.jobs() if str(job.defense) != "none")
    folder = make_release(here, job.defense, job.seed, job.release)
    network = networks.load(folder, attacker=True).network
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert not any(parameter._backward_hooks for parameter in network.parameters())
    assert not any(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
        for module in network.modules()
    )


def test_a_release_folder_holds_neither_mask_nor_path(workspace: MakeWorkspace) -> None:
    here = workspace(defenses=["none", "random_mask"])
    job = next(job for job in here.plan.jobs() if str(job.defense) == "random_mask")
    folder = make_release(here, job.defense, job.seed, job.release)
    secret = load_secret(here, job.release)
    assert secret is not None
    network = networks.load(folder).network
    from safetensors.torch import load_file

    held = load_file(folder / "model.safetensors")
    assert set(held) <= set(network.state_dict())
    assert leaks(held, secret.mask, here.store.cache) == []
    for path in folder.rglob("*"):
        assert str(here.store.cache).encode() not in path.read_bytes(), path
    assert {path.name for path in folder.iterdir()} == {
        "complete.json",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


LEAKY = "mask = {name: torch.rand(weight.shape) < 0.5 for name, weight in model.network.named_parameters()}\n"


def test_a_mask_left_in_a_buffer_is_not_published(workspace: MakeWorkspace, plugin: WriteFile, run_all: RunAll) -> None:
    """As torch.nn.utils.prune leaves it."""
    body = LEAKY + "model.network.register_buffer('kept', mask['transformer.wte.weight'])\n"
    plugin(
        "prunes",
        defense(body + "return Protected(model, Secret(mask))", keeps_secret=True),
    )
    here = workspace(defenses=["none", "prunes"])
    run_all(here)
    job = next(job for job in here.plan.jobs() if str(job.defense) == "prunes")
    folder = here.store.artifact("releases", job.release)
    assert folder is None or b"kept" not in (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize(("kept", "refused"), [("", True), ("[0]", False)])
def test_a_mask_left_in_the_configuration_is_refused_and_a_field_is_said_in_the_record(
    kept: str, refused: bool, workspace: MakeWorkspace, plugin: WriteFile, run_all: RunAll
) -> None:
    body = LEAKY + f"model.network.config.kept = mask['transformer.wte.weight']{kept}.tolist()\n"
    plugin("tells", defense(body + "return Protected(model, Secret(mask))", keeps_secret=True))
    record = run_all(workspace(defenses=["none", "tells"]))["tells", "none", "toy_topic", 0]
    if refused:
        assert record.status == "failed"
        assert "config.json has" in str(record.reason)
    else:
        assert record.protection is not None
        assert "kept" in record.protection.config_changed


@pytest.mark.parametrize("stage", ["pretrain", "posttrain"])
def test_a_tokenizer_that_replaces_a_word_is_recorded_as_changed(
    stage: str, workspace: MakeWorkspace, plugin: WriteFile, run_all: RunAll
) -> None:
    """Its vocabulary is the base's, to the letter."""
    body = (
        "from tokenizers.normalizers import Replace\n"
        "word = sorted(model.tokenizer.get_vocab())[20]\n"
        "model.tokenizer.backend_tokenizer.normalizer = Replace(word, '<unk>')\n"
        "return Protected(model)"
    )
    plugin("hides", defense(body, stage=stage))
    records = run_all(workspace(defenses=["none", "hides"]))
    for row, changed in (("none", False), ("hides", True)):
        protection = records[row, "none", "toy_topic", 0].protection
        assert protection is not None
        assert protection.tokenizer_changed == changed


def test_the_context_gives_only_what_the_attack_says_that_it_knows(
    workspace: MakeWorkspace, plugin: WriteFile, run_all: RunAll
) -> None:
    ask = (
        "try:\n    {}\nexcept Exception as error:\n    raise NftbenchError('asked: ' + str(error))\n"
        "return context.unchanged(prepared.model, task)"
    )
    plugin("asks_corpus", attack(ask.format("context.corpus")))
    plugin("asks_secret", attack(ask.format("context.secret"), knowledge="{'data', 'method'}"))
    plugin("asks_test", attack(ask.format("task.split('test')")))
    plugin("may_corpus", attack(ask.format("context.corpus"), knowledge="{'data'}"))
    plugin("may_secret", attack(ask.format("context.secret.mask"), knowledge="{'secret'}"))
    records = run_all(
        workspace(
            defenses=["none", "random_mask"],
            attacks=["none", "asks_corpus", "asks_secret", "asks_test", "may_corpus", "may_secret"],
        )
    )
    for (_, name, *_), record in records.items():
        refused = name.startswith("asks")
        assert (record.status == "failed") == refused, record
        assert not refused or (record.reason or "").startswith("asked: "), record.reason


# ---------------------------------------------------------------------------------------------------------- one record


def test_scores_and_hashes_of_a_record_are_those_of_the_published_release(
    workspace: MakeWorkspace, run_all: RunAll
) -> None:
    """Scores and hashes can be found again from the published folder."""
    here = workspace(attacks=["none", "full"])
    records = run_all(here)
    full, none = records["none", "full", "toy_topic", 0], records["none", "none", "toy_topic", 0]
    folder = here.store.artifact("releases", here.plan.cells[0].release)
    assert folder is not None
    model = networks.load(folder)
    cell = here.plan.cells[0]
    assert str(cell.task) == "toy_topic"
    task = load_task(here, cell.task, cell.seed, model)
    assert task.evaluate(model.network, task.split("test")) == none.attacked == none.unattacked == full.unattacked
    assert full.release_sha256 == none.release_sha256 == networks.sha256(folder)
    assert none.protection is not None
    assert none.protection.parameters == sum(weight.numel() for weight in model.network.parameters())
    assert none.protection.gradient_error is not None
    assert none.protection.gradient_error < 1e-4
    assert full.protection is None
    assert none.cost is None
    assert full.cost is not None
    assert full.cost.steps > 0
    assert full.cost.step_flops > 0
    assert full.cost.saved_bytes > 0
    assert [point.step for point in full.curve[:3]] == [0, 2, 4]
    assert records["none", "none", "toy_agreement_pronoun", 0].role == "utility"
    assert full.role == "ranked"
    text = json.dumps(full.provenance)
    assert "torch" in text
    assert str(here.store.cache) not in text


WATCHED = """
from nftbench.testing import FirstWord

@dataclass(frozen=True)
class Watched(FirstWord):
    events: ClassVar = []

    def evaluate(self, network, split):
        self.events.extend(name for name, one in self.splits.items() if one is split)
        return super().evaluate(network, split)
"""
SWEEPS = """
@dataclass(frozen=True)
class Sweeps(Attack):
    def adapt(self, prepared, task, context):
        return context.sweep(prepared.model, task)
"""


def test_an_attack_is_scored_on_validation_and_only_the_referee_scores_test(
    workspace: MakeWorkspace, plugin: WriteFile, tmp_path: Path
) -> None:
    plugin("watched", WATCHED)
    plugin("sweeps", SWEEPS)
    here = workspace(attacks=["none", "sweeps"], tasks=["watched"])
    here = replace(here, plan=narrow(here.plan, attacks=["sweeps"], tasks=["watched"]))
    (record,) = carry_out_here(here).values()
    assert record.status == "ok", record.reason
    events = registry.load(registry.find("tasks", "watched")).events
    assert sorted(events) == ["test", "test", "validation"], "the attacked network, and the unattacked one beside it"
    events.clear()
    attack_here(here, here.plan.jobs()[0], tmp_path / "attack")
    assert set(events) == {"validation"}


ZERO = "with torch.no_grad():\n    for weight in {}.model.network.parameters():\n        weight.zero_()\n"
OWN = "import copy\nown = Model(copy.deepcopy(prepared.model.network), prepared.model.tokenizer)\n"


@pytest.mark.parametrize(
    ("source", "spoils_itself"),
    [
        (
            attack(
                "return context.unchanged(prepared.model, task)",
                prepare=ZERO.format("release") + "return Prepared(release.model)",
            ),
            True,
        ),
        (attack(OWN + ZERO.format("prepared") + "return context.unchanged(own, task)"), False),
    ],
    ids=["in prepare", "after it has its own copy"],
)
def test_an_attack_that_spoils_its_model_changes_no_other_score(
    source: str, spoils_itself: bool, workspace: MakeWorkspace, plugin: WriteFile, run_all: RunAll
) -> None:
    """Neither the unattacked score beside it, nor the next task's."""
    plugin("spoils", source)
    records = run_all(workspace(attacks=["none", "spoils"], tasks=["toy_topic", "toy_tone"]))
    for task in ("toy_topic", "toy_tone"):
        spoiled, none = records["none", "spoils", task, 0], records["none", "none", task, 0]
        assert spoiled.unattacked == none.unattacked
        assert (spoiled.attacked != none.attacked) == spoils_itself


def test_a_score_that_is_not_finite_is_not_recorded(
    workspace: MakeWorkspace, plugin: WriteFile, run_all: RunAll
) -> None:
    spoil = (
        "outcome = context.unchanged(prepared.model, task)\n"
        "with torch.no_grad():\n"
        "    next(outcome.network.parameters()).fill_(float('nan'))\n"
        "return outcome"
    )
    plugin("explodes", attack(spoil))
    record = run_all(workspace(attacks=["none", "explodes"]))["none", "explodes", "toy_topic", 0]
    assert record.status == "nonfinite"
    assert record.attacked is None
    assert record.reason


def test_two_suites_in_one_process_do_not_share_documents(workspace: MakeWorkspace, run_all: RunAll) -> None:
    few = run_all(workspace(results="few", budget={"max_test_documents": 12}))
    many = run_all(workspace(results="many", budget={"max_test_documents": 24}))
    assert [found["none", "none", "toy_topic", 0].attacked.count for found in (few, many)] == [12, 24]


def test_limit_marks_records_and_cuts_documents(workspace: MakeWorkspace, run_all: RunAll) -> None:
    records = run_all(workspace(attacks=["none", "full"], limit=16))
    assert all(record.limited for record in records.values())
    assert {record.attacked.count for record in records.values()} == {16}


def test_a_task_whose_documents_have_one_class_fails_with_a_reason(
    workspace: MakeWorkspace, plugin: WriteFile, run_all: RunAll, tmp_path: Path
) -> None:
    rows = [{"text": f"bavo {index}", "label": 0} for index in range(50)]
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    path = tmp_path / "flat.yaml"
    path.write_text(
        f"task: flat\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    train: {tmp_path}/train.jsonl\n"
        f"    test: {tmp_path}/test.jsonl\ntraining_split: train\ntest_split: test\noutput_type: multiple_choice\n"
        "doc_to_text: text\ndoc_to_choice: [north, south]\ndoc_to_target: label\n"
        "metric_list:\n  - metric: acc\n"
    )
    plugin("unused", "class Unused(Task):\n    def evaluate(self): ...\n")
    registry.add_file(path)
    here = workspace(tasks=["toy_topic", "flat"], attacks=["none", "full"])
    assert {tmp_path / "train.jsonl", tmp_path / "test.jsonl"} <= set(here.documents), "no plugin may read them"
    records = run_all(here)
    for (_, _, task, _), record in records.items():
        assert (record.status == "failed") == (task == "flat")
        assert task != "flat" or "one class only" in (record.reason or "")


# --------------------------------------------------------------------------------------------------------------- bases


@pytest.fixture
def steps_taken() -> Iterator[list[int]]:
    """Grows by one entry with every step of an optimizer."""
    steps: list[int] = []
    hook = register_optimizer_step_post_hook(lambda *_: steps.append(1))
    yield steps
    hook.remove()


def test_early_stop_is_a_checkpoint_of_the_base_run_and_costs_no_training(
    workspace: MakeWorkspace, steps_taken: list[int]
) -> None:
    here = workspace(fresh=True, defenses=["none", "early_stop"])
    stopped, whole = (
        networks.load(make_release(here, job.defense, 0, job.release)).network.state_dict()
        for job in reversed(here.plan.jobs())
    )
    assert len(steps_taken) == here.suite.pretraining.steps == 20
    checkpoint = make_base(here, 0, 0.5).network.state_dict()
    assert len(steps_taken) == 20
    assert all(torch.equal(stopped[name], checkpoint[name]) for name in stopped)
    assert not all(torch.equal(stopped[name], whole[name]) for name in stopped)

    owner = Owner(here, 0)
    fresh = owner.pretrain(owner.build(), each_step=lambda network, step: step == 10).network.state_dict()
    assert all(torch.equal(stopped[name], fresh[name]) for name in stopped)
    full = owner.pretrain(owner.build()).network.state_dict()
    assert all(torch.equal(whole[name], full[name]) for name in whole)


def test_a_checkpoint_that_was_not_kept_is_trained_again(workspace: MakeWorkspace) -> None:
    here = workspace(fresh=True, defenses=["none", "early_stop[fraction=0.25]"])
    early = make_base(here, 0, 0.25).network.state_dict()
    owner = Owner(here, 0)
    fresh = owner.pretrain(owner.build(), each_step=lambda network, step: step == 5).network.state_dict()
    assert all(torch.equal(early[name], fresh[name]) for name in early)


def test_each_seed_and_role_has_random_numbers_of_its_own() -> None:
    found = {networks.derive(seed, role) for seed in range(20) for role in ("init", "pretrain", "defense", "attack")}
    assert len(found) == 80
    assert networks.derive(3, "init") == networks.derive(3, "init")


# ------------------------------------------------------------------------------------------------- releases and secrets


def test_the_secret_has_a_folder_of_its_own_that_only_the_owner_may_read(workspace: MakeWorkspace) -> None:
    here = workspace(fresh=True, defenses=["none", "random_mask"])
    job = next(job for job in here.plan.jobs() if str(job.defense) == "random_mask")
    folder = make_release(here, job.defense, 0, job.release)
    secret = here.store.artifact("secrets", job.release)
    assert secret is not None
    assert not secret.is_relative_to(folder.parent)
    for place_, mode in ((secret.parent, 0o700), (secret, 0o700), (secret / "mask.safetensors", 0o600)):
        assert stat.S_IMODE(place_.stat().st_mode) == mode, place_
    found = load_secret(here, job.release)
    assert found is not None
    assert all(kept.dtype == torch.bool for kept in found.mask.values())
    assert (
        0.6
        < sum(int(kept.sum()) for kept in found.mask.values()) / sum(kept.numel() for kept in found.mask.values())
        < 0.8
    )
    assert load_secret(here, "0" * 32) is None


def test_a_damaged_release_is_made_again(workspace: MakeWorkspace, run_all: RunAll, bare: Callable[[Any], Any]) -> None:
    here = workspace(fresh=True, attacks=["none", "full"])
    first = run_all(here)
    weights = here.store.cache / "releases" / here.plan.cells[0].release / "model.safetensors"
    content = weights.read_bytes()
    truncated, flipped = content[: len(content) // 2], content[:-1] + bytes([content[-1] ^ 1])
    for damaged in (truncated, flipped, None):
        if damaged is None:
            weights.unlink()
        else:
            weights.write_bytes(damaged)
        here.store.forget([record.key for record in first.values()])
        with pytest.warns(UserWarning, match="damaged; set aside"):
            again = carry_out_here(here)
        assert weights.read_bytes() == content
        assert {place: bare(one) for place, one in first.items()} == {place: bare(one) for place, one in again.items()}


def test_a_damaged_secret_or_protection_is_made_again(workspace: MakeWorkspace, run_all: RunAll) -> None:
    here = workspace(fresh=True, defenses=["none", "random_mask"], attacks=["none", "authorized"])
    first = run_all(here)
    for kind in ("secrets", "protections"):
        found = sorted((here.store.cache / kind).glob("*/[mp]*"))
        for path in found:
            path.write_bytes(path.read_bytes()[:-5])
        assert found
        here.store.forget([record.key for record in first.values()])
        with pytest.warns(UserWarning, match="damaged; set aside"):
            again = carry_out_here(here)
        assert {one.status for one in again.values()} == {"ok"}
        assert again["random_mask", "none", "toy_topic", 0].protection is not None


def test_a_secret_without_its_release_is_replaced(workspace: MakeWorkspace) -> None:
    """A run that is killed between the two leaves one; it belongs to other weights than those of the next run."""
    here = workspace(fresh=True, defenses=["none", "random_mask"])
    job = next(job for job in here.plan.jobs() if str(job.defense) == "random_mask")
    from safetensors.torch import save_file

    stale = {"transformer.wte.weight": torch.zeros(3, dtype=torch.uint8)}
    here.store.make("secrets", job.release, lambda folder: save_file(stale, folder / "mask.safetensors"), mode=0o700)
    make_release(here, job.defense, 0, job.release)
    secret = load_secret(here, job.release)
    assert secret is not None
    assert set(secret.mask) > set(stale)


def test_a_narrowed_job_and_the_whole_job_share_one_claim(workspace: MakeWorkspace) -> None:
    """Two runs on one folder, one of them narrowed to a task, must not do one cell twice."""
    whole = workspace(attacks=["none", "full"], tasks=["toy_topic", "toy_tone"])
    part = replace(whole, plan=narrow(whole.plan, tasks=["toy_topic"], attacks=["full"]))
    job = next(job for job in whole.plan.jobs() if str(job.attack) == "full")
    with whole.store.claim(job.key) as mine:
        assert mine
        assert referee.execute(part, part.plan.jobs()[0]) is None


def test_prepare_runs_once_for_all_tasks_and_its_time_is_recorded(
    workspace: MakeWorkspace, plugin: WriteFile, run_all: RunAll
) -> None:
    plugin(
        "prepares",
        "import time\n"
        + attack(
            "return context.unchanged(prepared.model, task)",
            prepare="assert not hasattr(torch, 'prepared')\ntorch.prepared = True\n"
            "time.sleep(0.2)\nreturn Prepared(release.model)",
        ),
    )
    records = run_all(workspace(attacks=["none", "prepares"], tasks=["toy_topic", "toy_tone"]))
    for task in ("toy_topic", "toy_tone"):
        cost = records["none", "prepares", task, 0].cost
        assert cost.preparation_seconds >= 0.2
        assert math.isfinite(cost.seconds)


def test_a_task_of_words_that_the_model_does_not_know_fails_and_says_so(
    workspace: MakeWorkspace, run_all: RunAll, tmp_path: Path, added: Callable[[Path], str]
) -> None:
    tasks = Path(__file__).parents[2] / "tasks"
    shutil.copy(tasks / "toy.py", tmp_path)
    text = (tasks / "toy_topic.yaml").read_text().replace("task: toy_topic", "task: foreign")
    (tmp_path / "foreign.yaml").write_text(text.replace("doc_to_choice: choices", "doc_to_choice: [A, B, C, D]"))
    added(tmp_path / "foreign.yaml")
    record = run_all(workspace(attacks=["none"], tasks=["foreign"]))["none", "none", "foreign", 0]
    assert record.status == "failed"
    assert "foreign: all choices have the same tokens" in str(record.reason)
