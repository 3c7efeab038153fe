"""A defense that is changed after results, on the same grammars, is named on the board until it runs on fresh ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import yaml

from nftbench.records.store import Store
from nftbench.testing import tiny_suite
from tests.cli.test_verbs import IDLE, MINE, write_plugin

Call = Callable[..., tuple[int, str, str]]
SAID = "1 other version or settings of it had results on these grammars"


def flagged(folder: str) -> dict[str, str]:
    """The rows of a folder's leaderboard that have the flag, with what it says."""
    rows = json.loads(Path(folder, "leaderboard.json").read_text())["scores"]
    return {row["defense"]: flag["message"] for row in rows for flag in row["flags"] if flag["name"] == "versions"}


def test_an_edited_plugin_is_named_until_it_runs_in_a_new_folder(call: Call, tmp_path: Path) -> None:
    suite = tiny_suite(attacks=["none"]).model_dump(mode="json")
    Path("tiny.yaml").write_text(yaml.safe_dump({**suite, "salt": None}))
    mine = write_plugin(tmp_path, "mine", MINE)

    def run(folder: str, *words: str) -> str:
        code, out, err = call("run", "tiny.yaml", "--jobs", 1, "--plugin", mine, "--out", folder, *words)
        assert code == 0, err
        return " ".join(out.split())

    run("a")
    write_plugin(tmp_path, "mine", f"# a comment\n{MINE}")
    assert "nothing is left to run" in run("a")
    run("a", "--plugin", write_plugin(tmp_path, "idle", IDLE))
    assert flagged("a") == {}

    write_plugin(tmp_path, "mine", MINE.replace("self.shift", "self.shift + 0.01"))
    assert SAID in run("a")
    assert flagged("a")["mine"].startswith(SAID)
    assert list(flagged("a")) == ["mine"]
    assert SAID in Path("a/leaderboard.md").read_text()
    assert "run the final version once in a new folder" in Path("a/leaderboard.md").read_text()
    assert SAID in Path("a/index.html").read_text()
    assert "nothing is left to run" in run("a")
    before = flagged("a")

    for record in Store(Path("a"), tmp_path).records().values():
        Store(Path("b"), tmp_path).write(record)
    for name in ("manifest.json", "salt"):
        Path("b", name).write_bytes(Path("a", name).read_bytes())
    assert call("pack", "a")[0] == call("merge", "a", "b", "--out", "c")[0] == call("report", "a", "c")[0] == 0
    assert flagged("a") == flagged("c") == before

    run("d")
    assert flagged("d") == {}
