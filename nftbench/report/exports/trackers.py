"""A leaderboard in an experiment tracker: numbers of each row, the leaderboard as a table, the results as an artifact.

Where a tracker stores them is for its own environment variables to say, such as WANDB_PROJECT, TRACKIO_PROJECT or
MLFLOW_TRACKING_URI. Nothing about the machine is sent.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from nftbench.errors import NftbenchError, one_line
from nftbench.records import manifest as manifests, pack
from nftbench.records.store import PACK, as_json
from nftbench.report import csv, write
from nftbench.report.exports.results import Results
from nftbench.report.labels import of
from nftbench.scoring.intervals import Interval, in_percent
from nftbench.scoring.scores import Score

Tracker = Literal["trackio", "wandb", "mlflow"]
PROJECT = "nftbench"
KIND = "eval_results"
"""The type of the artifact, as lm-eval names it too."""


def check(tracker: Tracker) -> None:
    """Refuse a tracker whose package is missing.

    Raises:
        NftbenchError: it is not installed.
    """
    if importlib.util.find_spec(tracker) is None:
        raise NftbenchError(f"--log-to {tracker}: the package is not installed: pip install 'nftbench[{tracker}]'")


def log(results: Results, tracker: Tracker) -> None:
    """Log the results as one run of a tracker, which is named after the suite.

    Raises:
        NftbenchError: the package is not installed, or it refuses, as without a login.
    """
    check(tracker)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / results.board.suite
        _write(results, folder)
        try:
            _TRACKERS[tracker](results, folder)
        except Exception as error:  # packages of others, with exceptions of their own
            raise NftbenchError(f"--log-to {tracker}: {type(error).__name__}: {one_line(str(error))}") from error


def summary(results: Results) -> dict[str, float]:
    """The numbers of each row, as `pmp/suppression`, with the ends of their intervals."""
    names = of(results.board)
    return {
        f"{names[score.defense]}/{name}": value for score in results.rows for name, value in _numbers(score).items()
    }


def _numbers(score: Score) -> dict[str, float]:
    intervals: Mapping[str, Interval | None] = {
        "excess": score.excess.interval,
        "suppression": score.resistance.suppression,
        "utility_percent": in_percent(score.utility.retention) if score.utility.retention else None,
        "unattacked": score.resistance.unattacked,
        "attacked": score.resistance.attacked,
    }
    found = {
        f"{name}{end}": value
        for name, interval in intervals.items()
        if interval is not None
        for end, value in (("", interval.value), ("_low", interval.low), ("_high", interval.high))
        if math.isfinite(value)
    }
    return found | ({"rank": float(score.standing.rank)} if score.standing.rank is not None else {})


def _facts(results: Results) -> dict[str, Any]:
    """The settings of the run."""
    board = results.board
    return {
        "suite": board.suite,
        "command": results.command,
        "ranking": board.rules.ranking,
        "records": board.origin.records,
        "planned": board.origin.planned,
    }


def _table(results: Results) -> Any:
    """leaderboard.csv as a data frame; texts and numbers alone, since trackers guess the types of columns."""
    import pandas

    return pandas.read_csv(io.StringIO(csv.text(results.board)))


def _write(results: Results, folder: Path) -> None:
    """The results as a packed folder with its reports."""
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(manifests.dump(results.manifest), encoding="utf-8")
    (folder / PACK).write_bytes(pack.encode([json.loads(as_json(record)) for record in results.records]))
    write(results.board, folder, results.command)


# ------------------------------------------------------------------------------------------------------------ trackers


def _wandb(results: Results, folder: Path) -> None:
    wandb = importlib.import_module("wandb")
    quiet = wandb.Settings(
        disable_git=True,
        save_code=False,
        console="off",
        host="unknown",
        x_disable_meta=True,
        x_disable_stats=True,
        x_disable_machine_info=True,
    )
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=results.board.suite,
        config=_facts(results),
        settings=quiet,
    )
    run.summary.update(summary(results))
    run.log({"leaderboard": wandb.Table(dataframe=_table(results))})
    artifact = wandb.Artifact(_artifact(results), type=KIND)
    artifact.add_dir(str(folder))
    run.log_artifact(artifact)
    run.finish()


def _trackio(results: Results, folder: Path) -> None:
    trackio = importlib.import_module("trackio")
    trackio.init(
        project=os.environ.get("TRACKIO_PROJECT", PROJECT),
        name=results.board.suite,
        config=_facts(results),
        embed=False,
        auto_log_gpu=False,
        auto_log_cpu=False,
    )
    trackio.log({**summary(results), "leaderboard": trackio.Table(dataframe=_table(results))})
    trackio.log_artifact(str(folder), name=_artifact(results), type=KIND)
    trackio.finish()


def _mlflow(results: Results, folder: Path) -> None:
    mlflow = importlib.import_module("mlflow")
    client = mlflow.MlflowClient()
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    known = client.get_experiment_by_name(name)
    experiment = client.create_experiment(name) if known is None else known.experiment_id
    # The client, unlike mlflow.start_run, adds no tags with the user and the path of the program.
    run = client.create_run(
        experiment, run_name=results.board.suite, tags={"mlflow.user": "", "mlflow.source.name": ""}
    )
    for key, value in _facts(results).items():
        client.log_param(run.info.run_id, key, value)
    for key, value in summary(results).items():
        client.log_metric(run.info.run_id, _plain(key), value)
    client.log_table(run.info.run_id, _table(results), "leaderboard-table.json")
    client.log_artifacts(run.info.run_id, str(folder), KIND)
    client.set_terminated(run.info.run_id)


def _plain(name: str) -> str:
    """A name in the characters that MLflow takes."""
    return re.sub(r"[^\w/. -]", "-", name)


def _artifact(results: Results) -> str:
    """A name in the characters that trackers take."""
    return re.sub(r"[^\w.-]", "-", f"nftbench-{results.board.suite}")


_TRACKERS: Mapping[Tracker, Callable[[Results, Path], None]] = {"trackio": _trackio, "wandb": _wandb, "mlflow": _mlflow}
