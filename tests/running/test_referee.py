"""A job becomes records: bad plugins fail alone, nothing secret reaches an attacker, and what failed is tried again."""

from __future__ import annotations

import functools
import json
import math
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nftbench.contract import Outcome, Prepared, Protected, Secret
from nftbench.data import lm_eval_tasks
from nftbench.errors import NftbenchError
from nftbench.models import networks
from nftbench.planning import registry
from nftbench.planning.plan import narrow
from nftbench.running import attacker, referee
from nftbench.running.owner import Owner, make_base
from nftbench.running.releases import load_secret, make_release
from nftbench.running.workspace import Workspace, load_task
from nftbench.training import engine, sweep

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
    "gives_no_protected": ("return model", "protect returned Model, not Protected"),
    "gives_nothing": ("pass", "protect returned NoneType, not Protected"),
    "shrinks_vocabulary": ("model.network.resize_token_embeddings(7)\nreturn Protected(model)", "7"),
    "forgets_tokenizer": ("return Protected(Model(model.network))", "tokenizer"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_defense_fails_alone_and_says_why(
    name: str, workspace: MakeWorkspace, plugin: WriteFile, run_all: RunAll
) -> None:
    body, reason = BAD[name]
    imports = ""
    plugin(name, imports + defense(body, keeps_secret="mask" in name))
    records = run_all(workspace(defenses=["none", name], attacks=["none", "full"]))
    for (row, *_), record in records.items():
        assert record.status == ("failed" if row == name else "ok")
    reasons = {record.reason for (row, *_), record in records.items() if row == name}
    assert len(records) == 6
    assert len(reasons) == 1, "all cells of the row have the defense's reason"
    found = reasons.pop()
    assert found
    assert "\n" not in found
    assert reason in found


def test_a_bad_attack_fails_alone(workspace: MakeWorkspace, plugin: WriteFile, run_all: RunAll) -> None:
    plugin("breaks", attack("raise RuntimeError('first\\nsecond')"))
    records = run_all(workspace(attacks=["none", "breaks", "full"]))
    assert {attack: record.status for (_, attack, *_), record in records.items()} == {
        "none": "ok",
        "breaks": "failed",
        "full": "ok",
    }
    assert records["none", "breaks", "toy_topic", 0].reason == "RuntimeError: first second (breaks.py:16)"


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
def test_status_of_an_error(error: Exception, status: str) -> None:
    found, reason = referee.status_of(error)
    assert found == status
    assert str(error) in reason


def test_failed_cells_are_tried_again_and_settled_ones_are_not(
    workspace: MakeWorkspace, plugin: WriteFile, run_all: RunAll, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin(
        "moody",
        attack("raise ValueError('today not')"),
    )
    here = workspace(attacks=["none", "full", "moody"])
    first = run_all(here)
    assert first["none", "moody", "toy_topic", 0].status == "failed"
    settled = replace(first["none", "full", "toy_topic", 0], status="nonfinite", reason="by hand")
    here.store.write(settled)
    before = {path: path.stat().st_mtime_ns for path in (here.store.results / "records").iterdir()}
    assert "moody" in str(registry.find("attacks", "moody").path)
    monkeypatch.setattr(
        registry.load(registry.find("attacks", "moody")),
        "adapt",
        lambda self, prepared, task, context: context.unchanged(prepared.model, task),
    )
    second = run_all(here)
    assert second["none", "moody", "toy_topic", 0].status == "ok"
    assert second["none", "full", "toy_topic", 0] == settled
    after = {path: path.stat().st_mtime_ns for path in (here.store.results / "records").iterdir()}
    changed = [path.name for path in after if before.get(path) != after[path]]
    assert len(changed) == 1
    assert "moody" in changed[0]


# -------------------------------------------------------------------------------------------------------------- leaks


def reachable(root: object) -> Iterator[tuple[str, object]]:
    """Everything that attributes, slots, items and closures lead to, with the way there."""
    waiting: list[tuple[str, object]] = [("", root)]
    seen: set[int] = set()
    keep_alive = []
    while waiting:
        way, item = waiting.pop()
        if id(item) in seen or isinstance(item, ModuleType | type | BuiltinFunctionType):
            continue
        seen.add(id(item))
        keep_alive.append(item)
        yield way, item
        children: list[tuple[str, object]] = []
        if isinstance(item, Mapping):
            children += [(f"{way}[{str(key)[:40]}]", value) for key, value in item.items()]
            children += [(f"{way}.keys", key) for key in item]
        elif isinstance(item, list | tuple | set | frozenset):
            children += [(f"{way}[{index}]", value) for index, value in enumerate(item)]
        if isinstance(item, FunctionType):
            cells = zip(item.__code__.co_freevars, item.__closure__ or (), strict=True)
            children += [(f"{way}.<closure {name}>", cell.cell_contents) for name, cell in cells]
            children += [(f"{way}.<default>", value) for value in item.__defaults__ or ()]
            children += [(f"{way}.<default>", value) for value in (item.__kwdefaults__ or {}).values()]
        if isinstance(item, MethodType):
            children += [(f"{way}.__self__", item.__self__), (f"{way}.__func__", item.__func__)]
        if isinstance(item, functools.partial):
            children += [(f"{way}.func", item.func), (f"{way}.args", item.args), (f"{way}.keywords", item.keywords)]
        if isinstance(item, Tensor):
            children += [(f"{way}.grad_fn", item.grad_fn), (f"{way}._backward_hooks", item._backward_hooks)]
        children += [(f"{way}.{name}", value) for name, value in getattr(item, "__dict__", {}).items()]
        for cls in type(item).__mro__:
            slots = vars(cls).get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                if not name.startswith("__") and hasattr(item, name):
                    children.append((f"{way}.{name}", getattr(item, name)))
        waiting += children


def leaks(root: object, mask: Mapping[str, Tensor], folder: Path) -> list[str]:
    """The ways from `root` to a tensor of the mask (or its complement), or to a path under `folder`."""
    told = [kept for kept in mask.values() if 0 < int(kept.sum()) < kept.numel()]

    def tells(item: Tensor) -> bool:
        # Of two values only: a frozen bias that starts at zero shows its mask too, but that is the method's affair.
        marks = item.bool()
        if item.numel() == 0 or not torch.equal(item, item.flatten()[marks.flatten().int().argmax()] * marks):
            return False
        return any(
            kept.shape == item.shape and torch.equal(marks, kept ^ flip) for kept in told for flip in (False, True)
        )

    found = []
    for way, item in reachable(root):
        if isinstance(item, str | Path) and str(folder) in str(item):
            found.append(f"{way}: {item}")
        if isinstance(item, Tensor) and tells(item):
            found.append(f"{way}: the mask")
    return found


SPY = """
seen = []

@dataclass(frozen=True)
class Spy(Attack):
    knowledge: ClassVar = frozenset({knowledge})

    def prepare(self, release, context):
        seen.append(release)
        return Prepared(release.model)

    def adapt(self, prepared, task, context):
        outcome = context.sweep(prepared.model, task)
        seen.extend([prepared, task, context, self, outcome])
        return outcome
"""


def spied(
    workspace: MakeWorkspace, plugin: WriteFile, run_all: RunAll, knowledge: str
) -> tuple[list[Any], Secret, Path]:
    """What an attack on `random_mask` is given, the secret, and the cache."""
    plugin("spy", SPY.replace("{knowledge}", knowledge))
    here = workspace(defenses=["none", "random_mask"], attacks=["none", "spy"])
    here = replace(here, plan=narrow(here.plan, defenses=["random_mask"]))
    records = run_all(here)
    assert {record.status for record in records.values()} == {"ok"}, records
    seen = registry._import(registry.find("attacks", "spy")).seen
    assert len(seen) == 6
    secret = load_secret(here, here.plan.cells[0].release)
    assert secret is not None
    return seen, secret, here.store.cache


@pytest.mark.parametrize("knowledge", ["()", "{'method', 'base', 'sibling'}"])
def test_nothing_that_an_attack_is_given_leads_to_the_secret(
    knowledge: str, workspace: MakeWorkspace, plugin: WriteFile, run_all: RunAll
) -> None:
    seen, secret, cache = spied(workspace, plugin, run_all, knowledge)
    assert leaks(seen, secret.mask, cache) == []
    assert all(getattr(item, "_secret", None) is None for item in seen)


def test_public_text_does_not_lead_to_the_secret(workspace: MakeWorkspace, plugin: WriteFile, run_all: RunAll) -> None:
    seen, secret, cache = spied(workspace, plugin, run_all, "{'data'}")
    assert seen[3].corpus.train.ndim == 2
    assert leaks(seen, secret.mask, cache) == []


def test_the_walk_finds_what_is_hidden() -> None:
    """The test above can fail: masks and paths in closures, slots, hooks, partials and buffers are found."""
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


def test_a_mask_left_in_the_configuration_is_not_published(
    workspace: MakeWorkspace, plugin: WriteFile, run_all: RunAll
) -> None:
    body = LEAKY + "model.network.config.kept = mask['transformer.wte.weight'].tolist()\n"
    plugin(
        "tells",
        defense(body + "return Protected(model, Secret(mask))", keeps_secret=True),
    )
    here = workspace(defenses=["none", "tells"])
    records = run_all(here)
    protection = records["tells", "none", "toy_topic", 0].protection
    assert protection is not None
    assert "kept" in protection.config_changed, "at least the record says so"


@pytest.mark.parametrize("stage", ["pretrain", "posttrain"])
def test_a_tokenizer_that_hides_a_word_is_found_out(
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


def test_only_knowledge_opens_the_context(workspace: MakeWorkspace, plugin: WriteFile, run_all: RunAll) -> None:
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


def test_a_record_agrees_with_the_release(workspace: MakeWorkspace, run_all: RunAll) -> None:
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
    assert records["none", "none", "toy_minimal_pairs", 0].role == "utility"
    assert full.role == "ranked"
    text = json.dumps(full.provenance)
    assert "torch" in text
    assert str(here.store.cache) not in text


@dataclass
class Counted:
    """Counts evaluations by split."""

    calls: list[str]


def count_evaluations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []
    plain = lm_eval_tasks.LoadedTextTask.evaluate

    def counting(self: Any, network: nn.Module, split: Any) -> Any:
        calls.append(split.name)
        return plain(self, network, split)

    monkeypatch.setattr(lm_eval_tasks.LoadedTextTask, "evaluate", counting)
    return calls


def test_test_is_scored_once_by_the_referee(
    workspace: MakeWorkspace, run_all: RunAll, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = workspace(attacks=["none", "full"])
    referee.protect(here, here.plan.jobs()[0])
    here = replace(here, plan=narrow(here.plan, attacks=["full"]))
    calls = count_evaluations(monkeypatch)
    inside: list[str] = []
    plain = sweep.sweep

    def watched(*args: Any, **options: Any) -> Outcome:
        outcome = plain(*args, **options)
        inside.extend(calls)
        return outcome

    monkeypatch.setattr(attacker.Attacker, "sweep", watched)
    run_all(here)
    assert inside
    assert set(inside) == {"validation"}
    after = calls[len(inside) :]
    assert after.count("test") == 2, "the attacked network, and the unattacked one beside it"
    assert after.count("validation") == 1


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
def test_what_an_attack_does_to_its_model_reaches_no_other_score(
    source: str, spoils_itself: bool, workspace: MakeWorkspace, plugin: WriteFile, run_all: RunAll
) -> None:
    """Neither the unattacked score beside it, nor the next task's."""
    plugin("spoils", source)
    records = run_all(workspace(attacks=["none", "spoils"], tasks=["toy_topic", "toy_tone"]))
    for task in ("toy_topic", "toy_tone"):
        spoiled, none = records["none", "spoils", task, 0], records["none", "none", task, 0]
        assert spoiled.unattacked == none.unattacked
        assert (spoiled.attacked != none.attacked) == spoils_itself


def test_a_score_that_is_not_finite_is_no_score(workspace: MakeWorkspace, plugin: WriteFile, run_all: RunAll) -> None:
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


def test_one_class_only_fails_with_a_reason(
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
    records = run_all(workspace(tasks=["toy_topic", "flat"], attacks=["none", "full"]))
    for (_, _, task, _), record in records.items():
        assert (record.status == "failed") == (task == "flat")
        assert task != "flat" or "one class only" in (record.reason or "")


# --------------------------------------------------------------------------------------------------------------- bases


def test_early_stop_is_the_base_runs_checkpoint_and_costs_no_training(
    workspace: MakeWorkspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = workspace(fresh=True, defenses=["none", "early_stop"])
    trained: list[int] = []
    plain = engine.pretrain

    def counting(*args: Any, **options: Any) -> None:
        trained.append(1)
        plain(*args, **options)

    monkeypatch.setattr(engine, "pretrain", counting)
    stopped, whole = (
        networks.load(make_release(here, job.defense, 0, job.release)).network.state_dict()
        for job in reversed(here.plan.jobs())
    )
    assert len(trained) == 1
    checkpoint = make_base(here, 0, 0.5).network.state_dict()
    assert len(trained) == 1
    assert all(torch.equal(stopped[name], checkpoint[name]) for name in stopped)
    assert not all(torch.equal(stopped[name], whole[name]) for name in stopped)

    owner = Owner(here, 0)
    fresh = owner.pretrain(owner.build(), each_step=lambda network, step: step == 10).network.state_dict()
    assert all(torch.equal(stopped[name], fresh[name]) for name in stopped)
    full = owner.pretrain(owner.build()).network.state_dict()
    assert all(torch.equal(whole[name], full[name]) for name in whole)


def test_a_fraction_that_was_not_kept_takes_a_run_of_its_own(workspace: MakeWorkspace) -> None:
    here = workspace(fresh=True, defenses=["none", "early_stop[fraction=0.25]"])
    early = make_base(here, 0, 0.25).network.state_dict()
    owner = Owner(here, 0)
    fresh = owner.pretrain(owner.build(), each_step=lambda network, step: step == 5).network.state_dict()
    assert all(torch.equal(early[name], fresh[name]) for name in early)


def test_seeds_and_roles_have_their_own_streams() -> None:
    found = {networks.derive(seed, role) for seed in range(20) for role in ("init", "pretrain", "defense", "attack")}
    assert len(found) == 80
    assert networks.derive(3, "init") == networks.derive(3, "init")


# ------------------------------------------------------------------------------------------------- releases and secrets


def test_the_secret_lies_apart_for_the_owner_only(workspace: MakeWorkspace) -> None:
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


@pytest.mark.parametrize("harm", ["truncated", "flipped", "missing"])
def test_a_damaged_release_is_made_again(
    harm: str, workspace: MakeWorkspace, run_all: RunAll, bare: Callable[[Any], Any]
) -> None:
    here = workspace(fresh=True, attacks=["none", "full"])
    first = run_all(here)
    weights = here.store.cache / "releases" / here.plan.cells[0].release / "model.safetensors"
    content = weights.read_bytes()
    if harm == "truncated":
        weights.write_bytes(content[: len(content) // 2])
    elif harm == "flipped":
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        weights.unlink()
    here.store.forget([record.key for record in first.values()])
    with pytest.warns(UserWarning, match="damaged; set aside"):
        second = run_all(here)
    assert weights.read_bytes() == content
    assert {place: bare(one) for place, one in first.items()} == {place: bare(one) for place, one in second.items()}


@pytest.mark.parametrize("kind", ["secrets", "protections"])
def test_a_damaged_secret_is_made_again(kind: str, workspace: MakeWorkspace, run_all: RunAll) -> None:
    here = workspace(fresh=True, defenses=["none", "random_mask"], attacks=["none", "authorized"])
    first = run_all(here)
    found = sorted((here.store.cache / kind).glob("*/[mp]*"))
    for path in found:
        path.write_bytes(path.read_bytes()[:-5])
    assert found
    here.store.forget([record.key for record in first.values()])
    with pytest.warns(UserWarning, match="damaged; set aside"):
        second = run_all(here)
    assert {one.status for one in second.values()} == {"ok"}
    assert second["random_mask", "none", "toy_topic", 0].protection is not None


def test_a_killed_protect_leaves_a_secret_that_is_replaced(
    workspace: MakeWorkspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between secret and release, the next run must not keep a secret that belongs to other weights."""
    here = workspace(fresh=True, defenses=["none", "random_mask"])
    job = next(job for job in here.plan.jobs() if str(job.defense) == "random_mask")
    from safetensors.torch import save_file

    stale = {"transformer.wte.weight": torch.zeros(3, dtype=torch.uint8)}
    here.store.make("secrets", job.release, lambda folder: save_file(stale, folder / "mask.safetensors"), mode=0o700)
    make_release(here, job.defense, 0, job.release)
    secret = load_secret(here, job.release)
    assert secret is not None
    assert set(secret.mask) > set(stale)


def test_a_job_of_another_narrowing_is_the_same_work(workspace: MakeWorkspace) -> None:
    """Two runs on one folder, one of them narrowed to a task, must not do one cell twice."""
    whole = workspace(attacks=["none", "full"], tasks=["toy_topic", "toy_tone"])
    part = replace(whole, plan=narrow(whole.plan, tasks=["toy_topic"], attacks=["full"]))
    job = next(job for job in whole.plan.jobs() if str(job.attack) == "full")
    with whole.store.claim(job.key) as mine:
        assert mine
        assert referee.execute(part, part.plan.jobs()[0]) is None


def test_a_plugin_that_exits_costs_its_own_cell_only(
    workspace: MakeWorkspace, plugin: WriteFile, run_all: RunAll
) -> None:
    plugin("exits", attack("raise SystemExit(3)"))
    records = run_all(workspace(attacks=["none", "exits", "full"]))
    assert {attack: record.status for (_, attack, *_), record in records.items()} == {
        "none": "ok",
        "exits": "failed",
        "full": "ok",
    }


def test_preparation_counts(workspace: MakeWorkspace, plugin: WriteFile, run_all: RunAll) -> None:
    plugin(
        "slow",
        attack(
            "return context.sweep(prepared.model, task)",
            prepare="import time\ntime.sleep(0.2)\nreturn Prepared(release.model)",
        ),
    )
    record = run_all(workspace(attacks=["none", "slow"]))["none", "slow", "toy_topic", 0]
    assert record.cost.preparation_seconds >= 0.2
    assert math.isfinite(record.cost.seconds)


def test_prepare_runs_once_for_all_tasks(workspace: MakeWorkspace, plugin: WriteFile, run_all: RunAll) -> None:
    plugin(
        "prepares",
        "calls = []\n"
        + attack(
            "return context.unchanged(prepared.model, task)", prepare="calls.append(1)\nreturn Prepared(release.model)"
        ),
    )
    run_all(workspace(attacks=["none", "prepares"], tasks=["toy_topic", "toy_tone"]))
    assert registry._import(registry.find("attacks", "prepares")).calls == [1]


def test_prepared_is_checked_in() -> None:
    assert Prepared.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert Protected.__dataclass_params__.frozen  # type: ignore[attr-defined]


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
