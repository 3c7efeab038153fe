"""A given base on the command line: from plan to ranking, and what plan refuses in one line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from nftbench.testing import tiny_suite
from tests import checkpoints

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return checkpoints.write_reader(tmp_path / "base")


def write_suite(**changes: Any) -> None:
    settings = tiny_suite(**{"seeds": [0, 1], **changes}).model_dump(mode="json", exclude_none=True)
    Path("tiny.yaml").write_text(yaml.safe_dump(settings))


@pytest.mark.slow
def test_a_suite_on_a_given_base_runs_from_plan_to_ranking(call: Call, base: Path) -> None:
    """And nothing is pre-trained: the cache holds the base and no run."""
    write_suite(
        defenses=["none", "noise", "prune"],
        attacks=["none", "scratch", "full"],
        utility=["bits_per_byte"],
        ladder={"interpolate": ["interpolate"], "continued": ["continued[steps=2]"]},
    )
    code, _, err = call("run", "tiny.yaml", "--model", str(base), "--out", "found", "--jobs", "1", "--cache", "cache")
    assert (code, err) == (0, "")
    board = json.loads(Path("found/leaderboard.json").read_text())
    assert {row["defense"] for row in board["scores"]} == {
        "none",
        "noise",
        "prune",
        "interpolate",
        "continued[steps=2]",
    }
    assert [path.name.rpartition("-")[2] for path in Path("cache/bases").iterdir()] == ["given"]


def nan(folder: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors["model.norm.weight"][0] = math.nan
        return tensors

    checkpoints.edit(folder, spoil)


@pytest.mark.parametrize(
    ("accident", "said"),
    [
        (lambda folder: [file.unlink() for file in folder.glob("tokenizer*")], "has no tokenizer"),
        (
            lambda folder: (folder / checkpoints.WEIGHTS).rename(folder / "pytorch_model.bin"),
            "could run code when read",
        ),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "holds an adapter and not the model"),
        (lambda folder: checkpoints.edit(folder, lambda _: {"x": torch.ones(1)}), "the files lack "),
        (nan, "holds weights that are not finite: model.norm.weight"),
    ],
)
def test_a_base_with_an_accident_is_one_line_in_plan(
    call: Call, base: Path, accident: Callable[[Path], object], said: str
) -> None:
    write_suite()
    accident(base)
    code, _, err = call("plan", "tiny.yaml", "--model", str(base))
    assert (code, len(err.splitlines())) == (2, 1)
    assert said in err
    assert str(base) in err
