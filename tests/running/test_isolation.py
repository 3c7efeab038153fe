"""Plugins that cheat: what a defense or an attack does reaches no other row, no secret and no scored document."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nftbench.data.lm_eval_tasks import LoadedTextTask
from nftbench.data.splits import Scorer
from nftbench.errors import NftbenchError
from nftbench.models import networks, returned
from nftbench.models.copies import copied
from nftbench.planning.specs import task_spec
from nftbench.records.store import Store
from nftbench.running import attacking, isolation, packing
from nftbench.running.owner import Owner
from nftbench.running.workspace import Workspace, load_task
from nftbench.training import engine
from tests.sessions import session

MakeWorkspace = Callable[..., Workspace]
WriteFile = Callable[[str, str], Path]
RunAll = Callable[..., dict[tuple[str, str, str, int], Any]]
Bare = Callable[[Any], Any]

DEFENSE = """
@dataclass(frozen=True)
class Mine(Defense):
    stage: ClassVar = "pretrain"

    def protect(self, model, context):
        BODY
"""
ATTACK = """
@dataclass(frozen=True)
class Mine(Attack):
    knowledge: ClassVar = frozenset({"method", "data"})

    def adapt(self, prepared, task, context):
        BODY
        return context.unchanged(prepared.model, task)
"""


def source(template: str, body: str, above: str = "") -> str:
    return above + template.replace("BODY", body.replace("\n", "\n        "))


PATCHES = """
import os
from nftbench.training.engine import Stepper
from nftbench.data.splits import Scorer
from dataclasses import replace as changed

def idle(self, loss):
    return None

measured = Scorer.measure
Stepper.step = idle
Scorer.measure = lambda *given: changed(measured(*given), value=1.0)
torch.set_grad_enabled(False)
torch.set_default_dtype(torch.float64)
torch.use_deterministic_algorithms(True)
os.environ["OMP_NUM_THREADS"] = "7"
"""
OWN_CODE = """
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

class DisguisedConfig(GPT2Config):
    model_type = "disguised"

class Disguised(GPT2LMHeadModel):
    config_class = DisguisedConfig

    def forward(self, *given, labels=None, **named):
        labels = None if labels is None else self.config.vocab_size - 1 - labels
        found = super().forward(*given, labels=labels, **named)
        found.logits = found.logits.flip(-1)
        return found

AutoConfig.register("disguised", DisguisedConfig)
AutoModelForCausalLM.register(DisguisedConfig, Disguised)
"""
LIE = """
Disguised.__module__ = "transformers.models.gpt2.modeling_gpt2"
"""
OWN_NETWORK = """
config = DisguisedConfig.from_dict(model.network.config.to_dict() | {"model_type": "disguised"})
network = Disguised(config)
network.load_state_dict(model.network.state_dict())
return Protected(context.pretrain(Model(network, model.tokenizer)))
"""
OWNERS: dict[str, str] = {
    "patches": source(DEFENSE, "return Protected(context.pretrain(model))", PATCHES),
    "endless": source(DEFENSE, "import time\nwhile True:\n    time.sleep(1)"),
    "twice": source(DEFENSE, "return Protected(context.pretrain(context.pretrain(model)))"),
    "wide": source(DEFENSE, "return Protected(context.pretrain(context.build(n_embd=32)))"),
    "pockets": source(
        DEFENSE,
        "weights = model.network.named_parameters()\n"
        "return Protected(model, Secret({name: torch.ones_like(one, dtype=torch.bool) for name, one in weights}))",
    ),
    "peeks": source(
        DEFENSE,
        "names = [name for name in dir(context) if 'place' in name or 'workspace' in name or 'plan' in name]\n"
        "assert not names, names\n"
        "assert not hasattr(context.suite, 'corpus') and not hasattr(context.suite, 'tasks')\n"
        "return Protected(context.pretrain(model))",
    ),
    "disguised": source(DEFENSE, OWN_NETWORK, OWN_CODE + LIE),
    "own_code": source(
        DEFENSE, OWN_NETWORK.replace("disguised", "own_kind"), OWN_CODE.replace("disguised", "own_kind")
    ),
}


@pytest.fixture
def mended(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the plugin `patches` spoils in the process that plans is as before when the test ends."""
    monkeypatch.setattr(engine.Stepper, "step", engine.Stepper.step)
    monkeypatch.setattr(Scorer, "measure", Scorer.measure)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    torch.set_grad_enabled(True)
    torch.set_default_dtype(torch.float32)
    torch.use_deterministic_algorithms(False)


def test_what_a_defense_does_stays_in_its_own_process(
    workspace: MakeWorkspace, plugin: WriteFile, run_all: RunAll, bare: Bare, mended: None
) -> None:
    changes: dict[str, Any] = {"attacks": ["none", "full"], "utility": ["toy_agreement_pronoun"]}
    alone = run_all(workspace(results="alone", defenses=["none"], **changes))
    for name, text in OWNERS.items():
        plugin(name, text)
    limit = {"timeout": 20}
    here = workspace(defenses=["none", *OWNERS], pretraining=limit, **changes)
    records = run_all(here, workers=2)  # one works on while the other waits for the endless defense
    switches = torch.is_grad_enabled(), torch.get_default_dtype(), engine.Stepper.step.__name__
    assert switches != (True, torch.float32, "step"), "planning has imported the plugin here, so the test can fail"

    def row(name: str) -> dict[tuple[str, str], Any]:
        return {(attack, task): one for (defense, attack, task, _), one in records.items() if defense == name}

    for (_, attack, task, _), expected in alone.items():
        assert bare(records["none", attack, task, 0]) == bare(expected), "the reference is measured as without cheats"
    assert {one.status for one in row("patches").values()} == {"ok"}
    assert 1.0 not in {one.attacked.value for one in row("patches").values()}
    assert len(row("patches")["full", "toy_topic"].curve) > 1
    assert {one.status for one in row("endless").values()} == {"timeout"}
    assert {one.reason for one in row("endless").values()} == {"the defense was stopped after 20 s"}
    assert {one.status for one in row("peeks").values()} == {"ok"}, row("peeks")
    assert {one.status for one in row("pockets").values()} == {"failed"}
    assert "keeps_secret = False" in row("pockets")["none", "toy_topic"].reason
    ledger = row("twice")["none", "toy_topic"].protection.ledger
    assert ledger.over == ("steps", "tokens")
    assert (ledger.spent.steps, ledger.spent.tokens) == (40, 40 * 8 * 32)
    assert "parameters" in row("wide")["none", "toy_topic"].protection.ledger.over
    for honest in ("none", "peeks"):
        assert row(honest)["none", "toy_topic"].protection.ledger.over == ()
    assert {one.status for one in row("disguised").values()} == {"failed"}, "its class is not where it says"
    (reason,) = {one.reason for one in row("own_code").values()}
    assert {one.status for one in row("own_code").values()} == {"failed"}, "nobody has said that its code is trusted"
    assert "--trust-code" in reason
    trusted = workspace(results="trusted", defenses=["none", "own_code"], trust_code=True, **changes)
    own_code = {cell: one for cell, one in run_all(trusted).items() if cell[0] == "own_code"}
    assert {one.status for one in own_code.values()} == {"ok"}
    assert own_code["own_code", "none", "toy_topic", 0].protection.own_code


IMPORTED_BY_ATTACKS = """
import inspect

assert not any(frame.function == "_attack_all" for frame in inspect.stack()), "an attack has imported the defense"
"""


def test_an_attack_that_knows_the_method_does_not_import_the_defense(
    workspace: MakeWorkspace, plugin: WriteFile, run_all: RunAll
) -> None:
    """What a defense does at import would change how this attack trains."""
    plugin("careful", source(DEFENSE, "return Protected(model)", IMPORTED_BY_ATTACKS))
    records = run_all(workspace(defenses=["careful"], attacks=["none", "rebalance"], tasks=["toy_topic"]))
    assert {one.reason for one in records.values()} == {None}


LOOKS = """
import gc
marker = MARKER[::-1]
held = [item for item in gc.get_objects() if type(item) in (tuple, list, dict)]
texts = [v for item in held for v in (item.values() if isinstance(item, dict) else item) if isinstance(v, str)]
assert not any(marker in text for text in texts), "a scored document"
import sys
kinds = ("nftbench.attacks.", "nftbench.defenses.", "nftbench_plugin")
plugins = {name for name in sys.modules if name.startswith(kinds)}
assert plugins == {__name__}, plugins
ours = [type(item) for item in gc.get_objects() if str(type(item).__module__).startswith("nftbench.")]
kinds = {one.__name__ for one in ours}
assert "Attacker" in kinds, "what is looked at"
assert not kinds & {"Workspace", "Plan", "Suite", "Store", "Secret", "Job"}, kinds
"""
FORCES = """
for hidden in (lambda: task.split('test'), lambda: task.task.split('test').documents):
    try:
        hidden()
    except NftbenchError:
        continue
    raise AssertionError('a test split')
"""
READS = """
import os
from pathlib import Path
assert "NFTBENCH_CACHE" not in os.environ
for path in (Path(CACHE), Path(CACHE) / "secrets", Path(CACHE) / "corpora"):
    try:
        found = list(path.iterdir())
    except PermissionError:
        continue
    raise AssertionError(f"{path}: {found}")
try:
    (Path(CACHE).parent / "written").write_text("x")
except PermissionError:
    pass
else:
    raise AssertionError("written elsewhere")
"""
OWN_CLASS = """
class Own(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner
    def __getattr__(self, name):
        return super().__getattr__(name) if name == "inner" else getattr(self.inner, name)
    def forward(self, *given, **named):
        return self.inner(*given, **named)
"""


def test_an_attack_finds_neither_scored_documents_nor_secrets_and_dies_alone(
    workspace: MakeWorkspace, plugin: WriteFile, run_all: RunAll
) -> None:
    here = workspace(defenses=["none"], fresh=True)
    task = load_task(here, task_spec("toy_topic"), 0, Owner(here, 0).build())
    assert isinstance(task, LoadedTextTask)
    train = {document.pairs[0].context for document in task.split("train").documents}
    marker = next(one.pairs[0].context for one in task.split("test").documents if one.pairs[0].context not in train)
    plugin("looks", source(ATTACK, LOOKS.replace("MARKER", repr(marker[::-1])) + FORCES))
    plugin("reads", source(ATTACK, READS.replace("CACHE", repr(str(here.store.cache)))))
    plugin("exits", source(ATTACK, "import os\nos._exit(0)"))
    plugin("crashes", source(ATTACK, "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)"))
    own = "return context.select(task, [(Own(prepared.model.network), 0.0, 0)])"
    plugin("wraps", source(ATTACK, own, OWN_CLASS))
    plugin("marks", source(ATTACK, "assert not hasattr(torch, 'marked')\ntorch.marked = True"))
    names = ["looks", "reads", "exits", "crashes", "wraps", "marks"]
    seen = run_all(workspace(fresh=True, defenses=["none", "random_mask"], attacks=["none", *names]))
    found = {(row, attack): one for (row, attack, task, _), one in seen.items() if task == "toy_topic"}
    for row in ("none", "random_mask"):
        assert found[row, "looks"].status == "ok", found[row, "looks"].reason
        assert found[row, "marks"].status == "ok", "each process starts clean"
        assert found[row, "none"].status == "ok"
        if isolation.kind() == "landlock":
            assert found[row, "reads"].status == "ok", found[row, "reads"].reason
        assert found[row, "exits"].reason == "its process ended by itself with exit code 0, and returned nothing"
        assert found[row, "crashes"].reason == "its process was ended by SIGSEGV"
        assert "it may hold classes of torch.nn" in found[row, "wraps"].reason.lower()
        assert {found[row, name].status for name in ("exits", "crashes", "wraps")} == {"failed"}


class Code:
    """What runs Python code when it is read back: an order for a child that needs no function of its own."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (self.text,)


def child(text: str, store: Store, limit: float) -> float:
    with isolation.folder(store) as folder:
        return isolation.run(attacking.perform, packing.pack(Code(text), folder), folder, store, limit=limit)


KILLED = """
import os, sys
from pathlib import Path
from nftbench.records import leases
from nftbench.records.store import Store
from nftbench.running import isolation

place, machine = Path(sys.argv[1]), sys.argv[2]
if machine:
    leases._machine = lambda: machine
with isolation.folder(Store(place / "results", place / "cache")) as folder:
    (folder / "weights").write_bytes(b"large")
    print(folder, flush=True)
    os._exit(1)
"""


def test_what_a_killed_process_left_for_its_child_is_deleted(tmp_path: Path) -> None:
    def killed(machine: str = "") -> Path:
        """The folder that a process leaves, on a machine of this name if one is given."""
        words = [sys.executable, "-P", "-c", KILLED, str(tmp_path), machine]
        return Path(subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip())

    store = Store(tmp_path / "results", tmp_path / "cache")
    with isolation.folder(store) as first:
        elsewhere, left = killed("another machine"), killed()
        assert all((path / "weights").exists() for path in (left, elsewhere))
        with isolation.folder(store):
            assert first.exists(), "its process is running"
            assert not left.exists()
            assert elsewhere.exists(), "nobody here knows which processes run on another machine"


STARTS_ANOTHER = """
import subprocess, time
try:
    subprocess.Popen(["sleep", "4321"])
except PermissionError:  # where it is confined
    pass
time.sleep(60)
"""


def test_a_child_that_is_killed_or_late_is_told_apart(tmp_path: Path) -> None:
    store = Store(tmp_path / "results", tmp_path / "cache")
    with pytest.raises(isolation.KilledError, match="out of memory"):
        child("import os; os.kill(os.getpid(), 9)", store, 60)
    with pytest.raises(isolation.TooLongError, match="stopped after 2 s"):
        child(STARTS_ANOTHER, store, 2)
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline")] if Path("/proc").is_dir() else []
    assert b"sleep\x004321\x00" not in lines, "what the child has started is stopped with it"
    assert list((store.cache / "exchange").iterdir()) == []


def test_a_child_ends_with_the_process_that_watches_it(tmp_path: Path) -> None:
    """Nobody else knows of it, or would stop it when its time is up."""
    store, found = Store(tmp_path / "results", tmp_path / "cache"), list[int]()
    says = "open(f'{tempfile.gettempdir()}/ids', 'w').write(f'{os.getpid()} {os.getppid()} ')"

    def kill_the_watcher() -> None:
        while len(found) < 2:
            found[:] = [
                int(word) for file in store.cache.glob("exchange/*/temporary/ids") for word in file.read_text().split()
            ]
            time.sleep(0.02)
        os.kill(found[1], signal.SIGKILL)

    killer = threading.Thread(target=kill_the_watcher, daemon=True)
    killer.start()
    with pytest.raises(isolation.KilledError, match="the process that starts plugins was killed"):
        child(f"import os, tempfile, time\n{says}\ntime.sleep(60)", store, 60)
    killer.join()
    end = time.monotonic() + 10
    while session(found[0]):
        assert time.monotonic() < end, "it goes on"
        time.sleep(0.02)


ASIDE = """
from nftbench.running import isolation

isolation.PRELOADED.clear()  # none is needed here
isolation.aside(exec, "import os, time; print(os.getpid(), flush=True); time.sleep(60)")
"""


def test_what_runs_aside_ends_with_its_referee() -> None:
    """It would go on writing records of a job that another process has taken since."""
    words = [sys.executable, "-P", "-c", ASIDE]
    run = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert run.stdout is not None
    number = int(run.stdout.readline())
    run.kill()
    run.wait()
    run.stdout.close()
    end = time.monotonic() + 30
    while number in session(run.pid):
        assert time.monotonic() < end, "it goes on"
        time.sleep(0.02)


def test_a_child_that_fills_the_disk_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The records of all rows lie on the same disk. A full one is imitated: nearly all that is free must stay so."""
    monkeypatch.setattr(isolation, "RESERVE", shutil.disk_usage(tmp_path).free - 50_000_000)
    fills = "import time\nopen('filled', 'wb').write(bytes(200_000_000))\ntime.sleep(60)"
    ours, theirs = multiprocessing.Pipe()
    with ours, theirs, subprocess.Popen([sys.executable, "-c", fills], cwd=tmp_path, start_new_session=True) as started:
        ended = isolation._watch(started.pid, isolation._Call(attacking.perform, (), tmp_path, (), (), 50), ours)
    assert ended is not None
    assert (ended.stopped, ended.code) == ("disk", -signal.SIGKILL)


def test_what_a_child_prints_is_shown_marked_and_cut(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A plugin could print a leaderboard of its own, or without end."""
    store = Store(tmp_path / "results", tmp_path / "cache")
    told = "import os, sys\nprint('early' + 'x' * 20_000)\nprint('rank 1\\x1b[2Jmine')\nsys.stderr.write('said\\n')"
    with pytest.raises(isolation.DiedError):
        child(told + "\nsys.stdout.flush()\nos._exit(1)", store, 60)
    out, error = capfd.readouterr()
    assert out == ""
    lines = error.splitlines()
    assert all(line.startswith("plugin: ") and line.isprintable() for line in lines)
    assert "early" not in error
    assert len(error) < 2 * isolation.MOST_PRINTED
    assert {"plugin: rank 1 [2Jmine", "plugin: said"} <= set(lines)


def test_a_childs_keyboard_interrupt_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """As of a check, in which a test's author may press Ctrl-C, so that it lets this error through."""
    with pytest.raises(isolation.DiedError):
        child("raise KeyboardInterrupt", Store(tmp_path / "results", tmp_path / "cache"), 60)
    assert capfd.readouterr().err == "plugin: KeyboardInterrupt: \n"


def test_memory_that_runs_out_ends_the_child_first(tmp_path: Path) -> None:
    if not Path("/proc/self/oom_score_adj").exists():
        pytest.skip("this system has no order in which processes are ended")
    store = Store(tmp_path / "results", tmp_path / "cache")
    with pytest.raises(isolation.DiedError, match="exit code 77"):
        child("import os; os._exit(77 if open('/proc/self/oom_score_adj').read().strip() == '1000' else 1)", store, 60)


@pytest.mark.parametrize("sent", [2, packing.LARGE])
def test_a_tensor_is_sent_without_the_memory_beside_it(sent: int, tmp_path: Path) -> None:
    whole = torch.arange(2 * packing.LARGE)
    content, beside = packing.pack(whole[:sent], tmp_path), tmp_path / packing.TENSORS
    assert len(content) < 1000
    assert beside.stat().st_size == (whole[:sent].nbytes if sent == packing.LARGE else 0)
    assert torch.equal(packing.unpack(content, tmp_path), whole[:sent])
    assert not beside.exists(), "it takes as much of the disk as the release"


def test_large_weights_are_sent_exactly_once(tmp_path: Path) -> None:
    """Tied weights stay tied, strides and types are kept, and what is read takes PyTorch's own memory."""
    embedding = nn.Embedding(1000, 100)
    network = nn.ModuleDict({"embedding": embedding, "head": nn.Linear(100, 1000, bias=False)})
    network["head"].weight = embedding.weight
    network.register_buffer("table", torch.randn(400, 600, dtype=torch.float16).T)
    content = packing.pack(network, tmp_path)
    assert (tmp_path / packing.TENSORS).stat().st_size == 1000 * 100 * 4 + 400 * 600 * 2
    found = packing.unpack(content, tmp_path)
    assert found["head"].weight is found["embedding"].weight
    assert torch.equal(found["embedding"].weight, embedding.weight)
    assert torch.equal(found.table, network.table)
    assert found.table.dtype == torch.float16
    assert copied(found)["head"].weight is not found["head"].weight
    (tmp_path / packing.TENSORS).write_bytes(b"short")
    with pytest.raises(EOFError):
        packing.unpack(content, tmp_path)


def test_a_network_that_runs_code_when_it_is_read_is_refused(
    workspace: MakeWorkspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    release = Owner(workspace(), 0).build().network
    hidden = nn.Linear(2, 2)
    hidden.trap = Code("print('run')")  # type: ignore[assignment]
    returned.save(hidden, tmp_path / "network.pt")
    with pytest.raises(NftbenchError, match=r"holds builtins\.exec"):
        returned.load(tmp_path / "network.pt", release, "cpu")
    assert "run" not in capsys.readouterr().out


def test_a_class_that_says_it_is_a_library_s_is_not_known(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "of_my_own"}')
    assert not networks.is_known(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    assert networks.is_known(tmp_path)
