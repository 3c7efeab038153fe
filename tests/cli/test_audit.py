"""The verb `audit`: what it refuses before anything runs, what its card says, and how it goes on after a kill."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from operator import mul
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml
from safetensors import safe_open

from nftbench.cli import audit
from nftbench.device import CPU
from nftbench.errors import NftbenchError
from nftbench.records.store import Store
from nftbench.running import given_estimate, preflight
from nftbench.running.preflight import Checkpoint
from nftbench.testing import tiny_suite
from tests import checkpoints

Call = Callable[..., tuple[int, str, str]]
NORM = "transformer.ln_f.weight"


@pytest.fixture
def call(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """`call("protected", "--reference", "twin")` in a folder with both checkpoints and a tiny suite."""
    monkeypatch.setattr(audit, "CONTROLS", {"noise": ("noise",), "quantize": ("quantize[bits=4]",)})
    checkpoints.write(Path("twin"))
    checkpoints.edit(
        checkpoints.write(Path("protected")),
        lambda tensors: {name: 1.1 * tensor for name, tensor in tensors.items()},
    )
    write_suite(tmp_path)
    return lambda *words: call("audit", *words, "--suite", "tiny.yaml", "--jobs", "1")


def write_suite(folder: Path, **changes: Any) -> None:
    settings = {
        "attacks": ["none", "scratch", "full"],
        "ladder_attacks": ["full"],
        "budget": {"durations": [2], "restarts": 1, "extension": 0},
        "utility": ["bits_per_token", "toy_agreement_pronoun"],
        **changes,
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tiny_suite(**settings).model_dump(mode="json")))


# --------------------------------------------------------------------------------------------------------- the audit


@pytest.mark.slow
def test_an_audit_ends_in_a_card_that_agrees_with_the_leaderboard(call: Call) -> None:
    """And the same command goes on where a killed one stopped."""
    code, out, _ = call("protected", "--reference", "twin", "--out", "found", "--fail-on", "unproven")
    assert code == 1, "one seed proves nothing"
    board = json.loads(Path("found/leaderboard.json").read_text())
    (row,) = [one for one in board["scores"] if one["kind"] == "defense"]
    assert row["defense"] == "checkpoint[path=protected,reference=twin]"
    assert board["ladder"] == {
        "noise": ["noise"],
        "quantize": ["quantize[bits=4]"],
    }

    card, page = Path("found/card.md").read_text(), Path("found/card.html").read_text()
    answer = re.findall(r"^\*\*(.*)\*\*$", card, re.MULTILINE)[0]
    assert row["verdict"] in answer
    assert answer in out
    for name, value in (("score after the best attack", row["attacked"]), ("utility kept, %", row["utility_percent"])):
        shown = "–" if value is None else f"{value['value']:.1f}"
        assert f"| {name} | {shown} | " in card
    for attack in ("full", "scratch"):
        assert re.search(rf"^\| {attack} \| nothing", card, re.MULTILINE)
    for text in ("noise", "quantize[bits=4]", "twin", "tiny: 17 of 17 results", "nftbench audit protected"):
        assert text in card
        assert text in page

    records = Store(Path("found"), Path()).records()
    gone = sorted(Path("found/records").glob("*.json"))[:2]
    for path in gone:
        path.unlink()
    code, out, _ = call("protected", "--reference", "twin", "--out", "found")
    assert code == 0, "without --fail-on the verdict does not count"
    assert f"cells: 2 of {len(records)} are left" in out
    assert Path("found/card.md").read_text().count("17 of 17 results") == 1


def test_plan_checks_and_estimates_and_runs_nothing(call: Call) -> None:
    code, out, _ = call("protected", "--reference", "twin", "--plan")
    assert code == 0
    for line in ("protected: gpt2, 0.0121 M parameters", "cells: 17 of 17 are left", "time: about", "disk: about"):
        assert line in out
    assert not Path("runs/audit-protected/records").exists()


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [("gpt2", {"n_layer": 3}, "gpt2, 0.0187 M parameters"), ("llama", {}, "llama, 0.0179 M parameters")],
)
def test_a_twin_of_another_size_or_architecture_is_named(
    call: Call, kind: str, changes: dict[str, Any], said: str
) -> None:
    """A protection may change either, so that an audit goes on; but it may also be the wrong folder."""
    assert "note: " not in call("protected", "--reference", "twin", "--plan")[1]
    checkpoints.write(Path("other"), kind, **changes)
    code, out, _ = call("protected", "--reference", "other", "--plan")
    assert code == 0
    note = next(line for line in out.splitlines() if line.startswith("note: "))
    assert "The release is gpt2, 0.0121 M parameters" in note
    assert f"its twin {said}" in note


def test_the_estimate_is_of_the_checkpoint_and_not_of_the_suites_model(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def operations() -> float:
        _, out, _ = call("protected", "--reference", "twin", "--plan")
        return float(re.findall(r"make ([\d.e+]+) FLOPs", out)[0])

    small = operations()
    monkeypatch.setattr(preflight, "memory_of", lambda device: 1e15)
    monkeypatch.setattr(preflight, "free_on_disk", lambda folder: 1e15)
    monkeypatch.setattr(
        preflight, "examine", lambda place, _=None: Checkpoint(place, "llama", 1_200_000_000, 128_000, 64)
    )
    monkeypatch.setattr(audit, "_refuse_same", lambda release, twin: None)
    given_estimate._checkpoint.cache_clear()
    assert operations() > 5e4 * small


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nowhere", "--reference", "twin"), "'nowhere' is neither a folder nor a hub id"),
        (("protected", "--reference", "a/b/c"), "'a/b/c' is neither a folder nor a hub id"),
        (("twin", "--reference", "twin"), "hold the same weights"),
        (("copy", "--reference", "twin"), "hold the same weights"),
        (("with-second-copy", "--reference", "twin"), "hold the same weights"),
        (("protected",), "--reference"),
        (("protected", "--reference", "twin", "--set", "ladder={}"), "an audit sets ladder itself"),
        (("protected", "--reference", "twin", "--set", "model.path=x"), "an audit sets model itself"),
        (("protected", "--reference", "twin", "--set", "attacks=[fulll]"), "did you mean 'full'"),
        (("protected", "--reference", "twin", "--fail-on", "never"), "--fail-on"),
        (("--reference", "twin", "empty"), "holds no model: it lacks a config.json"),
    ],
)
def test_nonsense_is_one_line_and_exit_code_2(call: Call, words: tuple[str, ...], said: str) -> None:
    checkpoints.write(Path("copy"))
    (checkpoints.write(Path("with-second-copy")) / "consolidated.safetensors").write_bytes(b"cut")
    Path("empty").mkdir()
    code, _, err = call(*words)
    assert code == 2
    assert said in err
    assert len(err.splitlines()) == 1
    assert not list(Path().glob("runs/*/records"))


@pytest.mark.parametrize(
    ("accident", "said"),
    [
        (lambda folder: [file.unlink() for file in folder.glob("tokenizer*")], "has no tokenizer"),
        (
            lambda folder: checkpoints.edit(folder, lambda held: {**held, NORM: held[NORM].fill_(math.nan)}),
            f"holds weights that are not finite: {NORM}",
        ),
    ],
)
@pytest.mark.parametrize("role", ["protected", "twin"])
def test_an_accident_of_a_checkpoint_is_one_line_before_anything_runs(
    call: Call, role: str, accident: Callable[[Path], object], said: str
) -> None:
    accident(Path(role))
    code, _, err = call("protected", "--reference", "twin")
    assert code == 2
    assert said in err
    assert role in err
    assert len(err.splitlines()) == 1
    assert not Path("runs").exists()


def test_too_little_memory_and_disk_are_said_before_anything_runs(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(preflight, "memory_of", lambda device: 1e8)
        code, _, err = call("protected", "--reference", "twin")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "too little memory: a worker needs about 602 MB, and there are 100 MB" in err
    monkeypatch.setattr(preflight, "free_on_disk", lambda folder: 10.0)
    code, _, err = call("protected", "--reference", "twin", "--cache", "empty-cache")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "too little disk: " in err


def test_a_limit_is_said_to_leave_the_card_without_scores(call: Call) -> None:
    code, out, _ = call("protected", "--reference", "twin", "--limit", "20", "--plan")
    assert code == 0
    assert "with --limit the card has no scores" in out
    assert "--set budget.max_test_documents=20" in out


def test_as_many_workers_as_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "memory_of", lambda device: 10e9)
    assert preflight.workers_that_fit(None, 8, partial(mul, 3e9), CPU) == 3
    assert preflight.workers_that_fit(None, 2, partial(mul, 3e9), CPU) == 2
    assert preflight.workers_that_fit(3, 1, partial(mul, 3e9), CPU) == 3
    with pytest.raises(NftbenchError, match="4 workers need about 12 GB, and there are 10 GB; --jobs 3 would fit"):
        preflight.workers_that_fit(4, 8, partial(mul, 3e9), CPU)


# -------------------------------------------------------------------------------------------------------------- the hub


class Hub:
    """A hub that serves the folders below `root`, without their weights."""

    root: Path

    def model_info(self, repository: str, revision: str | None) -> Any:
        files = [SimpleNamespace(rfilename=path.name) for path in self._folder(repository)]
        return SimpleNamespace(sha="0" * 40, siblings=files)

    def parse_safetensors_file_metadata(self, repository: str, name: str, revision: str | None) -> Any:
        with safe_open(self.root / repository / name, framework="pt") as file:
            metadata, names = file.metadata(), list(file.keys())
        header = (self.root / repository / name).read_bytes()
        size = int.from_bytes(header[:8], "little")
        found = json.loads(header[8 : 8 + size])
        return SimpleNamespace(metadata=metadata, tensors={one: SimpleNamespace(**found[one]) for one in names})

    def _folder(self, repository: str) -> list[Path]:
        if not (self.root / repository).is_dir():
            raise OSError(f"404: {repository}\nand more lines")
        return sorted((self.root / repository).iterdir())


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def download(
        repository: str,
        *,
        revision: str | None,
        local_dir: Path | None = None,
        allow_patterns: list[str] | None = None,
        local_files_only: bool = False,
    ) -> None:
        if local_dir is None or allow_patterns is None:
            raise huggingface_hub.errors.LocalEntryNotFoundError("nothing is in the cache of this machine")
        for path in (tmp_path / "hub" / repository).iterdir():
            if any(path.match(pattern) for pattern in allow_patterns):
                (local_dir / path.name).write_bytes(path.read_bytes())

    monkeypatch.setattr(Hub, "root", tmp_path / "hub", raising=False)
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return tmp_path / "hub"


def test_a_checkpoint_on_the_hub_is_examined_without_its_weights(hub: Path) -> None:
    folder = checkpoints.write(hub / "some" / "model", "llama")
    found = preflight.examine("some/model")
    assert found == replace(preflight.examine(str(folder)), place="some/model")
    assert found.architecture == "llama"


def test_accidents_on_the_hub_are_named_by_their_id(hub: Path) -> None:
    folder = checkpoints.write(hub / "some" / "model")
    with pytest.raises(
        NftbenchError, match=r"^other/model: the hub has not answered for it: 404: other/model; download"
    ):
        preflight.examine("other/model")
    checkpoints.edit(folder, lambda tensors: {"other": torch.ones(1)})
    with pytest.raises(NftbenchError, match=r"^some/model: the files lack "):
        preflight.examine("some/model")
    (folder / checkpoints.WEIGHTS).rename(folder / "pytorch_model.bin")
    with pytest.raises(NftbenchError, match=r"^some/model: has no weights .* pytorch_model.bin could run code"):
        preflight.examine("some/model")
