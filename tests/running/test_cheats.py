"""Ways out of a plugin's process, and releases that lead the referee elsewhere or cannot be trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertLMHeadModel,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
)

from nftbench.errors import NftbenchError
from nftbench.models import networks
from nftbench.records.store import Store
from nftbench.running import attacking, failures, isolation, packing, releases
from nftbench.running.plain_text import PlainTexts, read_ahead

apart = pytest.mark.skipif(isolation.kind() != "landlock", reason="this system cannot confine a process")

WAYS_OUT = """
import resource, socket, subprocess, threading
from multiprocessing import forkserver

def server():
    socket.socket(socket.AF_UNIX).connect(forkserver._forkserver._forkserver_address)

def inherited():
    found = [os.readlink(one) for one in Path("/proc/self/fd").iterdir() if int(one.name) > 2 and one.exists()]
    assert not any(name.startswith(("pipe:", "socket:")) for name in found), found
    raise PermissionError

ways = {
    "the fork server's socket": server,
    "the network": lambda: socket.socket(socket.AF_INET),
    "a process": lambda: subprocess.Popen(["sleep", "60"]),
    "a fork": os.fork,
    "inherited pipes": inherited,
    "shared memory": lambda: Path("/dev/shm/nftbench-left").write_text("x"),
    "an attribute": lambda: os.setxattr(__file__, "user.left", b"x"),
    "the times of files": lambda: os.utime(__file__),
    "the parent's limits": lambda: resource.prlimit(os.getppid(), resource.RLIMIT_CORE, (0, 0)),
    "the parent's priority": lambda: os.setpriority(os.PRIO_PROCESS, os.getppid(), os.nice(0)),
    "the parent's scheduling": lambda: os.sched_setscheduler(os.getppid(), os.SCHED_OTHER, os.sched_param(0)),
    "signals": lambda: os.kill(os.getppid(), 0),
    "the parent's memory": lambda: Path(f"/proc/{os.getppid()}/maps").read_text(),
    "the parent's variables": lambda: Path(f"/proc/{os.getppid()}/environ").read_bytes(),
}
open_ways = []
for name, way in ways.items():
    try:
        way()
    except PermissionError:
        continue
    open_ways.append(name)
thread = threading.Thread(target=lambda: None)
thread.start()
thread.join()
(folder / "open").write_text(", ".join(open_ways))
"""


class Code:
    """What runs Python code when it is read back: an order for a child that needs no function of its own."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (BEGINNING + self.text + END, {"__file__": __file__})


BEGINNING = """
import os
from pathlib import Path
folder = Path(os.environ["TMPDIR"]).parent
"""
END = """
(folder / "returned").touch()
os._exit(0)
"""


def child(text: str, store: Store, read: str) -> str:
    with isolation.folder(store) as folder:
        isolation.run(attacking.perform, packing.pack(Code(text), folder), folder, store, limit=60)
        return (folder / read).read_text()


@apart
def test_a_child_finds_no_way_out(tmp_path: Path) -> None:
    assert child(WAYS_OUT, Store(tmp_path / "results", tmp_path / "cache"), "open") == ""


def test_a_link_that_a_child_leaves_is_not_followed(tmp_path: Path) -> None:
    store, secret = Store(tmp_path / "results", tmp_path / "cache"), tmp_path / "secret"
    secret.write_text("hidden")
    with pytest.raises(isolation.DiedError, match="guess, which is no plain file"):
        child(f"(folder / 'guess').symlink_to({str(secret)!r})", store, "guess")
    with pytest.raises(isolation.DiedError, match="guess, which is no plain file"):
        child("os.mkfifo(folder / 'guess')", store, "guess")


LEFT = {
    r"\xff, which is no plain file": "os.symlink('/etc', os.fsencode(folder) + b'/\\xff')",
    "more than 10 folders deep": "os.chdir(folder)\nfor _ in range(2000):\n    os.mkdir('d', 0o700)\n    os.chdir('d')",
    "failed.json, which has more than 100000000 bytes": "(folder / 'failed.json').open('wb').truncate(10**11)",
}


@pytest.mark.parametrize("message", LEFT)
def test_what_would_end_the_referee_is_refused_and_deleted(tmp_path: Path, message: str) -> None:
    store = Store(tmp_path / "results", tmp_path / "cache")
    with pytest.raises(isolation.DiedError) as caught:
        child(LEFT[message], store, "nothing")
    assert message in str(caught.value)
    assert not list((store.cache / "exchange").iterdir())


def test_a_failure_that_no_file_can_hold_becomes_one_line(tmp_path: Path) -> None:
    def fail() -> None:
        raise NftbenchError("lone\ud800 half\x1b[2J\nof a pair")

    failures.attempt(fail, tmp_path / "failed.json")
    with pytest.raises(failures.FailedError, match=r"^lone half \[2J of a pair$"):
        failures.raise_written(tmp_path / "failed.json")
    (tmp_path / "failed.json").write_text(json.dumps(["failed", "lone\ud800 half"]))
    with pytest.raises(failures.FailedError, match=r"^lone half$"):
        failures.raise_written(tmp_path / "failed.json")
    assert failures.status_of(isolation.DiedError("it left \udcff")) == ("failed", "it left")


def leads_to_another_model(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/another"}))


def has_weights_elsewhere(folder: Path) -> None:
    content = {"weight_map": {"weight": "../another/model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (leads_to_another_model, "belongs to no model: adapter_config.json"),
        (has_weights_elsewhere, "names ../another/model.safetensors, which is no file beside it"),
    ],
)
def test_a_release_leads_to_no_other_files(tmp_path: Path, change: Callable[[Path], None], message: str) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    releases._check_files(tmp_path)
    change(tmp_path)
    with pytest.raises(NftbenchError, match=message):
        releases._check_files(tmp_path)


GPT2 = {"vocab_size": 32, "n_embd": 16, "n_layer": 1, "n_head": 2}
GEMMA = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8} | {
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
READS_AHEAD: dict[str, Callable[[], PreTrainedModel]] = {
    "is_causal": lambda: GPT2LMHeadModel(GPT2Config(**GPT2, is_causal=False)),
    "use_bidirectional_attention": lambda: GemmaForCausalLM(GemmaConfig(**GEMMA, use_bidirectional_attention=True)),
}
"""Networks whose configuration asks them to read in both directions, by the setting that does."""


@pytest.mark.parametrize("setting", READS_AHEAD)
def test_a_release_that_reads_ahead_is_refused(setting: str, tmp_path: Path) -> None:
    """It predicts running text from itself, so that it seems to keep utility."""
    network = READS_AHEAD[setting]()
    torch.manual_seed(0)
    for weight in network.parameters():  # untrained weights are so small that words hardly matter
        nn.init.normal_(weight, std=2.0)
    network.save_pretrained(tmp_path)
    ahead = networks.load(tmp_path, attacker=True).network
    path = tmp_path / "config.json"
    path.write_text(
        json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != setting})
    )
    honest = networks.load(tmp_path, attacker=True).network
    texts = PlainTexts(torch.randint(32, (64, 24), generator=torch.Generator().manual_seed(0)).tolist(), [], {}, None)
    assert read_ahead(honest, texts) < 1e-6
    releases._check_direction(honest, honest, texts)
    releases._check_direction(ahead, ahead, texts)  # a base may read in both directions
    with pytest.raises(NftbenchError, match="reads ahead: later words move its predictions by"):
        releases._check_direction(ahead, honest, texts)


def test_a_release_is_examined_as_it_is_attacked(tmp_path: Path) -> None:
    """In sixteen bits weights may cancel that in the files' precision do not."""
    network = GPT2LMHeadModel(GPT2Config(**GPT2))
    nn.init.constant_(network.lm_head.weight, 1.001)
    network.save_pretrained(tmp_path)
    here: Any = SimpleNamespace(suite=SimpleNamespace(given=SimpleNamespace(dtype="bfloat16")), device="cpu")
    attacked, examined = (open_it(here, tmp_path) for open_it in (releases.open_release, releases.open_to_examine))
    weights = [model.network.get_output_embeddings().weight for model in (attacked, examined)]
    assert [weight.dtype for weight in weights] == [torch.bfloat16, torch.float32]
    assert torch.equal(weights[0].float(), weights[1])
    assert not torch.equal(network.lm_head.weight, weights[1])


def test_a_release_does_not_choose_the_code_of_its_attention(tmp_path: Path) -> None:
    """By such a name transformers fetches code from the hub, or computes in one precision alone."""
    GPT2LMHeadModel(GPT2Config(**GPT2)).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"attn_implementation": "eager"}))
    assert networks.load(tmp_path).network.config._attn_implementation == "sdpa"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"attn_implementation": "somebody/attention"}))
    assert networks.load(tmp_path).network.config._attn_implementation == "sdpa"


def test_a_release_trains_as_it_is_evaluated(tmp_path: Path) -> None:
    settings = {"vocab_size": 16, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = BertConfig(**settings, intermediate_size=8, is_decoder=True, hidden_dropout_prob=0.9)
    network = BertLMHeadModel(config)
    for weight in network.parameters():  # untrained weights are so small that noise hardly matters
        nn.init.normal_(weight)
    network.save_pretrained(tmp_path)
    tokens = torch.arange(8)[None]

    def loss(network: nn.Module) -> torch.Tensor:
        with networks.seeded(0):
            found: torch.Tensor = network(input_ids=tokens, labels=tokens).loss
        return found

    releases._check_modes(networks.load(tmp_path, attacker=True).network, loss)
    with pytest.raises(NftbenchError, match="in training mode"):
        releases._check_modes(networks.load(tmp_path).network, loss)
