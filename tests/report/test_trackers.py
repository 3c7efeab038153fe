"""What experiment trackers are given, read back from what the real packages store offline."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nftbench.records.store import Store
from tests.comparing.sides import folder
from tests.report.test_exports import SECRET_SALT, made

LOG = "import sys; from nftbench.cli import main; sys.exit(main(['report', 'run', '--log-to', sys.argv[1]]))"
READ = {
    "wandb": """
import glob, struct
from wandb.proto import wandb_internal_pb2

(path,) = glob.glob("wandb/offline-run-*/run-*.wandb")
data, place, part, found, artifacts = open(path, "rb").read(), 7, b"", {}, []
while place + 7 <= len(data):  # LevelDB's log format: pieces with a header of 7 bytes, in blocks of 32 KiB
    left = 32768 - place % 32768
    if left < 7:
        place += left
        continue
    _, length, kind = struct.unpack("<IHB", data[place : place + 7])
    part += data[place + 7 : place + 7 + length]
    place += 7 + length
    if kind in (1, 4):  # a whole record, or its last piece
        record, part = wandb_internal_pb2.Record.FromString(part), b""
        for item in record.summary.update:
            found[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
        for one in (record.artifact, record.request.log_artifact.artifact):
            artifacts += [one.type] if one.name else []
table = found.get("leaderboard/nrows")
""",
    "mlflow": """
import mlflow

client = mlflow.MlflowClient()
(run,) = client.search_runs([client.get_experiment_by_name("nftbench").experiment_id])
found, artifacts = run.data.metrics, [one.path for one in client.list_artifacts(run.info.run_id) if one.is_dir]
path = client.download_artifacts(run.info.run_id, "leaderboard-table.json")
table = len(json.load(open(path))["data"])
""",
    "trackio": """
import os, sqlite3

stored = sqlite3.connect(os.path.join(os.environ["TRACKIO_DIR"], "nftbench.db"))
((text,),) = stored.execute("SELECT metrics FROM metrics")
found, artifacts = json.loads(text), [kind for (kind,) in stored.execute("SELECT type FROM artifacts")]
table = len(found["leaderboard"]["_value"])
""",
}
"""Code that finds the numbers, the types of artifacts, and the number of rows of the table."""


@pytest.mark.slow
@pytest.mark.parametrize("tracker", READ)
def test_a_tracker_is_given_numbers_table_and_artifact(
    tracker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process of its own, offline, with everything that the tracker stores in the test's folder."""
    if importlib.util.find_spec(tracker) is None:
        pytest.skip(f"{tracker} is not installed: pip install 'nftbench[{tracker}]'")
    monkeypatch.chdir(tmp_path)
    plan, found = made()
    Store(folder(Path("run"), found, plan), tmp_path).keep_salt(SECRET_SALT)
    places = {
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "MLFLOW_TRACKING_URI": (tmp_path / "mlflow").as_uri(),
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "HOME": str(tmp_path),
    }

    def python(code: str, *words: str) -> str:
        command = [sys.executable, "-c", code, *words]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **places}, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert f"run: logged with {tracker}" in python(LOG, tracker)
    told = "print(json.dumps({'numbers': found, 'artifacts': artifacts, 'table': table}))"
    content = json.loads(python(f"import json\n{READ[tracker]}\n{told}").splitlines()[-1])
    assert content["numbers"]["pmp/suppression"] == pytest.approx(30)
    assert content["numbers"]["pmp/rank"] == 1
    assert content["table"] == 3, "none, early_stop and pmp"
    assert "eval_results" in content["artifacts"]
    stored = [path for path in tmp_path.rglob("*") if path.is_file() and tmp_path / "run" not in path.parents]
    assert stored
    for path in stored:
        for private in (SECRET_SALT, "secret-project", "somebody"):
            assert private.encode() not in path.read_bytes(), path
